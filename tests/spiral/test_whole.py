"""A whole run as users start it: an image policy, a service of its own, adaptation, films."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import pytest
from rich.console import Console

from sarm2_cli.spiral_reach import reaching
from sarm2_models.checkpoint import load_bundle, read_manifest
from sarm2_rollouts.episode_scorer import model_name
from sarm2_rollouts.relabel import scored_by
from sarm2_rollouts.run_record import finished_stages
from sarm2_spiral.comparison.outcome import RunOutcome
from sarm2_spiral.folder import SpiralFolder
from spiral.small_run import SMALL

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_whole_run_adapts_its_reward_model_learns_from_it_and_shows_films(tmp_path: Path) -> None:
    config = replace(
        SMALL, loop=replace(SMALL.loop, first=8, adapt_steps=60, remember=4, rounds=1, adapt=True)
    )
    run = SpiralFolder(tmp_path / "run", "drawer-open", "image", 7, config)
    with reaching(run, None, None, 1) as loop:
        loop.console = Console(quiet=True)
        page = loop.start(resume=False)
    stages = list(finished_stages(run.root))
    assert stages.index("collect 0") < stages.index("adapt") < stages.index("relabel 0")
    first, second = load_bundle(run.first_model), load_bundle(run.reward_model)
    assert run.adapted
    name = model_name(first.model_id, first.version, first.weights_sha256)
    assert read_manifest(run.reward_model).adapted_from == name
    assert RunOutcome.of(run).reward_model == name
    adaptation = json.loads(run.adaptation.read_text())
    assert adaptation["labels"] == "marks"
    assert json.loads((run.report / "report.json").read_text())["adaptation"] == adaptation
    assert f"{adaptation['before']['policy_mse']['value']:.4f}" in page.read_text()
    # Everything that is learned from after the adaptation was scored by RM2.
    for root in (run.demos, run.round(0) / "rollouts", run.round(1) / "rollouts", run.round(1) / "trial"):
        assert scored_by(root) == model_name(second.model_id, second.version, second.weights_sha256)
    for name in ("cloned_0.mp4", "improved_0.mp4"):
        assert name in page.read_text()
        with av.open(str(run.report / name)) as film:
            assert sum(1 for _ in film.decode(video=0)) > 10
