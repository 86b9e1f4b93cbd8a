"""handle-pull: a handle that stands low is taken and raised."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import CLOSE, HAND, OBJECT, OPEN, Action, Array, Expert, descend, move_to
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import TAKEN, Quantities, at_object, change, choose, grasp, lately, share_left
from .spec import Rests, Rule, TaskSpec

LOWEST = -0.1
"""Where the handle's slide stands at first, metres."""

DONE = 0.058
"""Travel of the handle (metres) from which the simulator calls it raised."""

BAR = np.array([0.0, 0.0, -0.014])
"""From the simulator's point on the handle's right end to the middle of the bar there, metres."""

GRIP = np.array([0.0, 0.0, -0.033])
"""From the middle of the bar to where the fingertips stand when they have taken it, metres."""

FINGERS = np.array([0.0, 0.0, 0.045])
"""From the fingertips to the hand, metres."""


def _read(env: Any, tool: Array) -> Reading:
    bar = np.array(env.data.site("handleRight").xpos) + BAR
    travel = float(env.data.qpos[9]) - LOWEST
    return Reading(
        object=bar,
        part=bar,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(bar + GRIP - tool)),
        held=fingers_touch(env, "handle_link"),
        joint=float(np.clip(travel / DONE, 0.0, 1.0)),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - grasp(q, empty=0.0),  # where the bar is, closed fingers cannot be empty
        "raise": 1.0 - q["joint"],
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["success"] > 0.5
    pressing_T = change(q["joint"], 3) < -0.06
    approaching_T = change(q["reach_distance"], 4) < -0.03  # no idling, even where the bar is nearly up
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.7)
    return choose(
        len(done_T),
        ("press", pressing_T),
        ("hold", done_T),
        ("raise", held_T | (change(q["joint"], 3) > 0.06)),
        ("release", lost_T),
        ("grasp", at_object(q)),
        ("reach", None),
    ), ~(pressing_T | approaching_T | lost_T | done_T)


def _act(observation: Array) -> Action:
    """Go above the bar, descend astride of it, close the fingers and raise it.

    Meta-World's own policy wanders to and fro in front of the bar and raises it by what happens to catch.
    """
    hand, gripper = observation[HAND], float(observation[3])
    place = observation[OBJECT] + BAR + GRIP + FINGERS
    off = hand - place
    around_bar = bool(np.linalg.norm(off[:2]) < 0.03 and abs(off[2]) < 0.04)
    if not (around_bar and gripper < 0.7):
        there = descend(hand, place, OPEN, hover=0.09)
        return there if there is not None else move_to(hand, place, CLOSE)
    # The smooth bar follows slowly: fingers more than a centimetre ahead of it would slip off.
    return np.array([0.0, 0.0, np.clip(30.0 * (0.012 - off[2]), -0.3, 0.35), CLOSE], dtype=np.float32)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Raise the handle a little further and hold it."""
    return _act(observation) if step < 6 else np.array([0.0, 0.0, 0.0, CLOSE], dtype=np.float32)


TASK = TaskSpec(
    name="handle-pull",
    env_name="handle-pull-v3",
    instruction="take the red handle of the grey box and raise it",
    stages={"reach": 0.22, "grasp": 0.21, "raise": 0.57},
    primitives=("reach", "grasp", "raise", "release", "press", "hold"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress="push_back",
    undo=(0.0, 0.0, -0.9),
    views=views_of((0.0, 0.62, 0.12), 0.7, corner=135.0),  # from behind, the box hides its handle
)
