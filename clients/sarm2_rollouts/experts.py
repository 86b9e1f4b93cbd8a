"""Scripted experts: from the simulator's full observation to an action. Only demonstrations use them.

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
Expert: TypeAlias = Callable[[Array], Action]
"""Takes the simulator's observation (39,) and gives an action. It always gets a copy of its own."""

OPEN, CLOSE = -1.0, 1.0

HAND, OBJECT, GOAL = slice(0, 3), slice(4, 7), slice(36, 39)
"""Where the positions of the hand, the first object and the goal stand in the simulator's observation."""


def make_expert(task_name: str) -> Expert:
    """A fresh expert for a task. Raises KeyError for a task without one."""
    return _EXPERTS[task_name]()


def move_to(hand: Array, target: Array, gripper: float, gain: float = 10.0) -> Action:
    """A step of a proportional controller from `hand` to `target` (metres)."""
    return np.append(np.clip(gain * (target - hand), -1.0, 1.0), gripper).astype(np.float32)


def finish(task_name: str, observation: Array, step: int, home: Array) -> Action:
    """What the robot does after success, which the simulator's experts leave out.

    pick-place holds the puck in the air at the goal (letting go would undo the success); hammer takes the
    hammer back from the nail; drawer-open rises from the handle.

    Args:
        step: control steps since success.
        home: position of the hand at the start of the episode.
    """
    hand = observation[HAND]
    if task_name == "hammer":
        return np.array([0.0, -0.9 if step >= 2 else 0.2, 0.2, 0.8], dtype=np.float32)
    if task_name == "drawer-open":
        if step < 3:
            return np.array([0.0, -0.6, 0.0, OPEN], dtype=np.float32)
        return move_to(hand, np.array([hand[0], hand[1], home[2]]), OPEN)
    return make_expert(task_name)(observation)


def carry(metaworld_policy: Expert, task_name: str) -> Expert:
    """Meta-World's policy until the object is lifted, then straight on, whatever way it lies in the hand.

    Its policies take a puck that sits 2 cm off in the hand (after a fumble) for one not yet reached, and
    climb for ever.
    """
    bring = _bring_puck if task_name == "pick-place" else _bring_hammer

    def act(observation: Array) -> Action:
        hand, thing, gripper = observation[HAND], observation[OBJECT], float(observation[3])
        below = hand - thing - np.array([0.0, 0.0, 0.04])
        close = abs(below[2]) < 0.04 and abs(below[1]) < 0.035 and abs(below[0]) < _LENGTH[task_name]
        if close and thing[2] > 0.05 and 0.3 < gripper < 0.7:
            return bring(hand, thing, observation[GOAL])
        action = metaworld_policy(observation)
        # Its "do not grab" is an effort of 0, which leaves the fingers too narrow for a second try.
        action[3] = action[3] if action[3] > 0 else OPEN
        return action

    return act


def _bring_puck(hand: Array, puck: Array, goal: Array) -> Action:
    return move_to(hand, goal + (hand - puck), CLOSE)


def _bring_hammer(hand: Array, hammer: Array, goal: Array) -> Action:
    ready = np.array([0.24, 0.0, 0.13]) - np.array([0.16, 0.0, 0.01]) + (hand - hammer)
    off = np.hypot(hand[0] - ready[0], hand[2] - ready[2])
    forward = 0.75 if off < 0.025 else float(hand[1])
    return move_to(hand, np.array([ready[0], forward, ready[2]]), 0.8)


def open_drawer(observation: Array) -> Action:
    """Go above the handle, descend astride of it, and pull.

    Meta-World's own policy first climbs 30 cm above the handle, away from where it is going; this one
    approaches just above it.
    """
    hand = observation[HAND]
    handle = observation[OBJECT] + np.array([0.0, 0.0, -0.02])
    aside = float(np.linalg.norm(hand[:2] - handle[:2]))
    above = float(hand[2] - handle[2])
    if aside > 0.06 and above < 0.08:  # beside the handle and too low to pass over it
        return move_to(hand, np.array([hand[0], hand[1] - 0.02, handle[2] + 0.14]), OPEN)
    if aside > 0.035:
        return move_to(hand, handle + np.array([0.0, 0.0, 0.13]), OPEN)
    if above > 0.005:
        return move_to(hand, handle + np.array([0.0, 0.0, -0.03]), OPEN)
    return move_to(hand, handle + np.array([0.0, -0.06, -0.01]), OPEN, gain=20.0)


def _from_metaworld(class_name: str) -> Callable[[], Expert]:
    def make() -> Expert:
        from metaworld import policies

        policy: Any = getattr(policies, class_name)()

        def act(observation: Array) -> Action:
            with warnings.catch_warnings():
                # Its controller warns whenever it saturates, which is most of the time.
                warnings.simplefilter("ignore")
                # Some policies change the observation in place: they get a copy.
                action = policy.get_action(observation.copy())
            return np.asarray(np.clip(action, -1.0, 1.0), dtype=np.float32)

        return act

    return make


_LENGTH = {"pick-place": 0.035, "hammer": 0.09}
"""How far from the object's middle (metres, along x) the hand may hold it."""

_EXPERTS: dict[str, Callable[[], Expert]] = {
    "pick-place": lambda: carry(_from_metaworld("SawyerPickPlaceV3Policy")(), "pick-place"),
    "hammer": lambda: carry(_from_metaworld("SawyerHammerV3Policy")(), "hammer"),
    "drawer-open": lambda: open_drawer,
}
