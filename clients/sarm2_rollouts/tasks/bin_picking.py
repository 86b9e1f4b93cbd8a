"""bin-picking: a block is taken out of one bin and set down in the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import HAND, OBJECT, OPEN, Action, Array, Expert, carry, move_to, take
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

FLOOR = np.array([0.0, 0.0, 0.03])
"""A block that lies in the middle of a bin, from that bin, metres."""

CLEAR = 0.10
"""Height of the block (metres) at which it passes over the walls of the bins."""

OVER = 0.035
"""Metres beside the middle of its bin within which a block that lies on the floor counts."""

LOW = 0.035
"""Height of the block (metres) below which it counts as set down, within the simulator's bound."""


def _read(env: Any, tool: Array) -> Reading:
    block = np.array(env.data.body("obj").xpos)
    return Reading(
        object=block,
        part=block,
        goal=np.array(env._target_pos) + FLOOR,
        reach_distance=float(np.linalg.norm(block - tool)),
        held=fingers_hold(env, "objA"),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    aside_T = q.aside("part", "goal")
    over_T = within(aside_T, OVER + 0.055, OVER)
    lowered_T = within(q["part_z"], CLEAR, LOW)
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - grasp(q),
        "lift": within(q["part_z"], CLEAR, 0.03) * (1.0 - over_T),
        "transport": share_left(aside_T, first.aside("part", "goal"), OVER),
        "lower": 1.0 - over_T * lowered_T,
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["success"] > 0.5
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.6)
    return choose(
        len(held_T),
        ("retract", done_T & (q["tool_z"] - q["part_z"] > 0.04)),
        ("release", done_T & ((q["gripper"] > 0.6) | (change(q["gripper"], 2) > 0.04))),
        ("lower", done_T | (held_T & (q.aside("part", "goal") < OVER + 0.025))),
        ("transport", latched(held_T & (q["part_z"] > CLEAR - 0.02), held_T & (q["part_z"] > CLEAR - 0.04))),
        ("lift", held_T),
        ("release", lost_T),
        ("grasp", at_object(q)),
        ("reach", None),
    ), ~(lost_T | done_T)


def _act(observation: Array) -> Action:
    """Take the block, drag it from the bin's walls where it lies against one, and carry it over.

    Meta-World's own policy lets a block go that has slipped 2 cm in the hand, and climbs far above it first.
    """
    hand, block = observation[HAND], observation[OBJECT]
    grip = block + np.array([0.0, 0.0, 0.04])
    bin_x = np.copysign(0.12, block[0])
    inside = bool((np.abs(block[:2] - [bin_x, 0.7]) < 0.09).all())
    if inside and float(np.linalg.norm(hand - grip)) > 0.03:  # fingers do not fit between block and wall
        grip[:2] = np.clip(grip[:2], [bin_x - 0.065, 0.675], [bin_x + 0.065, 0.725])
    action = take(observation, grip)
    if action is not None:
        return action
    return carry(hand, block, np.array([0.12, 0.7, 0.03]), rise=0.10)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Let go of the block and rise."""
    hand = observation[HAND]
    if step < 3:
        return np.array([0.0, 0.0, -0.6, 1.0], dtype=np.float32)
    return move_to(hand, np.array([hand[0], hand[1], home[2] if step > 8 else hand[2]]), OPEN)


TASK = TaskSpec(
    name="bin-picking",
    env_name="bin-picking-v3",
    instruction="take the green block out of the red bin and put it into the blue bin",
    stages={"reach": 0.23, "grasp": 0.21, "lift": 0.12, "transport": 0.28, "lower": 0.16},
    primitives=("reach", "grasp", "lift", "transport", "lower", "release", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    lost_until=0.9,
    in_hand=(0.0, 0.0, -0.045),
    views=views_of((0.0, 0.7, 0.12), 0.75, side=270.0),  # from the side, one bin hides the other
)
