"""Stages of the loop on data made by hand: what is deployed, and what an update goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sarm2_client.errors import Conflict, InvalidInput, NotFound
from sarm2_rollouts.metaworld_robot import ACTION_NAMES
from sarm2_rollouts.whole_file import whole_file
from sarm2_spiral import stages
from sarm2_spiral.config import SpiralConfig
from sarm2_spiral.folder import SpiralFolder
from spiral.small_run import SMALL

FEATURES = 3


def config(margin: float = 0.02, rollouts: int = 6, trial: int = 3) -> SpiralConfig:
    loop = replace(SMALL.loop, rollouts=rollouts, trial=trial, margin=margin, exploration=(0.0, 0.3))
    return replace(SMALL, loop=loop)


def a_run(root: Path, settings: SpiralConfig) -> SpiralFolder:
    folder = SpiralFolder(root, "drawer-open", "state", 7, settings, "true")
    folder.round(1).mkdir(parents=True)
    return folder


def data(name: str, finals: Sequence[float]) -> stages.Data:
    """Episodes of three frames whose progress ends so."""
    rng = np.random.default_rng(0)
    count = range(len(finals))
    return stages.Data(
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
    run = a_run(tmp_path / "run", config())
    decision = stages.decide(run, 1, data("round1", [0.8] * 6), data("trial1", candidate))
    assert decision.deployed is deployed
    assert decision.before == pytest.approx(0.8)
    assert decision.after == pytest.approx(np.mean(candidate))


def test_a_candidate_is_measured_against_the_rollouts_without_noise_alone(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", config())
    noisy_low = data("round1", [0.9, 0.1, 0.9, 0.1, 0.9, 0.1])  # every second one was flown with noise
    assert [entry.seed % 2 for entry in run.trial_plan(1)] == [0, 0, 0]
    decision = stages.decide(run, 1, noisy_low, data("trial1", [0.6, 0.6, 0.6]))
    assert decision.before == pytest.approx(0.9)
    assert not decision.deployed


def without(whole: stages.Data, numbers: set[int]) -> stages.Data:
    """The same without episodes that could not be scored."""
    kept = [number for number in whole.numbers if number not in numbers]
    lists = ("numbers", "tasks", "features", "actions", "progress")
    fewer: dict[str, Any] = {name: [getattr(whole, name)[number] for number in kept] for name in lists}
    return replace(whole, **fewer)


def test_scenes_in_which_a_policy_could_not_be_scored_are_left_out_for_both(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", config())  # scenes 0, 2 and 4 of the round are tried
    rollouts, trial = data("round1", [0.9, 0.0, 0.8, 0.0, 0.1, 0.0]), data("trial1", [0.2, 0.9, 0.3])
    with pytest.raises(InvalidInput, match="in no scene could both policies be scored"):
        stages.decide(run, 1, without(rollouts, {0, 4}), without(trial, {1}))
    decision = stages.decide(run, 1, without(rollouts, {1, 4}), without(trial, {0}))
    assert (decision.before, decision.after) == pytest.approx((0.8, 0.9))


def test_what_was_decided_stands(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", config())
    with pytest.raises(NotFound, match="trial"):
        stages.load_decision(run, 1)
    before, worse, better = data("round1", [0.8] * 6), data("trial1", [0.1] * 3), data("trial1", [1.0] * 3)
    decision = stages.decide(run, 1, before, worse)
    assert not decision.deployed
    assert stages.decide(run, 1, before, better) == stages.load_decision(run, 1) == decision


@pytest.mark.parametrize(("deployed", "goes_on_from"), [([1], b"1"), ([2], b"2"), ([1, 2], b"2")])
def test_an_update_goes_on_from_the_last_candidate_that_was_deployed(
    tmp_path: Path, deployed: list[int], goes_on_from: bytes
) -> None:
    run = a_run(tmp_path / "run", config())
    for number in (1, 2):
        with whole_file(run.round(number) / stages.CHECKPOINT) as fresh:
            fresh.write_bytes(str(number).encode())
    checkpoint = stages.begin_checkpoint(run, 3, deployed)
    assert checkpoint.read_bytes() == goes_on_from
    checkpoint.write_bytes(b"3, half learned")
    assert stages.begin_checkpoint(run, 3, deployed).read_bytes() == b"3, half learned"


def test_an_update_begins_afresh_where_none_was_deployed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", config())
    (run.round(1) / stages.CHECKPOINT).write_bytes(b"1")
    assert not stages.begin_checkpoint(run, 2, []).exists()


def by_colour(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
    """An encoder: the mean colour of a picture's quarters."""
    quarters = [[p[:h, :w].mean((0, 1)) for h in (48, 96) for w in (48, 96)] for p in pictures]
    return np.array(quarters, dtype=np.float16).reshape(len(pictures), -1)


def by_edges(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
    """Another one, of the same width: how much every colour changes along its sides."""
    rows = [np.abs(np.diff(p.astype(float), axis=a)).mean((0, 1)) for p in pictures for a in (0, 1, 0, 1)]
    return np.array(rows, dtype=np.float16).reshape(len(pictures), -1)


def on_another_device(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
    return by_colour(pictures) + np.float16(0.05)


def test_a_run_keeps_to_the_encoder_that_it_was_begun_with(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", config())
    for _ in range(2):
        stages.check_encoder(run, by_colour, print)
    stages.check_encoder(run, on_another_device, print)
    for other in (by_edges, lambda pictures: by_colour(pictures)[:, :6]):
        with pytest.raises(Conflict, match="another image encoder"):
            stages.check_encoder(run, other, print)
