"""What travels through the scorer: episodes as lanes, frames as steps, and what becomes of them.

Shapes: C cameras, D embedding, S state, P primitives, E experts, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.errors import Sarm2Error
from sarm2_models.reward_model import ScoreBatch
from sarm2_models.window import EpisodeMemory, Instruction
from sarm2_service.cache import Embedding

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB, H = W = the encoder's side."""


@dataclass(eq=False)
class Lane:
    """What the device keeps of one episode. Touched by the device thread, except for the last four.

    Attributes:
        order: queue position of its latest step. A later frame never overtakes an earlier one.
        background: whether its waiting steps are background work, as those of a robot with large pictures
            are; so is then what comes behind them.
        unanswered: steps queued and not delivered yet.
        closed: the episode is over.
    """

    memory: EpisodeMemory
    instruction: Instruction
    qos: wire.Qos
    fps: float
    source: wire.EpisodeSource | None = None
    order: float = 0.0
    background: bool = False
    unanswered: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """A step's numbers. `probs_P` and `weights_E` are plain lists, ready for the wire."""

    progress: float
    primitive: int
    group: int
    probs_P: list[float]
    weights_E: list[float]
    confidence: float
    uncertain: bool
    low: float
    high: float
    filled: int


@dataclass(frozen=True, slots=True)
class Late:
    """A realtime step whose deadline had passed before the device was free."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The pictures of a step without an episode are all embedded."""


Outcome: TypeAlias = Scored | Late | Embedded | Sarm2Error


@dataclass(eq=False, slots=True)
class Step:
    """One frame on its way. Times are seconds on the monotonic clock.

    Attributes:
        images: in the model's camera order.
        state_S: float32, the robot's units.
        deliver: called once, on the event loop, with the step and its outcome.
        lane: the episode; None for pictures that are only embedded.
        embeddings: one (D,) float16 a picture, None until known.
        expires: None, or when the answer stops being of use.
    """

    seq: int
    images: Sequence[wire.Image]
    state_S: npt.NDArray[np.float32]
    deliver: Callable[[Step, Outcome], None]
    lane: Lane | None
    received: float
    expires: float | None = None
    keys: list[bytes] = field(default_factory=list)
    embeddings: list[Embedding | None] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    decoding: Future[None] | None = None
    order: float = 0.0
    filled: int = 0
    queue_s: float = 0.0
    encode_s: float = 0.0
    heads_s: float = 0.0

    @property
    def missing(self) -> list[int]:
        """Indices of the pictures that still need the encoder."""
        return [i for i, embedding in enumerate(self.embeddings) if embedding is None]


def rows_of(scores: ScoreBatch, filled: Sequence[int]) -> list[Scored]:
    """One `Scored` a row of a batch; `filled` says how many frames were missing before each."""
    columns = (
        scores.progress_B.tolist(),
        scores.primitive_index_B.tolist(),
        scores.group_index_B.tolist(),
        scores.probs_BP.tolist(),
        scores.weights_BE.tolist(),
        scores.confidence_B.tolist(),
        scores.uncertain_B.tolist(),
        scores.low_B.tolist(),
        scores.high_B.tolist(),
        filled,
    )
    return [Scored(*row) for row in zip(*columns, strict=True)]
