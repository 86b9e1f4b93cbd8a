"""The whole training run on synthetic episodes, in process, and evaluation of its bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from models.synthetic import record_synthetic, synthetic_episode
from sarm2_client.errors import Conflict, InvalidInput, NotFound
from sarm2_models.checkpoint import load_bundle
from sarm2_models.predictor import Predictor
from sarm2_models.train.evaluation import Evaluator, evaluate_bundle, evaluation_plan
from sarm2_models.train.jobs import Job, Ticker
from sarm2_models.train.layout import RunFolder
from sarm2_models.train.plan import Episodes, HeadPlan, PlannedEpisode, TowerPlan, TrainPlan
from sarm2_models.train.run import TrainingRun
from sarm2_models.train.variants import ABLATION_FOLDER, BASELINES, VARIANTS

TASKS = ("drawer-open", "hammer")
FEW = Episodes(demo=1, clean_demo=1, perturbed=2, random=0)
PLAN = TrainPlan(
    name="test",
    episodes={"train": FEW, "calibration": FEW, "validation": FEW},
    tower=TowerPlan(steps=1, batch=4, layers=1),
    heads=HeadPlan(stage_steps=2, value_steps=2, batch=8),
)
REQUIRED = {
    "demo_mse",
    "clock_mse",
    "constant_mse",
    "rollout_mse",
    "state_only_mse",
    "images_only_mse",
    "drop_recall",
    "false_drop_rate",
    "jitter",
    "primitive_accuracy",
    "group_accuracy",
    "success_auc",
    "ece",
    "interval_coverage",
    "interval_width",
}


def in_process(jobs: Sequence[Job], *, at_once: int, console: Console) -> None:
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.call(Ticker(job.folder / "progress.json"), *job.arguments)


def training_run(root: Path, seed: int = 0) -> TrainingRun:
    run = RunFolder(root, PLAN, TASKS, seed)
    return TrainingRun(run, 2, Console(quiet=True), recorder=record_synthetic, runner=in_process)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    training = training_run(tmp_path_factory.mktemp("run") / "run")
    training.start(resume=False)
    return training.run


def test_a_run_ends_with_a_bundle_that_loads_and_scores(finished: RunFolder) -> None:
    model = load_bundle(finished.bundle)
    episode = synthetic_episode(PlannedEpisode("hammer", "demo", 100_000))
    assert model.instruction(episode.task)[1], "the training instructions are known"
    predictor = Predictor(model)
    predictor.reset(episode.task, episode.fps)
    picture = finished.corpus("train").picture(0, 0)
    score = predictor.step(dict.fromkeys(model.config.cameras, picture), episode.state_TS[0])
    assert 0 <= score.interval[0] <= score.progress <= score.interval[1] <= 1


def test_the_report_has_every_rung_and_what_it_was_made_from(finished: RunFolder) -> None:
    report = json.loads((finished.report / "report.json").read_text())
    assert set(report["ladder"]) == {*VARIANTS, "clock", "constant"}
    assert report["ladder"]["constant"]["demo_mse"]["value"] > 0
    assert report["data"]["train"]["episodes"] == len(TASKS) * 4
    assert set(report["validation"]["tasks"]) == set(TASKS)
    for picture in ("curves.png", "ladder.png"):
        assert (finished.bundle / "report" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_gone_on_with_without_doing_anything_twice(finished: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.root.rglob("*") if path.is_file()}
    training_run(finished.root).start(resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in finished.root.rglob("*") if path.is_file()}


def test_a_run_is_never_overwritten_and_never_mixed_with_another(finished: RunFolder) -> None:
    with pytest.raises(Conflict, match="--resume"):
        training_run(finished.root).start(resume=False)
    with pytest.raises(Conflict, match="other settings"):
        training_run(finished.root, seed=1).start(resume=True)


def test_a_run_goes_on_at_the_stage_where_it_stopped(tmp_path: Path) -> None:
    calls: list[str] = []

    def failing(jobs: Sequence[Job], *, at_once: int, console: Console) -> None:
        calls.extend(job.name for job in jobs)
        if jobs[0].name == "index":
            raise RuntimeError("the machine was switched off")
        raise KeyboardInterrupt

    training = training_run(tmp_path)
    training.runner = failing
    with pytest.raises(RuntimeError):
        training.start(resume=False)
    index = json.loads((tmp_path / "run.json").read_text())
    assert list(index["finished"]) == ["record"]
    training.recorder = lambda *_: pytest.fail("recorded twice")
    with pytest.raises(RuntimeError):
        training.start(resume=True)
    assert calls == ["index", "index"]


# --- evaluation ------------------------------------------------------------------------------------


def test_evaluation_writes_every_metric_overall_and_by_task(finished: RunFolder) -> None:
    plan = evaluation_plan(TASKS, 100_000, 2)
    numbers = evaluate_bundle(finished.bundle, [synthetic_episode(planned) for planned in plan])
    overall, tasks = numbers["overall"], numbers["tasks"]
    assert isinstance(overall, dict)
    assert isinstance(tasks, dict)
    assert set(overall) >= REQUIRED
    assert set(tasks) == set(TASKS)
    for metric in REQUIRED:
        assert set(overall[metric]) == {"value", "low", "high", "n"}
        assert overall[metric]["value"] is not None, metric
    json.dumps(numbers, allow_nan=False)


def test_the_model_is_compared_with_blind_heads_on_the_same_frames(finished: RunFolder) -> None:
    episode = synthetic_episode(PlannedEpisode("hammer", "perturbed", 100_007))
    scored = Evaluator(finished.bundle).score(episode)
    assert set(scored.others) == {"clock", "constant", "state_only", "images_only"}
    assert (scored.others["constant"] == 0.5).all()
    assert not np.array_equal(scored.others["state_only"], scored.others["images_only"])
    np.testing.assert_array_equal(scored.truth_T, episode.progress_T)


def test_seeds_of_training_are_refused() -> None:
    assert evaluation_plan(TASKS, 100_000, 1)
    with pytest.raises(InvalidInput, match="below 100000 belong to training"):
        evaluation_plan(TASKS, 99_999, 1)
    with pytest.raises(InvalidInput, match="--episodes is 0"):
        evaluation_plan(TASKS, 100_000, 0)


def test_evaluation_takes_each_kind_as_often_as_asked_and_random_motion_a_quarter() -> None:
    plan = evaluation_plan(["hammer"], 123_456, 8)
    kinds = [planned.kind for planned in plan]
    assert [kinds.count(kind) for kind in ("demo", "clean_demo", "perturbed", "random")] == [8, 8, 8, 2]
    assert min(planned.seed for planned in plan) == 123_456


def test_a_bundle_without_its_baselines_says_so(finished: RunFolder, tmp_path: Path) -> None:
    (finished.bundle / ABLATION_FOLDER / BASELINES).rename(tmp_path / BASELINES)
    try:
        with pytest.raises(NotFound, match="saved without its baselines"):
            Evaluator(finished.bundle)
    finally:
        (tmp_path / BASELINES).rename(finished.bundle / ABLATION_FOLDER / BASELINES)
