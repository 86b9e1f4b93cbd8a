"""assembly: a ring is taken by its handle and put over a standing peg."""

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
    axes_of,
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

ARM = 0.13
"""Metres from the middle of the handle to the middle of the ring."""

HANDLE_REACH = 0.03
"""The handle may be taken this far (metres) to either side of its middle."""

TOP = 0.10
"""Height of the peg's top (metres): a ring below it and around the peg is success."""

CARRIED = 0.15
"""Height of the ring (metres) at which it is carried."""

AROUND = 0.012
"""Metres beside the peg's axis from which on the ring goes over it."""

BESIDE = 0.05
"""Metres beside the peg's axis from which on the ring is being aligned."""


def _read(env: Any, tool: Array) -> Reading:
    body = env.data.body("RoundNut")
    ring, axes = np.array(body.xpos), np.array(body.xmat).reshape(3, 3)
    handle = ring - ARM * axes[:, 1]
    along = float(np.clip(axes[:, 1] @ (tool - handle), -HANDLE_REACH, HANDLE_REACH))
    return Reading(
        object=handle,
        part=ring,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(handle + along * axes[:, 1] - tool)),
        held=fingers_hold(env, "asmbly_peg"),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    aside_T = q.aside("part", "goal")
    over_T = within(aside_T, 0.035, 0.015)
    low_T, low_1 = (CARRIED - 0.02 - one["part_z"] for one in (q, first))
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - grasp(q),
        "lift": share_left(low_T, low_1, 0.0) * (1.0 - over_T),
        "transport": share_left(aside_T, first.aside("part", "goal"), BESIDE),
        "align": 1.0 - within(aside_T, BESIDE, AROUND),
        "lower": 1.0 - over_T * within(q["part_z"], CARRIED - 0.01, TOP),
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["success"] > 0.5
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.6)
    aside_T, high_T = q.aside("part", "goal"), held_T & (q["part_z"] > TOP)
    over_T = held_T & (aside_T < 0.035)
    return choose(
        len(held_T),
        ("retract", done_T & (q["tool_z"] - q["object_z"] > 0.04)),
        ("release", done_T & ((q["gripper"] > 0.6) | (change(q["gripper"], 2) > 0.04))),
        (
            "lower",
            done_T | latched(over_T & (q["part_z"] < CARRIED - 0.015), over_T & (q["part_z"] < CARRIED)),
        ),
        ("align", latched(high_T & (aside_T < BESIDE), high_T & (aside_T < BESIDE + 0.03))),
        ("transport", latched(high_T & (q["part_z"] > TOP + 0.01), held_T & (q["part_z"] > TOP - 0.01))),
        ("lift", held_T),
        ("release", lost_T),
        ("grasp", at_object(q)),
        ("reach", None),
    ), ~(lost_T | done_T)


def _act(observation: Array) -> Action:
    """Take the handle, and steer the ring itself over the peg, however it lies in the hand.

    Meta-World's own policy steers the hand, and a handle that has slipped puts the ring beside the peg.
    """
    handle, axes = observation[OBJECT], axes_of(observation)
    action = take(observation, handle + 0.01 * axes[:, 1] + np.array([0.0, 0.0, 0.045]))
    if action is not None:
        return action
    place = np.array([*observation[GOAL][:2], 0.07])
    ring = handle + ARM * axes[:, 1]
    return carry(observation[HAND], ring, place, rise=CARRIED - 0.07, over=0.01, funnel=0.01)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Push the ring down a little further, let go of it and rise."""
    hand = observation[HAND]
    if step < 5:
        return np.array([0.0, 0.0, -1.0, CLOSE], dtype=np.float32)
    return move_to(hand, np.array([hand[0], hand[1], home[2] if step > 12 else hand[2]]), OPEN)


TASK = TaskSpec(
    name="assembly",
    env_name="assembly-v3",
    instruction="put the ring with the green handle over the red peg",
    stages={"reach": 0.21, "grasp": 0.19, "lift": 0.16, "transport": 0.26, "align": 0.12, "lower": 0.06},
    primitives=("reach", "grasp", "lift", "transport", "align", "lower", "release", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    lost_until=0.75,  # a ring let go over the peg still falls onto it
    in_hand=(0.01, 0.0, -0.045),
    views=views_of((0.0, 0.65, 0.12), 0.75),
)
