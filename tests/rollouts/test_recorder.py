"""A recording ends with a whole dataset, however often it was stopped on the way."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from rollouts.small_episodes import STATE_NAMES, assert_same, small_episode
from sarm2_client.errors import Conflict, InvalidInput
from sarm2_rollouts.episode import Episode, EpisodeKind
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.recorder import PlannedEpisode, record


@dataclass(frozen=True)
class Plan:
    task_name: str
    kind: EpisodeKind
    seed: int


PLAN = [Plan("pick-place", "demo", seed) for seed in range(5)]


class Robot:
    """Makes small episodes and remembers which; breaks down before the seed `breaks_at`."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.breaks_at = breaks_at
        self.made: list[int] = []
        self.stopped = False

    def __call__(self, plan: Sequence[PlannedEpisode]) -> Iterator[Episode]:
        try:
            for entry in plan:
                if entry.seed == self.breaks_at:
                    raise KeyboardInterrupt
                self.made.append(entry.seed)
                yield small_episode(entry.seed)
        finally:
            self.stopped = True


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_plan_becomes_a_dataset_in_its_order(tmp_path: Path) -> None:
    summary = record(PLAN, tmp_path / "d", "image", source=Robot(), state_names=STATE_NAMES, console=quiet())
    assert summary.episodes == 5
    dataset = open_dataset(tmp_path / "d")
    assert dataset.state_names == STATE_NAMES
    for seed, episode in enumerate(dataset):
        assert_same(episode, small_episode(seed))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_stopped_recording_goes_on_where_it_was(tmp_path: Path) -> None:
    broken, second, uninterrupted = Robot(breaks_at=3), Robot(), Robot()
    with pytest.raises(KeyboardInterrupt):
        record(PLAN, tmp_path / "d", "image", source=broken, console=quiet())
    assert not (tmp_path / "d").exists()
    record(PLAN, tmp_path / "d", "image", source=second, console=quiet())
    assert (broken.made, second.made) == ([0, 1, 2], [3, 4])
    record(PLAN, tmp_path / "e", "image", source=uninterrupted, console=quiet())
    for name in ("data/chunk-000/file-000.parquet", "meta/info.json", "meta/stats.json"):
        assert (tmp_path / "d" / name).read_bytes() == (tmp_path / "e" / name).read_bytes()


def test_an_episode_that_was_kept_but_cannot_be_read_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(PLAN, tmp_path / "d", "image", source=Robot(breaks_at=2), console=quiet())
    kept = sorted((tmp_path / ".d.recording").iterdir())
    (kept[0] / "meta/info.json").write_text("{")
    robot = Robot()
    record(PLAN, tmp_path / "d", "image", source=robot, console=quiet())
    assert robot.made == [0, 2, 3, 4]


def test_another_plan_makes_its_own_episodes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(PLAN, tmp_path / "d", "image", source=Robot(breaks_at=2), console=quiet())
    robot = Robot()
    other = [Plan("pick-place", "demo", seed) for seed in (7, 1)]
    record(other, tmp_path / "d", "image", source=robot, console=quiet())
    assert robot.made == [7]
    assert [episode.seed for episode in open_dataset(tmp_path / "d")] == [7, 1]


def test_a_source_is_stopped_when_the_recording_fails(tmp_path: Path) -> None:
    robot = Robot()

    def wrong_size(plan: Sequence[PlannedEpisode]) -> Iterator[Episode]:
        yield from robot(plan)

    (tmp_path / ".d.recording").write_text("a file in the way")
    with pytest.raises(FileExistsError):
        record(PLAN, tmp_path / "d", source=wrong_size, console=quiet())
    assert robot.made == []
    (tmp_path / ".d.recording").unlink()
    with pytest.raises(InvalidInput, match="4 state_names"):
        record(PLAN, tmp_path / "d", source=wrong_size, state_names=["x"], console=quiet())
    assert robot.stopped


def test_an_existing_dataset_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    robot = Robot()
    with pytest.raises(Conflict):
        record(PLAN, tmp_path / "d", source=robot, console=quiet())
    assert robot.made == []


def test_an_empty_plan_and_a_source_that_ends_early_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="plan"):
        record([], tmp_path / "d", source=Robot(), console=quiet())
    with pytest.raises(InvalidInput, match="episode 1"):
        record(PLAN, tmp_path / "d", source=lambda plan: [small_episode(0)], console=quiet())


def test_the_bar_tells_what_is_done_and_how_long_it_will_take(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    record(PLAN, tmp_path / "d", "image", source=Robot(), console=console)
    shown = screen.getvalue()
    assert "Recording pick-place (demo)" in shown
    assert "5/5" in shown
    assert "eta" in shown


@pytest.mark.sim
def test_the_simulated_robot_is_recorded_by_default(tmp_path: Path) -> None:
    record([Plan("drawer-open", "clean_demo", 3)], tmp_path / "d", "image", 0, console=quiet())
    dataset = open_dataset(tmp_path / "d")
    episode = dataset.episode(0)
    assert dataset.state_names == ("tool_x", "tool_y", "tool_z", "gripper_opening")
    assert dataset.cameras == ("corner", "side", "wrist")
    assert (episode.task_name, episode.kind, episode.success) == ("drawer-open", "clean_demo", True)
    assert episode.progress_T is not None
    assert episode.segments is not None
    assert episode.simulator_TK is not None
    assert len(episode.simulator_names) == episode.simulator_TK.shape[1]
