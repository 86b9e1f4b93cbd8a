"""What the loop has to reach, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sarm2_spiral.comparison.cells import MAIN, SEEDS
from sarm2_spiral.comparison.outcome import Verdicts
from sarm2_spiral.report import rank_auc
from sarm2_spiral.wilson import Rate

SUCCESS = {"hammer": 0.85, "drawer-open": 0.85, "bin-picking": 0.70, "pick-place": 0.75}
SUCCESS_AIM = {"hammer": 0.97, "drawer-open": 0.97, "bin-picking": 0.85, "pick-place": 0.90}
LOOP_AIM = 0.05
AUC, AUC_AIM = 0.95, 0.98
WHOLE_MINUTES, QUICK_MINUTES = 60.0, 10.0
BARS = (*SUCCESS, "loop_gain", "success_auc", "hammer_minutes", "quick_minutes")
"""Names of all bars."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Bar:
    """A number with its 95 % interval, what it has to reach, whether it does, and what is aimed at beyond.

    Attributes:
        seeds: of training that are behind it, where it is measured over seeds. With fewer than `SEEDS` it is
            no verdict yet.
    """

    value: float
    low: float
    high: float
    bar: float
    rule: str
    met: bool
    aim: float | None = None
    seeds: int | None = None

    @property
    def whole(self) -> bool:
        """Whether all that was planned is behind it."""
        return self.seeds is None or self.seeds >= len(SEEDS)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dict(vars(self)) | {"whole": self.whole}


def success_bar(task: str, final: Rate, uniform: Rate) -> Bar:
    """Success after the last round: its lower bound counts, and must lie above the control's upper bound."""
    bar = SUCCESS[task]
    rule = f"lower bound at least {bar:.0%}, and above {uniform.high:.1%}, the uniform control's upper bound"
    met = final.low >= bar and final.low > uniform.high
    return Bar(final.value, final.low, final.high, bar, rule, met, SUCCESS_AIM[task])


def gained(pairs: Sequence[tuple[Verdicts, Verdicts]]) -> tuple[float, float, float]:
    """What success gains from one policy to another on the same scenes, in the mean of some tasks: value, and
    95 % interval by a bootstrap over each task's scenes."""
    rng = np.random.default_rng(0)
    gains = [after_N.astype(float) - before_N for before_N, after_N in pairs]
    drawn = [[rng.choice(gain_N, len(gain_N)).mean() for gain_N in gains] for _ in range(RESAMPLES)]
    low, high = np.quantile(np.mean(drawn, axis=1), (0.025, 0.975))
    return float(np.mean([gain_N.mean() for gain_N in gains])), float(low), float(high)


def loop_bar(offline: Mapping[str, Verdicts], final: Mapping[str, Verdicts]) -> Bar:
    """What the loop adds to the offline update, in the mean of the tasks."""
    value, low, high = gained([(offline[task], final[task]) for task, _ in MAIN])
    return Bar(
        value,
        low,
        high,
        0.0,
        "lower bound above 0: the loop is better than 2b alone",
        bool(low > 0),
        LOOP_AIM,
    )


def auc_bar(finals: Mapping[str, Sequence[float]], successes: Mapping[str, Sequence[bool]]) -> Bar | None:
    """ROC-AUC of final progress against success, rollouts of the last round: the mean over the tasks that
    have both kinds. None where no task has."""
    rng = np.random.default_rng(0)
    tasks = [task for task in finals if rank_auc(finals[task], successes[task]) is not None]
    if not tasks:
        return None
    pairs = [(np.asarray(finals[task]), np.asarray(successes[task])) for task in tasks]
    value = float(np.mean([_auc(*pair) for pair in pairs]))
    samples = []
    for _ in range(RESAMPLES // 4):
        found = []
        for final_N, success_N in pairs:
            drawn_N = rng.integers(len(final_N), size=len(final_N))
            found.append(_auc(final_N[drawn_N], success_N[drawn_N]))
        samples.append(float(np.nanmean(found)) if not np.isnan(found).all() else math.nan)
    low, high = np.nanquantile(samples, (0.025, 0.975))
    return Bar(value, float(low), float(high), AUC, f"at least {AUC}", value >= AUC, AUC_AIM)


def minutes_bar(minutes: float, bar: float) -> Bar:
    """How long a whole run took."""
    return Bar(minutes, minutes, minutes, bar, f"at most {bar:.0f} minutes", minutes <= bar)


def _auc(final_N: npt.NDArray[np.float64], success_N: Verdicts) -> float:
    found = rank_auc(final_N.tolist(), success_N.tolist())
    return math.nan if found is None else found
