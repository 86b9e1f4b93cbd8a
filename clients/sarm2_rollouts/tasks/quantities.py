"""What labels are made of: the simulator's quantities by name, and the few operations all tasks need.

Shapes: T frames, K simulator quantities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_rollouts.simulator_state import SIMULATOR_NAMES, column, columns

Array: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

TAKEN = 0.7
"""From this closedness around the object on, it counts as held."""


class Quantities:
    """Columns of the simulator's state by name, float64 (T,)."""

    def __init__(self, simulator_TK: npt.NDArray[Any], names: Sequence[str] = SIMULATOR_NAMES) -> None:
        self._simulator_TK = simulator_TK
        self._names = names

    def __getitem__(self, name: str) -> Array:
        values: Array = column(self._simulator_TK, name, self._names)
        return values

    def between(self, a: str, b: str) -> Array:
        """Position of `a` minus position of `b`, (T, 3) metres."""
        return columns(self._simulator_TK, a, self._names) - columns(self._simulator_TK, b, self._names)

    def distance(self, a: str, b: str) -> Array:
        """Metres between `a` and `b`, (T,)."""
        return np.asarray(np.linalg.norm(self.between(a, b), axis=1))

    def aside(self, a: str, b: str) -> Array:
        """Metres between `a` and `b` as seen from above, (T,)."""
        return np.asarray(np.linalg.norm(self.between(a, b)[:, :2], axis=1))


def share_left(now_T: Array, first_1: Array, done: float, least: float = 0.04) -> Array:
    """Share of the way from the first frame's length to `done` that is left. `least`: shortest whole way."""
    return np.clip((now_T - done) / np.maximum(first_1 - done, least), 0.0, 1.0)


def grasp(q: Quantities, shut: float = 0.6, empty: float = 0.25) -> Array:
    """0 (open or empty) to 1 (closed around the object).

    Args:
        shut: opening of the gripper from which on it counts as closed around this object.
        empty: opening at which it is closed on nothing; a piece too thin to tell has one below its grip.
    """
    near_T = np.clip((0.04 - q["reach_distance"]) / 0.02, 0.0, 1.0)
    closed_T = np.clip((0.95 - q["gripper"]) / (0.95 - shut), 0.0, 1.0)
    filled_T = np.clip((q["gripper"] - empty) / 0.1, 0.0, 1.0)
    taken_T: Array = near_T * closed_T * filled_T
    return taken_T


def at_object(q: Quantities) -> Flags:
    """Whether the tool is where it can take hold: from 6 cm on, and until it is 8 cm away again."""
    return latched(q["reach_distance"] < 0.06, q["reach_distance"] < 0.08)


def astride(q: Quantities, first: Quantities, low: float, slack: float = 0.035) -> dict[str, Array]:
    """What is left of `reach` (going above the object) and `lower` (fingers down astride of it).

    Also where the hand starts right above the object, for what is to be reached is the spot down there.

    Args:
        low: height of the tool (metres) at which the fingers are down.
        slack: metres between tool and object, as seen from above, that are near enough.
    """

    def off(now: Quantities) -> Array:
        beside_T = np.maximum(now.aside("tool", "object") - slack, 0.0)
        return np.asarray(np.hypot(beside_T, np.maximum(now["tool_z"] - low, 0.0)))

    above_T = np.clip((0.06 + slack - q.aside("tool", "object")) / 0.05, 0.0, 1.0)
    lowered_T = 1.0 - share_left(q["tool_z"], first["tool_z"], low)
    return {"reach": share_left(off(q), off(first), 0.0), "lower": 1.0 - above_T * lowered_T}


def lowered(height_T: Array, aside_T: Array, whole: float) -> Array:
    """0 to 1: how far the tool has come down on a place from `whole` metres above it.

    Counts only over the place, fading out from 5 to 10 cm beside it (`aside_T`, metres).
    """
    above_T = np.clip((0.10 - aside_T) / 0.05, 0.0, 1.0)
    down_T: Array = above_T * np.clip(1.0 - height_T / whole, 0.0, 1.0)
    return down_T


def within(value_T: Array, outer: float, inner: float) -> Array:
    """1 up to `inner`, falling evenly to 0 from `outer` on."""
    return np.clip((outer - value_T) / (outer - inner), 0.0, 1.0)


def choose(length: int, *cases: tuple[str, Flags | None]) -> list[str]:
    """The first case that holds, per frame; the last case holds always (None)."""
    names = [cases[-1][0]] * length
    for name, holds_T in reversed(cases[:-1]):
        assert holds_T is not None
        names = [name if holds else old for old, holds in zip(names, holds_T, strict=True)]
    return names


def lately(flag_T: Flags, frames: int) -> Flags:
    """Whether the flag held at any of the last `frames` frames before this one."""
    shifted = [np.concatenate([np.zeros(k, bool), flag_T[: len(flag_T) - k]]) for k in range(1, frames + 1)]
    return np.asarray(np.any([row[: len(flag_T)] for row in shifted], axis=0))


def latched(on_T: Flags, keep_T: Flags) -> Flags:
    """A flag that goes up where `on_T` holds and stays up for as long as `keep_T` does.

    Shaking hands cross a single border back and forth, and what is named by it flickers: give the way back a
    border of its own.
    """
    up_T = np.zeros(len(on_T), dtype=bool)
    up = False
    for t in range(len(on_T)):
        up = bool(on_T[t] or (up and keep_T[t]))
        up_T[t] = up
    return up_T


def change(value_T: Array, frames: int) -> Array:
    """value(t) - value(t - frames); before the start the first value stands."""
    earlier_T = np.concatenate([np.full(frames, value_T[0]), value_T])[: len(value_T)]
    return np.asarray(value_T - earlier_T)
