"""A metric's value with its interval, by a bootstrap over episodes.

Whole episodes are drawn: frames of one episode are far from independent. A metric that is split into
per-episode contributions costs one matrix product.

Shapes: R draws, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating]

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A metric's value, its 95 % bootstrap interval over episodes, and n.

    n counts the episodes that entered, except for `drop_recall`, where it counts drops. `value`, `low` and
    `high` are None where nothing entered (no drop happened, say). `samples` are its values over `draws`: the
    same draws for the same number of episodes and seed, so estimates of several models can be paired.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    samples: Floats | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> dict[str, float | int | None]:
        """Plain numbers, ready for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    @classmethod
    def of(cls, value: float | None, samples: Floats, n: int) -> Estimate:
        """From a metric's value and its values over `draws`; those that are not finite are left out."""
        kept = samples[np.isfinite(samples)]
        if value is None or not len(kept):
            return cls(value, None, None, n)
        low, high = np.percentile(kept, (2.5, 97.5))
        return cls(value, float(low), float(high), n, samples)

    @classmethod
    def mean(cls, estimates: Sequence[Estimate]) -> Estimate:
        """Of one metric on the same episodes by several models of a kind, one a training seed.

        Every draw of episodes is joined by one of seeds: the interval holds for another training too. Paired
        by draw with the mean of any other kind that has as many seeds.
        """
        values = [one.value for one in estimates if one.value is not None]
        samples = [one.samples for one in estimates if one.samples is not None]
        if not values or len(samples) < len(estimates):
            return cls(float(np.mean(values)) if values else None, None, None, estimates[0].n)
        samples_MR = np.stack(samples)
        seeds_MR = np.random.default_rng(0).integers(0, len(samples), samples_MR.shape)
        drawn_R = np.take_along_axis(samples_MR, seeds_MR, axis=0).mean(axis=0)
        return cls.of(float(np.mean(values)), drawn_R, estimates[0].n)

    def over(self, other: Estimate) -> Estimate:
        """This metric over that of another model on the same episodes, paired by draw."""
        if self.value is None or not other.value:
            return Estimate(None, None, None, self.n)
        if self.samples is None or other.samples is None:
            return Estimate(self.value / other.value, None, None, self.n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate.of(self.value / other.value, self.samples / other.samples, self.n)

    def minus(self, other: Estimate) -> Estimate:
        """This metric less that of another model on the same episodes, paired by draw."""
        if self.value is None or other.value is None:
            return Estimate(None, None, None, self.n)
        if self.samples is None or other.samples is None:
            return Estimate(self.value - other.value, None, None, self.n)
        return Estimate.of(self.value - other.value, self.samples - other.samples, self.n)


def draws(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of `count` episodes, drawn with replacement `RESAMPLES` times: (RESAMPLES, count)."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def ratio(pairs_N2: Sequence[tuple[float, float]], seed: int, *, root: bool = False) -> Estimate:
    """Sum of numerators over sum of denominators, with its interval. `root`: the square root of it."""
    pairs = np.asarray(pairs_N2, dtype=np.float64).reshape(-1, 2)
    if not len(pairs) or pairs[:, 1].sum() == 0:
        return Estimate(None, None, None, 0)
    sums = pairs[draws(len(pairs), seed)].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        samples = sums[:, 0] / sums[:, 1]
    value = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    if root:
        value, samples = float(np.sqrt(value)), np.sqrt(samples)
    return Estimate.of(value, samples, int((pairs[:, 1] > 0).sum()))
