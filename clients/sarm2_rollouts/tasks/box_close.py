"""box-close: a lid is taken by its handle and seated on a box."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import (
    HAND,
    OBJECT,
    OPEN,
    Action,
    Array,
    Expert,
    axes_of,
    carry,
    move_to,
    take,
)
from sarm2_rollouts.simulator_state import Reading, fingers_hold
from sarm2_rollouts.views import views_of

from .quantities import TAKEN, Quantities, at_object, change, choose, grasp, latched, lately, share_left
from .spec import Rests, Rule, TaskSpec

HANDLE = 0.082
"""Height of the handle's bar over the lid, metres."""

BAR_REACH = 0.035
"""The bar may be taken this far (metres) to either side of its middle."""

FINGERS = 0.03
"""The bar may lie this far (metres) above the tips of the fingers."""

SEATED = 0.073
"""Height of a lid (metres) that sits on the box."""

CENTRE = np.array([0.0, 0.0, 0.06])
"""Middle of the ball that the simulator calls success, from the lid's seat on the box, metres."""

RADIUS = 0.08
"""Its radius, metres. It sticks out of the box: a lid counts as on before it sits."""

EDGE = 0.05
"""Metres short of success from which on the lid is being seated: it reaches over the box by then."""

CLEAR = 0.08
"""Height of the lid (metres) at which its rim passes over the walls of the box."""


def _read(env: Any, tool: Array) -> Reading:
    body = env.data.body("top_link")
    lid, axes = np.array(body.xpos), np.array(body.xmat).reshape(3, 3)
    bar = lid + HANDLE * axes[:, 2]
    along = float(np.clip(axes[:, 1] @ (tool - bar), -BAR_REACH, BAR_REACH))
    gap = bar + along * axes[:, 1] - tool
    gap[2] -= np.clip(gap[2], 0.0, FINGERS)
    return Reading(
        object=bar,
        part=lid,
        goal=np.array(env._target_pos) - CENTRE,
        reach_distance=float(np.linalg.norm(gap)),
        held=fingers_hold(env, "top_link"),
    )


def _short(q: Quantities) -> Array:
    """Metres that the lid is short of where the simulator calls the box closed."""
    return np.asarray(np.maximum(np.linalg.norm(q.between("part", "goal") - CENTRE, axis=1) - RADIUS, 0.0))


def _held(q: Quantities) -> Array:
    return grasp(q, shut=0.4, empty=0.15)


def _rests(q: Quantities, first: Quantities) -> Rests:
    short_T = _short(q)
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.015),
        "grasp": 1.0 - _held(q),
        "lift": share_left(CLEAR - q["part_z"], CLEAR - first["part_z"], 0.0),
        "transport": share_left(short_T, _short(first), EDGE),
        "close": np.clip(short_T / EDGE, 0.0, 1.0),
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["success"] > 0.5
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.5)
    return choose(
        len(held_T),
        ("retract", done_T & (q["tool_z"] - q["object_z"] > 0.03)),
        ("release", done_T & ((q["gripper"] > 0.6) | (change(q["gripper"], 2) > 0.04))),
        ("close", done_T | (held_T & (_short(q) < EDGE))),
        ("transport", latched(held_T & (q["part_z"] > CLEAR - 0.02), held_T & (q["part_z"] > CLEAR - 0.04))),
        ("lift", held_T),
        ("release", lost_T),
        ("grasp", at_object(q)),
        ("reach", None),
    ), ~(lost_T | done_T)


def _seat(observation: Array) -> Array:
    """Where the lid sits on the box, metres (3,)."""
    return np.array([*observation[36:38], SEATED])


def _act(observation: Array) -> Action:
    """Take the handle between open fingers, and carry the lid just over the walls of the box.

    Meta-World's own policy presses closed fingers down on the handle until it slips between them.
    """
    hand, lid = observation[HAND], observation[OBJECT]
    bar = lid + HANDLE * axes_of(observation)[:, 2]
    action = take(observation, bar + np.array([0.0, 0.0, 0.035]), hover=0.06, closed=0.4)
    return carry(hand, lid, _seat(observation), rise=0.03) if action is None else action


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Seat the lid, let go of it and rise."""
    hand, lid, gripper = observation[HAND], observation[OBJECT], float(observation[3])
    seat = _seat(observation)
    seated = float(np.linalg.norm(lid[:2] - seat[:2])) < 0.025 and lid[2] < SEATED + 0.006
    if gripper < 0.45 and not seated:
        return carry(hand, lid, seat, rise=0.03)
    return move_to(hand, np.array([hand[0], hand[1], home[2] + 0.1 if gripper > 0.5 else hand[2]]), OPEN)


TASK = TaskSpec(
    name="box-close",
    env_name="box-close-v3",
    instruction="close the wooden box with its lid",
    stages={"reach": 0.15, "grasp": 0.34, "lift": 0.15, "transport": 0.28, "close": 0.08},
    primitives=("reach", "grasp", "lift", "transport", "close", "release", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    lost_until=0.9,
    in_hand=(0.0, 0.0, -0.117),
    warm_up=12,  # the lid drops and settles
    views=views_of((0.0, 0.65, 0.12), 0.75),
)
