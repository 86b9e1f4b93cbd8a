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
fewer than `MIN_SEGMENT` frames go to their neighbour, but for the last one, which the episode's end cuts
off. `null` is a frame over whose last `STALL_FRAMES` the progress hardly rose, unless the robot rightly
rests (done) or is undoing its work (releasing, pushing).

Shapes: T frames, K simulator quantities (`simulator_state.SIMULATOR_NAMES`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .episode import Episode, LabelledSegment
from .simulator_state import NAIL_DONE, SIMULATOR_NAMES, column, columns
from .tasks import TaskSpec, task_spec

Array: TypeAlias = npt.NDArray[np.float64]

MIN_SEGMENT = 3
"""Frames that a primitive must last."""

STALL_FRAMES = 20
"""2 s without a rise of progress is idling: as long as the model's window, so that a window can show it, and
longer than an expert's own pauses and than most slips that are mended at once."""

STALL_RISE = 0.03
"""A rise of progress that counts as one: about a tenth of what an expert does in `STALL_FRAMES`."""

FADE = 0.3
"""Share of the last stage over which the other stages' rests fade out."""

PUCK_RADIUS_AT_GOAL = 0.07
"""The simulator's own bound (metres) between puck and goal for success in pick-place."""

OFF_AXIS = 0.025
"""Metres from the nail's axis, beyond what its head forgives, above which a hammer is still being lifted."""

TAKEN = 0.7
"""From this closedness around the object on, it counts as held."""


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
) -> dict[str, Array]:
    """How much of each stage's way is left, float64 (T,) in [0, 1] by stage."""
    first_1K = (simulator_TK[0] if first_K is None else first_K)[None]
    return _RESTS[task_name](_Quantities(simulator_TK, names), _Quantities(first_1K, names))


def segments_of(
    task_name: str,
    simulator_TK: npt.NDArray[np.float32],
    progress_T: npt.NDArray[np.float32],
    names: Sequence[str] = SIMULATOR_NAMES,
) -> tuple[LabelledSegment, ...]:
    """The primitives of an episode in order, covering every frame, no two neighbours alike."""
    rests = rests_of(task_name, simulator_TK, names=names)
    raw, may_stall_T = _RULES[task_name](_Quantities(simulator_TK, names), rests)
    stalled_T = _stalled(progress_T) & may_stall_T & (progress_T < 1.0)
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


class _Quantities:
    """Columns of the simulator's state by name, float64 (T,)."""

    def __init__(self, simulator_TK: npt.NDArray[np.float32], names: Sequence[str]) -> None:
        self._simulator_TK = simulator_TK
        self._names = names

    def __getitem__(self, name: str) -> Array:
        values: Array = column(self._simulator_TK, name, self._names)
        return values

    def between(self, a: str, b: str) -> Array:
        """Position of `a` minus position of `b`, (T, 3)."""
        return columns(self._simulator_TK, a, self._names) - columns(self._simulator_TK, b, self._names)


# --- rests ------------------------------------------------------------------------------------------


def _share_left(now_T: Array, first_1: Array, done: float, least: float = 0.04) -> Array:
    """Share of the way from the first frame's length to `done` that is left. `least`: shortest whole way."""
    return np.clip((now_T - done) / np.maximum(first_1 - done, least), 0.0, 1.0)


def _grasp(q: _Quantities) -> Array:
    """0 (open or empty) to 1 (closed around the object)."""
    near_T = np.clip((0.04 - q["reach_distance"]) / 0.02, 0.0, 1.0)
    closed_T = np.clip((0.95 - q["gripper"]) / 0.35, 0.0, 1.0)
    filled_T = np.clip((q["gripper"] - 0.25) / 0.1, 0.0, 1.0)
    taken_T: Array = near_T * closed_T * filled_T
    return taken_T


def _rests_pick_place(q: _Quantities, first: _Quantities) -> dict[str, Array]:
    to_goal_T = np.linalg.norm(q.between("object", "goal"), axis=1)
    at_first_1 = np.linalg.norm(first.between("object", "goal"), axis=1)
    return {
        "reach": _share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - _grasp(q),
        "transport": _share_left(to_goal_T, at_first_1, PUCK_RADIUS_AT_GOAL),
    }


def _off_axis(q: _Quantities) -> Array:
    """Metres from the striking face to the nail's axis, beyond what the nail's broad head forgives."""
    x_T, _, z_T = q.between("part", "goal").T
    below_T = np.maximum(0.01 - z_T, 0.0) + np.maximum(z_T - 0.045, 0.0)
    off_T: Array = np.hypot(np.maximum(np.abs(x_T) - 0.012, 0.0), below_T)
    return off_T


def _short_of_nail(q: _Quantities) -> Array:
    """Metres from the striking face to the nail's untouched head, along the nail; 0 beyond."""
    return np.asarray(np.maximum(-q.between("part", "goal")[:, 1], 0.0))


def _gap(q: _Quantities) -> Array:
    """Metres from the striking face to the nail's head where it is now, along the nail; negative beyond."""
    return np.asarray(NAIL_DONE * q["joint"] - q.between("part", "goal")[:, 1])


def _driving(q: _Quantities) -> Array:
    """1 while the hammer stands against a nail that has moved: an off-centre blow needs no more lifting."""
    against_T = np.clip((0.025 - np.abs(_gap(q))) / 0.01, 0.0, 1.0)
    return np.asarray(against_T * np.clip(q["joint"] / 0.1, 0.0, 1.0))


def _rests_hammer(q: _Quantities, first: _Quantities) -> dict[str, Array]:
    return {
        "reach": _share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - _grasp(q),
        "lift": _share_left(_off_axis(q), _off_axis(first), 0.0) * (1.0 - _driving(q)),
        "transport": _share_left(_short_of_nail(q), _short_of_nail(first), 0.01),
        "strike": 1.0 - q["joint"],
    }


HOOKED_HEIGHT = 0.03
"""Height of the tool (metres) at which the fingers stand astride of the drawer's handle."""


def _beside_handle(q: _Quantities) -> Array:
    return np.asarray(np.linalg.norm(q.between("tool", "object")[:, :2], axis=1))


def _rests_drawer(q: _Quantities, first: _Quantities) -> dict[str, Array]:
    beside_T = _beside_handle(q)
    above_T = np.clip((0.10 - beside_T) / 0.05, 0.0, 1.0)  # lowering counts only above the handle
    lowered_T = 1.0 - _share_left(q["tool_z"], first["tool_z"], HOOKED_HEIGHT)
    return {
        "reach": _share_left(beside_T, _beside_handle(first), 0.035),
        "lower": 1.0 - above_T * lowered_T,
        "pull": 1.0 - q["joint"],
    }


# --- primitives -------------------------------------------------------------------------------------


_Rule: TypeAlias = tuple[list[str], npt.NDArray[np.bool_]]
"""Primitive of every frame, and whether it gives way to `null` when nothing gets better."""


def _rules_pick_place(q: _Quantities, rests: Mapping[str, Array]) -> _Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["success"] > 0.5
    lost_T = _lately(held_T, 4) & ~held_T & (q["gripper"] > 0.5)
    return _choose(
        len(held_T),
        ("hold", done_T),
        ("transport", held_T),
        ("release", lost_T),
        ("grasp", q["reach_distance"] < 0.06),
        ("reach", None),
    ), ~(lost_T | done_T)


def _rules_hammer(q: _Quantities, rests: Mapping[str, Array]) -> _Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["joint"] >= 1.0
    lost_T = _lately(held_T, 4) & ~held_T & (q["gripper"] > 0.6)
    gap_T, off_T = _gap(q), _off_axis(q)
    # A nail that goes in is being struck, however badly; a hammer off its axis is being lifted, even there.
    driven_T = _change(q["joint"], 3) > 0.04
    return _choose(
        len(held_T),
        ("retract", done_T & (gap_T > 0.015)),
        ("strike", done_T),
        ("strike", driven_T | (held_T & (gap_T < 0.015) & (off_T < OFF_AXIS))),
        ("lift", held_T & (off_T > OFF_AXIS)),
        ("transport", held_T),
        ("release", lost_T),
        ("grasp", q["reach_distance"] < 0.06),
        ("reach", None),
    ), ~(lost_T | done_T)


def _rules_drawer(q: _Quantities, rests: Mapping[str, Array]) -> _Rule:
    done_T = q["joint"] >= 1.0
    near_T = _beside_handle(q) < 0.06
    # Behind a drawer that has come out a little, fingers that ride up have not let go of it.
    low_T = q["tool_z"] < HOOKED_HEIGHT + np.where(q["joint"] > 0.05, 0.04, 0.01)
    closing_T = _change(q["joint"], 3) < -0.04
    return _choose(
        len(done_T),
        ("push", closing_T),
        ("retract", done_T & (q["tool_z"] > HOOKED_HEIGHT + 0.005)),
        ("pull", done_T),
        ("pull", near_T & (low_T | (_change(q["joint"], 3) > 0.04))),
        ("lower", near_T),
        ("reach", None),
    ), ~(closing_T | done_T)


def _choose(length: int, *cases: tuple[str, npt.NDArray[np.bool_] | None]) -> list[str]:
    """The first case that holds, per frame; the last case holds always (None)."""
    names = [cases[-1][0]] * length
    for name, holds_T in reversed(cases[:-1]):
        assert holds_T is not None
        names = [name if holds else old for old, holds in zip(names, holds_T, strict=True)]
    return names


def _lately(flag_T: npt.NDArray[np.bool_], frames: int) -> npt.NDArray[np.bool_]:
    """Whether the flag held at any of the last `frames` frames before this one."""
    shifted = [np.concatenate([np.zeros(k, bool), flag_T[: len(flag_T) - k]]) for k in range(1, frames + 1)]
    return np.asarray(np.any([row[: len(flag_T)] for row in shifted], axis=0))


def _change(value_T: Array, frames: int) -> Array:
    """value(t) - value(t - frames); before the start the first value stands."""
    earlier_T = np.concatenate([np.full(frames, value_T[0]), value_T])[: len(value_T)]
    return np.asarray(value_T - earlier_T)


def _stalled(progress_T: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Frames whose progress is no higher than the lowest of the STALL_FRAMES before."""
    padded = np.concatenate([np.full(STALL_FRAMES, -1.0), progress_T.astype(np.float64)])
    lowest_T = np.lib.stride_tricks.sliding_window_view(padded, STALL_FRAMES + 1)[:, :-1].min(axis=1)
    return np.asarray(progress_T - lowest_T < STALL_RISE)


def _clean(names: list[str]) -> tuple[LabelledSegment, ...]:
    """Runs of equal names; the shortest under MIN_SEGMENT goes to its longer neighbour until none is left.

    The last run may be as short as it is: the episode ended, not the primitive.
    """
    runs: list[list[Any]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1
        else:
            runs.append([name, 1])
    while len(runs) > 1 and min(length for _, length in runs[:-1]) < MIN_SEGMENT:
        index = min(range(len(runs) - 1), key=lambda i: runs[i][1])
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


_RESTS = {"pick-place": _rests_pick_place, "hammer": _rests_hammer, "drawer-open": _rests_drawer}
_RULES = {"pick-place": _rules_pick_place, "hammer": _rules_hammer, "drawer-open": _rules_drawer}

__all__ = [
    "Fall",
    "TaskSpec",
    "find_falls",
    "measure_shares",
    "progress_of",
    "rests_of",
    "segments_of",
]
