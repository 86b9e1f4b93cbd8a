"""The check of the labels: its episodes, its arithmetic, its files, and one task in the simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.synthetic import check_by_hand
from sarm2_models.train import stages
from sarm2_models.train.jobs import Ticker
from sarm2_models.train.label_check import (
    DEMO,
    ROLLOUT,
    CheckedEpisode,
    agreement,
    load_checks,
    planned_checks,
    save_checks,
)
from sarm2_models.train.layout import RunFolder
from sarm2_models.train.plan import PLANS, SEED_BLOCKS
from sarm2_models.train.report import draw_labels
from sarm2_rollouts.episode import EpisodeKind
from sarm2_rollouts.expert_label import CrossCheck, cross_check
from sarm2_rollouts.tasks import TASKS

TWO = ("drawer-open", "hammer")
MOST_BYTES = 150_000
"""Of the picture, which goes into the bundle."""


def checked(kind: EpisodeKind, potential: list[float], steps: list[float]) -> CheckedEpisode:
    frames_N = np.arange(len(potential))
    check = CrossCheck(frames_N, np.array(potential, np.float32), np.array(steps, np.float32))
    return CheckedEpisode(kind, 80_000, check)


def test_every_task_gets_demonstrations_and_rollouts_with_seeds_of_the_validation_block() -> None:
    low, high = SEED_BLOCKS["validation"]
    for name, count in (("small", 4), ("published", 4), ("quick", 1)):
        planned = planned_checks(PLANS[name], TWO, seed=3)
        kinds = sorted((one.task_name, one.kind) for one in planned)
        assert kinds == sorted((task, kind) for task in TWO for kind in (DEMO, ROLLOUT) for _ in range(count))
        assert all(low <= one.seed < high for one in planned)
        assert planned == planned_checks(PLANS[name], TWO, seed=3)


def test_errors_are_means_over_frames_and_ranks_over_episodes() -> None:
    measured = agreement(
        [
            checked(DEMO, [0.0, 0.5, 1.0], [0.0, 0.2, 1.0]),
            checked(DEMO, [0.0], [0.1]),  # one frame has no rank
            checked(ROLLOUT, [0.0, 0.2, 0.4], [0.0, 0.3, 0.6]),
            checked(ROLLOUT, [0.0, 0.2, 0.4], [0.6, 0.3, 0.0]),
        ]
    )
    assert measured == {
        "demo_mse": pytest.approx((0.3**2 + 0.1**2) / 4),
        "rollout_mse": pytest.approx((0.1**2 + 0.2**2 + 0.6**2 + 0.1**2 + 0.4**2) / 6),
        "demo_rank": pytest.approx(1.0),
        "rollout_rank": pytest.approx(0.0),
        "episodes": 4,
        "unknown_share": 0.0,
    }


def test_frames_where_the_expert_never_gets_there_count_as_unknown_and_nowhere_else() -> None:
    nan = float("nan")
    measured = agreement(
        [
            checked(DEMO, [0.0, 0.5, 1.0], [0.0, 0.4, 1.0]),
            checked(ROLLOUT, [0.0, 0.9, 0.3, 0.4], [0.0, nan, 0.3, 0.6]),
            checked(ROLLOUT, [0.0], [nan]),
        ]
    )
    assert measured["rollout_mse"] == pytest.approx(0.2**2 / 3)
    assert measured["rollout_rank"] == pytest.approx(1.0)
    assert measured["unknown_share"] == pytest.approx(2 / 8)


def test_what_rests_on_no_frame_is_none() -> None:
    lost = agreement([checked(ROLLOUT, [0.0, 0.5], [float("nan")] * 2)])
    assert lost == dict.fromkeys(("demo_mse", "rollout_mse", "demo_rank", "rollout_rank")) | {
        "episodes": 1,
        "unknown_share": 1.0,
    }
    assert agreement([])["unknown_share"] is None


def test_kept_labels_come_back_as_they_were(tmp_path: Path) -> None:
    saved = [
        CheckedEpisode(kind, seed, check_by_hand("hammer", kind, seed))
        for seed, kind in enumerate((DEMO, ROLLOUT))
    ]
    save_checks(tmp_path / "labels" / "hammer.json", saved)
    loaded = load_checks(tmp_path / "labels" / "hammer.json")
    for before, after in zip(saved, loaded, strict=True):
        assert (after.kind, after.seed) == (before.kind, before.seed)
        for name, values in vars(before.check).items():
            np.testing.assert_array_equal(getattr(after.check, name), values, strict=True)


def test_a_stopped_check_goes_on_at_the_task_where_it_stopped(tmp_path: Path) -> None:
    run, asked = RunFolder(tmp_path, PLANS["small"], TWO, 0), list[str]()

    def tiring(task: str, kind: EpisodeKind, seed: int) -> CrossCheck:
        asked.append(task)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return check_by_hand(task, kind, seed)

    ticker = Ticker(tmp_path / "progress.json")
    with pytest.raises(KeyboardInterrupt):
        stages.labels(ticker, run, TWO, tiring)
    stages.labels(ticker, run, TWO, tiring)
    assert asked == ["drawer-open"] * 8 + ["hammer"] * 2 + ["hammer"] * 8
    assert all(len(load_checks(run.labels(task))) == 8 for task in TWO)


def test_the_picture_of_all_tasks_is_small(tmp_path: Path) -> None:
    rng, rising = np.random.default_rng(0), np.linspace(0, 1, 24)
    shaky = {
        task: [checked(kind, [*rising], [*(rising + 0.1 * rng.normal(size=24))]) for kind in (DEMO, ROLLOUT)]
        for task in TASKS
    }
    draw_labels(shaky, tmp_path / "labels.png")
    assert (tmp_path / "labels.png").stat().st_size < MOST_BYTES


@pytest.mark.sim
def test_in_the_simulator_the_labels_of_a_task_agree(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, replace(PLANS["quick"], label_checks=2), ("drawer-open",), 0)
    stages.labels(Ticker(tmp_path / "progress.json"), run, run.tasks, cross_check)
    episodes = load_checks(run.labels("drawer-open"))
    measured = agreement(episodes)
    assert measured["episodes"] == 4
    for name, most in (("demo_mse", 0.015), ("rollout_mse", 0.05)):
        error = measured[name]
        assert error is not None
        assert error < most
    assert measured["demo_rank"] == pytest.approx(1.0, abs=0.1)
    draw_labels({"drawer-open": episodes}, tmp_path / "labels.png")
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")
