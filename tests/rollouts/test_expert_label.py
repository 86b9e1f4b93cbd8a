"""The expert's steps to go agree with the state potential, and asking for them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from sarm2_rollouts.expert_label import cross_check, expert_steps_to_go
from sarm2_rollouts.metaworld_robot import TASKS, run_episode


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_on_a_clean_demonstration_both_truths_agree(name: str) -> None:
    check = cross_check(name, "clean_demo", 31, every=6)
    assert check.mse < 0.015
    assert check.steps_to_go_N[0] == 0.0
    assert check.steps_to_go_N[-1] == 1.0


@pytest.mark.sim
def test_asking_for_the_steps_to_go_leaves_the_episode_as_it_was() -> None:
    alone = run_episode("hammer", "perturbed", 41, render=False)
    asked: list[int | None] = []
    watched = run_episode(
        "hammer",
        "perturbed",
        41,
        render=False,
        watch=lambda robot: asked.append(expert_steps_to_go(robot, limit=5)),
    )
    assert len(asked) == len(watched) == len(alone)
    assert alone.simulator_TK is not None
    assert watched.simulator_TK is not None
    np.testing.assert_allclose(alone.simulator_TK, watched.simulator_TK, atol=1e-4)
