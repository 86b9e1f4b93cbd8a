"""The benchmark on synthetic episodes, and each contender's own rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models.synthetic import record_synthetic, write_synthetic
from models.test_train_run import in_process
from sarm2_client.errors import Conflict
from sarm2_models.benchmark.bars import BASELINES, Bar, bars
from sarm2_models.benchmark.cloned_policy import (
    CHUNK,
    EXECUTED,
    ChunkedPolicy,
    ClonedPolicy,
    chunks_of,
    clone,
)
from sarm2_models.benchmark.contenders import CONTENDERS, SARM2, Language, OneGate, Sarm2
from sarm2_models.benchmark.exams import EXAMS, backwards, exam_frames
from sarm2_models.benchmark.goal_frame import goal_progress
from sarm2_models.benchmark.language_progress import MISMATCHED, mismatch
from sarm2_models.benchmark.layout import BenchmarkFolder, Extras, load_predictions
from sarm2_models.benchmark.measure import INTERVAL_METRICS, PROGRESS_METRICS, STAGE_METRICS, TRICKS
from sarm2_models.benchmark.plan import TASKS, UNSEEN, make_benchmark
from sarm2_models.benchmark.probe import WITH_RANDOM, probe_tasks, r2
from sarm2_models.benchmark.run import BenchmarkRun
from sarm2_models.benchmark.setting import SETTINGS, Setting
from sarm2_models.benchmark.single_task import StageProgress, stage_starts, stage_targets
from sarm2_models.benchmark.table import Tables, verdict
from sarm2_models.benchmark.tuning import TUNED, chosen, errors, tuned
from sarm2_models.config import preset
from sarm2_models.estimate import Estimate, ratio
from sarm2_models.train.layout import RunFolder
from sarm2_models.train.plan import KINDS, Episodes, HeadPlan, TrainPlan
from sarm2_models.train.windows import Frames
from sarm2_rollouts.metaworld_robot import Observation

TWO = ("drawer-open", "hammer")
FEW = Episodes(demo=2, clean_demo=1, perturbed=3, random=1)
PLAN = TrainPlan(
    name="test",
    episodes={"train": FEW, "calibration": FEW, "test": FEW},
    heads=HeadPlan(stage_steps=2, value_steps=2, batch=8),
)
EXTRAS = Extras(
    policy_steps=2, policy_rollouts=2, unseen_tasks=("window-open",), unseen=FEW, settings=SETTINGS[:2]
)


def benchmark_run(root: Path, seeds: tuple[int, ...] = (0, 1)) -> BenchmarkRun:
    given = make_benchmark(root, tasks=TWO).run.given
    folder = BenchmarkFolder(RunFolder(root, PLAN, TWO, 0, given), seeds, EXTRAS)
    return BenchmarkRun(
        folder,
        2,
        Console(quiet=True),
        recorder=record_synthetic,
        roller=roll_synthetic,
        runner=in_process,
    )


def roll_synthetic(bench: BenchmarkFolder, workers: int, console: Console) -> None:
    write_synthetic(bench.policy_plan(), bench.run.dataset("policy"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFolder:
    running = benchmark_run(tmp_path_factory.mktemp("benchmark") / "run")
    running.start(resume=False)
    return running.bench


def test_every_contender_is_measured_with_value_interval_and_count(finished: BenchmarkFolder) -> None:
    report = json.loads((finished.report / "benchmark.json").read_text())
    assert set(report["models"]) == set(CONTENDERS)
    named = {"sarm2", "sarm2_no_stage", "sarm2_no_multigate", "sarm2_no_anchor"}
    assert named | {"clock", "constant", "state_only"} <= set(report["models"])
    for name, row in report["models"].items():
        primitives = CONTENDERS[name].names_primitives
        expected = {*PROGRESS_METRICS, *TRICKS, *((*STAGE_METRICS, *INTERVAL_METRICS) if primitives else ())}
        assert set(row) == expected, name
        assert set(row["demo_mse"]) == {"value", "low", "high", "n"}
        assert row["demo_mse"]["low"] <= row["demo_mse"]["value"] <= row["demo_mse"]["high"]
    assert set(report["tasks"]) == set(TWO)
    ours, constant = (report["models"][name]["demo_mse"]["value"] for name in ("sarm2", "constant"))
    assert report["sarm2_over"]["constant"]["demo_mse"]["value"] == pytest.approx(ours / constant)
    assert "sarm2" not in report["sarm2_over"]
    assert set(report["sarm2_minus"]["clock"]) == {"ranking", "success_auc"}


def test_the_report_reads_as_tables_and_pictures(finished: BenchmarkFolder) -> None:
    text = (finished.report / "benchmark.md").read_text()
    for name, contender in CONTENDERS.items():
        assert f"| `{name}`: {contender.summary} |" in text
    assert "| hammer |" in text
    for picture in ("confusion.png", "experts.png", "expert_correlation.png", "curves.png"):
        assert (finished.report / picture).read_bytes().startswith(b"\x89PNG")


def test_a_finished_benchmark_trains_nothing_twice_and_is_not_overwritten(finished: BenchmarkFolder) -> None:
    def times() -> dict[Path, int]:
        kept = [path for name in ("tuning", "contenders") for path in (finished.run.root / name).rglob("*.*")]
        return {path: path.stat().st_mtime_ns for path in kept}

    before = times()
    benchmark_run(finished.run.root).start(resume=True)
    assert before == times()
    with pytest.raises(Conflict, match="--resume"):
        benchmark_run(finished.run.root).start(resume=False)
    with pytest.raises(Conflict, match="other settings"):
        benchmark_run(finished.run.root, seeds=(3,)).start(resume=True)


def test_who_learns_differs_by_seed_and_who_does_not_is_run_once(finished: BenchmarkFolder) -> None:
    one, other = (load_predictions(finished.answers("language", seed, "test")) for seed in finished.seeds)
    assert not np.array_equal(one.progress_T, other.progress_T)
    assert not finished.answers("clock", 1, "test").exists()
    assert all(finished.answers("clock", 0, exam).exists() for exam in EXAMS)


def test_whoever_learns_in_its_own_way_tries_every_setting_and_keeps_the_best(
    finished: BenchmarkFolder,
) -> None:
    assert TUNED == ("sarm2", "state_only", "single_task_one", "single_task_all", "language")
    report = json.loads((finished.report / "benchmark.json").read_text())["tuning"]
    assert report.keys() == set(TUNED)
    for name, row in report.items():
        assert list(row["progress_mse"]) == ["planned", "half_rate"]
        assert row["chosen"] == min(row["progress_mse"], key=row["progress_mse"].get), name
        assert len(set(row["progress_mse"].values())) == 2, "each setting has its own training"
    text = (finished.report / "benchmark.md").read_text()
    assert f"**{errors(finished, 'language')[chosen(finished, 'language').name]:.3g}**" in text


def test_a_contender_is_trained_with_what_it_chose_and_an_ablation_with_what_sarm2_chose(
    finished: BenchmarkFolder, tmp_path: Path
) -> None:
    bench = replace(finished, run=replace(finished.run, root=tmp_path))
    for name, best in (("sarm2", "half_rate"), ("language", "planned")):
        for setting in ("planned", "half_rate"):
            path = tmp_path / "tuning" / setting / name / "seed1000" / "error.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"progress_mse": 0.1 if setting == best else 0.2}))
    rates = {
        name: tuned(bench, name).run.plan.heads.value_learning_rate
        for name in ("sarm2", "sarm2_no_stage", "oracle_primitive", "language", "clock")
    }
    planned = PLAN.heads.value_learning_rate
    assert list(rates.values()) == [planned / 2, planned / 2, planned / 2, planned, planned]


def test_a_setting_is_a_factor_on_the_plan() -> None:
    plan = HeadPlan()
    found = Setting("any", rate=3.0, noise=2.0).of(plan)
    assert found == replace(
        plan,
        stage_learning_rate=3 * plan.stage_learning_rate,
        value_learning_rate=3 * plan.value_learning_rate,
        noise=2 * plan.noise,
    )
    assert SETTINGS[0].of(plan) == plan


def test_all_test_episodes_are_fresh(finished: BenchmarkFolder) -> None:
    assert finished.run.corpus("test").seed_N.min() >= 100_000
    assert finished.run.corpus("train").seed_N.max() < 100_000
    assert finished.run.corpus("policy").seed_N.min() >= 200_000


# --- trick questions, policies, unseen tasks, bars ---------------------------------------------------


def test_played_backwards_an_episode_ends_on_its_first_frame(finished: BenchmarkFolder) -> None:
    frames, back = exam_frames(finished, "full", "test"), exam_frames(finished, "full", "reversed")
    first, last = int(frames.first_T[-1]), int(frames.last_T[-1])
    np.testing.assert_array_equal(back.embeddings_TCD[first], frames.embeddings_TCD[last])
    np.testing.assert_array_equal(
        back.progress_T[first : last + 1], frames.progress_T[first : last + 1][::-1]
    )
    np.testing.assert_array_equal(backwards(back).state_TS, frames.state_TS)
    other = exam_frames(finished, "full", "other_task")
    assert (other.task_T != frames.task_T).all()


def test_a_clock_ranks_time_the_same_backwards_and_ignores_the_work(finished: BenchmarkFolder) -> None:
    report = json.loads((finished.report / "benchmark.json").read_text())
    clock = report["models"]["clock"]
    assert clock["voc"]["value"] == clock["voc_reversed"]["value"] == pytest.approx(1.0, abs=0.01)
    assert report["models"]["constant"]["instruction_margin"]["value"] == 0.0


def test_a_policy_is_cloned_from_its_own_tasks_demonstrations_and_goes_on_in_chunks(
    finished: BenchmarkFolder,
) -> None:
    frames, corpus = finished.run.frames("full", "train"), finished.run.corpus("train")
    last = int(frames.last_T[0])
    chunks_BHA = chunks_of(corpus.action_TA, frames, np.array([last - 1]))
    np.testing.assert_array_equal(chunks_BHA[0, 0], corpus.action_TA[last - 1])
    np.testing.assert_array_equal(chunks_BHA[0, 1:], corpus.action_TA[last][None].repeat(CHUNK - 1, axis=0))

    looks: list[int] = []
    model = clone(finished, "hammer", lambda done, total, note: None)
    assert isinstance(model, ClonedPolicy)
    model.register_forward_hook(lambda *_: looks.append(1))
    run = finished.run
    driver = ChunkedPolicy(model.eval(), run.load_encoder(), run.statistics(), run.config.cameras)
    driver.reset("anything")
    pictures = {camera: corpus.picture(0, 0) for camera in run.config.cameras}
    now = Observation(pictures, corpus.state_TS[0], np.zeros(1, np.float32), np.zeros(39), False)
    actions, looked = [], []
    for _ in range(EXECUTED + 1):
        looked.append(driver.looks)
        actions.append(driver.act(now))
    assert looked == [True, *[False] * (EXECUTED - 1), True]
    assert len(looks) == 2
    assert actions[0].shape == (4,)
    assert np.abs(np.stack(actions)).max() <= 1


def test_unseen_tasks_are_measured_and_never_trained_on(finished: BenchmarkFolder) -> None:
    report = json.loads((finished.report / "benchmark.json").read_text())
    assert set(report["unseen"]) == {"all", "window-open"}
    assert 0 <= report["unseen"]["all"]["uncertain_rate"]["value"] <= 1
    assert "window-open" not in finished.run.tasks
    assert not set(UNSEEN) & set(TASKS)


def test_a_bar_is_held_by_its_value_its_far_end_or_its_interval() -> None:
    estimate = Estimate(0.5, 0.4, 0.6, 10)
    assert Bar(estimate, "at most", 0.5).met
    assert not Bar(estimate, "at most", 0.45).met
    assert Bar(estimate, "at most", 0.45, by="low").met
    assert Bar(estimate, "at least", 0.55, by="high").met
    assert Bar(estimate, "contains", 0.55).met
    assert not Bar(estimate, "contains", 0.65).met
    assert Bar(Estimate(None, None, None, 0), "at most", 1.0).met is None


def test_bars_compare_with_whichever_trained_baseline_is_best() -> None:
    def row(mse: float, rank: float) -> dict[str, Estimate]:
        found = dict.fromkeys(
            (*PROGRESS_METRICS, *STAGE_METRICS, *INTERVAL_METRICS), Estimate(0.9, 0.8, 1.0, 9)
        )
        errors = {"rollout_mse": Estimate(mse, mse / 2, 2 * mse, 9), "ranking": Estimate(rank, rank, rank, 9)}
        return found | errors

    measured = {"sarm2": row(0.003, 0.97), "language": row(0.004, 0.98)}
    measured |= {"single_task_all": row(0.002, 0.96), "single_task_one": row(0.009, 0.9)}
    others = {name: row(1.1, 0.0) for name in (*measured, "state_only", "clock")}
    probe = {
        "tool": Estimate(0.97, 0.96, 0.98, 9),
        "object": Estimate(0.9, 0.8, 0.95, 9),
        "goal": Estimate(None, None, None, 0),
    }
    held = bars(measured, {"hammer": {"sarm2": row(0.1, 0.5)}}, others, others, probe)
    assert held["rollout_mse over single_task_all's"].met, "1.1, and the interval reaches below 1"
    assert held["ranking less language's"].met
    assert held["ranking of the worst task"].met is False
    assert [held[f"probe R2 of the {point}"].met for point in probe] == [True, False, None]
    assert held["interval_width_demo"].met is False


def test_the_language_model_sees_as_many_windows_as_both_heads_of_sarm2(finished: BenchmarkFolder) -> None:
    totals: list[int] = []
    language = CONTENDERS["language"]
    assert isinstance(language, Language)
    texts = finished.run.texts("full")
    language.model(finished, texts, 77, lambda done, total, note: totals.append(total))
    assert totals[-1] == PLAN.heads.stage_steps + PLAN.heads.value_steps


def test_the_report_begins_with_what_is_missed_and_what_brings_nothing() -> None:
    good, bad = (
        Bar(Estimate(0.5, 0.4, 0.6, 9), "at most", 0.5),
        Bar(Estimate(0.5, 0.4, 0.6, 9), "at most", 0.4),
    )
    smaller, same = Estimate(0.8, 0.7, 0.9, 9), Estimate(1.0, 0.9, 1.1, 9)
    over = {
        "sarm2_no_stage": {"demo_mse": same, "rollout_mse": same},
        "sarm2_no_multigate": {"demo_mse": same, "rollout_mse": smaller},
    }
    tables = Tables({}, {}, over, {}, {"ece": good, "jitter": bad}, {}, {}, {})
    said = verdict(tables)
    assert said.startswith("> Missed: jitter.")
    assert "For the stage estimator and the gates it chooses no difference" in said
    assert "multi-gate" not in said
    larger = {"sarm2_no_anchor": {"demo_mse": smaller, "rollout_mse": Estimate(1.2, 1.1, 1.3, 9)}}
    assert "With the first frame, `rollout_mse` is larger beyond the interval." in verdict(
        replace(tables, over=larger)
    )
    unknown = {"sarm2_no_anchor": {"demo_mse": same, "rollout_mse": Estimate(1.2, None, None, 9)}}
    assert "first frame" not in verdict(replace(tables, over=unknown))
    assert verdict(replace(tables, over={}, bars={"ece": good})) == "> Every bar is reached."


def test_the_report_begins_with_where_a_baseline_is_better_and_whether_the_aim_is_met() -> None:
    good = Bar(Estimate(0.5, 0.4, 0.6, 9), "at most", 0.5)
    larger, half = Estimate(1.2, 1.1, 1.3, 9), Estimate(0.5, 0.4, 0.6, 9)
    over = {name: {"demo_mse": half, "rollout_mse": half} for name in BASELINES}
    tables = Tables({}, {}, over, {}, {"ece": good}, {}, {}, {})
    assert verdict(tables) == "> Every bar is reached."
    over["language"] = {"demo_mse": larger, "rollout_mse": Estimate(0.9, 0.8, 1.0, 9)}
    assert verdict(tables).splitlines()[2::2] == [
        "> `demo_mse` is 1.2 (1.1 to 1.3) of `language`'s: larger beyond the interval.",
        "> The aim of 25% less error on rollouts than every trained baseline, beyond the interval, is "
        "missed.",
    ]


def test_the_report_begins_with_where_a_harder_exam_is_missed_too() -> None:
    good, low = Bar(Estimate(0.5, 0.4, 0.6, 9), "at most", 0.5), Estimate(0.95, 0.94, 0.96, 9)
    tables = Tables({"sarm2": {"primitive_accuracy": low}}, {}, {}, {}, {"ece": good}, {}, {}, {})
    assert verdict(tables).splitlines()[2::2] == [
        "> `primitive_accuracy`, on uneven demonstrations alone, is 0.95 (0.94 to 0.96): under the 0.96 that "
        "is asked of even and uneven ones together.",
    ]
    probed = replace(tables, measured={}, probes={WITH_RANDOM: {"tool": low, "object": low}})
    assert verdict(probed).splitlines()[2::2] == [
        "> The probe's R2 of the tool is 0.95 (0.94 to 0.96) where random motion is probed too: under 0.96.",
    ]


def test_the_report_says_where_each_contender_was_trained(finished: BenchmarkFolder) -> None:
    trained = json.loads((finished.report / "benchmark.json").read_text())["machine"]["trained_on"]
    assert trained.keys() == {name for name, one in CONTENDERS.items() if one.learns}
    assert {tuple(places) for places in trained.values()} == {(f"cpu, torch {torch.__version__}",)}
    assert (
        f"Trained on cpu, torch {torch.__version__}: `sarm2`"
        in (finished.report / "benchmark.md").read_text()
    )


def test_probe_r2_is_taken_over_the_axes_that_move() -> None:
    true_T3 = np.stack([np.linspace(0, 1, 20), np.zeros(20), np.zeros(20)], axis=1)
    said_T3 = true_T3 + np.array([0.0, 5.0, 5.0])  # wrong only where nothing moves
    episode_T = np.repeat([0, 9], 10)
    assert r2(true_T3, said_T3, episode_T).value == pytest.approx(1.0)
    nothing = r2(true_T3, true_T3.mean(axis=0) + 0 * true_T3, episode_T)
    assert nothing.value == pytest.approx(0.0)
    assert nothing.n == 2
    assert r2(0 * true_T3, said_T3, episode_T).value is None


def test_random_motion_is_probed_apart_from_the_episodes_in_which_a_task_is_tried(
    finished: BenchmarkFolder,
) -> None:
    train, test = ((finished.run.corpus(one), finished.run.frames("full", one)) for one in ("train", "test"))
    table = probe_tasks(train, test)
    assert list(table) == ["all", *TWO, WITH_RANDOM]
    tried = FEW.demo + FEW.clean_demo + FEW.perturbed
    assert table["all"]["tool"].n == tried * len(TWO)
    assert table[WITH_RANDOM]["tool"].n == (tried + FEW.random) * len(TWO)
    still = replace(test[0], kind_N=np.full_like(test[0].kind_N, KINDS.index("demo")))
    assert probe_tasks(train, (still, test[1]))["all"] == probe_tasks(train, test)[WITH_RANDOM]


def test_probe_r2_has_the_interval_of_its_episodes() -> None:
    rng = np.random.default_rng(0)
    true_T3, episode_T = rng.normal(size=(400, 3)), np.repeat(np.arange(40), 10)
    said_T3 = true_T3 + 0.5 * rng.normal(size=(400, 3))
    found = r2(true_T3, said_T3, episode_T)
    assert found.value == pytest.approx(0.75, abs=0.03)
    assert found.low == pytest.approx(0.72, abs=0.03)
    assert found.high == pytest.approx(0.78, abs=0.03)


# --- the contenders ---------------------------------------------------------------------------------


def test_without_the_anchor_nothing_depends_on_the_first_frame(finished: BenchmarkFolder) -> None:
    late_T = np.array([12])  # a window whose recent slots end after the first frame: 4, 8, 12 are in it
    for contender, seen in ((CONTENDERS["sarm2_no_anchor"], False), (SARM2, True)):
        assert isinstance(contender, Sarm2)
        _, mask = contender.frames(finished, "calibration").slots(late_T)
        assert bool(mask[0, 0]) is seen


def test_one_gate_routes_every_group_alike() -> None:
    config = preset("small")
    decoder = OneGate(config).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (4, config.window.slots)
    inputs = (
        torch.randn(*shape, 3, config.embedding_dim, generator=generator),
        torch.randn(*shape, config.state_dim, generator=generator),
        torch.ones(shape, dtype=torch.bool),
        torch.randn(4, config.embedding_dim, generator=generator),
        torch.randn(4, config.embedding_dim, generator=generator),
    )
    first, last = (decoder(*inputs, torch.full((4,), group)).progress_B for group in (0, 7))
    torch.testing.assert_close(first, last, rtol=0, atol=0)


def test_stage_targets_give_progress_back() -> None:
    shares = (0.25, 0.25, 0.5)
    progress_T = np.array([0.0, 0.2, 0.25, 0.4, 0.5, 0.75, 1.0], dtype=np.float32)
    stage_T, within_T = stage_targets(progress_T, shares)
    assert stage_T.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert stage_starts(shares) == [0.0, 0.25, 0.5]
    model = StageProgress(preset("small"), shares)
    logits_BK = torch.nn.functional.one_hot(torch.from_numpy(stage_T), 3).float()
    within_BK = torch.from_numpy(within_T)[:, None].expand(-1, 3)
    np.testing.assert_allclose(model.progress(logits_BK, within_BK).numpy(), progress_T, atol=1e-6)


def test_a_fifth_of_the_instructions_are_another_tasks_and_then_progress_is_zero() -> None:
    task_B = np.arange(4000) % 5
    asked_B, target_B = mismatch(np.random.default_rng(0), task_B, np.ones(4000, np.float32), 5)
    wrong_B = asked_B != task_B
    assert wrong_B.mean() == pytest.approx(MISMATCHED, abs=0.02)
    np.testing.assert_array_equal(target_B, np.where(wrong_B, 0.0, 1.0))
    alone_B, _ = mismatch(np.random.default_rng(0), np.zeros(50, np.int64), np.ones(50, np.float32), 1)
    assert not alone_B.any()


def test_the_goal_frame_is_progress_one_and_the_first_frame_zero() -> None:
    embeddings_TCD = np.linspace(0, 1, 5, dtype=np.float16)[:, None, None].repeat(2, axis=2)
    zeros = np.zeros(5, dtype=np.int64)
    frames = Frames(
        embeddings_TCD=embeddings_TCD,
        state_TS=np.zeros((5, 1), np.float32),
        progress_T=np.zeros(5, np.float32),
        primitive_T=zeros,
        task_T=zeros,
        first_T=zeros,
        last_T=np.full(5, 4),
        weight_T=np.full(5, 0.2),
        gap=1,
        length=2,
    )
    goal = np.ones((1, 1, 2), np.float32)
    progress_T = goal_progress(frames, goal, np.ones((1, 2), np.float32))
    np.testing.assert_allclose(progress_T, [0, 0.25, 0.5, 0.75, 1], atol=1e-3)


# --- estimates over seeds ---------------------------------------------------------------------------


def test_a_mean_over_seeds_holds_for_another_training_too() -> None:
    errors = np.random.default_rng(0).random(40)
    low, high = (ratio([(float(error) + shift, 1.0) for error in errors], 0) for shift in (0.0, 1.0))
    mean = Estimate.mean([low, high])
    assert mean.value == pytest.approx(errors.mean() + 0.5)
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < errors.mean() + 0.05, "both draws of a seed may be the same one"
    assert mean.high > errors.mean() + 0.95
    alone = Estimate.mean([low])
    assert (alone.low, alone.high) == (low.low, low.high)


def test_means_over_seeds_are_paired_by_episode_and_seed() -> None:
    errors = np.random.default_rng(0).random(40)
    seeds = [ratio([(float(error) + shift, 1.0) for error in errors], 0) for shift in (0.0, 1.0)]
    mean = Estimate.mean(seeds)
    half = Estimate.mean([ratio([((float(e) + s) / 2, 1.0) for e in errors], 0) for s in (0.0, 1.0)])
    over, nothing = half.over(mean), mean.minus(mean)
    assert (over.value, over.low, over.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_the_benchmark_has_ten_tasks_of_its_own() -> None:
    assert len(set(TASKS)) == 10
