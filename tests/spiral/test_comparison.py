"""The comparison's runs on the real simulator, small, and its bars on verdicts that are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict, InvalidInput
from sarm2_rollouts.run_record import RunRecord, finished_stages
from sarm2_spiral.comparison.bars import BARS, auc_bar, gained, loop_bar, minutes_bar, success_bar
from sarm2_spiral.comparison.cells import (
    ARMS,
    CONTROLLED,
    DEMOS,
    MAIN,
    QUICK_CELL,
    SEEDS,
    Arm,
    Cell,
    cells,
)
from sarm2_spiral.comparison.outcome import INHERITED, Outcome, RunOutcome
from sarm2_spiral.comparison.picture import draw_comparison
from sarm2_spiral.comparison.report import markdown
from sarm2_spiral.comparison.run import Comparison, inherit
from sarm2_spiral.config import METAWORLD
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.run import SpiralRun
from sarm2_spiral.wilson import Rate
from spiral.small_run import SMALL, quiet_run

BEGINNING = {"demos", "policies/bc.safetensors"}
SCORED = {"policies/offline.safetensors", "rounds/0"}


@contextmanager
def reach(folder: SpiralFolder) -> Iterator[SpiralRun]:
    with RewardClient() as client:
        yield quiet_run(folder, client)


def test_every_bar_has_its_run_its_control_and_its_demonstrations() -> None:
    found = list(cells())
    assert len(found) == len(set(found))
    for task, kind in MAIN:
        assert {Cell(task, kind, "spiral"), Cell(task, kind, "uniform")} <= set(found)
    for task, kind in CONTROLLED:
        assert len([cell for cell in found if (cell.task, cell.kind) == (task, kind)]) == 7
    for cell in found:
        run = cell.folder(Path("out"), 2, METAWORLD)
        assert run.config.loop.demos == DEMOS[cell.task, cell.kind].count
        assert run.root == Path("out") / cell.name / "seed2"
        assert len(set(cell.seeds)) == len(SEEDS)
        assert max(cell.seeds) < 100, "others belong to tuning"


def test_by_default_every_run_flies_its_own_seeds_one_of_each_first(tmp_path: Path) -> None:
    chosen = [Cell("hammer", "image", "spiral"), Cell("drawer-open", "image", "spiral")]
    comparison = Comparison(tmp_path, METAWORLD, None, reach, chosen)
    own = [(cell, cell.seeds[nth]) for nth in range(len(SEEDS)) for cell in chosen]
    assert comparison.plan() == own
    assert replace(comparison, seeds=(2,)).plan() == [(cell, 2) for cell in chosen]


@pytest.mark.sim
def test_controls_begin_alike_are_reported_and_never_done_twice(tmp_path: Path) -> None:
    chosen = [Cell("hammer", "state", "true"), Cell("hammer", "state", "linear")]
    config = replace(SMALL, loop=replace(SMALL.loop, rounds=1))
    comparison = Comparison(tmp_path, config, (3,), reach, chosen, Console(quiet=True))
    report = comparison.start()
    first, second = (cell.folder(tmp_path, 3, config) for cell in chosen)
    assert not (first.root / INHERITED).exists()
    assert first.policy("bc").read_bytes() == second.policy("bc").read_bytes()
    found = json.loads((report / "spiral.json").read_text())
    assert list(found["cells"]) == ["hammer/state/linear", "hammer/state/true"]
    assert found["cells"]["hammer/state/true"]["success"]["round1"]["n"] == config.loop.evaluation
    assert found["bars"] == {}
    assert (report / "spiral.png").exists()
    one = replace(comparison, chosen=chosen[:1], seeds=(3, 9))
    assert (one.write() / "spiral.json").read_text() == (report / "spiral.json").read_text(), (
        "the report is of every finished run"
    )
    assert "hammer/state/linear" in (report / "spiral.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    comparison.start()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "outcomes", elsewhere / "outcomes")
    again = replace(comparison, root=elsewhere).start()
    for name in ("spiral.json", "spiral.md"):
        assert (again / name).read_text() == (report / name).read_text(), "the outcomes tell the same"
    assert not any((elsewhere / cell.name).exists() for cell in chosen), "it was flown again"
    outcome = elsewhere / "outcomes" / chosen[0].name / "seed3.json"
    told = json.loads(outcome.read_text())
    outcome.write_text(json.dumps({name: value for name, value in told.items() if name != "reward_model"}))
    with pytest.raises(InvalidInput, match="lacks reward_model: another version wrote it"):
        replace(comparison, root=elsewhere).write()
    outcome.write_text(json.dumps(told))
    longer = replace(config, loop=replace(config.loop, rounds=2))
    with pytest.raises(Conflict, match=r"other settings \(config\.\S+: \S+, now "):
        replace(comparison, root=elsewhere, config=longer).start()


@pytest.mark.sim
def test_a_run_inherits_what_it_would_make_just_the_same(tmp_path: Path) -> None:
    config = replace(SMALL, loop=replace(SMALL.loop, rounds=1))
    first = Cell("hammer", "state", "true").folder(tmp_path / "first", 3, config)
    linear = Cell("hammer", "state", "linear")
    heir, alone = (linear.folder(tmp_path / name, 3, config) for name in ("heir", "alone"))
    inherit(heir, first)
    assert not heir.root.exists(), "there was nothing to inherit"
    for folder in (first, alone):
        with reach(folder) as run:
            run.start(resume=False)
    inherit(heir, first)
    assert RunOutcome.of(first).minutes is not None
    taken = heir.root / "policies" / "bc.safetensors"
    before = taken.stat().st_mtime_ns
    assert finished_stages(heir.root) == {}
    with reach(heir) as run:
        run.start(resume=True)
    assert taken.stat().st_mtime_ns == before, "pi_1 was cloned again"
    assert RunOutcome.of(heir).minutes is None, "what was taken over took time too"
    for name in ("policies/bc.safetensors", "policies/offline.safetensors", "rounds/1/learner.safetensors"):
        assert (heir.root / name).read_bytes() == (alone.root / name).read_bytes()


@pytest.mark.parametrize(
    ("arm", "shared"),
    [
        ("linear", BEGINNING),
        ("rm1", BEGINNING | SCORED),
        ("ra-bc", BEGINNING | SCORED | {"reward_model"}),
    ],
)
def test_only_what_comes_out_the_same_is_shared(arm: Arm, shared: set[str], tmp_path: Path) -> None:
    first = Cell("hammer", "state", "spiral").folder(tmp_path / "first", 3, METAWORLD)
    heir = Cell("hammer", "state", arm).folder(tmp_path / "heir", 3, METAWORLD)
    record = RunRecord(first.root, first.settings())
    record.open(resume=False)
    names = BEGINNING | SCORED | {"reward_model"}
    for name in names:
        place = first.root / name if name.startswith("policies") else first.root / name / "file"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
    inherit(heir, first)
    assert not heir.root.exists(), "the first run was not finished"
    record.do("report", lambda: None, Console(quiet=True))
    inherit(heir, first)
    assert {name for name in names if (heir.root / name).exists()} == shared
    assert (heir.root / INHERITED).exists()


def test_a_run_with_other_settings_is_not_taken_for_one_of_the_comparison(tmp_path: Path) -> None:
    chosen = [Cell("hammer", "state", "true")]
    other = chosen[0].folder(tmp_path, 3, SMALL)
    RunRecord(other.root, other.settings()).open(resume=False)
    RunRecord(other.root, other.settings()).do("report", lambda: None, Console(quiet=True))
    comparison = Comparison(tmp_path, METAWORLD, (3,), reach, chosen, Console(quiet=True))
    with pytest.raises(Conflict, match=r"other settings \(config\.\S+: \S+, now "):
        comparison.start()


def test_the_picture_has_a_panel_for_each_task_and_skips_what_was_not_flown(tmp_path: Path) -> None:
    flown = {"bc": Rate(50, 100), "offline": Rate(55, 100), "round1": Rate(0, 0), "round2": Rate(90, 100)}
    hammer = {Cell("hammer", "state", arm): flown for arm in ARMS}
    sizes = []
    for name, rates in (("one", hammer), ("two", hammer | {Cell("drawer-open", "image", "spiral"): flown})):
        draw_comparison(rates, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes.append(picture.size)
            assert np.asarray(picture.convert("L")).min() < 50, "nothing is drawn"
    assert sizes[1][0] > sizes[0][0]
    assert sizes[1][1] == sizes[0][1]


# --- bars ----------------------------------------------------------------------------------------------


def test_success_must_clear_the_bar_and_the_control_with_its_lower_bound() -> None:
    assert success_bar("hammer", Rate(285, 300), Rate(180, 300)).met
    assert not success_bar("hammer", Rate(262, 300), Rate(180, 300)).met, "87 %, but its lower bound is 83 %"
    assert not success_bar("bin-picking", Rate(240, 300), Rate(230, 300)).met, "not above the control"


def test_the_loop_gain_is_the_mean_over_tasks_with_a_paired_interval() -> None:
    half = np.arange(100) % 2 == 0
    offline = {task: half for task, _ in MAIN}
    final = {task: np.ones(100, bool) if task == "hammer" else half for task, _ in MAIN}
    bar = loop_bar(offline, final)
    assert bar.value == pytest.approx(0.125)
    assert 0.08 < bar.low < bar.value < bar.high < 0.17
    assert bar.met
    assert not loop_bar(final, offline).met


def test_the_auc_leaves_out_tasks_without_failures() -> None:
    finals = {"hammer": [0.9, 1.0, 0.2, 0.3] * 10, "pick-place": [1.0] * 10}
    successes = {"hammer": [True, True, False, False] * 10, "pick-place": [True] * 10}
    bar = auc_bar(finals, successes)
    assert bar is not None
    assert (bar.value, bar.met) == (1.0, True)
    assert auc_bar({"pick-place": [1.0]}, {"pick-place": [True]}) is None


def test_every_run_tells_its_auc_unless_its_rewards_end_all_rollouts_alike() -> None:
    verdicts = {step: [True, False] for step in ("bc", "offline", "round1", "round2", "round3")}
    told = RunOutcome(verdicts, [0.9, 0.8, 0.95, 0.1], [True, True, False, False], [True], None, None)
    blind = replace(told, finals=[0.0] * 4)
    cells = {
        Cell("hammer", "image", "spiral"): Outcome.of([told, replace(told, finals=[0.9, 0.8, 0.3, 0.1])]),
        Cell("hammer", "image", "uniform"): Outcome.of([blind]),
    }
    assert [found.auc for found in cells.values()] == [12 / 16, None]
    rows = [line for line in markdown({}, cells, METAWORLD).splitlines() if line.startswith("| hammer")]
    last_columns = [[part.strip() for part in row.split("|")[-3:-1]] for row in rows[:2]]
    assert last_columns == [["0.750", "1 of 4"], ["", ""]]
    hopeless = Outcome.of([replace(blind, finals=[0.95, 0.99, 0.2, 0.96], successes=[False] * 4)])
    assert (hopeless.auc, hopeless.taken_for_done) == (None, (3, 4))


def test_rounds_that_were_deployed_and_were_worse_are_told() -> None:
    steps = {
        "bc": [False] * 6,
        "offline": [True, True, False, False, True, True],
        "round1": [True, False, False, False],  # two fewer of the four scenes that both flew
        "round2": [False] * 4,
        "round3": [True] * 6,
    }
    run = RunOutcome(steps, [], [], [True, False, True], None, None)
    assert [str(change) for change in run.changes] == ["round1: 2 to 1 of 4", "round3: 0 to 4 of 4"]
    found = Outcome.of([run, replace(run, deployed=[True, True, True])])
    assert [str(change) for change in found.worse] == ["round1: 2 to 1 of 4"] * 2 + ["round2: 1 to 0 of 4"]
    told = markdown({}, {Cell("hammer", "state", "spiral"): found}, METAWORLD)
    row = (
        "| hammer/state/spiral | 5 of 6 | 3 | round1: 2 to 1 of 4; round1: 2 to 1 of 4; round2: 1 to 0 of 4 |"
    )
    assert row in told.splitlines()


def test_what_another_reward_model_rewarded_is_not_gone_on_with(tmp_path: Path) -> None:
    rewarded, blind = Cell("hammer", "state", "rm1"), Cell("hammer", "state", "true")
    verdicts = {step: [True] for step in ("bc", "offline", "round1", "round2", "round3")}
    for cell, name in ((rewarded, "m@1#aa"), (blind, None)):
        path = cell.outcome_file(tmp_path, 3)
        path.parent.mkdir(parents=True)
        kept = asdict(RunOutcome(verdicts, [0.9], [True], [True], None, name))
        settings = cell.folder(tmp_path, 3, METAWORLD).settings()
        path.write_text(json.dumps({"settings": settings, **kept}))
    comparison = Comparison(
        tmp_path, METAWORLD, (3,), reach, [rewarded, blind], Console(quiet=True), "m@1#aa"
    )
    assert comparison.start().is_dir(), "nothing was left to fly"
    other = replace(comparison, reward_model="m@2#bb")
    with pytest.raises(Conflict, match=r"\(reward_model: m@1#aa, now m@2#bb\); move it, and the folder"):
        other.start()
    assert replace(other, chosen=[blind]).start().is_dir(), "its rewards come from elsewhere"


def test_a_finished_folder_of_another_reward_model_is_neither_told_of_nor_inherited_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spiral, heir = Cell("hammer", "state", "spiral"), Cell("hammer", "state", "rm1")
    folder = spiral.folder(tmp_path, 3, METAWORLD)
    folder.record.open(resume=False)
    folder.record.do("report", lambda: None, Console(quiet=True))
    monkeypatch.setattr("sarm2_spiral.comparison.outcome._reward_model", lambda run: "m@1#aa")

    def stopped(run: SpiralFolder) -> AbstractContextManager[SpiralRun]:
        assert not (run.root / INHERITED).exists()
        raise KeyboardInterrupt

    comparison = Comparison(tmp_path, METAWORLD, (3,), stopped, [spiral], Console(quiet=True), "m@2#bb")
    with pytest.raises(Conflict, match="rewards of m@1#aa, and not of m@2#bb; move it away"):
        comparison.start()
    assert not spiral.outcome_file(tmp_path, 3).exists()
    with pytest.raises(KeyboardInterrupt):
        replace(comparison, chosen=[heir]).start()


def test_a_seed_without_scenes_is_told_before_anything_is_flown(tmp_path: Path) -> None:
    def never(folder: SpiralFolder) -> AbstractContextManager[SpiralRun]:
        raise AssertionError(f"{folder.root} was flown")

    comparison = Comparison(tmp_path, METAWORLD, (999_999,), never, [QUICK_CELL], Console(quiet=True))
    with pytest.raises(InvalidInput, match="seed: expected 0 to"):
        comparison.start()


def test_the_reports_that_are_shown_are_what_the_outcomes_beside_them_come_to(tmp_path: Path) -> None:
    reports = Path(__file__).parents[1] / "bench" / "reports"
    (shown,) = reports.glob("spiral_*.json")
    shutil.copytree(reports / "spiral_outcomes", tmp_path / "outcomes")
    made = Comparison(tmp_path, METAWORLD, None, reach, console=Console(quiet=True)).write()
    told, again = (
        json.loads(path.read_text(), parse_float=lambda digits: round(float(digits), 6))
        for path in (shown, made / "spiral.json")
    )
    for part in ("settings", "bars", "cells"):
        assert told[part] == again[part]
    page = (made / "spiral.md").read_text().replace("spiral.png", f"{shown.stem}.png")
    assert shown.with_suffix(".md").read_text() == page


def test_the_readme_tells_what_the_shown_report_has() -> None:
    root = Path(__file__).parents[2]
    (shown,) = (root / "tests" / "bench" / "reports").glob("spiral_*.json")
    cells, readme = json.loads(shown.read_text())["cells"], (root / "README.md").read_text()
    for task, kind in MAIN:
        found, blind = cells[f"{task}/{kind}/spiral"], cells[f"{task}/{kind}/uniform"]
        last, seeds = found["success"]["round3"], [f"{100 * rate:.0f}" for rate in found["by_seed"]]
        told = [f"{100 * found['success'][step]['value']:.0f} %" for step in ("bc", "offline")]
        told += [f"**{100 * last['value']:.0f} %** ({100 * last['low']:.0f} to {100 * last['high']:.0f})"]
        told += [f"{', '.join(seeds)} %", f"{100 * blind['success']['round3']['value']:.0f} %"]
        row = " | ".join([*told, f"{found['auc']:.3f}".lstrip("0")])
        assert [line for line in readme.splitlines() if line.startswith(f"| {task}, ") and row in line], row
    for task, kind in CONTROLLED:
        by_arm = {arm: cells[f"{task}/{kind}/{arm}"]["success"] for arm in ARMS}
        told = [", ".join(f"{100 * by_arm['spiral'][step]['value']:.0f}" for step in ("bc", "offline"))]
        for arm in ("spiral", "rm1", "true", "success", "ra-bc", "uniform", "linear"):
            value, low, high = (
                f"{100 * by_arm[arm]['round3'][name]:.0f}" for name in ("value", "low", "high")
            )
            told.append(f"{f'**{value}**' if arm == 'spiral' else value} ({low} to {high})")
        assert f"| {task} | {' | '.join(told)} |" in readme.splitlines()


def test_runs_of_different_reward_models_are_not_passed_off_as_one_comparison() -> None:
    verdicts = {step: [True, False] for step in ("bc", "offline", "round1", "round2", "round3")}
    one = RunOutcome(verdicts, [0.9, 0.8], [True, False], [True], None, "m@1#aa")
    spiral, control = Cell("hammer", "state", "spiral"), Cell("hammer", "state", "true")
    cells = {spiral: Outcome.of([one, one]), control: Outcome.of([replace(one, reward_model=None)])}
    assert "Rewards: m@1#aa, adapted where" in markdown({}, cells, METAWORLD)
    cells[spiral] = Outcome.of([one, replace(one, reward_model="m@2#bb")])
    assert "different models, whose runs do not compare**: m@1#aa, m@2#bb." in markdown({}, cells, METAWORLD)
    assert cells[spiral].as_json()["reward_models"] == ["m@1#aa", "m@2#bb"]


def test_minutes_are_held_against_their_bar() -> None:
    assert minutes_bar(59.0, 60.0).met
    assert not minutes_bar(61.0, 60.0).met


def test_a_bar_with_fewer_seeds_than_planned_is_no_verdict_yet() -> None:
    met = success_bar("hammer", Rate(100, 100), Rate(50, 100))
    begun, whole = replace(met, seeds=len(SEEDS) - 1), replace(met, seeds=len(SEEDS))
    assert (begun.whole, whole.whole, minutes_bar(1.0, 60.0).whole) == (False, True, True)
    assert begun.as_json()["whole"] is False
    told = markdown({"hammer": begun}, {}, METAWORLD)
    assert f"Fewer than {len(SEEDS)} seeds so far: hammer." in told
    assert f"so far yes ({len(SEEDS) - 1} of {len(SEEDS)} seeds)" in told
    assert "All" not in told.splitlines()[2]
    told = markdown(dict.fromkeys(BARS, whole), {}, METAWORLD)
    assert told.splitlines()[2] == f"All {len(BARS)} bars are met."


def test_what_is_gained_has_the_interval_of_its_scenes() -> None:
    before = np.arange(200) % 2 == 0
    after = before.copy()
    after[:40] = True  # half of these 40 are new
    value, low, high = gained([(before, after)])
    assert value == pytest.approx(0.1)
    assert 0.05 < low < 0.08
    assert 0.12 < high < 0.15
    assert gained([(before, before)]) == (0.0, 0.0, 0.0)
