"""faucet-open: the faucet's handle is turned to the right by pushing it from behind."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import (
    CLOSE,
    GOAL,
    HAND,
    OBJECT,
    Action,
    Array,
    Expert,
    around,
    descend,
    move_to,
)
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import Quantities, change, choose, latched, lowered, share_left
from .spec import Rests, Rule, TaskSpec

DONE = 1.37398
"""Angle of the handle (radians) from which the simulator calls the faucet open."""

AXIS = np.array([-0.175, 0.0, -0.125])
"""From the goal to the foot of the faucet, metres."""

OUT = 0.045
"""Metres from the handle's tip back towards the axis, where it is pushed."""

BEHIND = 0.035
"""Metres behind the handle where the closed fingers stand before they push."""

DOWN = -0.025
"""Height of the tool over the handle (metres) when the fingers stand beside it."""

HOVER = 0.08
"""Height above that (metres) at which the fingers pass over the handle."""


def _read(env: Any, tool: Array) -> Reading:
    tip, goal = np.array(env.data.site("handleStartOpen").xpos), np.array(env._target_pos)
    angle = float(env.data.joint("knob_Joint_1").qpos[0])
    return Reading(
        object=tip,
        part=tip,
        goal=goal,
        reach_distance=float(np.linalg.norm(tip + _to_place(tip - goal) - tool)),
        held=fingers_touch(env, "faucet_link2"),
        joint=float(np.clip(angle / DONE, 0.0, 1.0)),
    )


def _to_place(tip_to_goal: Array) -> Array:
    """From the handle's tip to where the tool stands before it pushes, (..., 3) metres."""
    arm = (tip_to_goal - AXIS) * [1.0, 1.0, 0.0]
    inward = -OUT * arm / np.linalg.norm(arm, axis=-1, keepdims=True)
    return np.asarray(inward - BEHIND * around(arm) + [0.0, 0.0, DOWN])


def _from_place(q: Quantities) -> Array:
    return np.asarray(q.between("tool", "object") - _to_place(q.between("object", "goal")))


def _aside(q: Quantities) -> Array:
    return np.asarray(np.linalg.norm(_from_place(q)[:, :2], axis=1))


def _rests(q: Quantities, first: Quantities) -> Rests:
    return {
        "reach": share_left(_aside(q), _aside(first), 0.04),
        "lower": 1.0 - lowered(_from_place(q)[:, 2] - 0.01, _aside(q), HOVER - 0.02),
        "turn": 1.0 - q["joint"],
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    done_T = q["success"] > 0.5
    height_T = _from_place(q)[:, 2]
    near_T = latched(_aside(q) < 0.07, _aside(q) < 0.09)
    # Beside a handle that has turned a little, fingers that ride up have not let go of it.
    low_T = height_T < np.where(q["joint"] > 0.05, 0.06, 0.03)
    return choose(
        len(done_T),
        ("retract", done_T & (rests["lower"] > 0.5)),
        ("turn", done_T),
        ("turn", near_T & (low_T | (change(q["joint"], 3) > 0.04))),
        ("lower", near_T),
        ("reach", None),
    ), ~done_T


def _act(observation: Array) -> Action:
    """Go above the left of the handle, descend beside it, and push it around the faucet's axis.

    Meta-World's own policy pushes along one straight line, the wrong way from beyond the handle.
    """
    hand, tip = observation[HAND], observation[OBJECT] + np.array([0.0, 0.0, 0.01])
    arm = tip - observation[GOAL]
    place = tip + _to_place(arm) + np.array([0.0, 0.0, 0.045])
    way = around(arm - AXIS)
    off = hand - place
    ahead = float(off @ way)
    inward = float(np.linalg.norm(off[:2] - ahead * way[:2]))
    if -0.04 < ahead < 0.04 and inward < 0.05 and off[2] < 0.03:
        return move_to(hand, place + 0.1 * way, CLOSE, gain=20.0)
    there = descend(hand, place, CLOSE, hover=HOVER)
    return there if there is not None else move_to(hand, place, CLOSE)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Turn a little further, step back from the handle and rise."""
    if step < 4:
        return _act(observation)
    back = -around(observation[OBJECT] - observation[GOAL] - AXIS)
    rise = 1.0 if step >= 8 else 0.0
    return np.append((1.0 - rise) * back[:2], [rise, CLOSE]).astype(np.float32)


TASK = TaskSpec(
    name="faucet-open",
    env_name="faucet-open-v3",
    instruction="turn the red handle of the faucet to the right",
    stages={"reach": 0.43, "lower": 0.22, "turn": 0.35},
    primitives=("reach", "lower", "turn", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress=None,  # the fingers stand behind the handle: they can let it be but not draw it back
    views=views_of((0.0, 0.62, 0.12), 0.85),
)
