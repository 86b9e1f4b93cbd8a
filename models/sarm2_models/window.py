"""The one window function, and the memory that gives a live episode the same windows.

A window at frame t has W = length + 1 slots: slot 0 is the episode's first frame (the anchor), slots 1 to W-1
are the frames t - (length-1) g, ..., t - g, t for a gap of g frames. A slot before the first frame is masked;
its index is clamped to the first frame so that it can be gathered, and nothing reads it. Training, batch
scoring and streaming all come through here.

Shapes: T frames or queries, W slots, C cameras, D embedding, S state, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.errors import InvalidInput, InvalidSequence

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

SOURCES: tuple[wire.EpisodeSource, ...] = get_args(wire.EpisodeSource)
"""Where an episode may come from; indices count in this order."""
UNTOLD = -1
"""The source of an episode of which nobody said where it comes from."""


def source_index(source: wire.EpisodeSource | None) -> int:
    """Place in `SOURCES`, or `UNTOLD`. Raises InvalidInput for another word."""
    if source is None:
        return UNTOLD
    if source not in SOURCES:
        raise InvalidInput(f"expected source {' or '.join(SOURCES)}, got {source!r}", field="source")
    return SOURCES.index(source)


def window_slots(
    t: int | npt.ArrayLike, first: int | npt.ArrayLike, gap: int, length: int
) -> tuple[IntArray, BoolArray]:
    """Which frames stand in the slots of the window at t.

    Args:
        t: frame index, or an array of any shape (...).
        first: index of the episode's first frame, of a shape that broadcasts with t.
        gap: frames between neighbouring slots, at least 1.
        length: slots besides the anchor.

    Returns:
        indices (..., W) int64 and mask (..., W) bool, True where the slot holds a frame.
    """
    frames = np.asarray(t, dtype=np.int64)[..., None]
    start = np.asarray(first, dtype=np.int64)[..., None]
    back = np.arange(length - 1, -1, -1, dtype=np.int64) * gap
    recent = frames - back
    anchor = np.broadcast_to(start, (*recent.shape[:-1], 1))
    indices = np.concatenate([anchor, np.maximum(recent, start)], axis=-1)
    mask = np.concatenate([np.ones(anchor.shape, dtype=bool), recent >= start], axis=-1)
    return indices, mask


@dataclass(frozen=True)
class Window:
    """One window: what the heads need for one score.

    Attributes:
        embeddings_WCD: float16, image embeddings.
        state_WS: float32, proprioceptive state in the robot's units.
        mask_W: bool, True where the slot holds a frame.
    """

    embeddings_WCD: Float16Array
    state_WS: Float32Array
    mask_W: BoolArray


@dataclass(frozen=True)
class Instruction:
    """What a model makes of an episode's instruction.

    Attributes:
        embedding_D: float16, its text embedding.
        known: whether the model was trained on it.
        quantile_S: float64 (S + 1,), how many scales the interval reaches to each side, for an episode from
            each of `SOURCES`; the last one for one of which nobody said where it comes from.
    """

    embedding_D: Float16Array
    known: bool
    quantile_S: npt.NDArray[np.float64]


@dataclass(frozen=True)
class WindowBatch:
    """Windows of any episodes, side by side.

    Attributes:
        embeddings_BWCD: float16, image embeddings.
        state_BWS: float32, in the robot's units (standardised by the model).
        mask_BW: bool, True where the slot holds a frame.
        instruction_BD: float16, text embedding of each episode's instruction.
        task_known_B: bool, whether the model was trained on that instruction.
        quantile_B: float64, how many scales the interval reaches to each side: see `Instruction`.
    """

    embeddings_BWCD: Float16Array
    state_BWS: Float32Array
    mask_BW: BoolArray
    instruction_BD: Float16Array
    task_known_B: BoolArray
    quantile_B: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mask_BW)

    @classmethod
    def stack(
        cls,
        windows: list[Window],
        instructions: list[Instruction],
        sources: list[wire.EpisodeSource | None],
    ) -> WindowBatch:
        """A batch of single windows with their episodes' instructions and sources."""
        told = zip(instructions, sources, strict=True)
        return cls(
            embeddings_BWCD=np.stack([window.embeddings_WCD for window in windows]),
            state_BWS=np.stack([window.state_WS for window in windows]),
            mask_BW=np.stack([window.mask_W for window in windows]),
            instruction_BD=np.stack([one.embedding_D for one in instructions]),
            task_known_B=np.array([one.known for one in instructions]),
            quantile_B=np.array([one.quantile_S[source_index(source)] for one, source in told]),
        )


class EpisodeMemory:
    """What windows of one live episode can still reach: the anchor and a ring of recent frames.

    Memory is fixed: (length - 1) x gap + 1 frames and the anchor, however long the episode.
    """

    def __init__(self, *, cameras: int, dim: int, state_dim: int, gap: int, length: int) -> None:
        self._gap, self._length = gap, length
        self._capacity = (length - 1) * gap + 1
        # Row 0 is the anchor, the ring stands behind it.
        self._embeddings = np.zeros((1 + self._capacity, cameras, dim), dtype=np.float16)
        self._state = np.zeros((1 + self._capacity, state_dim), dtype=np.float32)
        self._first: int | None = None
        self._last = -1

    @property
    def first(self) -> int | None:
        """`seq` of the first frame, or None before it."""
        return self._first

    @property
    def last(self) -> int | None:
        """`seq` of the newest frame, or None before the first."""
        return None if self._first is None else self._last

    def push(self, seq: int, embeddings_CD: Float16Array, state_S: Float32Array) -> int:
        """Add frame `seq`; frames missing since the last one are filled with the last one.

        Args:
            seq: larger than every earlier one.
            embeddings_CD: float16 (C, D).
            state_S: float32 (S,), the robot's units.

        Returns:
            How many frames were missing (0 without a gap).

        Raises:
            InvalidSequence: `seq` does not come after the newest frame.
            InvalidInput: a wrong shape.
        """
        self._check(embeddings_CD, state_S)
        if self._first is None:
            self._first = seq
            self._embeddings[0], self._state[0] = embeddings_CD, state_S
            self._put(seq, embeddings_CD, state_S)
            self._last = seq
            return 0
        if seq <= self._last:
            raise InvalidSequence(f"expected a seq above {self._last}, got {seq}", field="seq")
        missing = seq - self._last - 1
        self._fill(seq)
        self._put(seq, embeddings_CD, state_S)
        self._last = seq
        return missing

    def window(self) -> Window:
        """The window at the newest frame. Raises InvalidSequence before the first frame."""
        if self._first is None:
            raise InvalidSequence("no frame has been pushed yet; a window needs at least one", field="seq")
        indices_W, mask_W = window_slots(self._last, self._first, self._gap, self._length)
        rows = self._row(indices_W)
        rows[0] = 0
        # A masked slot's frame may have been overwritten; its content is the anchor's, as in training.
        rows[~mask_W] = 0
        return Window(self._embeddings[rows], self._state[rows], mask_W)

    def _row(self, seq: IntArray) -> IntArray:
        return 1 + seq % self._capacity

    def _put(self, seq: int, embeddings_CD: Float16Array, state_S: Float32Array) -> None:
        row = 1 + seq % self._capacity
        self._embeddings[row], self._state[row] = embeddings_CD, state_S

    def _fill(self, seq: int) -> None:
        # A gap longer than the ring fills it once: older copies could never be read.
        source = 1 + self._last % self._capacity
        missing = np.arange(max(self._last + 1, seq - self._capacity), seq, dtype=np.int64)
        rows = self._row(missing)
        self._embeddings[rows], self._state[rows] = (
            self._embeddings[source].copy(),
            self._state[source].copy(),
        )

    def _check(self, embeddings_CD: Float16Array, state_S: Float32Array) -> None:
        expected = (self._embeddings.shape[1:], self._state.shape[1:])
        got = (embeddings_CD.shape, state_S.shape)
        if got != expected:
            raise InvalidInput(
                f"expected embeddings and state of shapes {expected}, got {got}", field="frame"
            )
