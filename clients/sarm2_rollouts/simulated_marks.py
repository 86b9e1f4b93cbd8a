"""What a person would mark on a simulated rollout, whose true progress is known.

The person says where the robot turned, which is where at least `TURN` was lost or won back, and how far it
had come there and in the end, in tenths. Between, stretches of half a second are judged by their change: of
those that get on, what is faster than their mean is fast; on the way down they are mistakes; and what hardly
moves, or the other way, adjusts.

Shapes: T frames.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sarm2_rollouts.rollout_marks import Floats, Mark, MarkedSegment, RolloutMarks

STEP_S = 0.5
"""A person marks stretches of half a second and longer."""
STILL = 0.02
"""Change of progress in `STEP_S` under which the robot adjusts, in a person's eyes."""
TURN = 0.1
"""Progress that has to be lost, or won back, before a person says that the robot has turned."""
NEARLY = 0.95
"""What a person says of what is nearly done and is not."""


def as_marked(progress_T: Floats, fps: float) -> Floats:
    """A true curve as it comes out of a person's marks."""
    if len(progress_T) == 1:  # nothing leads anywhere: there is nothing to mark
        return progress_T.astype(np.float32)
    return marks_of(progress_T, fps).progress()


def marks_of(progress_T: Floats, fps: float) -> RolloutMarks:
    """The person's marks of a rollout of two frames or more."""
    turns = turns_of(progress_T)
    told = {frame: _told(float(progress_T[frame])) for frame in turns}
    segments: list[MarkedSegment] = []
    for number, (start, end) in enumerate(pairwise([0, *turns, len(progress_T) - 1])):
        segments += _segments(progress_T, start, end, fps, rises=number % 2 == 0)
    return RolloutMarks(segments, _told(float(progress_T[-1])), told)


def turns_of(progress_T: Floats) -> list[int]:
    """Frames of highest and lowest progress, in turns, between which it changes by at least `TURN`.

    The first is a highest one: rollouts begin with nothing done.
    """
    found: list[int] = []
    extreme, sign = 0, 1.0
    for frame, progress in enumerate(progress_T):
        ahead = sign * float(progress - progress_T[extreme])
        if ahead > 0:
            extreme = frame
        elif ahead <= -TURN:
            if extreme > 0:
                found.append(extreme)
                sign = -sign
            extreme = frame
    return found


def _told(progress: float) -> float:
    """In tenths; and nobody takes what is not done for done."""
    return 1.0 if progress >= 1 else min(round(progress, 1), NEARLY)


def _segments(progress_T: Floats, start: int, end: int, fps: float, *, rises: bool) -> list[MarkedSegment]:
    """The marks of the frames after `start` up to `end`, between which the robot does not turn."""
    step = max(1, round(STEP_S * fps))
    edges = [start, *range(start + step, end - step // 2, step), end]
    changes = [float(progress_T[b] - progress_T[a]) * (1 if rises else -1) for a, b in pairwise(edges)]
    moving = [change for change in changes if change >= STILL]
    if start == 0:
        edges[0] = -1  # nothing leads to the first frame: it is marked all the same
    if not moving:  # it crept there, too slowly for any one stretch to show it
        return [MarkedSegment("slow" if rises else "mistake", edges[0] + 1, end + 1)]
    mean = float(np.mean(moving))
    marks = [_mark(change, mean, rises=rises) for change in changes]
    return [MarkedSegment(mark, a + 1, b + 1) for mark, (a, b) in zip(marks, pairwise(edges), strict=True)]


def _mark(change: float, mean: float, *, rises: bool) -> Mark:
    if change < STILL:
        return "adjust"
    if not rises:
        return "mistake"
    return "fast" if change > mean else "slow"
