"""Rollouts of a policy on the simulated robot, labelled like every other episode."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .episode import Episode
from .metaworld_robot import MetaWorldRobot
from .take import Take
from .tasks import CONTROL_STEPS_PER_FRAME, IMAGE_SIZE

LONGEST_FRAMES = 120
"""12 s: twice what an expert takes. A policy that is not done by then has failed."""

FRAMES_AFTER_SUCCESS = 8
"""A policy goes on for this long after success: what it undoes at once was no success."""


class Policy(Protocol):
    """What drives a robot: one action a frame, from what the robot's own sensors tell."""

    def reset(self, instruction: str) -> None:
        """Begin an episode."""

    def act(
        self, images: dict[str, npt.NDArray[np.uint8]], state_S: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """The action (4,) until the next frame, in the order of `ACTION_NAMES`.

        Args:
            images: per camera, uint8 (size, size, 3) RGB.
            state_S: float32 (4,), in the order of `STATE_NAMES`.
        """


def run_policy(
    task_name: str,
    policy: Policy,
    seed: int,
    *,
    longest: int = LONGEST_FRAMES,
    image_size: int = IMAGE_SIZE,
) -> Episode:
    """Let a policy try a task once: until it is done, or for `longest` frames.

    Args:
        task_name: a key of `TASKS`.
        policy: what acts.
        seed: places the object and the goal.

    Returns:
        An episode of kind `policy` with pictures, labels and the actions taken; `success` is the simulator's
        word at the last frame. `info["falls"]` is as in `Take.episode`.

    Raises NotFound or InvalidInput as `MetaWorldRobot` does.
    """
    take = Take(task_name, pictures=True)
    after = 0
    with MetaWorldRobot(task_name, seed, image_size) as robot:
        policy.reset(robot.task)
        now = robot.observe()
        take.frame(now.images, now.state_S, now.simulator_K)
        for _ in range(longest - 1):
            action = policy.act(now.images, now.state_S)
            for _ in range(CONTROL_STEPS_PER_FRAME):
                take.control(action)
                robot.step(action)
            now = robot.observe()
            take.frame(now.images, now.state_S, now.simulator_K)
            after += take.success or after > 0
            if after > FRAMES_AFTER_SUCCESS:
                break
    return take.episode("policy", seed, {})
