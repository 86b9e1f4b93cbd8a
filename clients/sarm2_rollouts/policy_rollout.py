"""Rollouts of a policy on the simulated robot, labelled like every other episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .episode import Episode
from .metaworld_robot import MetaWorldRobot, Observation
from .take import Take
from .tasks import CONTROL_STEPS_PER_FRAME, IMAGE_SIZE

LONGEST_FRAMES = 120
"""12 s: twice what an expert takes. A policy that is not done by then has failed."""

FRAMES_AFTER_SUCCESS = 8
"""A policy goes on for this long after success: what it undoes at once was no success."""


Pictures: TypeAlias = Literal["kept", "looked_at", "none"]
"""`kept`: every frame is rendered and kept. `looked_at`: rendered where the policy looks, and not kept, which
is several times faster. `none`: for a policy that is blind."""


class Policy(Protocol):
    """What drives a robot: one action a frame. An honest one leaves the simulator's quantities alone."""

    @property
    def looks(self) -> bool:
        """Whether the next `act` needs pictures."""

    def reset(self, instruction: str) -> None:
        """Begin an episode."""

    def act(self, now: Observation) -> npt.NDArray[np.float32]:
        """The action (4,) until the next frame, in the order of `ACTION_NAMES`."""


def run_policy(
    task_name: str,
    policy: Policy,
    seed: int,
    *,
    longest: int = LONGEST_FRAMES,
    image_size: int = IMAGE_SIZE,
    pictures: Pictures = "kept",
    watch: Callable[[Observation], None] | None = None,
    done: Callable[[], bool] | None = None,
) -> Episode:
    """Let a policy try a task once: until it is done, or for `longest` frames.

    Args:
        task_name: a key of `TASKS`.
        policy: what acts.
        seed: places the object and the goal.
        longest: frames after which it has failed.
        image_size: side of the pictures in pixels.
        pictures: what is rendered.
        watch: called with every frame, before the policy acts on it.
        done: whether to end, asked after every frame was watched. By default the simulator says so:
            `FRAMES_AFTER_SUCCESS` frames after success.

    Returns:
        An episode of kind `policy` with labels and the actions taken; `success` is the simulator's
        word at the last frame. `info["falls"]` is as in `Take.episode`.

    Raises NotFound or InvalidInput as `MetaWorldRobot` does.
    """
    take = Take(task_name, pictures=pictures == "kept")

    def look(robot: MetaWorldRobot) -> Observation:
        now = robot.observe(images=pictures == "kept" or (pictures == "looked_at" and policy.looks))
        take.frame(now.images if pictures == "kept" else {}, now.state_S, now.simulator_K)
        if watch is not None:
            watch(now)
        return now

    after = 0
    with MetaWorldRobot(task_name, seed, image_size, render=pictures != "none") as robot:
        policy.reset(robot.task)
        now = look(robot)
        for _ in range(longest - 1):
            action = policy.act(now)
            for _ in range(CONTROL_STEPS_PER_FRAME):
                take.control(action)
                robot.step(action)
            now = look(robot)
            after += take.success or after > 0
            if after > FRAMES_AFTER_SUCCESS if done is None else done():
                break
    return take.episode("policy", seed, {})
