"""What a good reward model has to reach on the ten tasks, and whether SARM2 does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from sarm2_models.estimate import Estimate

Kind: TypeAlias = Literal["at most", "at least", "contains"]
Row: TypeAlias = Mapping[str, Estimate]

BASELINES = ("language", "single_task_all", "single_task_one")
"""The trained baselines: alternatives that somebody would really take."""


ASKED: MappingProxyType[str, tuple[Kind, float]] = MappingProxyType(
    {
        "demo_mse": ("at most", 0.003),
        "rollout_mse": ("at most", 0.006),
        "success_auc": ("at least", 0.975),
        "ranking": ("at least", 0.85),
        "drop_recall": ("at least", 0.85),
        "false_drop_rate": ("at most", 0.02),
        "jitter": ("at most", 0.015),
        "primitive_accuracy_demo": ("at least", 0.96),
        "rollout_primitive_accuracy_without_null": ("at least", 0.85),
        "segment_f1": ("at least", 0.88),
        "ece": ("at most", 0.04),
        "interval_coverage_demo": ("contains", 0.9),
        "interval_coverage_rollout": ("contains", 0.9),
        "interval_width_demo": ("at most", 0.2),
        "interval_width_rollout": ("at most", 0.2),
    }
)
"""What SARM2's own metrics have to reach; the other bars compare it with somebody."""


PROBED: MappingProxyType[str, float] = MappingProxyType({"tool": 0.96, "object": 0.93, "goal": 0.88})
"""What the probe's R2 has to reach, by point."""


@dataclass(frozen=True)
class Bar:
    """A number, what it has to reach, and whether it does.

    `contains`: the interval has to contain the bar. `by`: which number counts; the interval's far end where
    "no worse within the interval" is asked.
    """

    estimate: Estimate
    kind: Kind
    bar: float
    by: Literal["value", "low", "high"] = "value"

    @property
    def met(self) -> bool | None:
        """None where there is no number."""
        found = getattr(self.estimate, self.by)
        low, high = self.estimate.low, self.estimate.high
        if self.kind == "contains":
            return None if low is None or high is None else low <= self.bar <= high
        if found is None:
            return None
        return bool(found <= self.bar if self.kind == "at most" else found >= self.bar)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return self.estimate.as_json() | {"kind": self.kind, "bar": self.bar, "by": self.by, "met": self.met}


def bars(
    measured: Mapping[str, Row],
    by_task: Mapping[str, Mapping[str, Row]],
    over: Mapping[str, Row],
    less: Mapping[str, Row],
    probe: Row,
) -> dict[str, Bar]:
    """Every bar by name.

    Args:
        measured: metrics by contender. by_task: the same by task.
        over, less: SARM2 over, and less, each other contender.
        probe: R2 of the embeddings by point.
    """
    ours = measured["sarm2"]
    best = min(BASELINES, key=lambda name: _or(measured[name]["rollout_mse"], 1.0))
    ranks = min(BASELINES, key=lambda name: -_or(measured[name]["ranking"], -1.0))
    tasks = [table["sarm2"]["ranking"] for table in by_task.values()]
    known = [one for one in tasks if one.value is not None]
    worst = min(known, key=lambda one: _or(one, 1.0)) if known else Estimate(None, None, None, 0)
    alone = {name: Bar(ours[name], *asked) for name, asked in ASKED.items()}
    beside = {
        "rollout_mse over state_only's": Bar(over["state_only"]["rollout_mse"], "at most", 0.6),
        "demo_mse over clock's": Bar(over["clock"]["demo_mse"], "at most", 0.2),
        f"rollout_mse over {best}'s": Bar(over[best]["rollout_mse"], "at most", 1.0, by="low"),
        f"ranking less {ranks}'s": Bar(less[ranks]["ranking"], "at least", 0.0, by="high"),
        "ranking of the worst task": Bar(worst, "at least", 0.65),
    }
    table = alone | beside
    for point, bar in PROBED.items():
        table[f"probe R2 of the {point}"] = Bar(probe[point], "at least", bar)
    return table


def _or(estimate: Estimate, fallback: float) -> float:
    return fallback if estimate.value is None else estimate.value
