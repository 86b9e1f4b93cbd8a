"""The two datasets of an adaptation: the policy's rollouts, and episodes of the kind trained on before.

Every `HELD_OUT`-th episode of each is kept back: half of those calibrate the adapted model, the other half
measure it.

Shapes: T frames, N episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sarm2_client.errors import InvalidInput
from sarm2_models.reward_model import RewardModel
from sarm2_models.train.corpus import Corpus, index_dataset, load_corpus
from sarm2_models.train.embed import FRAMES_AT_ONCE, embed_shard, load_embeddings
from sarm2_models.train.loop import Tick
from sarm2_models.train.windows import Frames, hints_of
from sarm2_models.window import BoolArray, Float32Array, IntArray
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.marks_file import marked_curves
from sarm2_rollouts.simulated_marks import as_marked

HELD_OUT = 4
SHARD_FRAMES = 16 * FRAMES_AT_ONCE
"""Frames whose embeddings lie in one file."""
PARTS = ("rollouts", "training")
"""The two datasets, in the order in which they are read."""


@dataclass(frozen=True)
class Part:
    """A dataset as arrays: episodes to learn from, to calibrate on and to measure on.

    Attributes:
        marked_T: float32, progress as a person marked it; None where nobody did.
    """

    corpus: Corpus
    frames: Frames
    marked_T: Float32Array | None = None

    def only(self, chosen_N: BoolArray) -> Part:
        """Some of the episodes."""
        corpus = self.corpus
        chosen_T = np.repeat(chosen_N, corpus.length_N)
        marked_T = None if self.marked_T is None else self.marked_T[chosen_T]
        return Part(corpus.only(chosen_N), self.frames.only(chosen_N, corpus.length_N), marked_T)

    def as_marked(self, said_T: IntArray) -> Part:
        """The same with what a person's marks say, or would say (`simulated_marks`): progress alone.

        Args:
            said_T: primitives of all frames, which nobody names: the stage estimator's take their place.
        """
        corpus, progress_T = self.corpus, self.marked_T
        if progress_T is None:
            curves = [
                as_marked(corpus.progress_T[corpus.frames(number)], corpus.fps)
                for number in range(corpus.episodes)
            ]
            progress_T = np.concatenate(curves) if curves else corpus.progress_T
        labels: dict[str, Any] = {"progress_T": progress_T, "primitive_T": said_T}
        return Part(replace(corpus, **labels), replace(self.frames, **labels))

    @staticmethod
    def joined(parts: Sequence[Part]) -> Part:
        """Several, one after the other."""
        return Part(
            Corpus.joined([part.corpus for part in parts]), Frames.joined([part.frames for part in parts])
        )


def load_parts(
    model: RewardModel,
    rollouts: Path,
    training: Path,
    work: Path,
    counts: Sequence[int],
    field: str,
    device: str,
    tick: Tick,
    marks: Path | None = None,
) -> list[Part]:
    """Both datasets, kept in `work` for a second start.

    Args:
        marks: a person's, of all rollouts.

    Raises, before anything is embedded, InvalidInput for too few episodes, and with `field` for more rollouts
    in `counts` than there are to learn from, and what `marked_curves` raises.
    """
    roots = dict(zip(PARTS, (rollouts, training), strict=True))
    for name, root in roots.items():
        _check_cameras(name, root, model.config.cameras)
    tasks = _tasks(list(roots.values()))
    corpora = _worded({name: _indexed(model, root, work / name, tasks) for name, root in roots.items()})
    for name, corpus in corpora.items():
        _check_episodes(name, corpus)
    _check_counts(counts, corpora[PARTS[0]], field)
    marked_T = None
    if marks is not None:
        marked_T = np.concatenate(marked_curves(marks, corpora[PARTS[0]].length_N.tolist()))
    first, second = (_embedded(model, corpora[name], work / name, device, tick) for name in PARTS)
    return [replace(first, marked_T=marked_T), second]


def _check_cameras(name: str, root: Path, cameras: Sequence[str]) -> None:
    found = open_dataset(root).cameras
    if tuple(found) != tuple(cameras):
        raise InvalidInput(
            f"{name}: the model sees {', '.join(cameras)}, in this order, and {root} has "
            f"{', '.join(found) or 'no pictures'}; record with those cameras",
            field=name,
        )


def _tasks(roots: Sequence[Path]) -> list[str]:
    names = {str(episode.task_name) for root in roots for episode in open_dataset(root, pictures=False)}
    return sorted(names)


def _indexed(model: RewardModel, root: Path, folder: Path, tasks: Sequence[str]) -> Corpus:
    """A dataset without its pictures' embeddings; kept for a second start."""
    if not (folder / "meta.json").exists():
        index_dataset(root, folder, model.vocabulary, tasks)
    return load_corpus(folder)


def _worded(corpora: dict[str, Corpus]) -> dict[str, Corpus]:
    """The same with every task's instruction in each: a dataset has only those of its own episodes."""
    found = list(corpora[PARTS[0]].instructions)
    for corpus in corpora.values():
        for task in np.unique(corpus.task_N):
            found[task] = corpus.instructions[task]
    return {name: replace(corpus, instructions=tuple(found)) for name, corpus in corpora.items()}


def _embedded(model: RewardModel, corpus: Corpus, folder: Path, device: str, tick: Tick) -> Part:
    """The same with them; kept as well, some frames at a time, so that a kill costs those alone."""
    paths, done = [], 0

    def told(frames: int) -> None:
        nonlocal done
        done += frames
        tick(done, len(corpus), f"embedding {folder.name}")

    for start in range(0, len(corpus), SHARD_FRAMES):
        stop = min(start + SHARD_FRAMES, len(corpus))
        paths.append(folder / f"embeddings_{start:08d}.npy")
        if paths[-1].exists():
            told(stop - start)
        embed_shard(corpus, model.encoder, paths[-1], (start, stop), tick=told)
    state_TS = model.statistics.standardise(corpus.state_TS)
    return Part(corpus, Frames.of(corpus, load_embeddings(paths), state_TS, model.config.window, device))


def split(parts: Sequence[Part], rollout_count: int | None) -> tuple[list[Part], list[Part], list[Part]]:
    """Of each: what is learned from (of the rollouts, the first `rollout_count`), calibrates and measures."""
    learned, calibrated, measured = [], [], []
    for place, part in enumerate(parts):
        held_N, turn_N = held_out(part.corpus.kind_N)
        learn_N = ~held_N
        if place == 0 and rollout_count is not None:
            learn_N &= np.cumsum(learn_N) <= rollout_count
        learned.append(part.only(learn_N))
        calibrated.append(part.only(held_N & turn_N))
        measured.append(part.only(held_N & ~turn_N))
    return learned, calibrated, measured


def _check_episodes(name: str, corpus: Corpus) -> None:
    if held_out(corpus.kind_N)[0].sum() < 2:
        raise InvalidInput(
            f"{name}: adaptation needs at least {2 * HELD_OUT} rollouts and as many episodes of the training "
            f"kind, got {corpus.episodes} here; record more",
            field=name,
        )


def _check_counts(counts: Sequence[int], rollouts: Corpus, field: str) -> None:
    most = int((~held_out(rollouts.kind_N)[0]).sum())
    if min(counts, default=1) < 1:
        raise InvalidInput(
            f"{field}: {min(counts)} rollouts to learn from; ask for 1 at least (the model before any "
            "of them is told as well)",
            field=field,
        )
    if max(counts, default=0) > most:
        raise InvalidInput(
            f"{field}: {max(counts)} rollouts to learn from, and {most} are there besides those held out; "
            f"ask for {most} at most, or record more",
            field=field,
        )


def held_out(kind_N: IntArray) -> tuple[BoolArray, BoolArray]:
    """Every `HELD_OUT`-th episode of each kind, and those of them (every other one) that calibrate."""
    by_kind_N = np.argsort(kind_N, kind="stable")
    ranks = [np.arange(count) for count in np.unique(kind_N, return_counts=True)[1]]
    held_N, turn_N = np.zeros(len(kind_N), dtype=bool), np.zeros(len(kind_N), dtype=bool)
    held_N[by_kind_N] = np.concatenate(ranks) % HELD_OUT == HELD_OUT - 1
    turn_N[by_kind_N] = np.cumsum(held_N[by_kind_N]) % 2 == 1
    return held_N, turn_N


def mixed(parts: Sequence[Part]) -> tuple[Frames, Float32Array]:
    """All frames, every part with the same weight in all, and the stage estimator's hints."""
    joined = Part.joined(parts)
    weight_T = np.concatenate([np.full(len(part.frames), 1 / len(part.frames)) for part in parts])
    frames = replace(joined.frames, weight_T=weight_T / len(parts))
    return frames, hints_of(joined.corpus)
