"""True progress and primitives: what they must do on successes, drops, idling and random motion."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest

from sarm2_rollouts.episode import Episode, EpisodeKind
from sarm2_rollouts.experts import axes_of
from sarm2_rollouts.labels import (
    MIN_IDLE,
    MIN_SEGMENT,
    STALL_FRAMES,
    STALL_REACH,
    find_falls,
    measure_shares,
    progress_of,
    segments_of,
)
from sarm2_rollouts.metaworld_robot import TASKS, MetaWorldRobot, run_episode
from sarm2_rollouts.perturbations import Unevenness, write_script
from sarm2_rollouts.simulator_state import SIMULATOR_NAMES, column


@lru_cache(maxsize=64)
def episode(name: str, kind: EpisodeKind, seed: int) -> Episode:
    return run_episode(name, kind, seed, render=False)


def progress(name: str, kind: EpisodeKind, seed: int) -> npt.NDArray[np.float32]:
    values = episode(name, kind, seed).progress_T
    assert values is not None
    return values


# --- without the simulator --------------------------------------------------------------------------


def test_a_fall_of_exactly_the_size_counts_and_one_just_below_does_not() -> None:
    falling = np.array([0.0, 0.5, 0.75, 0.5, 0.5, 0.75])
    (fall,) = find_falls(falling, size=0.25)
    assert (fall.start, fall.end, fall.size) == (2, 3, 0.25)
    assert find_falls(falling, size=0.2501) == ()


def test_a_slow_fall_is_none() -> None:
    slow = np.concatenate([[0.9], np.linspace(0.9, 0.3, 60)])
    assert find_falls(slow, size=0.2, within=12) == ()
    assert len(find_falls(slow, size=0.2, within=30)) == 1


def test_two_drops_with_a_recovery_between_are_two_falls() -> None:
    falls = find_falls(np.array([0.1, 0.8, 0.4, 0.3, 0.5, 0.8, 0.35, 0.35]))
    assert [(fall.start, fall.end) for fall in falls] == [(1, 3), (5, 6)]


def frames(**changes: list[float]) -> npt.NDArray[np.float32]:
    """Frames of a pick-place episode by hand: tool 13 cm above the puck, goal 27 cm away, hand open."""
    length = max(len(values) for values in changes.values())
    rest = dict.fromkeys(SIMULATOR_NAMES, 0.0) | {
        "gripper": 1.0,
        "reach_distance": 0.13,
        "object_z": 0.02,
        "goal_y": 0.27,
        "goal_z": 0.02,
    }
    table = {name: np.full(length, value) for name, value in rest.items()}
    table |= {name: np.asarray(values, dtype=float) for name, values in changes.items()}
    return np.stack([table[name] for name in SIMULATOR_NAMES], axis=1).astype(np.float32)


def test_standing_still_at_the_start_is_zero_progress_and_null_after_the_stall_time() -> None:
    still = frames(gripper=[1.0] * (STALL_FRAMES + 8))
    progress_T = progress_of("pick-place", still)
    assert progress_T.max() == 0.0
    first, second = segments_of("pick-place", still, progress_T)
    assert (first.primitive, second.primitive, second.start) == ("reach", "null", STALL_FRAMES)


def test_a_tool_that_goes_somewhere_is_not_idle_and_one_that_dithers_is() -> None:
    count = STALL_FRAMES + 8
    wandering = frames(tool_x=[float(x) for x in np.linspace(0.0, 0.3, count)])
    assert set(names_of("pick-place", wandering)) == {"reach"}
    dithering = frames(tool_x=[0.0, STALL_REACH / 2] * (count // 2))
    assert names_of("pick-place", dithering) == ["reach"] * STALL_FRAMES + ["null"] * 8


def test_a_stop_that_ends_as_soon_as_it_counts_as_idling_is_none() -> None:
    for idle, named in [(MIN_IDLE - 1, set()), (MIN_IDLE, {"null"})]:
        still = STALL_FRAMES + idle
        moving = [0.02 * step for step in range(1, 20)]
        stopped = frames(tool_x=[0.0] * still + moving, reach_distance=[0.13] * still + [0.0] * 19)
        assert set(names_of("pick-place", stopped)) & {"null"} == named


def test_closing_on_nothing_beside_the_puck_is_no_grasp() -> None:
    beside = frames(gripper=[1.0, 0.5, 0.0], reach_distance=[0.13, 0.08, 0.08])
    on_nothing = frames(gripper=[1.0, 0.5, 0.1], reach_distance=[0.13, 0.01, 0.01])
    reach = TASKS["pick-place"].stages["reach"]
    assert progress_of("pick-place", beside)[-1] < reach
    assert progress_of("pick-place", on_nothing)[-1] == pytest.approx(reach, abs=0.01)


def test_success_is_exactly_one_and_can_be_undone() -> None:
    undone = frames(
        success=[0.0, 1.0, 0.0],
        object_y=[0.0, 0.25, 0.1],
        gripper=[1.0, 0.45, 1.0],
        reach_distance=[0.13, 0, 0.1],
    )
    progress_T = progress_of("pick-place", undone)
    assert progress_T[1] == 1.0
    assert progress_T[2] < 0.6


def test_a_label_needs_the_first_frame_and_its_own_and_nothing_between() -> None:
    shown = frames(reach_distance=[0.13, 0.1, 0.02, 0.08], gripper=[1.0, 1.0, 0.45, 0.9])
    whole = progress_of("pick-place", shown)
    for t in range(4):
        assert progress_of("pick-place", shown[t : t + 1], first_K=shown[0])[0] == whole[t]


def names_of(task: str, shown: npt.NDArray[np.float32]) -> list[str]:
    segments = segments_of(task, shown, progress_of(task, shown))
    return [segment.primitive for segment in segments for _ in range(segment.start, segment.end)]


def test_what_the_end_of_an_episode_cuts_off_keeps_its_name() -> None:
    approach = np.linspace(0.13, 0.07, 10)
    shown = frames(reach_distance=[*approach, 0.05, 0.04])
    assert names_of("pick-place", shown) == ["reach"] * 10 + ["grasp"] * 2


def test_a_hammer_off_the_axis_is_lifted_even_when_it_leans_on_the_nail() -> None:
    held = {"gripper": [0.45] * 12, "reach_distance": [0.0] * 12, "part_y": [0.27] * 12}
    low = frames(**held, part_z=[0.02 - 0.06] * 12)
    level = frames(**held, part_z=[0.02 + 0.02] * 12)
    assert set(names_of("hammer", low)) == {"lift"}
    assert set(names_of("hammer", level)) == {"strike"}


def test_a_hand_that_shakes_at_the_border_of_a_grasp_stays_at_it_until_it_has_gone() -> None:
    shaking = frames(reach_distance=[0.13] * 4 + [0.05, 0.07, 0.055, 0.075, 0.07, 0.06] + [0.09] * 4)
    assert names_of("pick-place", shaking) == ["reach"] * 4 + ["grasp"] * 6 + ["reach"] * 4


def test_a_hammer_goes_back_after_a_blow_until_it_comes_again() -> None:
    gaps = [0.01] * 5 + [0.02, 0.03, 0.04, 0.05] + [0.05, 0.049, 0.048, 0.047] + [0.035, 0.025, 0.016, 0.01]
    blow = frames(
        gripper=[0.45] * len(gaps),
        reach_distance=[0.0] * len(gaps),
        joint=[0.5] * len(gaps),
        part_y=[0.27 + 0.045 - gap for gap in gaps],
        part_z=[0.04] * len(gaps),
    )
    names = names_of("hammer", blow)
    assert names[:5] == ["strike"] * 5
    assert set(names[7:13]) == {"retract"}
    assert "retract" not in names[14:]


def test_fingers_that_ride_up_behind_an_open_drawer_still_pull() -> None:
    beside = {"tool_z": [0.06] * 8, "object_z": [0.06] * 8}
    assert set(names_of("drawer-open", frames(**beside, joint=[0.4] * 8))) == {"pull"}
    assert set(names_of("drawer-open", frames(**beside, joint=[0.0] * 8))) == {"lower"}


def test_a_block_that_lies_off_the_middle_of_its_bin_is_not_quite_there() -> None:
    shown = frames(object_x=[-0.3, 0.045, 0.035], part_x=[-0.3, 0.045, 0.035])
    for name, height in (("object_z", 0.03), ("part_z", 0.03), ("goal_y", 0.0), ("goal_z", 0.03)):
        shown[:, SIMULATOR_NAMES.index(name)] = height
    progress_T = progress_of("bin-picking", shown)
    assert 0.4 < progress_T[1] < 0.9
    assert progress_T[2] == pytest.approx(1.0, abs=1e-3)


def test_a_lid_in_hand_is_being_seated_once_it_reaches_over_the_box() -> None:
    held = {"gripper": [0.3] * 8, "reach_distance": [0.01] * 8, "part_z": [0.1] * 8, "goal_z": [0.07] * 8}
    assert set(names_of("box-close", frames(**held, part_y=[0.05] * 8))) == {"transport"}
    assert set(names_of("box-close", frames(**held, part_y=[0.16] * 8))) == {"close"}


def test_the_axes_of_an_object_are_the_columns_of_its_rotation() -> None:
    observation = np.zeros(39)
    observation[7:11] = [np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)]  # a quarter turn about the vertical
    turned = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(axes_of(observation), turned, atol=1e-9)


# --- on rollouts ------------------------------------------------------------------------------------


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", ["clean_demo", "demo"])
def test_a_demonstration_rises_from_zero_to_exactly_one(name: str, kind: EpisodeKind) -> None:
    shown = episode(name, kind, 30)
    progress_T = progress(name, kind, 30)
    assert shown.success is True
    assert progress_T[0] == pytest.approx(0.0, abs=1e-6)
    assert progress_T[-1] == 1.0
    assert np.abs(np.diff(progress_T)).max() < 0.15


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_a_clean_demonstration_hardly_falls_and_is_never_null(name: str) -> None:
    progress_T = progress(name, "clean_demo", 32)
    assert np.diff(progress_T).min() > -0.02
    assert "null" not in episode(name, "clean_demo", 32).primitives_T


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", ["demo", "perturbed", "random"])
def test_segments_cover_every_frame_with_known_primitives_and_do_not_flicker(
    name: str, kind: EpisodeKind
) -> None:
    shown = episode(name, kind, 33)
    assert shown.segments is not None
    assert len(shown.primitives_T) == len(shown)
    assert set(shown.primitives_T) <= {*TASKS[name].primitives, "null"}
    for before, after in zip(shown.segments, shown.segments[1:], strict=False):
        assert before.end == after.start
        assert before.primitive != after.primitive
    for segment in shown.segments[:-1]:  # the episode's end may cut the last one off
        assert segment.end - segment.start >= (MIN_IDLE if segment.primitive == "null" else MIN_SEGMENT)


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_every_stage_of_a_task_is_seen_in_a_clean_demonstration(name: str) -> None:
    shares = measure_shares([episode(name, "clean_demo", seed) for seed in (31, 32)])
    for stage, share in TASKS[name].stages.items():
        assert shares[stage] == pytest.approx(share, abs=0.08)


@pytest.mark.sim
@pytest.mark.parametrize(
    "name", ["pick-place", "hammer", "assembly", "bin-picking", "box-close", "peg-insert-side"]
)
def test_letting_the_object_go_in_mid_air_costs_at_least_a_fifth(name: str) -> None:
    with MetaWorldRobot(name, 34, render=False) as robot:
        expert = TASKS[name].expert()
        first = robot.observe().simulator_K
        shown = [first]
        while progress_of(name, shown[-1][None], first_K=first)[0] < 0.6:
            robot.step(expert(robot.observe().expert_39))
            shown.append(robot.observe().simulator_K)
            assert len(shown) < 200
        for _ in range(16):
            robot.step(np.array([0.0, 0.0, 0.0, -1.0], dtype=np.float32))
            shown.append(robot.observe().simulator_K)
    progress_T = progress_of(name, np.stack(shown))
    assert progress_T[-1] < progress_T.max() - 0.2
    (fall,) = find_falls(progress_T, within=24)
    assert fall.size > 0.2


@pytest.mark.sim
def test_pushing_the_drawer_shut_takes_its_progress_back() -> None:
    pushed = next(
        shown
        for shown in (episode("drawer-open", "perturbed", seed) for seed in range(40, 70))
        if shown.info["drops"] and shown.info["falls"]
    )
    assert "push" in pushed.primitives_T
    assert pushed.info["falls"][0]["size"] >= 0.2


@pytest.mark.sim
def test_the_drawer_is_left_well_beyond_the_line_from_which_it_is_open() -> None:
    for seed in (51, 52, 53):
        simulator_TK = episode("drawer-open", "clean_demo", seed).simulator_TK
        assert simulator_TK is not None
        short_T = column(simulator_TK, "object_y") - column(simulator_TK, "goal_y")
        assert short_T[-1] < 0.01, "metres; a drawer that is let go springs back to the line, .03"


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_random_motion_stays_low(name: str) -> None:
    for seed in (35, 36, 37):
        progress_T = progress(name, "random", seed)
        assert progress_T.mean() < 0.25
        assert progress_T.max() < 0.6


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_perturbed_episodes_hold_successes_failures_and_falls(name: str) -> None:
    shown = [episode(name, "perturbed", seed) for seed in range(40, 50)]
    successes = sum(bool(one.success) for one in shown)
    assert 2 <= successes <= 8
    assert sum(bool(one.info["falls"]) for one in shown) >= 3
    for one in shown:
        assert one.progress_T is not None
        assert (one.progress_T[-1] == 1.0) == one.success
        assert len(one) <= 142


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_an_expert_gets_a_copy_of_the_observation(name: str) -> None:
    """Some of Meta-World's policies write into what they are given."""
    with MetaWorldRobot(name, 1, render=False) as robot:
        observation = robot.observe().expert_39
        kept = observation.copy()
        TASKS[name].expert()(observation)
        assert np.array_equal(observation, kept)


@pytest.mark.sim
def test_mishaps_are_told_with_their_frames() -> None:
    shown = episode("pick-place", "perturbed", 103)
    assert shown.info["perturbation"]
    for mishap in shown.info["mishaps"]:
        assert 0 <= mishap["start"] <= mishap["end"] < len(shown)
    assert column(np.asarray(shown.simulator_TK), "success").max() <= 1.0


def test_a_script_is_drawn_from_its_generator_alone() -> None:
    spec = TASKS["hammer"]
    scripts = [write_script("perturbed", spec, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert scripts[0] == scripts[1] != scripts[2]


def test_demonstrations_are_as_uneven_as_they_are_asked_to_be() -> None:
    spec, rough = TASKS["hammer"], Unevenness(noise=0.5, bad_rate=0.05)
    script = write_script("demo", spec, np.random.default_rng(1), rough)
    assert (script.noise, script.bad_rate) == (0.5, 0.05)
    usual = write_script("demo", spec, np.random.default_rng(1))
    assert (usual.noise, usual.bad_rate) == (0.2, 0.02)
    assert write_script("clean_demo", spec, np.random.default_rng(1), rough).noise == 0.03
