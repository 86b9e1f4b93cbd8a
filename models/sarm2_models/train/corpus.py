"""Recorded episodes as flat arrays: what training reads.

A dataset on disk is one row group after the other; training wants any frame at any time. `index_dataset` goes
through a dataset once and leaves two files: `labels.npz` (plain numbers) and `pictures.npy` (all JPEG files
one after the other), which is mapped into memory and not read.

Shapes: T frames of all episodes, N episodes, C cameras, S state, A action, K simulator quantities.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput
from sarm2_client.images import decode_jpeg
from sarm2_models.train.plan import KINDS
from sarm2_models.vocabulary import Vocabulary
from sarm2_models.window import IntArray, source_index
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.whole_file import whole_file


@dataclass(frozen=True)
class Corpus:
    """All frames of a dataset, one after the other.

    Attributes:
        fps: frames a second.
        cameras, state_names, simulator_names: of the axes C, S, K.
        task_names, instructions: by task index.
        state_TS, simulator_TK: float32. progress_T: float32 in [0, 1]. primitive_T: index in the vocabulary.
        first_N, length_N: where each episode starts and how many frames it has.
        task_N, kind_N: its task and its kind (index into `plan.KINDS`). success_N: 0 or 1. seed_N.
        action_TA: float32, what the robot did until the next frame; A is 0 where it was not recorded.
        offsets: (C x T + 1) byte offsets of the pictures in `pictures`, frame by frame, camera by camera.
        pictures: uint8, mapped from disk.
    """

    fps: float
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    simulator_names: tuple[str, ...]
    task_names: tuple[str, ...]
    instructions: tuple[str, ...]
    state_TS: npt.NDArray[np.float32]
    simulator_TK: npt.NDArray[np.float32]
    progress_T: npt.NDArray[np.float32]
    primitive_T: IntArray
    first_N: IntArray
    length_N: IntArray
    task_N: IntArray
    kind_N: IntArray
    success_N: IntArray
    seed_N: IntArray
    action_TA: npt.NDArray[np.float32]
    offsets: IntArray
    pictures: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.progress_T)

    @property
    def episodes(self) -> int:
        """N."""
        return len(self.first_N)

    @property
    def episode_T(self) -> IntArray:
        """The episode of each frame."""
        return np.repeat(np.arange(self.episodes), self.length_N)

    def frames(self, episode: int) -> slice:
        """The frames of one episode."""
        first = int(self.first_N[episode])
        return slice(first, first + int(self.length_N[episode]))

    def kind(self, episode: int) -> str:
        """How an episode came about."""
        return KINDS[int(self.kind_N[episode])]

    @property
    def is_demo_N(self) -> npt.NDArray[np.bool_]:
        """Whether each episode is a demonstration, even or uneven, and no rollout."""
        return np.isin(self.kind_N, [KINDS.index("demo"), KINDS.index("clean_demo")])

    @property
    def source_T(self) -> IntArray:
        """Where each frame's episode comes from: its place in `SOURCES`."""
        shown, tried = source_index("demonstration"), source_index("rollout")
        return np.repeat(np.where(self.is_demo_N, shown, tried), self.length_N)

    def only(self, chosen_N: npt.NDArray[np.bool_]) -> Corpus:
        """The labels of some of the episodes; `picture` does not follow."""
        chosen_T = np.repeat(chosen_N, self.length_N)
        rows: dict[str, Any] = {name: getattr(self, name)[chosen_N] for name in by_axis(Corpus, "_N")}
        rows |= {name: getattr(self, name)[chosen_T] for name in by_axis(Corpus, "_T", "_TS", "_TA", "_TK")}
        return replace(self, **rows | {"first_N": starts(rows["length_N"])})

    @staticmethod
    def joined(parts: Sequence[Corpus]) -> Corpus:
        """The labels of several corpora, one after the other; names and `picture` are the first one's."""
        names = by_axis(Corpus, "_N", "_T", "_TS", "_TA", "_TK")
        rows: dict[str, Any] = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
        return replace(parts[0], **rows | {"first_N": starts(rows["length_N"])})

    def picture(self, frame: int, camera: int) -> npt.NDArray[np.uint8]:
        """One picture, uint8 RGB (H, W, 3)."""
        place = frame * len(self.cameras) + camera
        start, stop = int(self.offsets[place]), int(self.offsets[place + 1])
        return decode_jpeg(self.pictures[start:stop].tobytes())


def by_axis(owner: type[Any], *axes: str) -> list[str]:
    """Names of a dataclass's arrays whose axes are these: `_T` for (T,), `_TS` for (T, S)."""
    return [one.name for one in fields(owner) if one.name.endswith(axes)]


def starts(length_N: IntArray) -> IntArray:
    """Where each of several runs of frames begins, when they lie one after the other."""
    begins_N: IntArray = np.concatenate([[0], np.cumsum(length_N)[:-1]])
    return begins_N


def index_dataset(
    root: Path,
    folder: Path,
    vocabulary: Vocabulary,
    tasks: Sequence[str],
    *,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the arrays of the dataset in `root` to `folder`; `meta.json` comes last and says it is whole.

    Args:
        tasks: short task names; they fix the task indices, the same in every split.

    Raises InvalidInput for episodes without progress, primitives, simulator state, or of another task.
    """
    dataset = open_dataset(root)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    instructions: dict[str, str] = {}
    sizes: list[npt.NDArray[np.int64]] = []
    with (folder / "pictures.bin").open("wb") as blob:
        for number, episode in enumerate(dataset):
            _check(episode, f"episode {number} of {root}", tasks)
            rows.append(_row(episode, vocabulary, tasks))
            instructions[str(episode.task_name)] = episode.task
            files = [episode.images[camera][t] for t in range(len(episode)) for camera in dataset.cameras]
            blob.writelines(files)
            sizes.append(np.array([len(file) for file in files], dtype=np.int64))
            tick(number + 1, len(dataset))
            names = (dataset.state_names, episode.simulator_names)
    arrays = {
        key: np.concatenate([row[key] for row in rows])
        for key in rows[0]
        if key.endswith(("_TS", "_TA", "_TK", "_T"))
    }
    arrays |= {
        key: np.array([row[key] for row in rows], dtype=np.int64) for key in rows[0] if key.endswith("_N")
    }
    arrays["first_N"] = starts(arrays["length_N"])
    arrays["offsets"] = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    with (folder / "labels.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    meta = {
        "fps": dataset.fps,
        "cameras": list(dataset.cameras),
        "state_names": list(names[0]),
        "simulator_names": list(names[1]),
        "task_names": list(tasks),
        "instructions": [instructions.get(task, task) for task in tasks],
    }
    with whole_file(folder / "meta.json") as fresh:  # the last of them: with it the corpus is whole
        fresh.write_text(json.dumps(meta, indent=1))


def load_corpus(folder: Path) -> Corpus:
    """What `index_dataset` wrote; the pictures stay on disk."""
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "labels.npz", allow_pickle=False) as arrays:
        columns: dict[str, Any] = {key: arrays[key] for key in arrays.files}
    pictures = np.memmap(folder / "pictures.bin", dtype=np.uint8, mode="r")
    named: dict[str, Any] = {key: tuple(value) for key, value in meta.items() if key != "fps"}
    return Corpus(fps=float(meta["fps"]), pictures=cast(npt.NDArray[np.uint8], pictures), **named, **columns)


def _check(episode: Episode, where: str, tasks: Sequence[str]) -> None:
    labels = {
        "progress": episode.progress_T,
        "primitives": episode.segments,
        "simulator state": episode.simulator_TK,
    }
    missing = [name for name, values in labels.items() if values is None]
    if missing:
        raise InvalidInput(
            f"training needs episodes with {', '.join(labels)}; {where} has no {' and no '.join(missing)}: "
            "make such episodes with `sarm2 record`",
            field=missing[0],
        )
    if episode.task_name is None or episode.task_name not in tasks or episode.kind not in KINDS:
        raise InvalidInput(
            f"expected episodes of {', '.join(tasks)}, got {episode.task_name!r} ({episode.kind}) in "
            f"{where}; use another output folder for other tasks",
            field="task",
        )


def _row(episode: Episode, vocabulary: Vocabulary, tasks: Sequence[str]) -> dict[str, Any]:
    assert episode.progress_T is not None
    assert episode.simulator_TK is not None
    assert episode.task_name is not None
    action_TA = np.zeros((len(episode), 0)) if episode.action_TA is None else episode.action_TA
    return {
        "state_TS": episode.state_TS.astype(np.float32),
        "action_TA": action_TA.astype(np.float32),
        "simulator_TK": episode.simulator_TK.astype(np.float32),
        "progress_T": episode.progress_T.astype(np.float32),
        "primitive_T": np.array([vocabulary.index(name) for name in episode.primitives_T], dtype=np.int64),
        "length_N": len(episode),
        "task_N": list(tasks).index(episode.task_name),
        "kind_N": KINDS.index(episode.kind),
        "success_N": int(bool(episode.success)),
        "seed_N": -1 if episode.seed is None else episode.seed,
    }
