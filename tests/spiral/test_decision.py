"""What is deployed after a round, on data made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_rollouts.metaworld_robot import ACTION_NAMES
from sarm2_spiral.data import Data
from sarm2_spiral.decision import decide, load_decision
from spiral.small_run import SMALL, in_round_1

FEATURES = 3

LOOP = replace(SMALL.loop, rollouts=6, trial=3, margin=0.02, exploration=(0.0, 0.3))
SETTINGS = replace(SMALL, loop=LOOP)


def data(name: str, finals: Sequence[float]) -> Data:
    """Episodes of three frames whose progress ends so."""
    rng = np.random.default_rng(0)
    count = range(len(finals))
    return Data(
        name=name,
        root=Path(name),
        numbers=list(count),
        tasks=["open the drawer"] * len(finals),
        features=[rng.normal(size=(3, FEATURES)).astype(np.float32) for _ in count],
        actions=[rng.uniform(-1, 1, (3, len(ACTION_NAMES))).astype(np.float32) for _ in count],
        progress=[np.array([0.0, final / 2, final], dtype=np.float32) for final in finals],
        demo=name == "demos",
    )


@pytest.mark.parametrize(
    ("candidate", "deployed"),
    [((0.9, 0.9, 0.9), True), ((0.8, 0.8, 0.8), True), ((0.75, 0.8, 0.8), True), ((0.5, 0.8, 0.8), False)],
)
def test_a_candidate_is_deployed_unless_it_ends_lower_than_the_margin_allows(
    tmp_path: Path, candidate: tuple[float, ...], deployed: bool
) -> None:
    run = in_round_1(tmp_path / "run", SETTINGS)
    decision = decide(run, 1, data("round1", [0.8] * 6), data("trial1", candidate))
    assert decision.deployed is deployed
    assert decision.before == pytest.approx(0.8)
    assert decision.after == pytest.approx(np.mean(candidate))


def test_a_candidate_is_measured_against_the_rollouts_without_noise_alone(tmp_path: Path) -> None:
    run = in_round_1(tmp_path / "run", SETTINGS)
    noisy_low = data("round1", [0.9, 0.1, 0.9, 0.1, 0.9, 0.1])  # every second one was flown with noise
    assert [entry.seed % 2 for entry in run.trial_plan(1)] == [0, 0, 0]
    decision = decide(run, 1, noisy_low, data("trial1", [0.6, 0.6, 0.6]))
    assert decision.before == pytest.approx(0.9)
    assert not decision.deployed


def without(whole: Data, numbers: set[int]) -> Data:
    """The same without episodes that could not be scored."""
    kept = [number for number in whole.numbers if number not in numbers]
    lists = ("numbers", "tasks", "features", "actions", "progress")
    fewer: dict[str, Any] = {name: [getattr(whole, name)[number] for number in kept] for name in lists}
    return replace(whole, **fewer)


def test_scenes_in_which_a_policy_could_not_be_scored_are_left_out_for_both(tmp_path: Path) -> None:
    run = in_round_1(tmp_path / "run", SETTINGS)  # scenes 0, 2 and 4 of the round are tried
    rollouts, trial = data("round1", [0.9, 0.0, 0.8, 0.0, 0.1, 0.0]), data("trial1", [0.2, 0.9, 0.3])
    with pytest.raises(InvalidInput, match="in no scene could both policies be scored"):
        decide(run, 1, without(rollouts, {0, 4}), without(trial, {1}))
    decision = decide(run, 1, without(rollouts, {1, 4}), without(trial, {0}))
    assert (decision.before, decision.after) == pytest.approx((0.8, 0.9))


def test_what_was_decided_stands(tmp_path: Path) -> None:
    run = in_round_1(tmp_path / "run", SETTINGS)
    with pytest.raises(NotFound, match="trial"):
        load_decision(run, 1)
    before, worse, better = data("round1", [0.8] * 6), data("trial1", [0.1] * 3), data("trial1", [1.0] * 3)
    decision = decide(run, 1, before, worse)
    assert not decision.deployed
    assert decide(run, 1, before, better) == load_decision(run, 1) == decision
