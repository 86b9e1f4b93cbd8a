"""A take: what is kept of a robot while it moves, and the labelled episode that becomes of it.

Shapes: T frames, S state, A action, K simulator quantities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from sarm2_client.images import encode_jpeg

from .episode import Episode, EpisodeKind
from .labels import find_falls, progress_of, segments_of
from .simulator_state import SIMULATOR_NAMES
from .tasks import ACTION_NAMES, CAMERAS, CONTROL_STEPS_PER_FRAME, FPS, task_spec

Float32Array = npt.NDArray[np.float32]


class Take:
    """Frames and control steps, in the order in which they happened.

    Args:
        task_name: a key of `TASKS`.
        pictures: whether frames come with pictures.
    """

    def __init__(self, task_name: str, *, pictures: bool) -> None:
        self._spec = task_spec(task_name)
        self._images: dict[str, list[bytes]] = {camera: [] for camera in CAMERAS} if pictures else {}
        self._states: list[Float32Array] = []
        self._actions: list[Float32Array] = []
        self._simulator: list[Float32Array] = []

    def frame(
        self, images: Mapping[str, npt.NDArray[np.uint8]], state_S: Float32Array, simulator_K: Float32Array
    ) -> None:
        """Keep a frame; its pictures as JPEG files."""
        for camera, image in images.items():
            self._images[camera].append(encode_jpeg(image))
        self._states.append(state_S)
        self._simulator.append(simulator_K)

    def control(self, action_A: Float32Array) -> None:
        """Keep what the robot does in a control step; a frame has `CONTROL_STEPS_PER_FRAME` of them."""
        self._actions.append(action_A)

    @property
    def success(self) -> bool:
        """Whether the simulator calls the task done at the last frame."""
        return bool(self._simulator[-1][SIMULATOR_NAMES.index("success")])

    def __len__(self) -> int:
        return len(self._states)

    def episode(self, kind: EpisodeKind, seed: int, info: dict[str, Any]) -> Episode:
        """The episode with its labels; `info["falls"]` lists every regress of true progress of .2 or more."""
        simulator_TK = np.stack(self._simulator)
        progress_T = progress_of(self._spec.name, simulator_TK)
        return Episode(
            task=self._spec.instruction,
            fps=FPS,
            images=self._images,
            state_TS=np.stack(self._states),
            kind=kind,
            success=self.success,
            seed=seed,
            task_name=self._spec.name,
            progress_T=progress_T,
            segments=segments_of(self._spec.name, simulator_TK, progress_T),
            action_TA=self._frame_actions(),
            action_names=ACTION_NAMES,
            simulator_TK=simulator_TK,
            simulator_names=SIMULATOR_NAMES,
            info=info | {"falls": [asdict(fall) for fall in find_falls(progress_T)]},
        )

    def _frame_actions(self) -> Float32Array:
        """The mean of each frame's control steps; the last frame would stand still with the same effort."""
        steps_N2A = np.stack(self._actions).reshape(-1, CONTROL_STEPS_PER_FRAME, len(ACTION_NAMES))
        still_A = np.array([0.0, 0.0, 0.0, self._actions[-1][3]])
        return np.concatenate([steps_N2A.mean(axis=1), still_A[None]]).astype(np.float32)
