"""Scenes of runs: no run, kind or round shares one with another."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sarm2_client.errors import Conflict, InvalidInput
from sarm2_rollouts.metaworld_robot import SEED_BLOCK
from sarm2_rollouts.run_record import RunRecord
from sarm2_spiral.comparison.cells import cells
from sarm2_spiral.config import METAWORLD, MOST_ROUNDS, ROUND_SEEDS
from sarm2_spiral.folder import MOST_SEED, RECIPE, SEEDS, SpiralFolder


def folder(seed: int, **loop: Any) -> SpiralFolder:
    config = replace(METAWORLD, loop=replace(METAWORLD.loop, **loop))
    return SpiralFolder(Path("run"), "hammer", "state", seed, config)


def test_no_two_runs_or_kinds_share_a_block_of_scenes() -> None:
    compared = {seed for cell in cells() for seed in cell.seeds}
    seeds = compared | {1, 2, 3, 49, 50, 51, 99, *range(100, 110), MOST_SEED}
    blocks = [folder(seed).first_seed(what) for seed in sorted(seeds) for what in SEEDS]
    assert all(block % SEED_BLOCK == 0 for block in blocks)
    assert len(set(blocks)) == len(blocks)
    assert max(blocks) + SEED_BLOCK < 2**32


def test_no_two_rounds_share_a_scene_and_all_stay_in_their_block() -> None:
    run = folder(7, rounds=MOST_ROUNDS, first=ROUND_SEEDS, rollouts=ROUND_SEEDS)
    rounds = [{entry.seed for entry in run.rollout_plan(number)} for number in range(MOST_ROUNDS + 1)]
    assert not any(one & other for one, other in combinations(rounds, 2))
    assert {seed // SEED_BLOCK for round_ in rounds for seed in round_} == {
        run.first_seed("rollouts") // SEED_BLOCK
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rounds", 20, "0 to 19"),
        ("rounds", -1, "0 to 19"),
        ("first", 1001, "1 to 1000"),
        ("first", 0, "1 to 1000"),
        ("rollouts", 1001, "3 to 1000"),
        ("rollouts", 2, "3 to 1000"),
        ("trial", 0, "at least 1"),
        ("demos", 0, "at least 1"),
        ("evaluation", 0, "at least 1"),
        ("exploration", (0.1, 0.2), "a 0 among the noises"),
    ],
)
def test_a_loop_that_could_not_end_is_refused_before_it_begins(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}: expected {expected}.*, got {re.escape(str(value))}"):
        folder(0, **{name: value})


@pytest.mark.parametrize("seed", [-1, MOST_SEED + 1])
def test_a_seed_without_scenes_is_refused(seed: int) -> None:
    with pytest.raises(InvalidInput, match=f"seed: expected 0 to {MOST_SEED}, got {seed}"):
        folder(seed)


def test_a_run_of_an_older_recipe_is_not_gone_on_with(tmp_path: Path) -> None:
    run = replace(folder(0), root=tmp_path / "run")
    older = {**run.settings(), "recipe": RECIPE - 1}
    RunRecord(run.root, older).open(resume=False)
    with pytest.raises(Conflict, match=r"other settings \(recipe: \d+, now \d+\)"):
        RunRecord(run.root, run.settings()).open(resume=True)
    assert not RunRecord(run.root, run.settings()).whole
    assert SpiralFolder.of(run.root) == run


def test_no_more_of_a_chunk_is_carried_out_than_it_has() -> None:
    config = replace(METAWORLD, update=replace(METAWORLD.update, executed=METAWORLD.policy.horizon + 1))
    with pytest.raises(InvalidInput, match=r"executed: expected at most the 8 actions of a chunk .*got 9"):
        SpiralFolder(Path("run"), "hammer", "state", 0, config)
