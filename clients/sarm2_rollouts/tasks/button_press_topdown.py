"""button-press-topdown: the button on top of a box is pressed down and held there."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import CLOSE, HAND, OBJECT, Action, Array, Expert, descend
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import Quantities, change, choose, share_left
from .spec import Rests, Rule, TaskSpec

DONE = 0.069
"""Travel of the button (metres) from which the simulator calls it pressed; a spring drives it back."""

TOP = np.array([0.0, 0.0, 0.193])
"""From the button's own frame to its top, metres."""

FINGERS = 0.05
"""Height of the hand over the button's top (metres) when the fingers touch it."""


def _read(env: Any, tool: Array) -> Reading:
    top = np.array(env.data.body("button").xpos) + TOP
    travel = -float(env.data.joint("btnbox_joint").qpos[0])
    return Reading(
        object=top,
        part=top,
        goal=np.array(env._target_pos),
        reach_distance=float(np.linalg.norm(top - tool)),
        held=fingers_touch(env, "button"),
        joint=float(np.clip(travel / DONE, 0.0, 1.0)),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.02),
        "press": 1.0 - q["joint"],
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    done_T = q["success"] > 0.5
    rising_T = change(q["joint"], 3) < -0.08
    return choose(
        len(done_T),
        ("hold", done_T),
        ("release", rising_T),
        ("press", q["reach_distance"] < 0.05),
        ("reach", None),
    ), ~(rising_T | done_T)


def _act(observation: Array) -> Action:
    """Rise, go above the button, come down on it and press more slowly."""
    hand, top = observation[HAND], observation[OBJECT]
    there = descend(hand, top + np.array([0.0, 0.0, FINGERS]), CLOSE, hover=0.07)
    return there if there is not None else np.array([0.0, 0.0, -0.6, CLOSE], dtype=np.float32)


def _expert() -> Expert:
    return _act


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Keep the button down: it springs back without the hand."""
    return np.array([0.0, 0.0, -0.3 if step < 4 else 0.0, CLOSE], dtype=np.float32)


TASK = TaskSpec(
    name="button-press-topdown",
    env_name="button-press-topdown-v3",
    instruction="press the red button on top of the yellow box",
    stages={"reach": 0.75, "press": 0.25},
    primitives=("reach", "press", "release", "hold"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress="push_back",
    undo=(0.0, 0.0, 0.9),  # the hand lifts off, and the button springs back
    views=views_of((0.0, 0.7, 0.22), 0.95),  # the hand begins high above
)
