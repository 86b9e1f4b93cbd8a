"""The benchmark as Markdown: what is reached and what is not, what each part is worth, then all tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sarm2_models.benchmark.bars import ASKED, BASELINES, PROBED, Bar
from sarm2_models.benchmark.contenders import CONTENDERS
from sarm2_models.benchmark.measure import DIFFERENCES, RATIOS, TRICKS
from sarm2_models.benchmark.probe import WITH_RANDOM
from sarm2_models.estimate import Estimate

Table = Mapping[str, Mapping[str, Estimate]]

HEADLINE = (
    "demo_mse",
    "demo_mse_macro",
    "rollout_mse",
    "policy_mse",
    "success_auc",
    "success_auprc",
    "policy_success_auc",
    "ranking",
    "jitter",
)
FALLS = ("drop_recall", "false_drop_rate", "regress_recall", "regress_delay_s")
ORDER = ("voc", *TRICKS)
STAGES = (
    "primitive_accuracy",
    "primitive_accuracy_demo",
    "primitive_accuracy_without_null",
    "rollout_primitive_accuracy_without_null",
    "group_accuracy",
    "hierarchical_loss",
    "segment_f1",
)
CALIBRATION = (
    "ece",
    "certain_error",
    "certain_error_demo",
    "certain_error_perturbed",
    "certain_error_policy",
    "certain_share",
    "interval_coverage_demo",
    "interval_coverage_rollout",
    "interval_width_demo",
    "interval_width_rollout",
)
BY_TASK = ("demo_mse", "rollout_mse", "primitive_accuracy", "success_auc", "ranking", "drop_recall")
PICTURES = {
    "confusion": "Confusion of primitives",
    "experts": "How much each expert is used for each primitive",
    "expert_correlation": "Correlation of the primitives' use of experts",
    "curves": "The best, the median and the worst episode of each task",
}
"""What `pictures` draws beside the report."""

PARTS = {
    "sarm2_no_stage": "the stage estimator and the gates it chooses",
    "sarm2_no_multigate": "the multi-gate",
    "sarm2_no_anchor": "the first frame",
}
"""Ablations, and what they are without."""


AIM = 0.75
"""Of the best trained baseline's error on rollouts, beyond the interval: what SARM2 aims at."""

ORACLE = "oracle_primitive"
SAME = "no difference beyond the interval"
SMALLER, LARGER = "smaller beyond the interval", "larger beyond the interval"


@dataclass(frozen=True)
class Tables:
    """Everything that is shown.

    Attributes:
        measured: metrics by contender. by_task: the same by task.
        over, less: SARM2 over, and less, each other contender.
        bars: what has to be reached.
        unseen: SARM2 on tasks that nothing was trained on.
        probes: R2 of the embeddings by task and point.
        tuning: by contender, `progress_mse` of each setting and which is `chosen`.
    """

    measured: Table
    by_task: Mapping[str, Table]
    over: Table
    less: Table
    bars: Mapping[str, Bar]
    unseen: Table
    probes: Table
    tuning: Mapping[str, Mapping[str, Any]]


def markdown(tables: Tables, about: str) -> str:
    """The whole report in words and tables.

    Args:
        about: what was trained and measured, and on what machine; stands at the top.
    """
    named = {name: row for name, row in tables.measured.items() if STAGES[0] in row}
    parts = [
        "# Benchmark",
        verdict(tables),
        about,
        "Values are means over the training seeds; intervals are 95 % bootstraps over episodes and seeds.",
        "## What is reached",
        _bars(tables.bars),
        "## What each part is worth",
        worth(tables.over),
        "## Progress",
        _rows(tables.measured, HEADLINE),
        "## Falls of progress",
        _rows(tables.measured, FALLS),
        "## Order in time, and trick questions",
        "`voc` rewards any clock: read it beside `voc_reversed`, the same on episodes played backwards (-1 "
        "is best), and `instruction_margin`, final progress less that under another task's instruction.",
        _rows(tables.measured, ORDER),
        "## Primitives",
        _rows(named, STAGES),
        "## Calibration",
        _rows(named, CALIBRATION),
        "## SARM2's error over each other contender's, paired by episode (under 1: smaller)",
        _rows(tables.over, RATIOS),
        "## SARM2's score less each other contender's, paired by episode (over 0: better)",
        _rows(tables.less, DIFFERENCES),
        "## SARM2 by task",
        _rows({task: table["sarm2"] for task, table in tables.by_task.items()}, BY_TASK),
        "## Where things are: R2 of a linear probe on the embeddings of all views, within each task",
        _probes(tables.probes),
    ]
    if tables.unseen:
        first = next(iter(tables.unseen.values()))
        seen = "No head was trained on them; the shipped encoder has seen their pictures. SARM2 alone."
        parts += ["## Unseen tasks", seen, _rows(tables.unseen, tuple(first))]
    tuning = (
        "Squared error of progress on the calibration episodes after one training with each setting; each "
        "contender's own is set in bold. SARM2 without a part keeps SARM2's."
    )
    parts += ["## Tuning", tuning, _tuning(tables.tuning)]
    parts += ["## Pictures of SARM2, first training seed"]
    parts += [f"![{caption}]({name}.png)" for name, caption in PICTURES.items()]
    return "\n\n".join(parts) + "\n"


def verdict(tables: Tables) -> str:
    """What a reader has to know first: which bars are missed, and which parts bring nothing to progress."""
    missed, unknown = ([name for name, bar in tables.bars.items() if bar.met is met] for met in (False, None))
    lines = [f"Missed: {', '.join(missed)}."] if missed else []
    lines += [f"Not measured: {', '.join(unknown)}."] if unknown else []
    lines = lines or ["Every bar is reached."]
    lines += _harder(tables)
    for name, part in PARTS.items():
        found = {metric: _verdict(tables.over[name][metric]) for metric in RATIOS if name in tables.over}
        worse = [f"`{metric}`" for metric, said in found.items() if said == LARGER]
        if worse:
            lines.append(f"With {part}, {' and '.join(worse)} is larger beyond the interval.")
        elif found and set(found.values()) == {SAME}:
            lines.append(f"For {part} no difference of progress is seen beyond the interval.")
    lines += [line for name in BASELINES if name in tables.over for line in _beaten(name, tables.over[name])]
    known = [tables.over[name]["rollout_mse"] for name in BASELINES if name in tables.over]
    if known and not all(one.high is not None and one.high <= AIM for one in known):
        lines.append(
            f"The aim of {1 - AIM:.0%} less error on rollouts than every trained baseline, beyond the "
            "interval, is missed."
        )
    return "\n>\n".join(f"> {line}" for line in lines)


def _harder(tables: Tables) -> list[str]:
    """Where what is reached over an exam is not over its harder part, or with more in it."""
    lines, (_, bar) = [], ASKED["primitive_accuracy_demo"]
    uneven = tables.measured.get("sarm2", {}).get("primitive_accuracy")
    if uneven is not None and uneven.value is not None and uneven.value < bar:
        lines.append(
            f"`primitive_accuracy`, on uneven demonstrations alone, is {number(uneven)}: under the {bar:g} "
            "that is asked of even and uneven ones together."
        )
    for point, estimate in tables.probes.get(WITH_RANDOM, {}).items():
        if estimate.value is not None and estimate.value < PROBED[point]:
            lines.append(
                f"The probe's R2 of the {point} is {number(estimate)} where random motion is probed too: "
                f"under {PROBED[point]:g}."
            )
    return lines


def _beaten(name: str, over: Mapping[str, Estimate]) -> list[str]:
    """Where a trained baseline has the smaller error."""
    worse = [metric for metric in RATIOS if _verdict(over[metric]) == LARGER]
    return [
        f"`{metric}` is {number(over[metric])} of `{name}`'s: larger beyond the interval." for metric in worse
    ]


def worth(over: Table) -> str:
    """For each part whether SARM2's error with it is smaller beyond the interval, larger, or neither."""
    lines = []
    for name, part in PARTS.items():
        if name not in over:
            continue
        said = [
            f"`{metric}` {number(over[name][metric])}, {_verdict(over[name][metric])}" for metric in RATIOS
        ]
        lines.append(f"- With {part}, error over that without it: {'; '.join(said)}.")
    if ORACLE in over:
        said = [f"`{metric}` {number(over[ORACLE][metric])}" for metric in RATIOS]
        lines.append(
            f"- With its own primitives, error over that with the true ones: {'; '.join(said)}. So much "
            "would a stage estimator bring that never errs and is never uncertain. One gate reads the "
            "primitive's text in its token, and can route by it as several do."
        )
    return "\n".join(lines)


def number(estimate: Estimate) -> str:
    """Value and interval, to three places that count."""
    if estimate.value is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _verdict(error: Estimate) -> str:
    if error.low is None or error.high is None:
        return "not known"
    if error.high < 1:
        return SMALLER
    return LARGER if error.low > 1 else SAME


def _bars(bars: Mapping[str, Bar]) -> str:
    lines = ["| | value | bar | reached |", "|---|---|---|---|"]
    for name, bar in bars.items():
        asked = f"interval contains {bar.bar:g}" if bar.kind == "contains" else f"{bar.kind} {bar.bar:g}"
        if bar.by != "value":
            asked += " within the interval"
        met = {True: "yes", False: "**no**", None: "n/a"}[bar.met]
        lines.append(f"| {name} | {number(bar.estimate)} | {asked} | {met} |")
    return "\n".join(lines)


def _probes(probes: Table) -> str:
    points = next(iter(probes.values()))
    lines = ["| | " + " | ".join(points) + " |", "|---" * (len(points) + 1) + "|"]
    for task, row in probes.items():
        cells = ["" if one.value is None else number(one) for one in row.values()]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tuning(tuning: Mapping[str, Mapping[str, Any]]) -> str:
    settings = list(next(iter(tuning.values()))["progress_mse"])
    lines = ["| | " + " | ".join(settings) + " |", "|---" * (len(settings) + 1) + "|"]
    for name, row in tuning.items():
        tried = {setting: f"{error:.3g}" for setting, error in row["progress_mse"].items()}
        tried[row["chosen"]] = f"**{tried[row['chosen']]}**"
        lines.append(f"| `{name}` | " + " | ".join(tried.values()) + " |")
    return "\n".join(lines)


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
