"""The other truth: progress as the expert's steps to go, to check `labels.progress_of` against.

At a frame the simulator is cloned and the scripted expert runs on from there until success; progress is
1 - steps / steps from the first frame. It needs no stages, falls on a drop and stays near 0 for random
motion, but costs 10 to 200 ms a label and is noisy where the expert recovers badly. Nothing trains on it; the
report of a training run says how far the two truths agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from .episode import EpisodeKind
from .metaworld_robot import MetaWorldRobot, run_episode

GIVE_UP_STEPS = 200
"""Control steps after which the expert counts as unable to recover."""


@dataclass(frozen=True)
class CrossCheck:
    """Both truths of one episode at N of its frames.

    Attributes:
        frames_N: indices of the frames.
        potential_N: float32, progress by `labels.progress_of`.
        steps_to_go_N: float32 in [0, 1], progress by the expert's steps to go; NaN where it never got there.
    """

    frames_N: npt.NDArray[np.int64]
    potential_N: npt.NDArray[np.float32]
    steps_to_go_N: npt.NDArray[np.float32]

    @property
    def mse(self) -> float:
        """Mean squared difference where both are known."""
        return float(np.nanmean((self.potential_N - self.steps_to_go_N) ** 2))


def expert_steps_to_go(robot: MetaWorldRobot, limit: int = GIVE_UP_STEPS) -> int | None:
    """Control steps that the expert needs from here to success; None beyond `limit`.

    The robot is left exactly as it was.
    """
    moment = robot.save()
    expert = robot.spec.expert()
    try:
        for step in range(limit):
            now = robot.observe(images=False)
            if now.success:
                return step
            robot.step(expert(now.expert_39))
        return None
    finally:
        robot.load(moment)


def cross_check(task_name: str, kind: EpisodeKind, seed: int, *, every: int = 5) -> CrossCheck:
    """Make an episode (unrendered) and label every `every`-th frame both ways.

    Labels are the median of three neighbours, since the expert's recoveries are noisy.
    """
    steps: list[float] = []
    episode = run_episode(task_name, kind, seed, render=False, watch=_every(every, steps))
    frames_N = np.arange(0, len(episode), every)
    # Tries that failed were watched too: the last ones belong to this episode.
    left_N = np.array(steps[-len(frames_N) :])
    raw_N = np.clip(1.0 - left_N / left_N[0], 0.0, 1.0)
    padded = np.concatenate([raw_N[:1], raw_N, raw_N[-1:]])
    median_N = np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1)
    assert episode.progress_T is not None
    return CrossCheck(frames_N, episode.progress_T[frames_N], median_N.astype(np.float32))


def _every(every: int, steps: list[float]) -> Callable[[MetaWorldRobot], None]:
    seen: WeakKeyDictionary[MetaWorldRobot, int] = WeakKeyDictionary()  # each try has a robot of its own

    def watch(robot: MetaWorldRobot) -> None:
        frame = seen.get(robot, 0)
        seen[robot] = frame + 1
        if frame % every == 0:
            to_go = expert_steps_to_go(robot)
            steps.append(np.nan if to_go is None else float(to_go))

    return watch
