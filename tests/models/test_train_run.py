"""The whole training run on synthetic episodes, in process, and evaluation of its bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from rich.console import Console

from models.synthetic import check_by_hand, record_synthetic, synthetic_episode
from models.tiny import save_siglip
from sarm2_client.errors import Conflict, InvalidInput, NotFound
from sarm2_models.checkpoint import load_bundle, read_manifest
from sarm2_models.config import preset
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.predictor import Predictor
from sarm2_models.train import stages
from sarm2_models.train.calibrate import predict
from sarm2_models.train.evaluation import Evaluator, evaluate_bundle, evaluation_plan
from sarm2_models.train.given_encoder import GivenEncoder
from sarm2_models.train.jobs import Job, Ticker
from sarm2_models.train.layout import RunFolder, make_run
from sarm2_models.train.loop import learning_rate_factor
from sarm2_models.train.plan import Episodes, HeadPlan, PlannedEpisode, TowerPlan, TrainPlan
from sarm2_models.train.run import TrainingRun
from sarm2_models.train.variants import ABLATION_FOLDER, BASELINES, VARIANTS, Heads
from sarm2_models.window import SOURCES

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


def training_run(root: Path, seed: int = 0, given: GivenEncoder | None = None) -> TrainingRun:
    run = RunFolder(root, PLAN, TASKS, seed, given)
    return TrainingRun(
        run, 2, Console(quiet=True), recorder=record_synthetic, checker=check_by_hand, runner=in_process
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    training = training_run(tmp_path_factory.mktemp("run") / "run")
    training.start(resume=False)
    return training.run


def test_a_run_can_learn_from_demonstrations_alone(tmp_path: Path) -> None:
    few = Episodes(demo=2, clean_demo=1, perturbed=0, random=0)
    plan = replace(PLAN, episodes={"train": few, "calibration": few, "validation": few})
    training = training_run(tmp_path / "run")
    training.run = replace(training.run, plan=plan)
    load_bundle(training.start(resume=False))
    measured = json.loads((training.run.report / "report.json").read_text())["ladder"]["full"]
    assert measured["demo_mse"]["value"] is not None
    assert measured["rollout_mse"]["value"] is None


def test_a_run_ends_with_a_bundle_that_loads_and_scores(finished: RunFolder) -> None:
    model = load_bundle(finished.bundle)
    episode = synthetic_episode(PlannedEpisode("hammer", "demo", 100_000))
    assert model.instruction(episode.task).known, "the training instructions are known"
    predictor = Predictor(model)
    predictor.reset(episode.task, episode.fps)
    picture = finished.corpus("train").picture(0, 0)
    score = predictor.step(dict.fromkeys(model.config.cameras, picture), episode.state_TS[0])
    assert 0 <= score.interval[0] <= score.progress <= score.interval[1] <= 1


def test_what_is_measured_on_stored_embeddings_is_what_a_robot_is_answered(finished: RunFolder) -> None:
    model, corpus = load_bundle(finished.bundle), finished.corpus("validation")
    heads, frames = Heads(model.config, model.stage, model.value), finished.frames("full", "validation")
    texts, words = finished.texts("full"), model.vocabulary
    said = predict(heads, frames, texts, words, model.calibration, corpus)
    predictor = Predictor(model)
    for number in range(corpus.episodes):
        where, task = corpus.frames(number), corpus.instructions[corpus.task_N[number]]
        predictor.reset(task, corpus.fps, SOURCES[corpus.source_T[where.start]])
        for t in range(where.start, where.stop):
            images = {camera: corpus.picture(t, place) for place, camera in enumerate(corpus.cameras)}
            answer = predictor.step(images, corpus.state_TS[t])
            assert answer.progress == pytest.approx(said.progress_T[t], abs=1e-5)
            assert answer.interval == pytest.approx((said.low_T[t], said.high_T[t]), abs=1e-5)
            assert words.index(answer.primitive) == said.primitive_T[t]
            assert answer.uncertain == said.uncertain_T[t]


def test_the_report_has_every_rung_and_what_it_was_made_from(finished: RunFolder) -> None:
    report = json.loads((finished.report / "report.json").read_text())
    assert set(report["ladder"]) == {*VARIANTS, "clock", "constant"}
    assert report["ladder"]["constant"]["demo_mse"]["value"] > 0
    assert report["data"]["train"]["episodes"] == len(TASKS) * 4
    assert set(report["validation"]["tasks"]) == set(TASKS)
    assert set(report["labels"]) == set(TASKS)
    assert report["labels"]["hammer"]["demo_mse"] == pytest.approx(0.1**2 / 4)
    assert report["labels"]["hammer"]["episodes"] == 2 * PLAN.label_checks
    for picture in ("curves.png", "ladder.png", "labels.png"):
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
        in_process(jobs, at_once=at_once, console=console)

    training = training_run(tmp_path)
    training.runner = failing
    with pytest.raises(RuntimeError):
        training.start(resume=False)
    index = json.loads((tmp_path / "run.json").read_text())
    assert list(index["finished"]) == ["record", "labels"]
    training.recorder = lambda *_: pytest.fail("recorded twice")
    training.checker = lambda *_: pytest.fail("checked twice")
    with pytest.raises(RuntimeError):
        training.start(resume=True)
    assert calls == ["labels 1", "labels 2", "index", "index"]


# --- a given encoder -------------------------------------------------------------------------------

WIDTH = 40
"""Of the given encoder: neither the trained tower's nor the preset's."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> GivenEncoder:
    return GivenEncoder.of(str(save_siglip(tmp_path_factory.mktemp("siglip"), dim=WIDTH)))


@pytest.fixture(scope="module")
def on_given(tmp_path_factory: pytest.TempPathFactory, given: GivenEncoder) -> RunFolder:
    training = training_run(tmp_path_factory.mktemp("given") / "run", given=given)
    training.start(resume=False)
    return training.run


def test_a_given_encoder_takes_the_place_of_the_tower(on_given: RunFolder, given: GivenEncoder) -> None:
    record = json.loads((on_given.root / "run.json").read_text())
    assert "tower" not in record["finished"]
    assert not on_given.tower.exists()
    assert record["settings"]["encoder"] == given.id


def test_a_bundle_on_a_given_folder_carries_it_and_scores(on_given: RunFolder, given: GivenEncoder) -> None:
    manifest = read_manifest(on_given.bundle)
    assert (manifest.encoder.id, manifest.encoder.source) == (given.id, None)
    model = load_bundle(on_given.bundle)
    assert model.config.embedding_dim == WIDTH
    scored = Evaluator(on_given.bundle).score(synthetic_episode(PlannedEpisode("hammer", "demo", 100_000)))
    assert ((scored.progress_T >= 0) & (scored.progress_T <= 1)).all()


def test_a_bundle_on_a_given_hub_name_refers_to_it(
    on_given: RunFolder, given: GivenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ImageTextEncoder.load
    monkeypatch.setattr(ImageTextEncoder, "load", lambda source, device="cpu": load(given.source, device))
    root = tmp_path / "run"
    shutil.copytree(on_given.root, root, ignore=shutil.ignore_patterns("bundle"))
    stages.bundle(Ticker(tmp_path / "tick"), replace(on_given, root=root, given=replace(given, source="a/b")))
    assert read_manifest(root / "bundle").encoder.source == "a/b"
    assert not (root / "bundle" / "encoder").exists()


def test_a_run_is_not_gone_on_with_on_another_encoder(on_given: RunFolder, tmp_path: Path) -> None:
    other = GivenEncoder.of(str(save_siglip(tmp_path / "other", seed=1, dim=WIDTH)))
    for encoder in (other, None):
        with pytest.raises(Conflict, match=r"other settings \(encoder: \S+, now "):
            training_run(on_given.root, given=encoder).start(resume=True)


def test_the_same_encoder_from_elsewhere_goes_on_with_a_run(on_given: RunFolder, tmp_path: Path) -> None:
    moved = GivenEncoder.of(str(save_siglip(tmp_path / "moved", dim=WIDTH)))
    assert training_run(on_given.root, given=moved).start(resume=True) == on_given.bundle


def test_an_encoder_that_changes_while_the_run_goes_on_is_refused(tmp_path: Path) -> None:
    given = GivenEncoder.of(str(save_siglip(tmp_path)))
    save_siglip(tmp_path, seed=1)
    with pytest.raises(Conflict, match="when the run began"):
        given.load()


def test_what_is_no_encoder_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for source in (str(tmp_path / "empty"), "nobody/no-such-siglip"):
        with pytest.raises(NotFound, match="expected a folder saved by transformers") as caught:
            make_run(tmp_path / "run", "quick", TASKS, 0, source)
        assert caught.value.field == "encoder"
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InvalidInput, match="of type 'siglip'"):
        make_run(tmp_path / "run", "quick", TASKS, 0, str(tmp_path / "empty"))
    assert not (tmp_path / "run").exists()


def test_the_published_preset_has_published_heads_on_the_encoder_it_is_given(
    tmp_path: Path, given: GivenEncoder
) -> None:
    run = make_run(tmp_path / "run", "published", TASKS, 0, given.source)
    published, small = preset("published"), preset("small")
    assert (run.config.stage, run.config.value) == (published.stage, published.value)
    assert (run.config.cameras, run.vocabulary.name) == (small.cameras, "metaworld")
    assert run.config.embedding_dim == WIDTH
    plan = run.plan.heads
    assert (plan.stage_learning_rate, plan.stage_weight_decay, plan.stage_steps) == (2.5e-5, 0.01, 16_000)
    assert (plan.value_learning_rate, plan.value_weight_decay, plan.value_steps) == (5e-5, 5e-3, 30_000)
    assert learning_rate_factor(999, plan.value_steps, plan.value_warm_up) == 1.0
    assert learning_rate_factor(998, plan.value_steps, plan.value_warm_up) < 1.0


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
