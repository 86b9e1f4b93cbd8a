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


def straddle(
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


def around(arm: Array) -> Array:
    """Where a point goes that turns anticlockwise at `arm` (..., 3) from its hinge: level unit vectors."""
    way = np.stack([-arm[..., 1], arm[..., 0], np.zeros_like(arm[..., 0])], axis=-1)
    return np.asarray(way / np.linalg.norm(way, axis=-1, keepdims=True))


def descend(
    hand: Array, place: Array, gripper: float, *, hover: float = 0.1, aside: float = 0.03, low: float = 0.01
) -> Action | None:
    """Go over `place` and down on it; None once there.

    Args:
        hover: metres above the place at which the hand passes over it.
        aside: metres beside the place, as seen from above, from which on the hand goes down.
        low: metres above the place at which it has arrived.
    """
    height = float(hand[2] - place[2])
    off = float(np.linalg.norm(hand[:2] - place[:2]))
    if off > aside:
        # Too low to pass over what stands there by the time it is near, the hand rises where it is.
        too_low = 0.6 * hover - height > max(off - 0.15, 0.0)
        level = hand[:2] if too_low else place[:2]
        return move_to(hand, np.append(level, place[2] + hover), gripper, gain=20.0)
    if height > low:
        return move_to(hand, place - np.array([0.0, 0.0, 0.03]), gripper)
    return None


def axes_of(observation: Array) -> Array:
    """The first object's own axes, the columns of (3, 3)."""
    w, x, y, z = observation[7:11] / np.linalg.norm(observation[7:11])
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


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


def take(
    observation: Array, grip: Array, *, hover: float = 0.07, closed: float = 0.62, effort: float = CLOSE
) -> Action | None:
    """Come from above with open fingers and close them around a piece; None once they are closed there.

    Nothing is remembered: after a drop, a fumble or a push it begins anew from where the hand is.

    Args:
        grip: where the hand must be when the fingers close, metres (3,).
        hover: metres above the grip at which the hand comes.
        closed: opening of the gripper below which the piece is in hand.
    """
    hand, gripper = observation[HAND], float(observation[3])
    aside, above = float(np.linalg.norm(hand[:2] - grip[:2])), float(hand[2] - grip[2])
    near = aside < 0.03 and abs(above) < 0.03
    if near and gripper < closed:
        return None
    if near and (gripper < 0.9 or (aside < 0.02 and above < 0.012)):
        return move_to(hand, grip, effort)
    if aside < 0.02 and (above < 0.03 or gripper > 0.8):
        return move_to(hand, grip - np.array([0.0, 0.0, 0.01]), OPEN, gain=15.0)
    # A hand beside the piece and too low to pass over it rises first.
    across = grip[:2] if above > 0.6 * hover or aside < 0.02 else hand[:2]
    return move_to(hand, np.array([*across, grip[2] + hover]), OPEN, gain=15.0)


def carry(
    hand: Array, piece: Array, place: Array, *, rise: float, over: float = 0.02, funnel: float = 0.04
) -> Action:
    """Bring the piece in hand over its place and lower it there; how it lies in the hand does not matter.

    Args:
        hand, piece, place: metres (3,).
        rise: metres above the place at which the piece travels.
        over: metres beside the place below which it is let down all the way.
        funnel: metres beyond `over` within which it comes down to that.
    """
    way = place - piece
    aside = float(np.linalg.norm(way[:2]))
    climb = float(way[2] + rise * np.clip((aside - over) / funnel, 0.0, 1.0))
    pace = float(np.clip(1.5 - climb / 0.03, 0.0, 1.0))  # straight up first, and never along the table
    across = pace * way[:2] * min(1.0, 0.1 / max(aside, 1e-9))
    return move_to(hand, hand + np.array([*across, climb]), CLOSE, gain=15.0)
