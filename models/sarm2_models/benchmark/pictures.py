"""The benchmark's pictures: confusion of primitives, use of the experts, and curves from best to worst.

Shapes: T frames, P primitives, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from sarm2_models.metrics import Scored
from sarm2_models.train.report import draw_episode_curves
from sarm2_models.vocabulary import Vocabulary

Floats: TypeAlias = npt.NDArray[np.float64]


def confusion(episodes: Sequence[Scored], primitives: int) -> Floats:
    """Share of each true primitive (row) that was called each one (column), (P, P); rows sum to 1 or 0."""
    counts = np.zeros((primitives, primitives))
    for scored in episodes:
        np.add.at(counts, (scored.true_primitive_T, scored.primitive_T), 1.0)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))


def draw_confusion(shares_PP: Floats, vocabulary: Vocabulary, path: Path) -> None:
    """A heat map; primitives that never occur are left out."""
    kept = np.flatnonzero(shares_PP.sum(axis=1) + shares_PP.sum(axis=0) > 0)
    names = [vocabulary.primitives[index] for index in kept]
    _heat_map(shares_PP[np.ix_(kept, kept)], names, names, path, "predicted primitive", "true primitive")


def draw_experts(use_PE: Floats, vocabulary: Vocabulary, path: Path) -> None:
    """Mean weight of each expert by predicted primitive, primitives in the order of their groups."""
    kept, names = _by_group(vocabulary, use_PE.sum(axis=1) > 0)
    experts = [str(number) for number in range(use_PE.shape[1])]
    _heat_map(use_PE[kept], experts, names, path, "expert", "")


def draw_expert_correlation(use_PE: Floats, vocabulary: Vocabulary, path: Path) -> None:
    """How alike primitives use the experts: the correlation of their mean weights, in the order of groups."""
    kept, names = _by_group(vocabulary, use_PE.std(axis=1) > 0)
    alike_PP = np.atleast_2d(np.corrcoef(use_PE[kept]))
    _heat_map(
        alike_PP, names, names, path, "correlation of the use of experts", "", colours="RdBu_r", low=-1.0
    )


def draw_best_to_worst(episodes: Sequence[Scored], vocabulary: Vocabulary, path: Path) -> None:
    """One row a task: its episodes of least, median and largest squared error."""
    tasks = sorted({scored.task for scored in episodes})
    figure, axes = plt.subplots(len(tasks), 3, figsize=(10.5, 2.3 * len(tasks)), squeeze=False, sharey=True)
    for row, task in zip(axes, tasks, strict=True):
        mine = sorted((scored for scored in episodes if scored.task == task), key=_error)
        shown = {"best": mine[0], "median": mine[len(mine) // 2], "worst": mine[-1]}
        for axis, (title, scored) in zip(row, shown.items(), strict=True):
            draw_episode_curves(axis, scored, vocabulary)
            axis.set_title(f"{task}, {title} ({scored.kind}): MSE {_error(scored):.4f}", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _by_group(vocabulary: Vocabulary, shown_P: npt.NDArray[np.bool_]) -> tuple[list[int], list[str]]:
    """The primitives that are shown, in the order of their groups, and what they are called."""
    kept = sorted(np.flatnonzero(shown_P).tolist(), key=lambda index: vocabulary.group_of_primitive[index])
    return kept, [f"{vocabulary.group_name(index)}: {vocabulary.primitives[index]}" for index in kept]


def _error(scored: Scored) -> float:
    return float(np.mean((np.asarray(scored.progress_T) - scored.truth_T) ** 2))


def _heat_map(
    values: Floats,
    columns: Sequence[str],
    rows: Sequence[str],
    path: Path,
    below: str,
    beside: str,
    *,
    colours: str = "Blues",
    low: float = 0.0,
) -> None:
    figure, axis = plt.subplots(figsize=(1.6 + 0.42 * len(columns), 1.2 + 0.34 * len(rows)))
    axis.imshow(values, cmap=colours, vmin=low, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if abs(value) >= 0.01:
            colour = "white" if value > 0.6 else "#333333"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    axis.set_xlabel(below, fontsize=8)
    axis.set_ylabel(beside, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
