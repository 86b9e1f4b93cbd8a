"""peg-insert-side: a peg is pushed sideways into the hole of a box."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import (
    CLOSE,
    GOAL,
    HAND,
    OBJECT,
    OPEN,
    Action,
    Array,
    Expert,
    carry,
    move_to,
    take,
)
from sarm2_rollouts.simulator_state import Reading, fingers_hold
from sarm2_rollouts.views import views_of

from .quantities import (
    TAKEN,
    Quantities,
    at_object,
    change,
    choose,
    grasp,
    latched,
    lately,
    share_left,
    within,
)
from .spec import Rests, Rule, TaskSpec

HEAD = np.array([-0.13, 0.0, -0.01])
"""The peg's head from where it is grasped, metres: this peg never turns."""

REACH = 0.05
"""The peg may be taken this far (metres) to either side of where the expert takes it."""

RADIUS = 0.07
"""The simulator's own bound (metres) between head and goal for success; off the axis counts twice."""

BEFORE = 0.135
"""Metres from the goal to a head that stands before the hole, ready to be pushed in."""

NEAR = 0.09
"""Metres from the head to that place from which on the peg is being aligned."""

OFF_AXIS = 0.012
"""Metres off the hole's axis within which the peg goes in."""


def _read(env: Any, tool: Array) -> Reading:
    grip, axis = np.array(env.data.site("pegGrasp").xpos), np.array(env.data.body("peg").xmat)[[0, 3, 6]]
    middle = grip - np.array([0.0, 0.0, 0.01])
    along = float(np.clip(axis @ (tool - middle), -REACH, REACH))
    return Reading(
        object=grip,
        part=np.array(env.data.site("pegHead").xpos),
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(middle + along * axis - tool)),
        held=fingers_hold(env, "peg"),
    )


def _ahead(q: Quantities) -> Array:
    """Metres that the head still has to go along the hole to the goal."""
    return np.asarray(q.between("part", "goal")[:, 0])


def _off_axis(q: Quantities) -> Array:
    """Metres from the head to the hole's axis."""
    return np.asarray(np.linalg.norm(q.between("part", "goal")[:, 1:], axis=1))


def _from_hole(q: Quantities) -> Array:
    """Metres from the head to where it stands before the hole; going in takes it no further away."""
    return np.asarray(np.hypot(np.maximum(_ahead(q) - BEFORE, 0.0), _off_axis(q)))


def _short(q: Quantities) -> Array:
    """Metres that the peg is short of success."""
    return np.asarray(np.maximum(np.hypot(_ahead(q), 2.0 * _off_axis(q)) - RADIUS, 0.0))


def _rests(q: Quantities, first: Quantities) -> Rests:
    low_T, low_1 = (-one.between("part", "goal")[:, 2] for one in (q, first))
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - grasp(q, shut=0.45, empty=0.15),
        "lift": share_left(low_T, low_1, 0.025),
        "transport": share_left(_from_hole(q), _from_hole(first), NEAR, least=0.01),
        "align": 1.0 - within(_from_hole(q), NEAR, OFF_AXIS),
        "insert": np.clip(_short(q) / (BEFORE - RADIUS), 0.0, 1.0),
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["success"] > 0.5
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.55)
    low_T = -q.between("part", "goal")[:, 2]
    raised_T = latched(held_T & (low_T < 0.04), held_T & (low_T < 0.06))
    before_T = latched(raised_T & (_from_hole(q) < NEAR), raised_T & (_from_hole(q) < 1.5 * NEAR))
    # The expert waits before the hole until the head is on its axis: only a head that has left there goes in.
    straight_T = held_T & (_off_axis(q) < 0.05)
    going_in_T = latched(straight_T & (_ahead(q) < BEFORE - 0.02), straight_T & (_ahead(q) < BEFORE + 0.01))
    return choose(
        len(held_T),
        ("retract", done_T & (q["tool_z"] - q["object_z"] > 0.03)),
        ("release", done_T & ((q["gripper"] > 0.6) | (change(q["gripper"], 2) > 0.04))),
        ("insert", done_T | going_in_T),
        ("align", before_T),
        ("transport", raised_T),
        ("lift", held_T),
        ("release", lost_T),
        ("grasp", at_object(q)),
        ("reach", None),
    ), ~(lost_T | done_T)


def _act(observation: Array) -> Action:
    """Take the peg, bring its head before the hole, and push it in along the hole's axis.

    Meta-World's own policy climbs 30 cm above the peg first, and often drags it over the table and stops
    where its own bounds contradict each other.
    """
    hand, grip, goal = observation[HAND], observation[OBJECT], observation[GOAL]
    action = take(observation, grip + np.array([0.0, 0.0, 0.035]))
    if action is not None:
        return action
    head = grip + HEAD
    way = goal - head
    if float(np.linalg.norm(way[1:])) < OFF_AXIS and -way[0] < BEFORE + 0.02:
        return move_to(hand, hand + np.array([-0.06, way[1], way[2]]), CLOSE, gain=15.0)
    return carry(hand, head, goal + np.array([BEFORE, 0.0, 0.0]), rise=0.0)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Push the peg in further, let go of it and rise."""
    hand = observation[HAND]
    if step < 7:
        return np.array([-0.9, 0.0, 0.0, CLOSE], dtype=np.float32)
    return move_to(hand, np.array([hand[0], hand[1], home[2] + 0.1 if step > 14 else hand[2]]), OPEN)


TASK = TaskSpec(
    name="peg-insert-side",
    env_name="peg-insert-side-v3",
    instruction="pick up the green peg and push it into the hole in the side of the box",
    stages={"reach": 0.25, "grasp": 0.22, "lift": 0.15, "transport": 0.14, "align": 0.14, "insert": 0.10},
    primitives=("reach", "grasp", "lift", "transport", "align", "insert", "release", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    lost_until=0.9,
    in_hand=(0.0, 0.0, -0.035),
    # From the left, the box stands before the work; its hole faces right.
    views=views_of((-0.05, 0.6, 0.12), 0.85, corner=135.0, side=225.0),
)
