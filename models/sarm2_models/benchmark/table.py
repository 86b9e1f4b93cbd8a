"""The benchmark as Markdown: one table of everybody, one of SARM2 against each, one by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarm2_models.benchmark.contenders import CONTENDERS
from sarm2_models.benchmark.measure import DIFFERENCES, RATIOS
from sarm2_models.estimate import Estimate

Table = Mapping[str, Mapping[str, Estimate]]

HEADLINE = ("demo_mse", "rollout_mse", "success_auc", "ranking", "drop_recall", "false_drop_rate", "jitter")
STAGES = ("primitive_accuracy", "rollout_primitive_accuracy", "segment_f1", "ece", "interval_coverage")
BY_TASK = ("demo_mse", "rollout_mse", "primitive_accuracy", "success_auc", "ranking", "drop_recall")


def markdown(measured: Table, by_task: Mapping[str, Table], over: Table, less: Table, about: str) -> str:
    """The whole report in words and tables.

    Args:
        over, less: SARM2 over, and less, each other contender.
        about: what was trained and measured, and on what machine; stands at the top.
    """
    parts = [
        "# Benchmark",
        about,
        "Values are means over the training seeds; intervals are 95 % bootstraps over episodes.",
        "## Progress",
        _rows(measured, HEADLINE),
        "## Primitives and calibration",
        _rows({name: row for name, row in measured.items() if STAGES[0] in row}, STAGES),
        "## SARM2's error over each other contender's, paired by episode (under 1: smaller)",
        _rows(over, RATIOS),
        "## SARM2's score less each other contender's, paired by episode (over 0: better)",
        _rows(less, DIFFERENCES),
        "## SARM2 by task",
        _rows({task: table["sarm2"] for task, table in by_task.items()}, BY_TASK),
    ]
    return "\n\n".join(parts) + "\n"


def number(estimate: Estimate) -> str:
    """Value and interval, to three places that count."""
    if estimate.value is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _rows(table: Table, metrics: Sequence[str]) -> str:
    lines = [
        "| | " + " | ".join(f"`{metric}`" for metric in metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
    ]
    for name, row in table.items():
        cells = [number(row[metric]) if metric in row else "" for metric in metrics]
        lines.append(f"| {_label(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _label(name: str) -> str:
    return f"`{name}`: {CONTENDERS[name].summary}" if name in CONTENDERS else name
