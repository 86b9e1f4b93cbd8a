"""Rollouts of policies: whatever drives the robot, the episode is labelled like every other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sarm2_rollouts.metaworld_robot import CAMERAS, STATE_NAMES, Observation, run_episode
from sarm2_rollouts.policy_rollout import FRAMES_AFTER_SUCCESS, run_policy
from sarm2_rollouts.tasks import TASKS

Floats = npt.NDArray[np.float32]


class Replay:
    """Repeats the actions of an episode, and then stands still; looks at every other frame."""

    def __init__(self, action_TA: Floats) -> None:
        self._action_TA = action_TA
        self._frame = 0
        self.instruction = ""
        self.seen: list[bool] = []

    @property
    def looks(self) -> bool:
        return self._frame % 2 == 0

    def reset(self, instruction: str) -> None:
        self.instruction, self._frame = instruction, 0

    def act(self, now: Observation) -> Floats:
        self.seen.append(set(now.images) == set(CAMERAS))
        assert now.state_S.shape == (len(STATE_NAMES),)
        self._frame += 1
        action_A: Floats = self._action_TA[min(self._frame, len(self._action_TA)) - 1]
        return action_A


def test_a_policy_that_repeats_a_demonstration_succeeds_and_stops_a_little_later() -> None:
    demo = run_episode("window-open", "clean_demo", 7, render=False)
    assert demo.action_TA is not None
    policy = Replay(demo.action_TA)
    rollout = run_policy("window-open", policy, 7, image_size=32)
    assert policy.instruction == TASKS["window-open"].instruction
    assert all(policy.seen)
    assert (rollout.kind, rollout.seed, rollout.success) == ("policy", 7, True)
    assert rollout.progress_T is not None
    assert rollout.segments is not None
    done = int(np.argmax(rollout.progress_T >= 1))
    assert len(rollout) == done + 1 + FRAMES_AFTER_SUCCESS
    assert len(rollout.images["wrist"]) == len(rollout)
    assert rollout.action_TA is not None
    np.testing.assert_allclose(rollout.action_TA[:done], demo.action_TA[:done], atol=1e-6)


def test_a_policy_that_does_nothing_fails_at_the_longest_time() -> None:
    rollout = run_policy("hammer", Replay(np.zeros((1, 4), np.float32)), 3, longest=12, image_size=32)
    assert len(rollout) == 12
    assert rollout.success is False
    assert rollout.progress_T is not None
    assert rollout.progress_T.max() < 0.2


def test_pictures_are_made_only_where_the_policy_looks_and_the_episode_is_the_same() -> None:
    demo = run_episode("window-open", "clean_demo", 7, render=False)
    assert demo.action_TA is not None
    kept, looked, blind = (Replay(demo.action_TA) for _ in range(3))
    watched: list[int] = []
    whole = run_policy("window-open", kept, 7, longest=10, image_size=32)
    partly = run_policy("window-open", looked, 7, longest=10, image_size=32, pictures="looked_at")
    never = run_policy(
        "window-open",
        blind,
        7,
        longest=10,
        pictures="none",
        watch=lambda now: watched.append(len(now.images)),
    )
    assert looked.seen == [True, False, True, False, True, False, True, False, True]
    assert not any(blind.seen)
    assert watched == [0] * 10
    assert partly.images == never.images == {}
    np.testing.assert_array_equal(partly.state_TS, whole.state_TS)
    np.testing.assert_array_equal(never.state_TS, whole.state_TS)
