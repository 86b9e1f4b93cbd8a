"""True progress and primitives of any simulated rollout, failures and drops included.

**Progress** of a frame is 1 minus the share of the expert's time that is still needed from here:

    progress = 1 - (share_last · rest_last + soon · Σ_stage share_stage · rest_stage)

Every stage has a share (its mean part of the expert's time up to success, `TaskSpec.stages`) and a rest in
[0, 1]: how much of the stage's way is left, measured in lengths that can be seen in the pictures (tool to
object, object to goal, how far the fingers are closed around it, how far the joint has moved) relative to
the episode's first frame. Nothing else of the past matters. Consequences, each held by a test:

- the first frame has 0, and a frame in which the simulator calls the task done has exactly 1. The finish
  after success (holding, moving back) stays at 1; undoing the work (dropping the puck, closing the drawer)
  takes it back;
- whoever drops the object loses the grasp, the height and the way that the fingers now have to go: what
  is left is what a fresh attempt from there would start with. A nail that is in stays in;
- there are no flags, hence no flicker: taking hold is gradual (fingers closed, not on nothing, near);
- `soon` fades the other stages' rests out over the last third of the last stage, so that being nearly
  done with an empty hand meets "done" without a cliff.

**Primitives** are named by rules on the same quantities, causal and visible in a window of 2.4 s; runs of
fewer than `MIN_SEGMENT` frames (null: `MIN_IDLE`) go to their neighbour, but for the last one, which the
episode's end cuts off. `null` is a frame over whose last `STALL_FRAMES` the progress hardly rose and the tool
stayed where it is (idling, dithering), unless the robot rightly rests (done) or is undoing its work
(releasing, pushing).

Shapes: T frames, K simulator quantities (`simulator_state.SIMULATOR_NAMES`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .episode import Episode, LabelledSegment
from .simulator_state import SIMULATOR_NAMES, column, columns
from .tasks import TaskSpec, task_spec
from .tasks.quantities import Quantities
from .tasks.spec import Rests

MIN_SEGMENT = 3
"""Frames that a primitive must last."""

MIN_IDLE = 8
"""Frames that null must last: a slip or a freeze that ends as soon as it counts as idling is a slip. Shorter
ones stood at the threshold alone, and no estimator named them, not even from the true state."""

STALL_FRAMES = 20
"""2 s without a rise of progress is idling: as long as the model's window, so that a window can show it, and
longer than an expert's own pauses and than most slips that are mended at once."""

STALL_RISE = 0.03
"""A rise of progress that counts as one: about a tenth of what an expert does in `STALL_FRAMES`."""

STALL_REACH = 0.08
"""Metres: a tool that was farther away than this within `STALL_FRAMES` is on its way, if the wrong one, and
its motion has a name. It can be seen to the frame, where the rise of progress alone cannot: an estimator that
knows the simulator's true state names .966 of the frames of uneven demonstrations right, and .956 without."""

FADE = 0.3
"""Share of the last stage over which the other stages' rests fade out."""


@dataclass(frozen=True)
class Fall:
    """A regress: progress falls by `size` from frame `start` (the last high one) to frame `end`."""

    start: int
    end: int
    size: float


def progress_of(
    task_name: str,
    simulator_TK: npt.NDArray[np.float32],
    *,
    first_K: npt.NDArray[np.float32] | None = None,
    names: Sequence[str] = SIMULATOR_NAMES,
) -> npt.NDArray[np.float32]:
    """True progress of every frame, float32 (T,) in [0, 1].

    Args:
        first_K: the episode's first frame, when `simulator_TK` does not begin with it.
        names: names of the columns.
    """
    spec = task_spec(task_name)
    rests = rests_of(task_name, simulator_TK, first_K=first_K, names=names)
    *early, last = spec.stages
    rest_T = spec.stages[last] * rests[last]
    soon_T = np.clip(rests[last] / FADE, 0.0, 1.0)
    rest_T = rest_T + soon_T * sum(spec.stages[stage] * rests[stage] for stage in early)
    done_T = column(simulator_TK, "success", names) > 0.5
    return np.where(done_T, 1.0, np.clip(1.0 - rest_T, 0.0, 1.0)).astype(np.float32)


def rests_of(
    task_name: str,
    simulator_TK: npt.NDArray[np.float32],
    *,
    first_K: npt.NDArray[np.float32] | None = None,
    names: Sequence[str] = SIMULATOR_NAMES,
) -> Rests:
    """How much of each stage's way is left, float64 (T,) in [0, 1] by stage."""
    first_1K = (simulator_TK[0] if first_K is None else first_K)[None]
    return task_spec(task_name).rests(Quantities(simulator_TK, names), Quantities(first_1K, names))


def segments_of(
    task_name: str,
    simulator_TK: npt.NDArray[np.float32],
    progress_T: npt.NDArray[np.float32],
    names: Sequence[str] = SIMULATOR_NAMES,
) -> tuple[LabelledSegment, ...]:
    """The primitives of an episode in order, covering every frame, no two neighbours alike."""
    rests = rests_of(task_name, simulator_TK, names=names)
    raw, may_stall_T = task_spec(task_name).rules(Quantities(simulator_TK, names), rests)
    stalled_T = _stalled(progress_T) & _stayed(simulator_TK, names) & may_stall_T & (progress_T < 1.0)
    return _clean(["null" if stalled else name for name, stalled in zip(raw, stalled_T, strict=True)])


def find_falls(progress_T: npt.NDArray[Any], size: float = 0.2, within: int = 12) -> tuple[Fall, ...]:
    """Every regress of at least `size` within `within` frames, one entry a regress.

    A regress begins at the last frame before progress starts to fall and ends at its lowest frame before it
    rises again by a quarter of `size`.
    """
    falls: list[Fall] = []
    start, low = 0, 0
    for t in range(1, len(progress_T)):
        if progress_T[t] < progress_T[low]:
            low = t
        if progress_T[t] >= progress_T[start] or progress_T[t] - progress_T[low] > size / 4:
            _note_fall(falls, progress_T, start, low, size, within)
            start = low = t
        elif low == start:
            start = low = t
    _note_fall(falls, progress_T, start, low, size, within)
    return tuple(falls)


def measure_shares(episodes: Iterable[Episode]) -> dict[str, float]:
    """Mean share of each stage's primitive in the expert's time up to success, summing to 1.

    Args:
        episodes: clean, successful demonstrations of one task, with labels.
    """
    shares: list[list[float]] = []
    stages: list[str] = []
    for episode in episodes:
        assert episode.task_name is not None
        assert episode.progress_T is not None
        stages = list(task_spec(episode.task_name).stages)
        until = int(np.argmax(episode.progress_T >= 1.0))
        frames = [episode.primitives_T[:until].count(stage) for stage in stages]
        shares.append([count / max(1, sum(frames)) for count in frames])
    means = np.mean(shares, axis=0)
    return dict(zip(stages, (means / means.sum()).tolist(), strict=True))


def _stalled(progress_T: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Frames whose progress is no higher than the lowest of the STALL_FRAMES before."""
    padded = np.concatenate([np.full(STALL_FRAMES, -1.0), progress_T.astype(np.float64)])
    lowest_T = np.lib.stride_tricks.sliding_window_view(padded, STALL_FRAMES + 1)[:, :-1].min(axis=1)
    return np.asarray(progress_T - lowest_T < STALL_RISE)


def _stayed(simulator_TK: npt.NDArray[np.float32], names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Frames whose tool was never farther away in the STALL_FRAMES before than STALL_REACH."""
    tool_T3 = columns(simulator_TK, "tool", names)
    before_T3 = np.concatenate([np.repeat(tool_T3[:1], STALL_FRAMES, axis=0), tool_T3])
    windows_T3W = np.lib.stride_tricks.sliding_window_view(before_T3, STALL_FRAMES + 1, axis=0)
    moved_TW = np.linalg.norm(windows_T3W - tool_T3[:, :, None], axis=1)
    return np.asarray(moved_TW.max(axis=1) < STALL_REACH)


def _clean(names: list[str]) -> tuple[LabelledSegment, ...]:
    """Runs of equal names; the shortest that is too short goes to its longer neighbour until none is left.

    The last run may be as short as it is: the episode ended, not the primitive.
    """
    runs: list[list[Any]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1
        else:
            runs.append([name, 1])
    while len(runs) > 1 and (short := [i for i in range(len(runs) - 1) if _is_short(*runs[i])]):
        index = min(short, key=lambda i: runs[i][1])
        around = [i for i in (index - 1, index + 1) if 0 <= i < len(runs)]
        taker = max(around, key=lambda i: runs[i][1])
        runs[taker][1] += runs[index][1]
        del runs[index]
        runs = _joined(runs)
    segments, start = [], 0
    for name, length in runs:
        segments.append(LabelledSegment(name, start, start + length))
        start += length
    return tuple(segments)


def _is_short(name: str, length: int) -> bool:
    return length < (MIN_IDLE if name == "null" else MIN_SEGMENT)


def _joined(runs: list[list[Any]]) -> list[list[Any]]:
    joined: list[list[Any]] = []
    for name, length in runs:
        if joined and joined[-1][0] == name:
            joined[-1][1] += length
        else:
            joined.append([name, length])
    return joined


def _note_fall(
    falls: list[Fall], progress_T: npt.NDArray[Any], start: int, low: int, size: float, within: int
) -> None:
    depth = float(progress_T[start] - progress_T[low])
    if depth < size:
        return
    window = progress_T[start : low + 1]
    steepest = max(float(window[t] - window[t : t + within + 1].min()) for t in range(len(window)))
    if steepest >= size:
        falls.append(Fall(start, low, depth))


__all__ = [
    "Fall",
    "TaskSpec",
    "find_falls",
    "measure_shares",
    "progress_of",
    "rests_of",
    "segments_of",
]
