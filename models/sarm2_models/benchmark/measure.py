"""From what the contenders said to numbers: every metric, its interval over episodes, and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sarm2_models.benchmark.contenders import CONTENDERS, SARM2
from sarm2_models.benchmark.exams import Exam, exam_split
from sarm2_models.benchmark.layout import BenchmarkFolder, load_predictions
from sarm2_models.estimate import Estimate, ratio
from sarm2_models.metrics import Scored, evaluate
from sarm2_models.ranking import spearman
from sarm2_models.train.ladder import mean_demo_frames, scored_episodes

PROGRESS_METRICS = (
    "demo_mse",
    "demo_mse_macro",
    "rollout_mse",
    "perturbed_mse",
    "policy_mse",
    "success_auc",
    "success_auprc",
    "policy_success_auc",
    "ranking",
    "drop_recall",
    "false_drop_rate",
    "regress_recall",
    "regress_delay_s",
    "voc",
    "jitter",
)
STAGE_METRICS = (
    "primitive_accuracy",
    "primitive_accuracy_demo",
    "primitive_accuracy_without_null",
    "rollout_primitive_accuracy",
    "rollout_primitive_accuracy_without_null",
    "group_accuracy",
    "hierarchical_loss",
    "segment_f1",
    "ece",
    "certain_error",
    "certain_error_demo",
    "certain_error_perturbed",
    "certain_error_policy",
    "certain_share",
)
INTERVAL_METRICS = tuple(
    f"interval_{what}{where}" for where in ("", "_demo", "_rollout") for what in ("coverage", "width")
)
TRICKS = ("voc_reversed", "instruction_margin")
HONEST: tuple[Exam, ...] = ("test", "policy")
RATIOS = ("demo_mse", "rollout_mse")
"""Errors: `sarm2`'s over everybody else's."""
DIFFERENCES = ("ranking", "success_auc")
"""Scores: `sarm2`'s less everybody else's."""

Measured: TypeAlias = dict[str, dict[str, Estimate]]
"""Metric by contender."""


def scored_by(bench: BenchmarkFolder, name: str, *exams: Exam) -> list[list[Scored]]:
    """The episodes of some exams as a contender scored them, one list a training seed.

    By default those that are scored as a robot would be: `test` and `policy`.
    """
    means = mean_demo_frames(bench.run.corpus("train"))
    seeds = bench.seeds if CONTENDERS[name].learns else bench.seeds[:1]
    runs = []
    for seed in seeds:
        run: list[Scored] = []
        for exam in exams or HONEST:
            said = load_predictions(bench.answers(name, seed, exam))
            run += scored_episodes(bench.run.corpus(exam_split(exam)), said, means)
        runs.append(run)
    return runs


def measure_contenders(bench: BenchmarkFolder) -> tuple[Measured, dict[str, Measured]]:
    """Metrics of every contender over all tasks, and by task."""
    every = {name: scored_by(bench, name) for name in CONTENDERS}
    by_task = {
        task: {name: _mean(bench, name, _only(runs, task)) for name, runs in every.items()}
        for task in bench.run.tasks
    }
    return {name: _mean(bench, name, runs) | tricked(bench, name) for name, runs in every.items()}, by_task


def tricked(bench: BenchmarkFolder, name: str) -> dict[str, Estimate]:
    """What a contender makes of the trick questions, on uneven demonstrations.

    `voc_reversed`: rank correlation of progress and time when the episode is played backwards; a clock says 1
    and a model that sees says -1. `instruction_margin`: final progress under the task's own instruction less
    that under another task's.
    """
    right, back, other = (scored_by(bench, name, exam) for exam in ("test", "reversed", "other_task"))
    reversals, margins = [], []
    for shown, played, asked in zip(right, back, other, strict=True):
        demos = [number for number, scored in enumerate(shown) if scored.kind == "demo"]
        ranks = [spearman(played[n].progress_T, np.arange(float(len(played[n].progress_T)))) for n in demos]
        reversals.append(ratio([(rank or 0.0, 1.0) for rank in ranks], 0))
        gaps = [float(shown[n].progress_T[-1] - asked[n].progress_T[-1]) for n in demos]
        margins.append(ratio([(gap, 1.0) for gap in gaps], 0))
    return dict(zip(TRICKS, (Estimate.mean(reversals), Estimate.mean(margins)), strict=True))


def against(measured: Mapping[str, Mapping[str, Estimate]]) -> tuple[Measured, Measured]:
    """`sarm2` against each other contender, paired by episode: errors over theirs, scores less theirs."""
    ours = measured[SARM2.name]
    others = {name: theirs for name, theirs in measured.items() if name != SARM2.name}
    over = {n: {metric: ours[metric].over(row[metric]) for metric in RATIOS} for n, row in others.items()}
    less = {
        n: {metric: ours[metric].minus(row[metric]) for metric in DIFFERENCES} for n, row in others.items()
    }
    return over, less


def metrics_of(name: str) -> tuple[str, ...]:
    """Which metrics mean something for a contender."""
    if not CONTENDERS[name].names_primitives:
        return PROGRESS_METRICS
    return (*PROGRESS_METRICS, *STAGE_METRICS, *INTERVAL_METRICS)


def plain(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Any]]:
    """Ready for JSON."""
    return {name: {key: one.as_json() for key, one in row.items()} for name, row in table.items()}


def _mean(bench: BenchmarkFolder, name: str, runs: Sequence[Sequence[Scored]]) -> dict[str, Estimate]:
    words = bench.run.vocabulary
    found = [evaluate(run, words.group_of_primitive, words.null_index) for run in runs]
    return {metric: Estimate.mean([one[metric] for one in found]) for metric in metrics_of(name)}


def _only(runs: Sequence[Sequence[Scored]], task: str) -> list[list[Scored]]:
    return [[scored for scored in run if scored.task == task] for run in runs]
