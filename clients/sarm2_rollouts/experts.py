"""What scripted experts are made of: from the simulator's full observation to an action. Tasks hold them.

An action is float32 (4,): the wish to move the tool in x, y, z (1 = one centimetre a control step, clipped
to [-1, 1]) and the gripper's effort (1 closes, -1 opens).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Action: TypeAlias = npt.NDArray[np.float32]
Pair: TypeAlias = tuple[float, float]
Expert: TypeAlias = Callable[[Array], Action]
"""Takes the simulator's observation (39,) and gives an action. It always gets a copy of its own."""

OPEN, CLOSE = -1.0, 1.0

HAND, OBJECT, GOAL = slice(0, 3), slice(4, 7), slice(36, 39)
"""Where the positions of the hand, the first object and the goal stand in the simulator's observation."""


def move_to(hand: Array, target: Array, gripper: float, gain: float = 10.0) -> Action:
    """A step of a proportional controller from `hand` to `target` (metres)."""
    return np.append(np.clip(gain * (target - hand), -1.0, 1.0), gripper).astype(np.float32)


def descend(
    hand: Array, spot: Array, *, over: float, near: Pair, keep: Pair, tall: float = 0.0
) -> Action | None:
    """Go above `spot` and down to it with open fingers; None once the hand is there.

    Args:
        over: metres above the spot at which the hand passes over what stands there.
        near: metres beside the spot, in x and y, within which it descends.
        keep: metres beside the spot, in x and y, within which a hand that is down is still there.
        tall: metres above the spot at which the hand counts as there.
    """
    beside, above = np.abs(hand[:2] - spot[:2]), float(hand[2] - spot[2])
    if bool((beside > (keep if above < tall + 0.04 else near)).any()):
        if above < over - 0.02 and beside.max() < 0.12:  # too low to pass over it
            return move_to(hand, np.array([hand[0], hand[1], spot[2] + over + 0.03]), OPEN)
        return move_to(hand, spot + np.array([0.0, 0.0, over]), OPEN, gain=20.0)
    if above > tall + 0.01:
        return move_to(hand, spot + np.array([0.0, 0.0, tall - 0.01]), OPEN)
    return None


def from_metaworld(class_name: str) -> Expert:
    """One of Meta-World's own policies. It gets copies of observations, since some change them in place."""
    from metaworld import policies

    policy: Any = getattr(policies, class_name)()

    def act(observation: Array) -> Action:
        with warnings.catch_warnings():
            # Its controller warns whenever it saturates, which is most of the time.
            warnings.simplefilter("ignore")
            action = policy.get_action(observation.copy())
        return np.asarray(np.clip(action, -1.0, 1.0), dtype=np.float32)

    return act
