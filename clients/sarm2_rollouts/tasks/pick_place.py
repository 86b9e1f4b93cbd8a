"""pick-place: the puck to a goal in the air."""

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
    from_metaworld,
    move_to,
)
from sarm2_rollouts.simulator_state import Reading
from sarm2_rollouts.views import views_of

from .quantities import TAKEN, Quantities, at_object, choose, grasp, lately, share_left
from .spec import Rests, Rule, TaskSpec

RADIUS_AT_GOAL = 0.07
"""The simulator's own bound (metres) between puck and goal for success."""


def _read(env: Any, tool: Array) -> Reading:
    puck = np.array(env.data.body("obj").xpos)
    return Reading(
        object=puck,
        part=puck,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(puck - tool)),
        held=bool(env.touching_object(env.model.geom("objGeom").id)),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - grasp(q),
        "transport": share_left(
            q.distance("object", "goal"), first.distance("object", "goal"), RADIUS_AT_GOAL
        ),
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["success"] > 0.5
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.5)
    return choose(
        len(held_T),
        ("hold", done_T),
        ("transport", held_T),
        ("release", lost_T),
        ("grasp", at_object(q)),
        ("reach", None),
    ), ~(lost_T | done_T)


def _expert() -> Expert:
    """Meta-World's policy until the puck is lifted, then straight on, whatever way it lies in the hand.

    The policy takes a puck that sits 2 cm off in the hand (after a fumble) for one not yet reached, and
    climbs for ever.
    """
    policy = from_metaworld("SawyerPickPlaceV3Policy")

    def act(observation: Array) -> Action:
        hand, puck, gripper = observation[HAND], observation[OBJECT], float(observation[3])
        below = hand - puck - np.array([0.0, 0.0, 0.04])
        in_hand = bool((np.abs(below) < [0.035, 0.035, 0.04]).all())
        if in_hand and puck[2] > 0.05 and 0.3 < gripper < 0.7:
            return move_to(hand, observation[GOAL] + (hand - puck), CLOSE)
        action = policy(observation)
        # Its "do not grab" is an effort of 0, which leaves the fingers too narrow for a second try.
        action[3] = action[3] if action[3] > 0 else OPEN
        return action

    return act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Hold the puck in the air at the goal: letting go would undo the success."""
    return _expert()(observation)


TASK = TaskSpec(
    name="pick-place",
    env_name="pick-place-v3",
    instruction="pick up the red puck and carry it to the blue goal",
    stages={"reach": 0.33, "grasp": 0.27, "transport": 0.40},
    primitives=("reach", "grasp", "transport", "release", "hold"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    in_hand=(0.0, 0.0, -0.045),
    views=views_of((0.0, 0.7, 0.14), 0.75),  # the ball and the goal are small
)
