"""drawer-close: the open drawer is pushed shut by its handle, with the fingers astride of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import HAND, OBJECT, OPEN, Action, Array, Expert, move_to, straddle
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import Quantities, astride, change, choose, latched, share_left
from .spec import Rests, Rule, TaskSpec

OPENED = 0.15
"""How far (metres) the drawer stands out at the start."""

DONE = 0.0315
"""How far (metres) the drawer may stand out for the simulator to call it closed."""

LOW = 0.06
"""Height of the tool (metres) at which the fingers stand astride of the drawer's handle."""


def _read(env: Any, tool: Array) -> Reading:
    handle = np.array(env.data.body("drawer_link").xpos) + np.array([0.0, -0.16, 0.0])
    out = -float(env.data.joint("goal_slidey").qpos[0])
    return Reading(
        object=handle,
        part=handle,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(handle - tool)),
        held=fingers_touch(env, "drawer_link"),
        joint=float(np.clip((OPENED - out) / (OPENED - DONE), 0.0, 1.0)),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    return astride(q, first, LOW) | {"push": share_left(1.0 - q["joint"], 1.0 - first["joint"], 0.0)}


def _rules(q: Quantities, rests: Rests) -> Rule:
    done_T = q["joint"] >= 1.0
    near_T = q.aside("tool", "object") < 0.06
    # Fingers that ride up behind the drawer have not let go of it.
    behind_T = latched(near_T & (q["tool_z"] < LOW + 0.02), near_T & (q["tool_z"] < LOW + 0.04))
    moved_T = change(q["joint"], 3)
    opening_T = moved_T < -0.04
    return choose(
        len(done_T),
        ("pull", opening_T),
        ("retract", done_T & (q["tool_z"] > LOW + 0.02)),
        ("push", done_T),
        ("push", behind_T | (moved_T > 0.04)),
        ("lower", q.aside("tool", "object") < 0.04),
        ("reach", None),
    ), ~(opening_T | done_T)


def _act(observation: Array) -> Action:
    """Go astride of the handle, and push.

    Meta-World's own policy climbs 30 cm to pass over the handle and comes down in front of it.
    """
    hand = observation[HAND]
    spot = observation[OBJECT] + np.array([0.0, 0.0, LOW - 0.095])
    action = straddle(hand, spot, over=0.115, near=(0.03, 0.015), keep=(0.05, 0.05), tall=0.02)
    if action is not None:
        return action
    return move_to(hand, spot + np.array([0.0, 0.06, 0.0]), OPEN)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Push home, then rise from the handle."""
    hand = observation[HAND]
    if step < 3:
        return np.array([0.0, 0.6, 0.0, OPEN], dtype=np.float32)
    return move_to(hand, np.array([hand[0], hand[1], home[2]]), OPEN)


TASK = TaskSpec(
    name="drawer-close",
    env_name="drawer-close-v3",
    instruction="push the open green drawer shut",
    stages={"reach": 0.16, "lower": 0.34, "push": 0.50},
    primitives=("reach", "lower", "push", "pull", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress="push_back",
    undo=(0.0, -0.9, 0.0),
    start=(0.0, 0.48, 0.27),  # the simulator's own has a finger in the drawer's front and flings it shut
    views=views_of((0.0, 0.64, 0.12), 0.85, corner=135.0),  # from behind, the drawer hides its handle
)
