"""door-open: a safe's door is swung open, with the fingers hooked behind its handle."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import CLOSE, GOAL, HAND, OBJECT, Action, Array, Expert, around, descend, move_to
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import Quantities, change, choose, latched, lowered, share_left
from .spec import Rests, Rule, TaskSpec

DONE = 1.3832
"""Angle of the door (radians) at which the handle comes within the simulator's 8 cm of the goal."""

TOO_FAR = 1.815
"""Angle of the door (radians) beyond which it has swung past the goal."""

HINGE = np.array([0.115, 0.35, 0.0])
"""From the goal to the door's hinge, metres."""

BEHIND = 0.045
"""Metres behind the handle, between it and the door, where the fingers hook."""

HOOKED_HEIGHT = -0.04
"""Height of the tool above the handle (metres) when the fingers stand behind it."""

HOVER = 0.12
"""Height above that (metres) at which the fingers pass over the handle."""


def _read(env: Any, tool: Array) -> Reading:
    handle, goal = np.array(env.data.geom("handle").xpos), np.array(env._target_pos)
    angle = -float(env.data.joint("doorjoint").qpos[0])
    hook = handle - BEHIND * _way(handle - goal) + np.array([0.0, 0.0, HOOKED_HEIGHT])
    return Reading(
        object=handle,
        part=handle,
        goal=goal,
        reach_distance=float(np.linalg.norm(hook - tool)),
        held=fingers_touch(env, "door_link"),
        joint=float(np.clip((min(angle, DONE) - max(angle - TOO_FAR, 0.0)) / DONE, 0.0, 1.0)),
    )


def _way(handle_to_goal: Array) -> Array:
    """Where the handle goes when the door opens: a level unit vector, (..., 3), from handle minus goal."""
    return -around(handle_to_goal - HINGE)


def _from_hook(q: Quantities) -> Array:
    """From the place behind the handle to the tool, (T, 3) metres."""
    hook_T3 = BEHIND * _way(q.between("object", "goal")) - np.array([0.0, 0.0, HOOKED_HEIGHT])
    return np.asarray(q.between("tool", "object") + hook_T3)


def _aside(q: Quantities) -> Array:
    return np.asarray(np.linalg.norm(_from_hook(q)[:, :2], axis=1))


def _rests(q: Quantities, first: Quantities) -> Rests:
    return {
        "reach": share_left(_aside(q), _aside(first), 0.04),
        "lower": 1.0 - lowered(_from_hook(q)[:, 2] - 0.01, _aside(q), HOVER - 0.02),
        "open": 1.0 - q["joint"],
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    done_T = q["success"] > 0.5
    height_T = _from_hook(q)[:, 2]
    near_T = latched(_aside(q) < 0.07, _aside(q) < 0.09)
    # Behind a door that stands ajar, fingers that ride up have not let go of it.
    low_T = height_T < np.where(q["joint"] > 0.05, 0.06, 0.03)
    closing_T = change(q["joint"], 3) < -0.04
    return choose(
        len(done_T),
        ("push", closing_T),
        ("hold", done_T),
        ("open", near_T & (low_T | (change(q["joint"], 3) > 0.04))),
        ("lower", near_T),
        ("reach", None),
    ), ~(closing_T | done_T)


def _act(observation: Array) -> Action:
    """Go above the gap behind the handle, descend into it, and lead the handle around the hinge.

    Meta-World's own policy comes down on the handle itself and pulls in one direction all the way.
    """
    hand, handle = observation[HAND], observation[OBJECT]
    way = _way(handle - observation[GOAL])
    off = hand - handle
    ahead, outward = float(off @ way), float(off @ np.array([-way[1], way[0], 0.0]))
    if -0.09 < ahead < 0.01 and abs(outward) < 0.05 and off[2] < 0.05:
        return move_to(hand, handle + 0.06 * way, CLOSE, gain=20.0)
    # A hand that strayed beyond the door itself comes back over its upper edge.
    astray = ahead < -0.1 and outward < 0.06
    there = descend(hand, handle - BEHIND * way, CLOSE, hover=0.3 if astray else HOVER, low=0.0)
    return there if there is not None else move_to(hand, handle, CLOSE)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Open a little further and stay: fingers that rise from behind the handle brush it back."""
    return _act(observation) if step < 4 else np.array([0.0, 0.0, 0.0, CLOSE], dtype=np.float32)


TASK = TaskSpec(
    name="door-open",
    env_name="door-open-v3",
    instruction="swing the door of the grey safe open by its handle",
    stages={"reach": 0.24, "lower": 0.18, "open": 0.58},
    primitives=("reach", "lower", "open", "push", "hold"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress="push_back",
    undo=(0.5, 0.8, 0.0),
    views=views_of((-0.1, 0.58, 0.14), 1.0, corner=135.0),  # from behind, the safe hides its door
)
