"""Progress of rollouts as people label it: a few marked segments, and how far it had come where it turned.

Nobody can say what .43 of a task looks like. What people say quickly and alike is whether the robot gets on
*fast*, *slowly*, merely *adjusts*, or undoes its work by a *mistake*, and how far it has come in the end. The
published rollout labels are made so: slopes of +2, +1, 0 and -1 times one unknown speed, which follows from
the final progress; from a *catastrophe* on, progress is 0. That says nothing of a rollout that loses what it
had done: it ends near 0, so its speed is near 0, and so is the whole curve. Ours may also be told the
progress where the robot *turned*, from getting on to losing ground or back; from each such frame to the next
there is a speed of its own.

Shapes: T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput

Mark: TypeAlias = Literal["fast", "slow", "adjust", "mistake"]
Floats: TypeAlias = npt.NDArray[np.float32]

SLOPES: MappingProxyType[Mark, float] = MappingProxyType(
    {"fast": 2.0, "slow": 1.0, "adjust": 0.0, "mistake": -1.0}
)


@dataclass(frozen=True)
class MarkedSegment:
    """Frames `start` (inclusive) to `end` (exclusive) under one mark."""

    mark: Mark
    start: int
    end: int


@dataclass(frozen=True)
class RolloutMarks:
    """What a person says of a rollout.

    Attributes:
        segments: in order, from frame 0 on, without gaps.
        final: progress at the last frame, or just before the catastrophe.
        turns: progress at frames between the first and that one, in order.
        catastrophe: first frame from which on the work is lost.

    Raises InvalidInput for segments with gaps, frames out of order or range, and progress outside [0, 1].
    """

    segments: Sequence[MarkedSegment]
    final: float
    turns: Mapping[int, float] = field(default_factory=dict)
    catastrophe: int | None = None

    def __post_init__(self) -> None:
        if not self.segments:
            raise InvalidInput("expected at least one marked segment, got none", field="segments")
        expected = 0
        for one in self.segments:
            if one.start != expected or one.end <= one.start:
                raise InvalidInput(
                    f"expected a segment from frame {expected} on, got {one.start} to {one.end}",
                    field="segments",
                )
            expected = one.end
        if self.catastrophe is not None and not 1 <= self.catastrophe < expected:
            raise InvalidInput(
                f"catastrophe: expected a frame from 1 to {expected - 1}, got {self.catastrophe}",
                field="catastrophe",
            )
        before = 0
        for frame, progress in self.turns.items():
            if not before < frame < self._last:
                raise InvalidInput(
                    f"turns: expected a frame from {before + 1} to {self._last - 1}, got {frame}",
                    field="turns",
                )
            _check_progress("turns", progress)
            before = frame
        _check_progress("final", self.final)

    def progress(self) -> Floats:
        """The curve (T,) in [0, 1] that the marks describe: from 0 over the turns to the end.

        Raises InvalidInput where they cannot (nothing is marked fast or slow, say, and yet it ends at .8).
        """
        slope_T = np.concatenate([np.full(one.end - one.start, SLOPES[one.mark]) for one in self.segments])
        curve_T = np.zeros(len(slope_T), dtype=np.float32)
        told = [(0, 0.0), *self.turns.items(), (self._last, self.final)]
        for (start, low), (end, high) in pairwise(told):
            way = slice(start + 1, end + 1)  # a frame's slope leads to it; none leads to the first
            curve_T[way] = _between(slope_T[way], low, high, end)
        return curve_T

    @property
    def _last(self) -> int:
        """The frame at which progress is `final`."""
        return (self.segments[-1].end if self.catastrophe is None else self.catastrophe) - 1


def _check_progress(name: str, progress: float) -> None:
    if not 0 <= progress <= 1:
        raise InvalidInput(f"{name}: expected progress of 0 to 1, got {progress:g}", field=name)


def _between(
    slope_T: npt.NDArray[np.float64], low: float, high: float, end: int
) -> npt.NDArray[np.float64] | float:
    """Progress on the way from a frame that has `low` to frame `end`, which has `high`."""
    if low == high:
        return low
    walked_T = _walk(slope_T) if low == 0 else np.cumsum(slope_T)
    reached = walked_T[-1] if len(walked_T) else 0.0
    if reached * (high - low) <= 0:
        needed = "gets on as fast or slow" if high > low else "goes back as a mistake"
        raise InvalidInput(
            f"the marks cannot come from {low:g} to {high:g} at frame {end}: mark what {needed}",
            field="segments",
        )
    between_T: npt.NDArray[np.float64] = np.clip(low + (high - low) / reached * walked_T, 0.0, 1.0)
    return between_T


def _walk(slope_T: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 along the slopes at speed 1, never below 0; it scales with the speed, so its end tells that."""
    value, walked_T = 0.0, np.zeros(len(slope_T))
    for place, slope in enumerate(slope_T):
        value = max(0.0, value + slope)
        walked_T[place] = value
    return walked_T
