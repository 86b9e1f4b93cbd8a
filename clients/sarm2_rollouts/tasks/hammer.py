"""hammer: a nail is driven into a box with the hammer that lies on the table."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarm2_rollouts.experts import HAND, OBJECT, OPEN, Action, Array, Expert, from_metaworld, move_to
from sarm2_rollouts.simulator_state import Reading, fingers_hold
from sarm2_rollouts.views import views_of

from .quantities import TAKEN, Quantities, at_object, change, choose, grasp, latched, lately, share_left
from .spec import Rests, Rule, TaskSpec

HANDLE_REACH = 0.05
"""The hammer may be taken this far (metres) to either side of its handle's middle."""

FACE = np.array([0.16, 0.07, 0.01])
"""The striking face in the hammer's own frame, metres."""

NAIL_DONE = 0.09
"""Travel of the nail (metres) above which the simulator calls it driven in."""

OFF_AXIS = 0.025
"""Metres from the nail's axis, beyond what its head forgives, above which a hammer is still being lifted."""

GRIP = 0.8
"""Effort of the fingers around the handle: with more of it the handle slips out."""


def _read(env: Any, tool: Array) -> Reading:
    body = env.data.body("hammer")
    middle, axes = np.array(body.xpos), np.array(body.xmat).reshape(3, 3)
    along = float(np.clip(axes[:, 0] @ (tool - middle), -HANDLE_REACH, HANDLE_REACH))
    grip = middle + along * axes[:, 0]
    travel = float(env.data.joint("NailSlideJoint").qpos[0])
    return Reading(
        object=middle,
        part=middle + axes @ FACE,
        goal=np.array(env.data.site("nailHead").xpos),
        reach_distance=float(np.linalg.norm(grip - tool)),
        held=fingers_hold(env, "hammer"),
        joint=float(np.clip(travel / NAIL_DONE, 0.0, 1.0)),
    )


def _off_axis(q: Quantities) -> Array:
    """Metres from the striking face to the nail's axis, beyond what the nail's broad head forgives."""
    x_T, _, z_T = q.between("part", "goal").T
    below_T = np.maximum(0.01 - z_T, 0.0) + np.maximum(z_T - 0.045, 0.0)
    off_T: Array = np.hypot(np.maximum(np.abs(x_T) - 0.012, 0.0), below_T)
    return off_T


def _short_of_nail(q: Quantities) -> Array:
    """Metres from the striking face to the nail's untouched head, along the nail; 0 beyond."""
    return np.asarray(np.maximum(-q.between("part", "goal")[:, 1], 0.0))


def _gap(q: Quantities) -> Array:
    """Metres from the striking face to the nail's head where it is now, along the nail; negative beyond."""
    return np.asarray(NAIL_DONE * q["joint"] - q.between("part", "goal")[:, 1])


def _driving(q: Quantities) -> Array:
    """1 while the hammer stands against a nail that has moved: an off-centre blow needs no more lifting."""
    against_T = np.clip((0.025 - np.abs(_gap(q))) / 0.01, 0.0, 1.0)
    return np.asarray(against_T * np.clip(q["joint"] / 0.1, 0.0, 1.0))


def _rests(q: Quantities, first: Quantities) -> Rests:
    return {
        "reach": share_left(q["reach_distance"], first["reach_distance"], 0.012),
        "grasp": 1.0 - grasp(q),
        "lift": share_left(_off_axis(q), _off_axis(first), 0.0) * (1.0 - _driving(q)),
        "transport": share_left(_short_of_nail(q), _short_of_nail(first), 0.01),
        "strike": 1.0 - q["joint"],
    }


def _rules(q: Quantities, rests: Rests) -> Rule:
    held_T = 1.0 - rests["grasp"] >= TAKEN
    done_T = q["joint"] >= 1.0
    lost_T = lately(held_T, 4) & ~held_T & (q["gripper"] > 0.6)
    gap_T, off_T = _gap(q), _off_axis(q)
    # A nail that goes in is being struck, however badly; a hammer off its axis is being lifted, even there.
    raised_T = latched(held_T & (off_T < OFF_AXIS), held_T & (off_T < 3 * OFF_AXIS))
    driven_T = change(q["joint"], 3) > 0.04
    # After a blow the hammer goes back, whether or not the nail is in to the last millimetre, until it comes
    # for the next one.
    struck_T = held_T & (q["joint"] > 0.1) & (gap_T > 0.015)
    back_T = latched(struck_T & (change(gap_T, 3) > 0.006), struck_T & (change(gap_T, 3) > -0.01))
    return choose(
        len(held_T),
        ("retract", back_T | (done_T & (gap_T > 0.015))),
        ("strike", done_T),
        ("strike", driven_T | (held_T & (gap_T < 0.015) & (off_T < OFF_AXIS))),
        ("lift", held_T & ~raised_T),
        ("transport", held_T),
        ("release", lost_T),
        ("grasp", at_object(q)),
        ("reach", None),
    ), ~(lost_T | back_T | done_T)


def _expert() -> Expert:
    """Meta-World's policy until the hammer is lifted, then to the nail however it lies in the hand."""
    policy = from_metaworld("SawyerHammerV3Policy")

    def act(observation: Array) -> Action:
        hand, hammer, gripper = observation[HAND], observation[OBJECT], float(observation[3])
        below = hand - hammer - np.array([0.0, 0.0, 0.04])
        in_hand = bool((np.abs(below) < [0.09, 0.035, 0.04]).all())
        if in_hand and hammer[2] > 0.05 and 0.3 < gripper < 0.7:
            return _bring(hand, hammer)
        action = policy(observation)
        action[3] = action[3] if action[3] > 0 else OPEN
        return action

    return act


def _bring(hand: Array, hammer: Array) -> Action:
    ready = np.array([0.24, 0.0, 0.13]) - np.array([0.16, 0.0, 0.01]) + (hand - hammer)
    off = np.hypot(hand[0] - ready[0], hand[2] - ready[2])
    forward = 0.75 if off < 0.025 else float(hand[1])
    return move_to(hand, np.array([ready[0], forward, ready[2]]), GRIP)


def _finish(observation: Array, step: int, home: Array) -> Action:
    """Take the hammer back from the nail."""
    return np.array([0.0, -0.9 if step >= 2 else 0.2, 0.2, GRIP], dtype=np.float32)


TASK = TaskSpec(
    name="hammer",
    env_name="hammer-v3",
    instruction="pick up the hammer and drive the nail into the box",
    stages={"reach": 0.22, "grasp": 0.17, "lift": 0.21, "transport": 0.24, "strike": 0.16},
    primitives=("reach", "grasp", "lift", "transport", "strike", "release", "retract"),
    read=_read,
    rests=_rests,
    rules=_rules,
    expert=_expert,
    finish=_finish,
    lost_until=0.8,  # a hammer let go in mid-stroke still drives the nail in
    in_hand=(0.03, 0.0, -0.04),
    warm_up=15,  # the hammer drops a centimetre and settles
    # The box hides the nail from behind, and the hand hides the hammer's head from its other side.
    views=views_of((0.05, 0.68, 0.12), 0.85, corner=135.0, side=180.0),
)
