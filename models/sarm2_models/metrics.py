"""Every number a report states, defined once.

A metric is computed over episodes. `Scored` holds one episode's truth beside what was predicted for it.
Each metric is split into per-episode contributions, whose sums `estimate` bootstraps over episodes;
intervals are the 2.5 and 97.5 percentiles.

Which episodes enter: *demos* are uneven successful demonstrations (`demo`), *clean demos* the expert alone
(`clean_demo`), *rollouts* everything else (`perturbed`, `random` and a learned `policy`'s, failures and drops
included). Truth is the simulator's state potential, and every frame counts: the published errors are taken
once a second, which is a sample of the same.

Shapes: T frames, N episodes, P primitives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_models.estimate import Estimate, draws, ratio
from sarm2_models.falls import alarm_delay, alarm_size, fall_caught, falls, falls_for_no_reason
from sarm2_models.ranking import average_precision, kendall_of_triples, quality_of, roc_auc, spearman
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
        uncertain_T: bool, whether the answer was marked `uncertain`.
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
    uncertain_T: npt.NDArray[np.bool_]
    success: bool
    others: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ["progress_T", "low_T", "high_T", "primitive_T", "true_primitive_T"]
        names += ["confidence_T", "uncertain_T"]
        lengths = {name: len(getattr(self, name)) for name in names}
        lengths |= {name: len(values) for name, values in self.others.items()}
        for name, length in lengths.items():
            if length != len(self.truth_T):
                raise ValueError(f"{name} has {length} values but the episode has {len(self.truth_T)} frames")


# --- jitter -----------------------------------------------------------------------------------------


def jitter_residuals(progress_T: Floats) -> Floats:
    """Progress minus its centred running median of 5, on the T - 4 frames where that median is whole.

    A step, up or down, leaves no residual: only trembling does.
    """
    if len(progress_T) < 5:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(progress_T, np.float64), 5)
    return np.asarray(windows[:, 2] - np.median(windows, axis=1))


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

SuccessArea: TypeAlias = Callable[[Floats, npt.NDArray[np.bool_]], float | None]


def _demo(scored: Scored) -> bool:
    return scored.kind == "demo"


def _clean(scored: Scored) -> bool:
    return scored.kind == "clean_demo"


def _rollout(scored: Scored) -> bool:
    return scored.kind in ("perturbed", "random", "policy")


def _perturbed(scored: Scored) -> bool:
    return scored.kind == "perturbed"


def _policy(scored: Scored) -> bool:
    return scored.kind == "policy"


def _shown(scored: Scored) -> bool:
    return _demo(scored) or _clean(scored)


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


def _order_in_time(scored: Scored) -> tuple[float, float]:
    return spearman(scored.progress_T, np.arange(float(len(scored.progress_T)))) or 0.0, 1.0


def _delays(scored: Scored, size: float) -> list[float | None]:
    true_falls = falls(scored.truth_T, scored.fps)
    return [alarm_delay(scored.progress_T, start, scored.fps, size) for start, _ in true_falls]


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


def _certain(scored: Scored) -> tuple[float, float]:
    return float((~scored.uncertain_T).sum()), float(len(scored.uncertain_T))


def _certain_and_wrong(scored: Scored) -> tuple[float, float]:
    wrong_T = ~scored.uncertain_T & (scored.primitive_T != scored.true_primitive_T)
    return float(wrong_T.sum()), float((~scored.uncertain_T).sum())


def _covered(scored: Scored) -> tuple[float, float]:
    inside_T = (scored.low_T <= scored.truth_T) & (scored.truth_T <= scored.high_T)
    return float(inside_T.sum()), float(len(inside_T))


def _width(scored: Scored) -> tuple[float, float]:
    return float((scored.high_T - scored.low_T).sum()), float(len(scored.low_T))


# --- over all episodes -----------------------------------------------------------------------------


def _success(episodes: Sequence[Scored], seed: int, area: SuccessArea) -> Estimate:
    """An area under a curve of final progress against success."""
    final_N = np.array([scored.progress_T[-1] for scored in episodes], dtype=np.float64)
    success_N = np.array([scored.success for scored in episodes], dtype=bool)
    value = area(final_N, success_N)
    if value is None:
        return Estimate(None, None, None, len(episodes))
    resampled = [area(final_N[draw], success_N[draw]) for draw in draws(len(episodes), seed)]
    return Estimate.of(value, np.array([np.nan if one is None else one for one in resampled]), len(episodes))


def _regresses(episodes: Sequence[Scored], seed: int) -> dict[str, Estimate]:
    """Recall and delay of falls at the fixed false-alarm rate."""
    clean = [scored for scored in episodes if _clean(scored)]
    size = alarm_size([scored.progress_T for scored in clean], [scored.fps for scored in clean])
    if size is None:
        return dict.fromkeys(("regress_recall", "regress_delay_s"), Estimate(None, None, None, 0))
    rollouts = [scored for scored in episodes if _rollout(scored)]
    delays = [_delays(scored, size) for scored in rollouts]
    known = [[delay for delay in row if delay is not None] for row in delays]
    recalled = ratio([(float(len(k)), float(len(d))) for k, d in zip(known, delays, strict=True)], seed)
    return {
        "regress_recall": replace(recalled, n=sum(map(len, delays))),
        "regress_delay_s": ratio([(float(sum(row)), float(len(row))) for row in known], seed),
    }


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
      and of heads that see only the proprioceptive state, or only the images. `perturbed_mse` and
      `policy_mse` are over rollouts of that kind alone.
    - `drop_recall`: of the falls of true progress by 0.2 or more within 1.2 s (rollouts), the share where
      ours falls by at least half as much within the same 1.2 s.
    - `false_drop_rate`: share of clean demos in which ours falls by 0.1 or more within 1.2 s where truth does
      not.
    - `regress_recall`, `regress_delay_s`: an alarm goes off where progress has fallen, within 1.2 s, by more
      than it does in all but 2 % of the clean demos (each model has its own such size, .02 at least). Of the
      true falls as above, the share with an alarm within 1.2 s, and the mean seconds until it goes off.
    - `voc`: mean over demos of the rank correlation of progress and time. Any clock has 1: it says nothing
      alone.
    - `jitter`: standard deviation (about 0) of progress minus its centred running median of 5, all episodes.
    - `primitive_accuracy`, `group_accuracy`: share of demo frames with the right primitive, the right group
      of it; `primitive_accuracy_without_null` leaves frames out that are truly null;
      `primitive_accuracy_demo` is over demos and clean demos;
      `rollout_primitive_accuracy` and `rollout_primitive_accuracy_without_null` are over rollouts.
    - `hierarchical_loss`: mean over demo frames of 0 for the right primitive, .5 for another one of its
      group, 1 otherwise. `segment_f1`: F1 of predicted segments that overlap a true one by half, on demos.
    - `ranking`: mean Kendall tau_a over (failure, partial, success) triples of rollouts of one task, by final
      progress, averaged over tasks that have such triples.
    - `success_auc`: area under the ROC curve of final progress against success as the simulator knows it,
      over rollouts; `policy_success_auc` over those of learned policies. `success_auprc`: the area under the
      precision-recall curve, over rollouts.
    - `ece`: expected calibration error of the stage confidence in 15 equal bins, all frames of all episodes.
    - `certain_error`: of the frames that are not marked uncertain the share with a wrong primitive, which the
      rule is set to keep under its stated error; `certain_share`: how many those are. All episodes;
      `..._demo` over demos and clean demos, `..._perturbed` and `..._policy` over such rollouts.
    - `interval_coverage`, `interval_width`: share of frames whose true progress lies inside the interval, and
      its mean width, all episodes; `..._demo` over demos and clean demos, `..._rollout` over rollouts.

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
        "perturbed_mse": (_perturbed, _squared_error(None)),
        "policy_mse": (_policy, _squared_error(None)),
        "state_only_mse": (_rollout, _squared_error("state_only")),
        "images_only_mse": (_rollout, _squared_error("images_only")),
        "drop_recall": (_rollout, _drops),
        "false_drop_rate": (_clean, _false_drop),
        "voc": (_demo, _order_in_time),
        "jitter": (_any, _jitter),
        "primitive_accuracy": (_demo, _primitive),
        "primitive_accuracy_demo": (_shown, _primitive),
        "primitive_accuracy_without_null": (_demo, _primitive_without(null_index)),
        "rollout_primitive_accuracy": (_rollout, _primitive),
        "rollout_primitive_accuracy_without_null": (_rollout, _primitive_without(null_index)),
        "group_accuracy": (_demo, _group(group_P)),
        "hierarchical_loss": (_demo, _hierarchical(group_P)),
        "segment_f1": (_demo, _segments),
        "certain_error": (_any, _certain_and_wrong),
        "certain_error_demo": (_shown, _certain_and_wrong),
        "certain_error_perturbed": (_perturbed, _certain_and_wrong),
        "certain_error_policy": (_policy, _certain_and_wrong),
        "certain_share": (_any, _certain),
        "interval_coverage": (_any, _covered),
        "interval_coverage_demo": (_shown, _covered),
        "interval_coverage_rollout": (_rollout, _covered),
        "interval_width": (_any, _width),
        "interval_width_demo": (_shown, _width),
        "interval_width_rollout": (_rollout, _width),
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
    estimates |= _regresses(episodes, seed)
    estimates["success_auc"] = _success(rollouts, seed, roc_auc)
    estimates["success_auprc"] = _success(rollouts, seed, average_precision)
    estimates["policy_success_auc"] = _success([one for one in rollouts if _policy(one)], seed, roc_auc)
    estimates["ranking"] = _ranking(rollouts, seed)
    estimates["ece"] = _ece(episodes, seed)
    return estimates


def _macro(contribution: Contribution) -> Contribution:
    def mean(scored: Scored) -> tuple[float, float]:
        total, count = contribution(scored)
        return total / max(count, 1.0), 1.0

    return mean


def evaluate_by_task(
    episodes: Sequence[Scored],
    groups: Sequence[int],
    null_index: int,
    *,
    seed: int = 0,
    apart: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> dict[str, object]:
    """`{"overall": {metric: {value, low, high, n}}, "tasks": {task: {...}}}`, ready for JSON.

    Args:
        apart: by name, tasks over which the same is told together, beside `overall`, where there are any.
    """

    def plain(chosen: Sequence[Scored]) -> dict[str, dict[str, float | int | None]]:
        estimates = evaluate(chosen, groups, null_index, seed=seed)
        return {key: estimate.as_json() for key, estimate in estimates.items()}

    tasks = sorted({scored.task for scored in episodes})
    by_task = {task: plain([scored for scored in episodes if scored.task == task]) for task in tasks}
    some = {
        name: plain([scored for scored in episodes if scored.task in chosen])
        for name, chosen in apart.items()
        if not set(chosen).isdisjoint(tasks)
    }
    return {"overall": plain(episodes), "tasks": by_task} | some
