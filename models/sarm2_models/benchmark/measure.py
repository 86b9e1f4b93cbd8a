"""From what the contenders said to numbers: every metric, its interval over episodes, and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sarm2_models.benchmark.contenders import CONTENDERS, SARM2
from sarm2_models.benchmark.layout import BenchmarkFolder, load_predictions
from sarm2_models.estimate import Estimate
from sarm2_models.metrics import Scored, evaluate
from sarm2_models.train.ladder import mean_demo_frames, scored_episodes

PROGRESS_METRICS = (
    "demo_mse",
    "demo_mse_macro",
    "rollout_mse",
    "perturbed_mse",
    "success_auc",
    "ranking",
    "drop_recall",
    "false_drop_rate",
    "jitter",
)
STAGE_METRICS = (
    "primitive_accuracy",
    "primitive_accuracy_without_null",
    "rollout_primitive_accuracy",
    "group_accuracy",
    "hierarchical_loss",
    "segment_f1",
    "ece",
)
INTERVAL_METRICS = ("interval_coverage", "interval_width")
RATIOS = ("demo_mse", "rollout_mse")
"""Errors: `sarm2`'s over everybody else's."""
DIFFERENCES = ("ranking", "success_auc")
"""Scores: `sarm2`'s less everybody else's."""

Measured: TypeAlias = dict[str, dict[str, Estimate]]
"""Metric by contender."""


def scored_by(bench: BenchmarkFolder, name: str) -> list[list[Scored]]:
    """The test episodes as a contender scored them, one list a training seed."""
    corpus, means = bench.run.corpus("test"), mean_demo_frames(bench.run.corpus("train"))
    seeds = bench.seeds if CONTENDERS[name].learns else bench.seeds[:1]
    return [scored_episodes(corpus, load_predictions(bench.answers(name, seed)), means) for seed in seeds]


def measure_contenders(bench: BenchmarkFolder) -> tuple[Measured, dict[str, Measured]]:
    """Metrics of every contender over all tasks, and by task."""
    every = {name: scored_by(bench, name) for name in CONTENDERS}
    by_task = {
        task: {name: _mean(bench, name, _only(runs, task)) for name, runs in every.items()}
        for task in bench.run.tasks
    }
    return {name: _mean(bench, name, runs) for name, runs in every.items()}, by_task


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
