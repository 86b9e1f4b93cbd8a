"""Progress of rollouts as people label it: a few marked segments and where the rollout ends.

Nobody can say what .43 of a task looks like. What people say quickly and alike is whether the robot gets on
*fast*, *slowly*, merely *adjusts*, or undoes its work by a *mistake*, and how far it has come in the end. The
published rollout labels are made so: slopes of +2, +1, 0 and -1 times one unknown speed, which follows from
the final progress; from a *catastrophe* on, progress is 0. `marks_of` is such a person for simulated
rollouts, whose true progress is known.

Shapes: T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

STEP_S = 0.5
"""A person marks stretches of half a second and longer."""
STILL = 0.02
"""Change of progress in `STEP_S` under which the robot adjusts, in a person's eyes."""


@dataclass(frozen=True)
class MarkedSegment:
    """Frames `start` (inclusive) to `end` (exclusive) under one mark."""

    mark: Mark
    start: int
    end: int


def progress_of_marks(
    segments: Sequence[MarkedSegment], final: float, *, catastrophe: int | None = None
) -> Floats:
    """The curve (T,) in [0, 1] that the marks describe: from 0, with one speed for all, to `final`.

    Args:
        segments: in order, from frame 0 on, without gaps.
        final: progress at the last frame, or just before the catastrophe.
        catastrophe: first frame from which on the work is lost: progress 0.

    Raises InvalidInput for segments with gaps, a final progress outside [0, 1], or one that the marks cannot
    reach (nothing marked fast or slow, say, and yet it is to end at .8).
    """
    _check(segments, final)
    slope_T = _slopes(segments)
    if catastrophe is not None:
        slope_T = slope_T[:catastrophe]
    walked_T = _walk(slope_T)
    if final > 0 and walked_T[-1] <= 0:
        raise InvalidInput(
            f"the marks cannot end at {final:g}: mark what gets on as fast or slow", field="final"
        )
    # Walks that stop at 0 scale with their speed, so the end alone tells it. Where the end is 0, so is all.
    speed = final / walked_T[-1] if final > 0 else 0.0
    curve_T = np.zeros(segments[-1].end, dtype=np.float32)
    curve_T[: len(slope_T)] = np.minimum(speed * walked_T, 1.0)
    return curve_T


def marks_of(progress_T: Floats, fps: float) -> tuple[MarkedSegment, ...]:
    """What a person would mark on a rollout whose true progress is known; neighbours differ.

    Stretches of `STEP_S` are judged by their change: falling is a mistake, hardly moving an adjustment, and
    of the rest what is faster than their mean is fast.
    """
    step = max(1, round(STEP_S * fps))
    edges = [*range(0, len(progress_T) - step // 2, step), len(progress_T)]
    edges = edges if len(edges) > 1 else [0, len(progress_T)]
    changes = [float(progress_T[min(e, len(progress_T) - 1)] - progress_T[s]) for s, e in pairwise(edges)]
    rising = [change for change in changes if change >= STILL]
    mean = float(np.mean(rising)) if rising else 0.0
    found: list[MarkedSegment] = []
    for (start, end), change in zip(pairwise(edges), changes, strict=True):
        mark = _mark(change, mean)
        if found and found[-1].mark == mark:
            found[-1] = MarkedSegment(mark, found[-1].start, end)
        else:
            found.append(MarkedSegment(mark, start, end))
    return tuple(found)


def as_marked(progress_T: Floats, fps: float) -> Floats:
    """A true curve as it comes out of a person's marks; the final progress is told exactly."""
    if len(progress_T) == 1:  # nothing leads anywhere: there is nothing to mark
        return progress_T.astype(np.float32)
    marks, final = marks_of(progress_T, fps), float(progress_T[-1])
    if _walk(_slopes(marks))[-1] <= 0:  # it crept there, too slowly for any one stretch to show it
        marks = (MarkedSegment("slow", 0, len(progress_T)),)
    return progress_of_marks(marks, final)


def _mark(change: float, mean: float) -> Mark:
    if change <= -STILL:
        return "mistake"
    if change < STILL:
        return "adjust"
    return "fast" if change > mean else "slow"


def _slopes(segments: Sequence[MarkedSegment]) -> npt.NDArray[np.float64]:
    """Per frame (T,); nothing leads to the first one."""
    slope_T = np.concatenate([np.full(one.end - one.start, SLOPES[one.mark]) for one in segments])
    slope_T[0] = 0.0
    return slope_T


def _walk(slope_T: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 along the slopes at speed 1, never below 0."""
    value, walked_T = 0.0, np.zeros(len(slope_T))
    for place, slope in enumerate(slope_T):
        value = max(0.0, value + slope)
        walked_T[place] = value
    return walked_T


def _check(segments: Sequence[MarkedSegment], final: float) -> None:
    if not 0 <= final <= 1:
        raise InvalidInput(f"final progress: expected 0 to 1, got {final}", field="final")
    expected = 0
    for one in segments:
        if one.start != expected or one.end <= one.start:
            raise InvalidInput(
                f"expected a segment from frame {expected} on, got {one.start} to {one.end}", field="segments"
            )
        expected = one.end
    if not segments:
        raise InvalidInput("expected at least one marked segment, got none", field="segments")
