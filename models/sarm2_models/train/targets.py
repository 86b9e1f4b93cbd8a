"""What the image tower is taught about a frame: scaled positions, and where points fall in each picture.

Shapes: T frames, B pictures, C cameras, R regression targets, Q projected points, K simulator quantities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarm2_models.train.corpus import Corpus
from sarm2_models.window import Float32Array, IntArray
from sarm2_rollouts.labels import rests_of
from sarm2_rollouts.tasks import TASKS

POSITIONS = ("tool", "object", "goal", "part")
DIFFERENCES = (("object", "tool"), ("goal", "part"))
"""Small distances decide whether a thing is held or at its place, so they are targets of their own."""
SCALARS = ("gripper", "held", "joint")
POINTS = ("tool", "object", "goal")
UNSEEN_BY_WRIST = "goal"
"""The camera at the gripper does not see the goal: nothing that contains it is asked of that view."""
LEAST_DEVIATION = 1e-3
"""A quantity that moves less than this inside a task (metres, or a share) is not asked for there."""
STAGE_RESTS = tuple(f"rest_{number}" for number in range(max(len(task.stages) for task in TASKS.values())))
"""What is left of a task's first stage, of its second, and so on: what labels are made of, and so what has to
be seen to the centimetre. A stage's rest moves only while its own way is gone, where a position that matters
little weighs as much all along."""


@dataclass(frozen=True)
class TowerTargets:
    """Regression targets of every frame and projected points of every picture.

    Attributes:
        values_TR: float32, centred and scaled within their task. weight_TR: 0 where a task never moves it.
        asked_CR: whether a view is asked for a target.
        place_TCQ3: float32, u and v in [0, 1] inside the picture, and 1 where the point is inside.
        task_T, primitive_T: labels.
        points: names of the Q points.
    """

    values_TR: Float32Array
    weight_TR: Float32Array
    asked_CR: npt.NDArray[np.bool_]
    place_TCQ3: Float32Array
    task_T: IntArray
    primitive_T: IntArray
    points: tuple[str, ...] = POINTS

    @property
    def count(self) -> int:
        """R."""
        return int(self.values_TR.shape[1])

    @classmethod
    def fit(cls, corpus: Corpus) -> TowerTargets:
        """Targets of a corpus, scaled by its own statistics."""
        named = _quantities(corpus)
        raw_TR = np.stack(list(named.values()), axis=1)
        task_T = np.repeat(corpus.task_N, corpus.length_N)
        values_TR, weight_TR = np.zeros_like(raw_TR), np.zeros_like(raw_TR)
        for task in np.unique(task_T):
            mine_T = task_T == task
            deviation_R = raw_TR[mine_T].std(axis=0)
            weight_TR[mine_T] = deviation_R > LEAST_DEVIATION
            scale_R = np.maximum(deviation_R, LEAST_DEVIATION)
            values_TR[mine_T] = (raw_TR[mine_T] - raw_TR[mine_T].mean(axis=0)) / scale_R
        asked = [
            [not (camera == "wrist" and UNSEEN_BY_WRIST in name) for name in named]
            for camera in corpus.cameras
        ]
        return cls(
            values_TR=values_TR.astype(np.float32),
            weight_TR=weight_TR.astype(np.float32),
            asked_CR=np.array(asked, dtype=bool),
            place_TCQ3=_places(corpus),
            task_T=task_T,
            primitive_T=corpus.primitive_T,
        )

    def batch(
        self, corpus: Corpus, frames_B: IntArray, rng: np.random.Generator, patch_size: int
    ) -> dict[str, Tensor]:
        """One picture of each frame, from a view drawn at random, with its targets as tensors."""
        camera_B = rng.integers(len(corpus.cameras), size=len(frames_B))
        pictures = [corpus.picture(int(f), int(c)) for f, c in zip(frames_B, camera_B, strict=True)]
        images = np.stack(pictures)
        grid = images.shape[1] // patch_size
        place_BQ3 = self.place_TCQ3[frames_B, camera_B]
        cell_BQ2 = np.clip(place_BQ3[..., :2], 0.0, 1.0 - 1e-6) * grid
        patch_BQ2 = np.floor(cell_BQ2).astype(np.int64)
        arrays = {
            "images": images,
            "camera": camera_B,
            "target": self.values_TR[frames_B],
            "target_weight": self.weight_TR[frames_B] * self.asked_CR[camera_B],
            "task": self.task_T[frames_B],
            "primitive": self.primitive_T[frames_B],
            "patch": patch_BQ2[..., 1] * grid + patch_BQ2[..., 0],
            "offset": (cell_BQ2 - patch_BQ2 - 0.5).astype(np.float32),
            "visible": place_BQ3[..., 2] > 0.5,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def _quantities(corpus: Corpus) -> dict[str, npt.NDArray[np.float32]]:
    names = list(corpus.simulator_names)

    def column(name: str) -> npt.NDArray[np.float32]:
        return corpus.simulator_TK[:, names.index(name)]

    named = {f"{point}_{axis}": column(f"{point}_{axis}") for point in POSITIONS for axis in "xyz"}
    for left, right in DIFFERENCES:
        for axis in "xyz":
            named[f"{left}-{right}_{axis}"] = column(f"{left}_{axis}") - column(f"{right}_{axis}")
    rests_TR = stage_rests(corpus)
    named |= {name: rests_TR[:, number] for number, name in enumerate(STAGE_RESTS)}
    return named | {name: column(name) for name in SCALARS}


def stage_rests(corpus: Corpus) -> Float32Array:
    """What is left of every stage, (T, len(STAGE_RESTS)) in [0, 1]; zero for stages a task does not have."""
    rests_TR = np.zeros((len(corpus), len(STAGE_RESTS)), dtype=np.float32)
    for episode in range(corpus.episodes):
        frames, name = corpus.frames(episode), corpus.task_names[corpus.task_N[episode]]
        rests = rests_of(name, corpus.simulator_TK[frames], names=corpus.simulator_names)
        for number, rest_T in enumerate(rests.values()):
            rests_TR[frames, number] = rest_T
    return rests_TR


def _places(corpus: Corpus) -> Float32Array:
    names = list(corpus.simulator_names)
    indices = [
        [[names.index(f"{camera}_{point}_{what}") for what in ("u", "v", "visible")] for point in POINTS]
        for camera in corpus.cameras
    ]
    return corpus.simulator_TK[:, np.array(indices)].astype(np.float32)
