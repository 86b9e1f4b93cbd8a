"""The simulated robot: what it shows, what it hides, and that it repeats itself exactly."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_client.images import decode_jpeg
from sarm2_rollouts.cameras import project
from sarm2_rollouts.collection import iterate_episodes
from sarm2_rollouts.metaworld_robot import (
    CAMERAS,
    CONTROL_STEPS_PER_FRAME,
    FPS,
    PRIMITIVES,
    SEED_BLOCK,
    SIMULATOR_NAMES,
    STATE_NAMES,
    TASKS,
    EpisodePlan,
    MetaWorldRobot,
    _seed_nearby,
    run_episode,
)
from sarm2_rollouts.simulator_state import column, columns
from sarm2_rollouts.tasks import View

FORWARD = np.array([0.3, 0.4, -0.2, 1.0], dtype=np.float32)


def test_the_simulator_is_not_imported_before_a_robot_is_made() -> None:
    code = "import sys, sarm2_rollouts.metaworld_robot; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'pick-place'"):
        MetaWorldRobot("pick-plaice", 0)


def test_the_vocabulary_is_21_primitives_and_null() -> None:
    assert len(set(PRIMITIVES)) == 22
    assert PRIMITIVES[-1] == "null"


@pytest.mark.parametrize("name", TASKS)
def test_the_shares_of_a_task_sum_to_one_and_its_primitives_are_known(name: str) -> None:
    spec = TASKS[name]
    assert sum(spec.stages.values()) == pytest.approx(1.0)
    assert set(spec.stages) <= set(spec.primitives) <= set(PRIMITIVES)


def test_a_point_is_projected_right_and_down() -> None:
    """A camera one metre in front of the origin, looking along +x, sees +y on its left and +z above."""
    view = View((0.0, 0.0, 0.0), 1.0, 0.0, 0.0)
    model = type("Model", (), {"vis": type("V", (), {"global_": type("G", (), {"fovy": 90.0})})})
    points = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5], [-3.0, 0.0, 0.0]])
    u, v, inside = project(model, None, view, points).T
    np.testing.assert_allclose(u[:3], [0.5, 0.25, 0.5])
    np.testing.assert_allclose(v[:3], [0.5, 0.5, 0.25])
    assert inside.tolist() == [1.0, 1.0, 1.0, 0.0]  # the last one is behind the camera


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_state_is_the_tool_and_the_gripper_and_nothing_of_object_or_goal(name: str) -> None:
    """Two seeds place object and goal differently, and the first state does not show it."""
    states = []
    for seed in (3, 4):
        with MetaWorldRobot(name, seed, render=False) as robot:
            states.append(robot.observe())
    assert len(STATE_NAMES) == 4 == len(states[0].state_S)
    assert not np.allclose(states[0].simulator_K, states[1].simulator_K, atol=1e-3)
    np.testing.assert_allclose(states[0].state_S, states[1].state_S, atol=1e-3)
    assert states[0].images == {}


def test_a_seed_for_a_retry_stays_in_the_block_of_the_first() -> None:
    rng = np.random.default_rng(0)
    retried = np.array([_seed_nearby(seed, rng) for seed in (3, 59_999, 60_000, 99_999, 100_000) * 50])
    assert set(retried.reshape(-1, 5).T[0] // SEED_BLOCK) == {0}
    assert (retried.reshape(-1, 5) // SEED_BLOCK == [0, 2, 3, 4, 5]).all()
    assert len(set(retried)) > 200


@pytest.mark.sim
def test_the_same_seed_and_actions_give_the_same_arrays_even_in_a_used_simulator() -> None:
    runs = []
    for seed in (5, 6, 5):
        with MetaWorldRobot("hammer", seed) as robot:
            for _ in range(6):
                robot.step(FORWARD)
            runs.append(robot.observe())
    assert np.array_equal(runs[0].simulator_K, runs[2].simulator_K)
    assert not np.array_equal(runs[0].simulator_K, runs[1].simulator_K)
    for camera in CAMERAS:
        assert runs[0].images[camera].shape == (96, 96, 3)
        assert runs[0].images[camera].dtype == np.uint8
        assert np.array_equal(runs[0].images[camera], runs[2].images[camera])


@pytest.mark.sim
def test_the_goal_marker_is_blue_where_the_projection_says() -> None:
    with MetaWorldRobot("pick-place", 1) as robot:
        now = robot.observe()
    for camera in ("corner", "side"):
        u, v = (
            now.simulator_K[SIMULATOR_NAMES.index(f"{camera}_goal_{axis}")] * 96 - 0.5 for axis in ("u", "v")
        )
        red, _, blue = now.images[camera][round(float(v)), round(float(u))].astype(int)
        assert blue > red + 60


@pytest.mark.sim
def test_two_robots_of_one_task_do_not_disturb_each_other() -> None:
    with MetaWorldRobot("drawer-open", 7, render=False) as alone:
        for _ in range(4):
            alone.step(FORWARD)
        expected = alone.observe().simulator_K
    with (
        MetaWorldRobot("drawer-open", 7, render=False) as one,
        MetaWorldRobot("drawer-open", 8, render=False) as two,
    ):
        for _ in range(4):
            one.step(FORWARD)
            two.step(-FORWARD)
        assert np.array_equal(one.observe().simulator_K, expected)


@pytest.mark.sim
def test_a_closed_robot_and_a_wrong_action_are_refused() -> None:
    robot = MetaWorldRobot("drawer-open", 0, render=False)
    with pytest.raises(InvalidInput, match="4 finite numbers"):
        robot.step(np.array([0.0, 0.0, np.nan, 0.0], dtype=np.float32))
    robot.close()
    robot.close()
    with pytest.raises(InvalidInput, match="closed"):
        robot.observe()


@pytest.mark.sim
def test_a_moment_can_be_saved_and_gone_back_to() -> None:
    with MetaWorldRobot("pick-place", 2, render=False) as robot:
        moment = robot.save()
        before = robot.observe().simulator_K
        futures = []
        for _ in range(2):
            for _ in range(10):
                robot.step(FORWARD)
            futures.append(robot.observe().simulator_K)
            robot.load(moment)
        np.testing.assert_allclose(robot.observe().simulator_K, before, atol=1e-6)
    np.testing.assert_allclose(futures[0], futures[1], atol=1e-6)


@pytest.mark.sim
def test_an_episode_has_a_picture_a_state_and_a_label_for_every_frame() -> None:
    episode = run_episode("drawer-open", "random", 11)
    assert episode.fps == FPS
    assert tuple(episode.images) == CAMERAS
    assert episode.state_TS.shape == (len(episode), 4)
    assert episode.progress_T is not None
    assert episode.simulator_TK is not None
    assert len(episode.progress_T) == len(episode.primitives_T) == len(episode.simulator_TK) == len(episode)
    assert episode.simulator_names == SIMULATOR_NAMES
    assert decode_jpeg(episode.images["wrist"][-1]).shape == (96, 96, 3)
    tool_T3 = columns(episode.simulator_TK, "tool")
    np.testing.assert_allclose(tool_T3, episode.state_TS[:, :3], atol=1e-6)
    np.testing.assert_allclose(column(episode.simulator_TK, "gripper"), episode.state_TS[:, 3], atol=2e-2)
    assert CONTROL_STEPS_PER_FRAME == 2


@pytest.mark.sim
def test_the_tool_follows_its_actions_and_not_the_other_way_round() -> None:
    episode = run_episode("drawer-open", "random", 12, render=False)
    assert episode.action_TA is not None
    assert episode.action_TA.shape == (len(episode), len(episode.action_names))
    assert np.abs(episode.action_TA).max() <= 1.0
    assert not episode.action_TA[-1, :3].any(), "nothing follows the last frame"
    moved, asked = np.diff(episode.state_TS[:, 0]), episode.action_TA[:-1, 0]
    after = np.corrcoef(asked[:-1], moved[1:])[0, 1]  # the arm lags about a frame behind
    before = np.corrcoef(asked[1:], moved[:-1])[0, 1]
    assert after > 0.85 > before


@pytest.mark.sim
@pytest.mark.parametrize("kind", ["demo", "perturbed", "random"])
def test_an_episode_is_determined_by_task_kind_and_seed(kind: str) -> None:
    first, again, other = (
        run_episode("pick-place", kind, seed, render=False)  # type: ignore[arg-type]
        for seed in (12, 12, 13)
    )
    assert first.simulator_TK is not None
    assert again.simulator_TK is not None
    assert other.simulator_TK is not None
    assert np.array_equal(first.simulator_TK, again.simulator_TK)
    assert first.info == again.info
    assert first.simulator_TK.shape != other.simulator_TK.shape or not np.array_equal(
        first.simulator_TK, other.simulator_TK
    )


@pytest.mark.sim
def test_worker_processes_make_the_same_episodes_in_the_plan_s_order() -> None:
    plan = [EpisodePlan("drawer-open", "random", 21), EpisodePlan("drawer-open", "clean_demo", 21)]
    here = [run_episode(entry.task_name, entry.kind, entry.seed) for entry in plan]
    there = list(iterate_episodes(plan, workers=1))
    for one, two in zip(here, there, strict=True):
        assert one.seed == two.seed
        assert np.array_equal(one.state_TS, two.state_TS)
        assert one.images == two.images


@pytest.mark.sim
def test_a_kind_that_no_robot_makes_is_refused() -> None:
    with pytest.raises(ValueError, match="choose clean_demo"):
        run_episode("hammer", "unknown", 0, render=False)
