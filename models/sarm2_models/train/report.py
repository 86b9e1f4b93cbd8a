"""The report's pictures: curves over the truth, the ladder, and both labels of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sarm2_models.falls import falls
from sarm2_models.metrics import Scored
from sarm2_models.train.label_check import DEMO, ROLLOUT, CheckedEpisode
from sarm2_models.vocabulary import Vocabulary
from sarm2_rollouts.tasks import FPS

OURS, TRUTH, WRONG = "#1f5fbf", "#333333", "#d1495b"
COLUMNS: tuple[tuple[str, str], ...] = (
    ("demo", "demonstration"),
    ("drop", "dropped"),
    ("failure", "failed"),
    ("random", "random motion"),
)
LABEL_COLUMNS = 5


def draw_curves(episodes: Sequence[Scored], vocabulary: Vocabulary, path: Path) -> None:
    """One row a task: a demonstration, a drop, a failure, random motion; each with truth and primitives."""
    tasks = sorted({scored.task for scored in episodes})
    figure, axes = plt.subplots(
        len(tasks), len(COLUMNS), figsize=(3.4 * len(COLUMNS), 2.4 * len(tasks)), squeeze=False, sharey=True
    )
    for row, task in enumerate(tasks):
        mine = [scored for scored in episodes if scored.task == task]
        for column, (what, title) in enumerate(COLUMNS):
            chosen = _pick(mine, what)
            axis = axes[row][column]
            if chosen is None:
                axis.axis("off")
                continue
            draw_episode_curves(axis, chosen, vocabulary)
            axis.set_title(f"{task}: {title}", fontsize=9)
    axes[0][0].legend(fontsize=7, loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_ladder(ladder: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Error of progress on demonstrations and on rollouts, a bar a rung with its interval."""
    rungs = list(ladder)
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.42 * len(rungs) + 1.2), sharey=True)
    for axis, metric in zip(axes, ("demo_mse", "rollout_mse"), strict=True):
        for place, rung in enumerate(rungs):
            estimate = ladder[rung][metric]
            if estimate["value"] is None:
                continue
            axis.barh(place, estimate["value"], color=OURS if rung == "full" else "#b8c4d6")
            axis.plot([estimate["low"], estimate["high"]], [place, place], color=TRUTH, linewidth=1)
            axis.text(estimate["value"], place - 0.3, f" {estimate['value']:.4f}", fontsize=8)
        axis.set_title(metric, fontsize=10)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rungs)), rungs)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_adaptation(curve: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Errors on held-out rollouts and demonstrations over how many rollouts were learned from."""
    counts = [int(count) for count in curve]
    figure, axis = plt.subplots(figsize=(5.5, 3.2))
    for metric, colour in (("rollout_mse", WRONG), ("demo_mse", OURS)):
        draw_errors(axis, curve, metric, metric, colour)
    axis.set_xticks(counts)
    axis.set_ylabel("mean squared error of progress")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_errors(
    axis: Axes, curve: Mapping[str, Mapping[str, Mapping[str, Any]]], metric: str, label: str, colour: str
) -> None:
    """One error of `adapt_curve`'s over the number of rollouts; nothing where it was not measured."""
    axis.set_xlabel("rollouts learned from")
    axis.spines[["top", "right"]].set_visible(False)
    found = [measured[metric] for measured in curve.values()]
    if all(one["value"] is not None for one in found):
        counts = [int(count) for count in curve]
        values, lows, highs = ([one[key] for one in found] for key in ("value", "low", "high"))
        axis.plot(counts, values, "o-", color=colour, label=label)
        axis.fill_between(counts, lows, highs, color=colour, alpha=0.15, linewidth=0)


def draw_labels(checks: Mapping[str, Sequence[CheckedEpisode]], path: Path) -> None:
    """A small panel a task: both labels of one demonstration and of one rollout."""
    columns = min(LABEL_COLUMNS, len(checks))
    rows = -(-len(checks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.5 * columns + 0.6, 1.8 * rows + 0.5), squeeze=False, sharey=True
    )
    for axis in axes.flat[len(checks) :]:
        axis.axis("off")
    for axis, (task, checked) in zip(axes.flat, checks.items(), strict=False):
        for kind, colour in ((DEMO, OURS), (ROLLOUT, WRONG)):
            _draw_both_labels(axis, next((one for one in checked if one.kind == kind), None), colour)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("seconds", fontsize=7)
        axis.set_ylim(-0.05, 1.05)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    entries = {
        "demonstration": Line2D([], [], color=OURS),
        "by the state": Line2D([], [], color=TRUTH),
        "rollout": Line2D([], [], color=WRONG),
        "by the expert's steps to go": Line2D([], [], color=TRUTH, linestyle="--", marker="."),
    }
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="lower center",
        ncols=2,
        fontsize=7,
        frameon=False,
        handlelength=4,
    )
    figure.tight_layout(rect=(0, 0.45 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _draw_both_labels(axis: Any, one: CheckedEpisode | None, colour: str) -> None:
    if one is not None:
        seconds_N, check = one.check.frames_N / FPS, one.check
        axis.plot(seconds_N, check.potential_N, color=colour, linewidth=1.5)
        # Dots too: a frame between two from which the expert never gets there has no line.
        axis.plot(seconds_N, check.steps_to_go_N, ".--", color=colour, linewidth=1, markersize=4)


def _pick(episodes: Sequence[Scored], what: str) -> Scored | None:
    def is_one(scored: Scored) -> bool:
        falling = bool(falls(scored.truth_T, scored.fps))
        if what == "drop":
            return scored.kind == "perturbed" and falling
        if what == "failure":
            return scored.kind == "perturbed" and not scored.success and not falling
        return scored.kind == what

    return next((scored for scored in episodes if is_one(scored)), None)


def draw_episode_curves(axis: Any, scored: Scored, vocabulary: Vocabulary) -> None:
    """Progress with its interval over the truth, and both strips of primitives, on a matplotlib axis."""
    seconds_T = np.arange(len(scored.truth_T)) / scored.fps
    axis.fill_between(seconds_T, scored.low_T, scored.high_T, color=OURS, alpha=0.15, linewidth=0)
    axis.plot(seconds_T, scored.truth_T, color=TRUTH, linewidth=1, linestyle="--", label="true progress")
    axis.plot(seconds_T, scored.progress_T, color=OURS, linewidth=1.5, label="scored")
    axis.set_ylim(-0.18, 1.05)
    axis.spines[["top", "right"]].set_visible(False)
    tab20 = plt.get_cmap("tab20")
    palette = [*(tab20(index) for index in range(20)), "#555555", "#dddddd"]
    strips = ((-0.08, scored.true_primitive_T), (-0.16, scored.primitive_T))
    for bottom, primitive_T in strips:
        colours = [palette[int(primitive) % len(palette)] for primitive in primitive_T]
        axis.bar(
            seconds_T, 0.06, bottom=bottom, width=1 / scored.fps, color=colours, align="edge", linewidth=0
        )
    starts = [0, *(np.flatnonzero(np.diff(scored.primitive_T)) + 1)]
    for start, stop in zip(starts, [*starts[1:], len(scored.primitive_T)], strict=True):
        if stop - start >= 0.06 * len(scored.primitive_T) + 3:
            name = vocabulary.primitives[int(scored.primitive_T[start])]
            axis.text(seconds_T[start], -0.155, name, fontsize=5.5)
