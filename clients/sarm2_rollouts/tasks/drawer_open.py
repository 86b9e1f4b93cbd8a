"""drawer-open: the drawer is pulled open by its handle, with the fingers astride of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import HAND, OBJECT, OPEN, Action, Array, Expert, move_to
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import Quantities, change, choose, latched, share_left
from .spec import Rests, Rule, TaskSpec

DONE = 0.16
"""Travel of the drawer (metres) from which the simulator calls it open: 3 cm short of its 19 cm target."""

HOOKED_HEIGHT = 0.03
"""Height of the tool (metres) at which the fingers stand astride of the drawer's handle."""


def _read(env: Any, tool: Array) -> Reading:
    handle = np.array(env.data.body("drawer_link").xpos) + np.array([0.0, -0.16, 0.0])
    opening = -float(env.data.joint("goal_slidey").qpos[0])
    return Reading(
        object=handle,
        part=handle,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(handle - tool)),
        held=fingers_touch(env, "drawer_link"),
        joint=float(np.clip(opening / DONE, 0.0, 1.0)),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    beside_T = q.aside("tool", "object")
    above_T = np.clip((0.10 - beside_T) / 0.05, 0.0, 1.0)  # lowering counts only above the handle
    lowered_T = 1.0 - share_left(q["tool_z"], first["tool_z"], HOOKED_HEIGHT)
    return {
        "reach": share_left(beside_T, first.aside("tool", "object"), 0.035),
        "lower": 1.0 - above_T * lowered_T,
        "pull": 1.0 - q["joint"],
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    done_T = q["joint"] >= 1.0
    near_T = latched(q.aside("tool", "object") < 0.06, q.aside("tool", "object") < 0.08)
    # Behind a drawer that has come out a little, fingers that ride up have not let go of it.
    low_T = q["tool_z"] < HOOKED_HEIGHT + np.where(q["joint"] > 0.05, 0.04, 0.01)
    closing_T = change(q["joint"], 3) < -0.04
    return choose(
        len(done_T),
        ("push", closing_T),
        ("retract", done_T & (q["tool_z"] > HOOKED_HEIGHT + 0.005)),
        ("pull", done_T),
        ("pull", near_T & (low_T | (change(q["joint"], 3) > 0.04))),
        ("lower", near_T),
        ("reach", None),
    ), ~(closing_T | done_T)


def _act(observation: Array) -> Action:
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


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Hold the drawer against its stop.

    The line from which it counts as open lies at that stop, which is soft: a drawer that is let go there
    springs back to the line, and falls short of it as often as not.
    """
    return _act(observation)


TASK = TaskSpec(
    name="drawer-open",
    env_name="drawer-open-v3",
    instruction="open the green drawer by its handle",
    stages={"reach": 0.20, "lower": 0.37, "pull": 0.43},
    primitives=("reach", "lower", "pull", "push", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress="push_back",
    undo=(0.0, 0.9, 0.0),
    views=views_of((0.0, 0.68, 0.12), 0.95, corner=135.0),  # from behind, the drawer hides its handle
)
