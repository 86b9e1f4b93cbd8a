"""Episodes drawn by hand, with the simulated robot's cameras, state and labels: no simulator needed.

A white square (the tool) moves from left to right over a picture whose colour is the task; progress is how
far it is. A `perturbed` episode of odd seed runs back to the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from sarm2_client.images import encode_jpeg
from sarm2_models.train.corpus import Corpus, index_dataset, load_corpus
from sarm2_models.train.layout import RunFolder
from sarm2_models.train.plan import PlannedEpisode, Split, planned_episodes
from sarm2_models.vocabulary import load_vocabulary
from sarm2_rollouts.episode import Episode, EpisodeKind, LabelledSegment
from sarm2_rollouts.expert_label import CrossCheck
from sarm2_rollouts.lerobot_writer import write_dataset
from sarm2_rollouts.simulator_state import SIMULATOR_NAMES
from sarm2_rollouts.tasks import ACTION_NAMES, CAMERAS, FPS, IMAGE_SIZE, STATE_NAMES, TASKS

FRAMES = 16

HAMMER_EPISODES = [
    PlannedEpisode("hammer", kind, seed)
    for seed in range(2)
    for kind in ("demo", "clean_demo", "perturbed", "random")
]
"""Two of each kind."""


def synthetic_episode(planned: PlannedEpisode) -> Episode:
    """An episode of `FRAMES` frames; the same plan gives the same episode."""
    rng = np.random.default_rng([planned.seed, len(planned.task_name)])
    progress_T = np.linspace(0, 1, FRAMES, dtype=np.float32)
    if planned.kind == "perturbed" and planned.seed % 2:
        progress_T = np.minimum(progress_T, 1 - progress_T).astype(np.float32) * 2
    if planned.kind == "random":
        progress_T = np.zeros(FRAMES, dtype=np.float32)
    colour = 15 * (1 + sorted(TASKS).index(planned.task_name))
    height = int(rng.integers(10, 70))
    pictures = [encode_jpeg(_picture(colour, float(progress), height)) for progress in progress_T]
    half = FRAMES // 2
    return Episode(
        task=TASKS[planned.task_name].instruction,
        fps=FPS,
        images=dict.fromkeys(CAMERAS, pictures),
        state_TS=np.stack([progress_T, progress_T**2, 0 * progress_T, 1 - progress_T], axis=1),
        kind=planned.kind,
        success=bool(progress_T[-1] >= 1),
        seed=planned.seed,
        task_name=planned.task_name,
        progress_T=progress_T,
        segments=(LabelledSegment("reach", 0, half), LabelledSegment("transport", half, FRAMES)),
        action_TA=np.stack([progress_T, 0 * progress_T, 0 * progress_T, 1 - progress_T], axis=1),
        action_names=ACTION_NAMES,
        simulator_TK=_simulator(progress_T, height),
        simulator_names=SIMULATOR_NAMES,
    )


def write_synthetic(plan: Sequence[PlannedEpisode], root: Path) -> None:
    """The plan's episodes as a LeRobot dataset that keeps the JPEG files."""

    def episodes() -> Iterator[Episode]:
        return (synthetic_episode(planned) for planned in plan)

    write_dataset(episodes(), root, storage="image", state_names=STATE_NAMES)


def synthetic_corpus(plan: Sequence[PlannedEpisode], root: Path, tasks: Sequence[str]) -> Corpus:
    """The plan's episodes as arrays, by way of a dataset and its index below `root`."""
    write_synthetic(plan, root / "data")
    index_dataset(root / "data", root / "index", load_vocabulary("metaworld"), tasks)
    return load_corpus(root / "index")


def record_synthetic(run: RunFolder, split: Split, workers: int, console: Console) -> None:
    """In the place of the simulator, for `TrainingRun`."""
    write_synthetic(planned_episodes(run.plan, run.tasks, split, run.seed), run.dataset(split))


def check_by_hand(task_name: str, kind: EpisodeKind, seed: int) -> CrossCheck:
    """In the place of the simulator, for `TrainingRun`: labels of four frames.

    Those of demonstrations differ by .1 in one frame; those of rollouts by .2, and one is unknown.
    """
    potential = [0.0, 0.25, 0.5, 1.0] if kind == "demo" else [0.0, 0.6, 0.3, 0.3]
    steps = [0.0, 0.25, 0.6, 1.0] if kind == "demo" else [0.0, 0.4, 0.3, np.nan]
    return CrossCheck(np.arange(0, 20, 5), np.array(potential, np.float32), np.array(steps, np.float32))


def _picture(colour: int, progress: float, height: int) -> npt.NDArray[np.uint8]:
    picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), colour, dtype=np.uint8)
    left = int(progress * (IMAGE_SIZE - 16))
    picture[height : height + 16, left : left + 16] = 255
    return picture


def _simulator(progress_T: npt.NDArray[np.float32], height: int) -> npt.NDArray[np.float32]:
    columns: dict[str, npt.NDArray[np.floating]] = {name: np.zeros(FRAMES) for name in SIMULATOR_NAMES}
    for point in ("tool", "object", "part"):
        columns[f"{point}_x"] = progress_T * 0.3
    for camera in CAMERAS:
        for point in ("tool", "object", "goal"):
            columns[f"{camera}_{point}_u"] = (progress_T * (IMAGE_SIZE - 16) + 8) / IMAGE_SIZE
            columns[f"{camera}_{point}_v"] = np.full(FRAMES, (height + 8) / IMAGE_SIZE)
            columns[f"{camera}_{point}_visible"] = np.ones(FRAMES)
    columns["gripper"] = 1 - progress_T
    return np.stack([columns[name] for name in SIMULATOR_NAMES], axis=1).astype(np.float32)
