"""What turns raw outputs into honest numbers: a temperature, the `uncertain` rule and a conformal interval.

All are fitted on held-out episodes and are plain JSON-able dataclasses. Shapes: N calibration frames, B
batch, P primitives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput
from sarm2_models.window import SOURCES, UNTOLD

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.integer[Any]]

SCALE_FLOOR = 0.005
"""Least scale of a cell, in units of progress: a cell with perfect luck must not promise certainty."""
PRIOR_ROWS = 20
"""A cell's scale is shrunk to the overall one with the weight of this many frames."""
LEAST_EPISODES = 20
"""Of a task and a source, for a quantile of their own: the worst tenth of the frames of fewer episodes is the
luck of one or two of them."""


def fit_temperature(
    logits_NP: FloatArray, labels_N: IntArray, *, low: float = 0.05, high: float = 20.0
) -> float:
    """The temperature that minimises the cross entropy of softmax(logits / temperature).

    The cross entropy is convex in 1 / temperature, so a golden-section search finds its minimum.

    Args:
        logits_NP: raw logits of held-out frames.
        labels_N: true classes.
        low, high: bounds of the answer.
    """
    if len(logits_NP) == 0:
        raise InvalidInput("a temperature needs at least one labelled frame, got none", field="temperature")
    logits = np.asarray(logits_NP, dtype=np.float64)
    rows = np.arange(len(logits))

    def cross_entropy(inverse: float) -> float:
        scaled = logits * inverse
        top = scaled.max(-1)
        log_sum = top + np.log(np.exp(scaled - top[:, None]).sum(-1))
        return float((log_sum - scaled[rows, labels_N]).mean())

    return 1 / _golden_section(cross_entropy, 1 / high, 1 / low)


@dataclass(frozen=True)
class UncertainRule:
    """Below which confidence a primitive is not to be relied on.

    Attributes:
        threshold: least confidence of a certain answer.
        stated_error: among held-out answers at or above the threshold at most this share was wrong.
        observed_error: the share that was.
        certain_share: how many answers were at or above it.
        frames: how many frames it was fitted on (0: never fitted).
    """

    threshold: float = 0.0
    stated_error: float = 1.0
    observed_error: float = 1.0
    certain_share: float = 1.0
    frames: int = 0


def fit_uncertain_threshold(
    confidence_N: FloatArray, correct_N: BoolArray, stated_error: float = 0.05
) -> UncertainRule:
    """The lowest threshold whose certain answers are wrong at most `stated_error` of the time.

    One error is added to those counted (as in conformal risk control), so that a handful of lucky frames
    cannot set it. Where no threshold does it, the threshold is above 1 and every answer is uncertain.

    Args:
        confidence_N: calibrated confidence of the predicted primitive.
        correct_N: whether that primitive was right.
        stated_error: in (0, 1).
    """
    if not 0 < stated_error < 1 or len(confidence_N) == 0:
        raise InvalidInput(
            f"expected a stated error between 0 and 1 and at least one frame, got {stated_error} and "
            f"{len(confidence_N)}",
            field="stated_error",
        )
    order = np.argsort(-confidence_N, kind="stable")
    sorted_confidence = confidence_N[order]
    errors = np.cumsum(~correct_N[order])
    kept = np.arange(1, len(order) + 1)
    # Frames of equal confidence stand or fall together: judge only at the last of a run.
    run_ends = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)
    allowed = np.flatnonzero(((errors + 1) / (kept + 1) <= stated_error) & run_ends)
    if len(allowed) == 0:
        return UncertainRule(
            threshold=1.01,
            stated_error=stated_error,
            observed_error=0.0,
            certain_share=0.0,
            frames=len(order),
        )
    last = int(allowed[-1])
    return UncertainRule(
        threshold=float(sorted_confidence[last]),
        stated_error=stated_error,
        observed_error=float(errors[last] / kept[last]),
        certain_share=float(kept[last] / len(order)),
        frames=len(order),
    )


@dataclass(frozen=True)
class ConformalInterval:
    """A cross-conformal interval on progress: progress -/+ quantile x scale of the answer's cell.

    Cells are bins of the progress itself, apart for certain and uncertain answers. The table's own errors do
    not harm the coverage, because each half of the episodes is measured by the scales of the other half.

    Nothing that a window shows tells a demonstration from a rollout that is about to go wrong, and the
    errors on rollouts are larger. Who streams the episode knows which it is: the promise holds for each
    source apart (Mondrian conformal prediction), and where nobody says, the larger quantile holds for both.
    It holds for each task apart too: over fifteen tasks together one was covered by .96 and one by .83.

    Attributes:
        coverage: share of frames whose true progress lies inside, as promised.
        quantiles: finite-sample quantile of |error| / scale, for each of `SOURCES`, over all tasks.
        by_task: the same over the episodes of one instruction, where there are enough.
        scales: [certain or uncertain][bin] in units of progress.
        frames: calibration frames behind the quantiles, of all sources (0: never fitted, the interval is all
            of [0, 1]).
    """

    coverage: float = 1.0
    quantiles: tuple[float, ...] = (1.0,) * len(SOURCES)
    scales: tuple[tuple[float, ...], ...] = ((1.0,), (1.0,))
    frames: int = 0
    by_task: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        quantiles = [self.quantiles, *self.by_task.values()]
        values = [self.coverage, *(value for row in (*quantiles, *self.scales) for value in row)]
        lengths = {len(row) for row in self.scales}
        table = len(self.scales) == 2 and len(lengths) == 1 and lengths != {0}
        told = all(len(row) == len(SOURCES) for row in quantiles)
        if not table or not told or not all(map(_is_positive, values)):
            raise InvalidInput(
                "interval: expected two rows of equally many positive scales, a positive coverage, and a "
                f"positive quantile for each of {', '.join(SOURCES)}, over all tasks and for each by itself",
                field="calibration",
            )

    @classmethod
    def fit(
        cls,
        progress_N: FloatArray,
        target_N: FloatArray,
        uncertain_N: BoolArray,
        *,
        coverage: float = 0.9,
        bins: int = 10,
        episode_N: IntArray | None = None,
        source_N: IntArray | None = None,
        task_N: npt.NDArray[np.str_] | None = None,
    ) -> ConformalInterval:
        """Fit the quantiles with each half's episodes under the other half's scales, then scales on all.

        Args:
            progress_N: predicted progress in [0, 1].
            target_N: true progress.
            uncertain_N: the answers' `uncertain` flag.
            coverage: promised share, in (0, 1).
            bins: of the progress.
            episode_N: which episode a frame is of; frames of an episode stay together. By default every
                frame is its own.
            source_N: where each frame's episode comes from, a place in `SOURCES` or `UNTOLD`; by default
                nobody knows, and one quantile serves all.
            task_N: each frame's instruction; by default all are of one that nobody knows.
        """
        if not 0 < coverage < 1 or len(progress_N) < 2 or bins < 1:
            raise InvalidInput(
                f"expected a coverage between 0 and 1, at least one bin and two frames, got {coverage}, "
                f"{bins} and {len(progress_N)}",
                field="coverage",
            )
        error_N = np.abs(np.asarray(target_N, np.float64) - progress_N)
        flag_N, bin_N = uncertain_N.astype(np.int64), _bin(progress_N, bins)
        episodes = np.arange(len(error_N)) if episode_N is None else episode_N
        second_half = _second_half(episodes)
        ratio_N = np.empty(len(error_N))
        for half in (second_half, ~second_half):
            scales = _scales(error_N[~half], flag_N[~half], bin_N[~half], bins)
            ratio_N[half] = (error_N / scales[flag_N, bin_N])[half]
        sources = np.full(len(ratio_N), UNTOLD) if source_N is None else source_N
        quantiles = _quantiles(ratio_N, sources, coverage)
        by_task = _by_task(ratio_N, sources, episodes, task_N, quantiles, coverage)
        table = tuple(tuple(map(float, row)) for row in _scales(error_N, flag_N, bin_N, bins))
        return cls(coverage, quantiles, table, len(ratio_N), by_task)

    def quantiles_of(self, instruction: str) -> npt.NDArray[np.float64]:
        """(S + 1,): for an episode with this instruction from each of `SOURCES`, and where nobody says from
        where (the last one: `UNTOLD` is -1), the largest. A task without its own has those of all tasks."""
        own = self.by_task.get(instruction, self.quantiles)
        return np.array([*own, max(own)])

    def apply(
        self, progress_B: FloatArray, uncertain_B: BoolArray, quantile_B: FloatArray
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Low and high, float32 (B,), within [0, 1]; the progress always lies between them.

        Args:
            quantile_B: that of each episode's instruction and source, see `quantiles_of`.
        """
        table = np.asarray(self.scales)
        width_B = quantile_B * table[uncertain_B.astype(np.int64), _bin(progress_B, table.shape[1])]
        progress = np.asarray(progress_B, dtype=np.float32)
        low = np.clip(progress - width_B, 0, 1).astype(np.float32)
        high = np.clip(progress + width_B, 0, 1).astype(np.float32)
        return np.minimum(low, progress), np.maximum(high, progress)


@dataclass(frozen=True)
class Calibration:
    """All three. Unfitted, it promises nothing: temperature 1, no threshold, interval [0, 1]."""

    temperature: float = 1.0
    rule: UncertainRule = field(default_factory=UncertainRule)
    interval: ConformalInterval = field(default_factory=ConformalInterval)

    def __post_init__(self) -> None:
        if not _is_positive(self.temperature) or not math.isfinite(self.rule.threshold):
            raise InvalidInput(
                f"calibration: expected a positive temperature and a finite threshold, got "
                f"{self.temperature} and {self.rule.threshold}",
                field="calibration",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`. Raises InvalidInput for anything else."""
        try:
            interval = dict(data["interval"])
            interval["scales"] = tuple(tuple(map(float, row)) for row in interval["scales"])
            interval["quantiles"] = tuple(map(float, interval["quantiles"]))
            own = interval.get("by_task", {})
            interval["by_task"] = {str(task): tuple(map(float, row)) for task, row in own.items()}
            return cls(
                float(data["temperature"]), UncertainRule(**data["rule"]), ConformalInterval(**interval)
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"calibration: expected temperature, rule and interval as `to_dict` gives; got {error!r}",
                field="calibration",
            ) from error


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _quantile(ratio_N: FloatArray, coverage: float) -> float:
    """The finite-sample quantile. With too few frames for the promise: everything between 0 and 1."""
    rank = math.ceil((len(ratio_N) + 1) * coverage)
    return max(float(np.sort(ratio_N)[rank - 1]), 1e-9) if rank <= len(ratio_N) else 1 / SCALE_FLOOR


def _quantiles(ratio_N: FloatArray, source_N: IntArray, coverage: float) -> tuple[float, ...]:
    """One for each source; a source without a frame gets that of all frames."""
    chosen = [ratio_N[source_N == place] for place in range(len(SOURCES))]
    return tuple(_quantile(mine if len(mine) else ratio_N, coverage) for mine in chosen)


def _by_task(
    ratio_N: FloatArray,
    source_N: IntArray,
    episode_N: IntArray,
    task_N: npt.NDArray[np.str_] | None,
    quantiles: tuple[float, ...],
    coverage: float,
) -> dict[str, tuple[float, ...]]:
    """Each task's quantiles; where it has too few episodes of a source, that source's of all tasks."""
    found: dict[str, tuple[float, ...]] = {}
    for task in [] if task_N is None else np.unique(task_N):
        chosen = [(task_N == task) & (source_N == place) for place in range(len(SOURCES))]
        enough = [len(np.unique(episode_N[mine])) >= LEAST_EPISODES for mine in chosen]
        if any(enough):
            own = [_quantile(ratio_N[mine], coverage) for mine in chosen]
            found[str(task)] = tuple(np.where(enough, own, quantiles).tolist())
    return found


def _bin(progress: FloatArray, bins: int) -> IntArray:
    return np.clip((np.asarray(progress) * bins).astype(np.int64), 0, bins - 1)


def _second_half(episode_N: IntArray) -> BoolArray:
    """Half of the episodes, drawn by lot: they were recorded task by task in turn, and every second one may
    well be of every second task."""
    episodes, rank_N = np.unique(episode_N, return_inverse=True)
    half: BoolArray = np.random.default_rng(0).permutation(len(episodes))[rank_N] % 2 == 1
    return half if half.any() and not half.all() else np.arange(len(episode_N)) % 2 == 1


def _scales(error_N: FloatArray, flag_N: IntArray, bin_N: IntArray, bins: int) -> FloatArray:
    """Mean absolute error of each cell (2, bins), shrunk to the overall mean."""
    overall = max(float(error_N.mean()), SCALE_FLOOR)
    total, count = np.zeros((2, bins)), np.zeros((2, bins))
    np.add.at(total, (flag_N, bin_N), error_N)
    np.add.at(count, (flag_N, bin_N), 1)
    shrunk: FloatArray = (total + PRIOR_ROWS * overall) / (count + PRIOR_ROWS)
    return np.maximum(shrunk, SCALE_FLOOR)


def _golden_section(function: Any, low: float, high: float, *, steps: int = 80) -> float:
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    value_left, value_right = function(left), function(right)
    for _ in range(steps):
        if value_left <= value_right:
            high, right, value_right = right, left, value_left
            left = high - ratio * (high - low)
            value_left = function(left)
        else:
            low, left, value_left = left, right, value_right
            right = low + ratio * (high - low)
            value_right = function(right)
    return (low + high) / 2
