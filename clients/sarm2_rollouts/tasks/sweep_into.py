"""sweep-into: a block is swept over the table into the hole, with the open fingers astride of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import GOAL, HAND, OBJECT, OPEN, Action, Array, Expert, move_to, straddle
from sarm2_rollouts.simulator_state import Reading, colliding
from sarm2_rollouts.views import views_of

from .quantities import Quantities, astride, change, choose, latched, share_left
from .spec import Rests, Rule, TaskSpec

RADIUS_AT_GOAL = 0.05
"""The simulator's own bound (metres, as seen from above) between block and goal for success."""

LOW = 0.06
"""Height of the tool (metres) at which the fingers reach down beside the block: 1 cm above the table."""


def _read(env: Any, tool: Array) -> Reading:
    block = np.array(env.data.body("obj").xpos)
    return Reading(
        object=block,
        part=block,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(block - tool)),
        held=any(env.touching_object(geom) for geom in colliding(env.model, "obj")),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    way_T, way_1 = q.aside("object", "goal"), first.aside("object", "goal")
    return astride(q, first, LOW) | {"sweep": share_left(way_T, way_1, RADIUS_AT_GOAL)}


def _rules(q: Quantities, rests: Rests) -> Rule:
    done_T = q["success"] > 0.5
    near_T = q.aside("tool", "object") < 0.06
    astride_T = latched(near_T & (q["tool_z"] < LOW + 0.02), near_T & (q["tool_z"] < LOW + 0.04))
    above_T = latched(q.aside("tool", "object") < 0.035, q.aside("tool", "object") < 0.05)
    back_T = change(q.aside("object", "goal"), 3) > 0.015
    return choose(
        len(done_T),
        ("retract", done_T & (q["tool_z"] > LOW + 0.03)),
        ("sweep", done_T),
        ("pull", back_T),
        ("sweep", astride_T),
        ("lower", above_T),
        ("reach", None),
    ), ~(back_T | done_T)


def _act(observation: Array) -> Action:
    """Go above the block, reach down astride of it, and sweep it on a straight line into the hole.

    Meta-World's own policy first climbs 30 cm above the block, then carries it in its closed fingers.
    """
    hand, block, goal = observation[HAND], observation[OBJECT], observation[GOAL]
    spot = np.array([block[0], block[1], LOW + 0.045])
    action = straddle(hand, spot, over=0.075, near=(0.02, 0.02), keep=(0.035, 0.045), tall=0.005)
    if action is not None:
        return action
    way = goal[:2] - block[:2] + np.array([0.0, 0.02])  # the finger that sweeps is behind the block
    x, y = np.clip(way / max(0.1, float(np.linalg.norm(way))), -1.0, 1.0)
    x += 5.0 * (block[0] - hand[0])  # the block slips along the finger
    return np.array([x, y, 10.0 * (spot[2] - hand[2]), OPEN], dtype=np.float32)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Sweep on until the block lies well inside the hole, then rise."""
    hand, goal = observation[HAND], observation[GOAL]
    if step < 6:
        return move_to(hand, np.array([hand[0], goal[1], hand[2]]), OPEN)
    return move_to(hand, np.array([hand[0], hand[1], home[2]]), OPEN)


TASK = TaskSpec(
    name="sweep-into",
    env_name="sweep-into-v3",
    instruction="sweep the wooden block into the hole in the table",
    stages={"reach": 0.13, "lower": 0.32, "sweep": 0.55},
    primitives=("reach", "lower", "sweep", "pull", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress="push_back",
    undo=(0.0, -0.9, 0.0),
    views=views_of((0.0, 0.7, 0.08), 0.7),  # the block has the table's colour
)
