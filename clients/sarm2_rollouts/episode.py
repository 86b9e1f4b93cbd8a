"""An episode in memory: what every reader returns, every writer takes and every robot makes.

Shapes: T frames, S state dimensions, A action dimensions, K simulator quantities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_client.wire import EpisodeSource

EpisodeKind: TypeAlias = Literal["demo", "clean_demo", "perturbed", "random", "policy", "unknown"]
"""`clean_demo`: the expert alone. `demo`: uneven, successful. `perturbed`: drops, freezes, failures, ...
`random`: random motion. `policy`: a rollout of a learned policy, which a seed alone does not make again."""


@dataclass(frozen=True)
class LabelledSegment:
    """Frames `start` (inclusive) to `end` (exclusive) under one primitive."""

    primitive: str
    start: int
    end: int


@dataclass(frozen=True)
class Episode:
    """One episode with its pictures as JPEG files and, where known, its labels.

    Attributes:
        task: the instruction, in words.
        fps: frames a second.
        images: per camera, T JPEG files (RGB).
        state_TS: float32, proprioceptive state in the robot's own units; never object or goal positions.
        kind: how it came about.
        success: whether the task was done at the end, where known.
        seed: the simulator's seed, where there is one.
        task_name: short machine name ("pick-place"), where there is one.
        progress_T: float32 in [0, 1], true progress of every frame, where known.
        segments: primitives in order, covering every frame, where known.
        action_TA: float32, what the robot did from each frame to the next, where known; the last frame, which
            nothing follows, holds what would go on.
        action_names: the A names of `action_TA`.
        simulator_TK: float32, privileged simulator state, for training the tower and for ceilings only.
        simulator_names: the K names of `simulator_TK`.
        info: anything else worth keeping (perturbations and their frames, say), JSON-able.
    """

    task: str
    fps: float
    images: dict[str, list[bytes]]
    state_TS: npt.NDArray[np.float32]
    kind: EpisodeKind = "unknown"
    success: bool | None = None
    seed: int | None = None
    task_name: str | None = None
    progress_T: npt.NDArray[np.float32] | None = None
    segments: tuple[LabelledSegment, ...] | None = None
    action_TA: npt.NDArray[np.float32] | None = None
    action_names: tuple[str, ...] = ()
    simulator_TK: npt.NDArray[np.float32] | None = None
    simulator_names: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {camera: len(files) for camera, files in self.images.items()}
        for camera, length in lengths.items():
            if length != len(self.state_TS):
                raise ValueError(
                    f"camera {camera!r} has {length} frames but the state has {len(self.state_TS)}; "
                    "every camera needs one picture per state row"
                )

    def __len__(self) -> int:
        return len(self.state_TS)

    @property
    def source(self) -> EpisodeSource | None:
        """Whether it is a demonstration or a rollout; None where that is not known."""
        if self.kind == "unknown":
            return None
        return "demonstration" if self.kind in ("demo", "clean_demo") else "rollout"

    @property
    def primitives_T(self) -> list[str]:
        """The primitive of every frame. Raises ValueError where the episode has no labels."""
        if self.segments is None:
            raise ValueError("this episode carries no segments")
        return [segment.primitive for segment in self.segments for _ in range(segment.start, segment.end)]
