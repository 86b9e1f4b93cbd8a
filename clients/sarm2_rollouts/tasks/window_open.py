"""window-open: the window is slid open by its upright handle, closed fingers against its left side."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import CLOSE, HAND, OBJECT, Action, Array, Expert, move_to
from sarm2_rollouts.simulator_state import Reading, fingers_touch
from sarm2_rollouts.views import views_of

from .quantities import Quantities, change, choose, latched, share_left
from .spec import Rests, Rule, TaskSpec

DONE = 0.19
"""Travel of the pane (metres) from which the simulator calls the window open: 1 cm short of its stop."""

BAR = np.array([-0.014, -0.095, 0.0])
"""The handle's upright bar in the pane's own frame, metres."""

HALF_BAR = 0.03
"""The bar may be pressed this far (metres) above and below its middle."""

TO_BAR = np.array([0.026, 0.0, 0.035])
"""From the point of the pane that the observation holds to where the hand is level with the bar, metres."""

TOUCH = 0.03
"""Metres from the tool to the bar's middle line while the fingers press on it."""

SPEED = 0.045
"""Metres ahead of the hand at which the expert aims: a pane that is pushed faster glides on by itself."""


def _read(env: Any, tool: Array) -> Reading:
    bar = np.array(env.data.body("windowb_a").xpos) + BAR
    up = float(np.clip(tool[2] - bar[2], -HALF_BAR, HALF_BAR))
    side = bar + np.array([-TOUCH, 0.0, up])
    return Reading(
        object=bar,
        part=bar,
        goal=np.array(env._target_pos) + np.array([0.0, BAR[1], 0.0]),
        reach_distance=float(np.linalg.norm(side - tool)),
        held=fingers_touch(env, "windowb_a"),
        joint=float(np.clip(env.data.joint("window_slide").qpos[0] / DONE, 0.0, 1.0)),
    )


def _rests(q: Quantities, first: Quantities) -> Rests:
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.02),
        "slide": 1.0 - q["joint"],
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    done_T = q["joint"] >= 1.0
    moved_T = change(q["joint"], 3)
    closing_T = moved_T < -0.04
    at_bar_T = latched(q["reach_distance"] < 0.04, q["reach_distance"] < 0.06)
    return choose(
        len(done_T),
        ("retract", done_T & (q["reach_distance"] > 0.06)),
        ("slide", done_T | closing_T | (moved_T > 0.04) | at_bar_T),
        ("reach", None),
    ), ~(closing_T | done_T)


def _act(observation: Array) -> Action:
    """Go to the left of the handle, around it where it is in the way, and push it to the right.

    Meta-World's own policy first climbs 20 cm above the window.
    """
    hand = observation[HAND]
    bar = observation[OBJECT] + TO_BAR
    right, before, up = hand - bar
    if right > -0.015 and before > -0.09:  # behind or beside the bar: come out first
        return move_to(hand, np.array([hand[0], bar[1] - 0.14, hand[2]]), CLOSE)
    if right > -0.015:
        return move_to(hand, np.array([bar[0] - 0.07, bar[1] - 0.12, bar[2]]), CLOSE)
    if abs(before) < 0.025 and abs(up) < 0.03:
        return move_to(hand, np.array([hand[0] + SPEED, bar[1] - 0.01, bar[2]]), CLOSE)
    return move_to(hand, bar + np.array([-0.045, -0.01, 0.0]), CLOSE)


def _expert() -> Expert:
    return _act


def _close(observation: Array) -> Action:
    """Go round to the handle's right side and push it back to the left."""
    hand = observation[HAND]
    right, before, up = hand - (observation[OBJECT] + TO_BAR)
    level = -10.0 * up
    if right < 0.028:
        out = -1.0 if before > -0.038 else 0.3
        return np.array([float(before < -0.026), out, level, CLOSE], dtype=np.float32)
    if before < -0.02:
        return np.array([0.2, 1.0, level, CLOSE], dtype=np.float32)
    return np.array([-1.0, 0.0, level, CLOSE], dtype=np.float32)


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Leave the handle to the left and go back."""
    hand = observation[HAND]
    if step < 5:
        return np.array([-0.8, 0.0, 0.0, CLOSE], dtype=np.float32)
    return move_to(hand, np.array([hand[0], home[1], home[2]]), CLOSE)


TASK = TaskSpec(
    name="window-open",
    env_name="window-open-v3",
    instruction="slide the window open by its white handle",
    stages={"reach": 0.37, "slide": 0.63},
    primitives=("reach", "slide", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    regress="push_back",
    undo=_close,
    in_hand=(0.02, 0.0, -0.045),
    # From behind and from the side, the window's frame stands before the handle.
    views=views_of((0.0, 0.68, 0.14), 0.85, corner=135.0, side=45.0),
)
