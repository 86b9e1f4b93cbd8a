"""peg-unplug-side: the plug is pulled out of the wall's socket."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import CLOSE, GOAL, HAND, OBJECT, Action, Array, Expert, move_to, straddle
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import Quantities, change, choose, lately, share_left
from .spec import Rests, Rule, TaskSpec

RADIUS_AT_GOAL = 0.07
"""The simulator's own bound (metres) between the plug's end and the goal for success."""

GRIP_FROM, GRIP_TO = -0.05, 0.0
"""The plug may be taken between these points of its axis, metres from its end."""

ABOVE = 0.08
"""Metres from the fingertips to the plug's axis at which they pass over it."""

DEEP = -0.02
"""Where the expert takes the plug, metres along its axis from its end."""


def _read(env: Any, tool: Array) -> Reading:
    end = np.array(env.data.site("pegEnd").xpos)
    axis = np.array(env.data.site("pegEnd").xmat).reshape(3, 3)[:, 0]
    grip = end + float(np.clip(axis @ (tool - end), GRIP_FROM, GRIP_TO)) * axis
    return Reading(
        object=end + 0.5 * (GRIP_FROM + GRIP_TO) * axis,
        part=end,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(grip - tool)),
        held=fingers_touch(env, "plug"),
    )


def _grasp(q: Quantities) -> Array:
    """0 (open or empty) to 1 (closed around the plug, which is nearly as wide as the open hand)."""
    near_T = np.clip((0.05 - q["reach_distance"]) / 0.02, 0.0, 1.0)
    closed_T = np.clip((0.98 - q["gripper"]) / 0.15, 0.0, 1.0)
    filled_T = np.clip((q["gripper"] - 0.55) / 0.1, 0.0, 1.0)
    return np.asarray(near_T * closed_T * filled_T)


def _rests(q: Quantities, first: Quantities) -> Rests:
    way_T, way_1 = q.distance("part", "goal"), first.distance("part", "goal")
    beside_T = q.aside("tool", "object")
    height_T = np.maximum(q.between("tool", "part")[:, 2] - 0.01, 0.0)
    above_T = np.clip((0.08 - beside_T) / 0.05, 0.0, 1.0)  # lowering counts only above the plug
    return {
        "reach": share_left(beside_T, first.aside("tool", "object"), 0.035),
        "lower": 1.0 - above_T * np.clip(1.0 - height_T / ABOVE, 0.0, 1.0),
        "grasp": 1.0 - _grasp(q),
        "extract": share_left(way_T, way_1, RADIUS_AT_GOAL, least=0.03),
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = rests["grasp"] < 0.4
    done_T = q["success"] > 0.5
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.9)
    nearing_T = held_T & (change(q.distance("part", "goal"), 3) < -0.02)  # also one that was carried past it
    low_T = q.between("part", "goal")[:, 2] < -0.05
    return choose(
        len(held_T),
        ("hold", done_T),
        ("lift", held_T & low_T),
        ("extract", held_T),
        ("release", lost_T),
        ("grasp", q["reach_distance"] < 0.03),
        ("lower", q.aside("tool", "object") < 0.035),
        ("reach", None),
    ), ~(lost_T | done_T | nearing_T)


def _act(observation: Array) -> Action:
    """Go above the plug, descend astride of it, close the fingers, and pull.

    Meta-World's own policy hardly closes its fingers: they slip off, and it needs many pulls.
    """
    hand, end, opening = observation[HAND], observation[OBJECT], float(observation[3])
    spot = end + np.array([DEEP, 0.0, 0.045])
    forward, *aside = hand - spot
    inside = -0.03 < forward < 0.06 and bool((np.abs(aside) < [0.03, 0.03]).all())  # it slips on the way
    if inside and opening < 0.92:
        return _pull(observation)
    if inside and opening < 0.97:
        return move_to(hand, spot, CLOSE)
    action = straddle(hand, spot, over=ABOVE, near=(0.015, 0.012), keep=(0.03, 0.018))
    return move_to(hand, spot, CLOSE) if action is None else action


def _pull(observation: Array) -> Action:
    """Towards the goal, slowly: the plug comes loose at once."""
    hand, end, goal = observation[HAND], observation[OBJECT], observation[GOAL]
    action = move_to(hand, goal + (hand - end), CLOSE)
    speed = 0.5 if np.linalg.norm(goal - end) > 0.09 else 0.2
    action[:3] = np.clip(action[:3], -speed, speed)
    return action


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Pull the plug clear of the socket and hold it there."""
    return _pull(observation)


TASK = TaskSpec(
    name="peg-unplug-side",
    env_name="peg-unplug-side-v3",
    instruction="pull the black plug out of the socket in the wall",
    stages={"reach": 0.26, "lower": 0.24, "grasp": 0.15, "extract": 0.35},
    primitives=("reach", "lower", "grasp", "extract", "lift", "release", "hold"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    in_hand=(-DEEP, 0.0, -0.045),
    # The wall hides the plug from the left.
    views=views_of((-0.08, 0.63, 0.12), 0.75, corner=135.0, side=270.0),
)
