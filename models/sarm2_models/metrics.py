"""Every number a report states, defined once.

A metric is computed over episodes. `Scored` holds one episode's truth beside what was predicted for it.
Each metric is split into per-episode contributions, whose sums `estimate` bootstraps over episodes;
intervals are the 2.5 and 97.5 percentiles.

Which episodes enter: *demos* are uneven successful demonstrations (`demo`), *clean demos* the expert alone
(`clean_demo`), *rollouts* everything else (`perturbed` and `random`, failures and drops included). Truth is
the simulator's state potential, on every frame.

Shapes: T frames, N episodes, P primitives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_models.estimate import Estimate, draws, ratio
from sarm2_models.falls import fall_caught, falls, falls_for_no_reason
from sarm2_models.ranking import kendall_of_triples, quality_of
from sarm2_models.segments import matched_segments

Floats: TypeAlias = npt.NDArray[np.floating]
Ints: TypeAlias = npt.NDArray[np.integer]

ECE_BINS = 15


@dataclass(frozen=True)
class Scored:
    """One episode: the truth and the predictions, all of length T.

    Attributes:
        task: short task name; `kind`: how the episode came about (see `Episode.kind`).
        fps: frames a second.
        truth_T, progress_T: true and predicted progress in [0, 1].
        low_T, high_T: the predicted interval of progress.
        primitive_T, true_primitive_T: indices of the predicted and true primitive.
        confidence_T: calibrated probability of the predicted primitive.
        success: whether the task was done, as the simulator knows it.
        others: progress by other predictors ("clock", "constant", "state_only", "images_only"), each T.
    """

    task: str
    kind: str
    fps: float
    truth_T: Floats
    progress_T: Floats
    low_T: Floats
    high_T: Floats
    primitive_T: Ints
    true_primitive_T: Ints
    confidence_T: Floats
    success: bool
    others: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("progress_T", "low_T", "high_T", "primitive_T", "true_primitive_T", "confidence_T")
        lengths = {name: len(getattr(self, name)) for name in names}
        lengths |= {name: len(values) for name, values in self.others.items()}
        for name, length in lengths.items():
            if length != len(self.truth_T):
                raise ValueError(f"{name} has {length} values but the episode has {len(self.truth_T)} frames")


# --- jitter and ranks ------------------------------------------------------------------------------


def jitter_residuals(progress_T: Floats) -> Floats:
    """Progress minus its centred running median of 5, on the T - 4 frames where that median is whole.

    A step, up or down, leaves no residual: only trembling does.
    """
    if len(progress_T) < 5:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(progress_T, np.float64), 5)
    return np.asarray(windows[:, 2] - np.median(windows, axis=1))


def _ranks(values_N: Floats) -> Floats:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def roc_auc(scores_N: Floats, positive_N: npt.NDArray[np.bool_]) -> float | None:
    """Chance that a random positive scores above a random negative, ties counting half; None without both."""
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if positives == 0 or negatives == 0:
        return None
    above = _ranks(scores_N)[positive_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def spearman(left_N: Floats, right_N: Floats) -> float | None:
    """Rank correlation; None where one side is constant. With time on one side this is VOC."""
    left, right = _ranks(left_N), _ranks(right_N)
    if left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


# --- calibration -----------------------------------------------------------------------------------


def calibration_bins(confidence_T: Floats, correct_T: npt.NDArray[np.bool_]) -> Floats:
    """Per bin of confidence: count, sum of confidence, number correct. (ECE_BINS, 3) float64."""
    index_T = np.minimum((np.asarray(confidence_T) * ECE_BINS).astype(int), ECE_BINS - 1)
    columns = (np.ones(len(index_T)), np.asarray(confidence_T, np.float64), correct_T.astype(np.float64))
    return np.stack([np.bincount(index_T, weights=column, minlength=ECE_BINS) for column in columns], axis=1)


def ece_of_bins(bins: Floats) -> float | None:
    """Expected calibration error of summed `calibration_bins`: mean of |confidence - accuracy|."""
    total = bins[:, 0].sum()
    return None if total == 0 else float(np.abs(bins[:, 1] - bins[:, 2]).sum() / total)


# --- the catalogue ---------------------------------------------------------------------------------

Contribution: TypeAlias = Callable[[Scored], tuple[float, float]]
"""An episode's (numerator, denominator) of a ratio of sums."""


def _demo(scored: Scored) -> bool:
    return scored.kind == "demo"


def _clean(scored: Scored) -> bool:
    return scored.kind == "clean_demo"


def _rollout(scored: Scored) -> bool:
    return scored.kind in ("perturbed", "random")


def _any(scored: Scored) -> bool:
    return True


def _squared_error(name: str | None) -> Contribution:
    def contribution(scored: Scored) -> tuple[float, float]:
        predicted_T = scored.progress_T if name is None else scored.others[name]
        error_T = np.asarray(predicted_T, np.float64) - np.asarray(scored.truth_T, np.float64)
        return float((error_T**2).sum()), float(len(error_T))

    return contribution


def _drops(scored: Scored) -> tuple[float, float]:
    true_falls = falls(scored.truth_T, scored.fps)
    caught = sum(fall_caught(scored.progress_T, start, depth, scored.fps) for start, depth in true_falls)
    return float(caught), float(len(true_falls))


def _false_drop(scored: Scored) -> tuple[float, float]:
    return float(falls_for_no_reason(scored.progress_T, scored.truth_T, scored.fps)), 1.0


def _jitter(scored: Scored) -> tuple[float, float]:
    residuals = jitter_residuals(scored.progress_T)
    return float((residuals**2).sum()), float(len(residuals))


def _primitive(scored: Scored) -> tuple[float, float]:
    return float((scored.primitive_T == scored.true_primitive_T).sum()), float(len(scored.truth_T))


def _primitive_without(null_index: int) -> Contribution:
    def contribution(scored: Scored) -> tuple[float, float]:
        counted_T = scored.true_primitive_T != null_index
        right_T = (scored.primitive_T == scored.true_primitive_T) & counted_T
        return float(right_T.sum()), float(counted_T.sum())

    return contribution


def _group(groups: Ints) -> Contribution:
    def contribution(scored: Scored) -> tuple[float, float]:
        right_T = groups[scored.primitive_T] == groups[scored.true_primitive_T]
        return float(right_T.sum()), float(len(right_T))

    return contribution


def _hierarchical(groups: Ints) -> Contribution:
    def contribution(scored: Scored) -> tuple[float, float]:
        wrong_T = scored.primitive_T != scored.true_primitive_T
        wrong_group_T = groups[scored.primitive_T] != groups[scored.true_primitive_T]
        return float((wrong_T + wrong_group_T.astype(float)).sum()) / 2, float(len(wrong_T))

    return contribution


def _segments(scored: Scored) -> tuple[float, float]:
    matched, predicted, true = matched_segments(scored.primitive_T, scored.true_primitive_T)
    return 2.0 * matched, float(predicted + true)


def _covered(scored: Scored) -> tuple[float, float]:
    inside_T = (scored.low_T <= scored.truth_T) & (scored.truth_T <= scored.high_T)
    return float(inside_T.sum()), float(len(inside_T))


def _width(scored: Scored) -> tuple[float, float]:
    return float((scored.high_T - scored.low_T).sum()), float(len(scored.low_T))


# --- over all episodes -----------------------------------------------------------------------------


def _auc(episodes: Sequence[Scored], seed: int) -> Estimate:
    final_N = np.array([scored.progress_T[-1] for scored in episodes], dtype=np.float64)
    success_N = np.array([scored.success for scored in episodes], dtype=bool)
    value = roc_auc(final_N, success_N)
    if value is None:
        return Estimate(None, None, None, len(episodes))
    resampled = [roc_auc(final_N[draw], success_N[draw]) for draw in draws(len(episodes), seed)]
    return Estimate.of(value, np.array([np.nan if auc is None else auc for auc in resampled]), len(episodes))


def _ranking(episodes: Sequence[Scored], seed: int) -> Estimate:
    final_N = np.array([scored.progress_T[-1] for scored in episodes], dtype=np.float64)
    true_N = np.array([scored.truth_T[-1] for scored in episodes], dtype=np.float64)
    quality_N = quality_of(true_N, np.array([scored.success for scored in episodes], dtype=bool))
    task_N = np.array([scored.task for scored in episodes])

    def mean_over_tasks(chosen: Ints) -> float:
        task, final, quality = task_N[chosen], final_N[chosen], quality_N[chosen]
        found = [kendall_of_triples(final[task == one], quality[task == one]) for one in np.unique(task)]
        known = [tau for tau in found if tau is not None]
        return float(np.mean(known)) if known else np.nan

    value = mean_over_tasks(np.arange(len(episodes)))
    if np.isnan(value):
        return Estimate(None, None, None, len(episodes))
    samples = np.array([mean_over_tasks(draw) for draw in draws(len(episodes), seed)])
    return Estimate.of(value, samples, len(episodes))


def _ece(episodes: Sequence[Scored], seed: int) -> Estimate:
    if not episodes:
        return Estimate(None, None, None, 0)
    bins = np.stack([calibration_bins(s.confidence_T, s.primitive_T == s.true_primitive_T) for s in episodes])
    sums = bins[draws(len(episodes), seed)].sum(axis=1)
    samples = np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1) / np.maximum(sums[..., 0].sum(axis=-1), 1.0)
    return Estimate.of(ece_of_bins(bins.sum(axis=0)), samples, len(episodes))


def evaluate(
    episodes: Sequence[Scored], groups: Sequence[int], null_index: int, *, seed: int = 0
) -> dict[str, Estimate]:
    """Every metric of these episodes.

    - `demo_mse`, `clock_mse`, `constant_mse`: squared error of progress over all frames of demos (micro), of
      the model, of the clock t / mean(T) clipped to 1, and of the constant 0.5. `demo_mse_macro` averages
      episodes instead of frames.
    - `rollout_mse`, `state_only_mse`, `images_only_mse`: the same over all frames of rollouts, of the model
      and of heads that see only the proprioceptive state, or only the images. `perturbed_mse` leaves random
      motion out.
    - `drop_recall`: of the falls of true progress by 0.2 or more within 1.2 s (rollouts), the share where
      ours falls by at least half as much within the same 1.2 s.
    - `false_drop_rate`: share of clean demos in which ours falls by 0.1 or more within 1.2 s where truth does
      not.
    - `jitter`: standard deviation (about 0) of progress minus its centred running median of 5, all episodes.
    - `primitive_accuracy`, `group_accuracy`: share of demo frames with the right primitive, the right group
      of it; `primitive_accuracy_without_null` leaves frames out that are truly null;
      `rollout_primitive_accuracy` is over rollouts.
    - `hierarchical_loss`: mean over demo frames of 0 for the right primitive, .5 for another one of its
      group, 1 otherwise. `segment_f1`: F1 of predicted segments that overlap a true one by half, on demos.
    - `ranking`: mean Kendall tau_a over (failure, partial, success) triples of rollouts of one task, by final
      progress, averaged over tasks that have such triples.
    - `success_auc`: area under the ROC curve of final progress against success as the simulator knows it,
      over rollouts.
    - `ece`: expected calibration error of the stage confidence in 15 equal bins, all frames of all episodes.
    - `interval_coverage`, `interval_width`: share of frames whose true progress lies inside the interval, and
      its mean width, all episodes.

    Args:
        groups: the group of each primitive, P indices.
        null_index: the index of the null primitive.
        seed: of the bootstrap.
    """
    group_P = np.asarray(groups)
    table: dict[str, tuple[Callable[[Scored], bool], Contribution]] = {
        "demo_mse": (_demo, _squared_error(None)),
        "clock_mse": (_demo, _squared_error("clock")),
        "constant_mse": (_demo, _squared_error("constant")),
        "demo_mse_macro": (_demo, _macro(_squared_error(None))),
        "rollout_mse": (_rollout, _squared_error(None)),
        "perturbed_mse": (lambda scored: scored.kind == "perturbed", _squared_error(None)),
        "state_only_mse": (_rollout, _squared_error("state_only")),
        "images_only_mse": (_rollout, _squared_error("images_only")),
        "drop_recall": (_rollout, _drops),
        "false_drop_rate": (_clean, _false_drop),
        "jitter": (_any, _jitter),
        "primitive_accuracy": (_demo, _primitive),
        "primitive_accuracy_without_null": (_demo, _primitive_without(null_index)),
        "rollout_primitive_accuracy": (_rollout, _primitive),
        "group_accuracy": (_demo, _group(group_P)),
        "hierarchical_loss": (_demo, _hierarchical(group_P)),
        "segment_f1": (_demo, _segments),
        "interval_coverage": (_any, _covered),
        "interval_width": (_any, _width),
    }
    known = set.intersection(*(set(scored.others) for scored in episodes)) if episodes else set()
    others = {"clock_mse": "clock", "constant_mse": "constant"}
    others |= {"state_only_mse": "state_only", "images_only_mse": "images_only"}
    estimates: dict[str, Estimate] = {}
    for key, (chosen, contribution) in table.items():
        if key in others and others[key] not in known:
            estimates[key] = Estimate(None, None, None, 0)
            continue
        pairs = [contribution(scored) for scored in episodes if chosen(scored)]
        estimates[key] = ratio(pairs, seed, root=key == "jitter")
        if key == "drop_recall":
            estimates[key] = replace(estimates[key], n=int(sum(total for _, total in pairs)))
    rollouts = [scored for scored in episodes if _rollout(scored)]
    estimates["success_auc"] = _auc(rollouts, seed)
    estimates["ranking"] = _ranking(rollouts, seed)
    estimates["ece"] = _ece(episodes, seed)
    return estimates


def _macro(contribution: Contribution) -> Contribution:
    def mean(scored: Scored) -> tuple[float, float]:
        total, count = contribution(scored)
        return total / max(count, 1.0), 1.0

    return mean


def evaluate_by_task(
    episodes: Sequence[Scored], groups: Sequence[int], null_index: int, *, seed: int = 0
) -> dict[str, object]:
    """`{"overall": {metric: {value, low, high, n}}, "tasks": {task: {...}}}`, ready for JSON."""

    def plain(chosen: Sequence[Scored]) -> dict[str, dict[str, float | int | None]]:
        estimates = evaluate(chosen, groups, null_index, seed=seed)
        return {key: estimate.as_json() for key, estimate in estimates.items()}

    tasks = sorted({scored.task for scored in episodes})
    by_task = {task: plain([scored for scored in episodes if scored.task == task]) for task in tasks}
    return {"overall": plain(episodes), "tasks": by_task}
