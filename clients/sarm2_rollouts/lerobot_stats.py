"""Statistics of a dataset's features as LeRobot keeps them: per episode, and merged over all.

Each feature has minimum, maximum, mean, standard deviation (of the population), count and five quantiles.
Pictures are counted in 256-bin histograms per channel, so theirs are exact, in units of 0 to 1, of shape
(3, 1, 1). The quantiles of other features are, over a dataset, means weighted by count, as LeRobot merges
them; those of an episode are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sarm2_client.images import ImageHWC

Floats = npt.NDArray[np.float64]

QUANTILES: Final = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES: Final = ("min", "max", "mean", "std", "count", *QUANTILES)

_LARGE_PICTURE = 300
"""Pictures with a longer side than this are counted on every n-th pixel."""


@dataclass(frozen=True)
class NumberStats:
    """Statistics of a vector feature of N dimensions.

    Attributes:
        minimum, maximum, mean, std: (N,). quantiles: (5, N), in the order of QUANTILES.
        count: number of frames.
    """

    minimum: Floats
    maximum: Floats
    mean: Floats
    std: Floats
    quantiles: Floats
    count: int

    @classmethod
    def of(cls, values_TN: npt.ArrayLike) -> NumberStats | None:
        """Of the frames whose values are all finite; None if there is no such frame."""
        values = np.asarray(values_TN, dtype=np.float64)
        values = values.reshape(len(values), -1)
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return None
        quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
        return cls(
            values.min(0), values.max(0), values.mean(0), values.std(0), np.asarray(quantiles), len(values)
        )

    def merged(self, other: NumberStats) -> NumberStats:
        """Of both sets of frames together (parallel variance: Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / count
        difference = other.mean - self.mean
        variance = (1 - share) * self.std**2 + share * other.std**2 + share * (1 - share) * difference**2
        return NumberStats(
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.mean + share * difference,
            np.sqrt(variance),
            (1 - share) * self.quantiles + share * other.quantiles,
            count,
        )

    def to_json(self, *, whole: bool) -> dict[str, list[Any]]:
        """As in `stats.json`. With `whole`, minimum and maximum are integers."""
        ends = (self.minimum, self.maximum)
        minimum, maximum = (end.astype(np.int64) if whole else end for end in ends)
        rows = (minimum, maximum, self.mean, self.std, np.array([self.count]), *self.quantiles)
        return {name: row.tolist() for name, row in zip(NAMES, rows, strict=True)}


@dataclass(frozen=True)
class PictureStats:
    """Statistics of a camera.

    Attributes:
        histogram: int64 (3, 256), how often each value occurs in each channel.
        count: number of pictures counted.
    """

    histogram: npt.NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, pictures: Iterable[ImageHWC]) -> PictureStats:
        """Of uint8 RGB pictures (H, W, 3)."""
        histogram, count = np.zeros((3, 256), dtype=np.int64), 0
        for picture in pictures:
            step = max(1, max(picture.shape[:2]) * 2 // _LARGE_PICTURE)
            step = step if max(picture.shape[:2]) >= _LARGE_PICTURE else 1
            for channel in range(3):
                histogram[channel] += np.bincount(picture[::step, ::step, channel].reshape(-1), minlength=256)
            count += 1
        return cls(histogram, count)

    def merged(self, other: PictureStats) -> PictureStats:
        """Of both sets of pictures together."""
        return PictureStats(self.histogram + other.histogram, self.count + other.count)

    def to_json(self) -> dict[str, list[Any]]:
        """As in `stats.json`: (3, 1, 1), values from 0 to 1."""
        levels = np.arange(256) / 255.0
        share = self.histogram / self.histogram.sum(axis=1, keepdims=True)
        mean = share @ levels
        std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0))
        present = [np.flatnonzero(row) / 255.0 for row in self.histogram]
        ends = np.array([[values[0], values[-1]] for values in present])
        below = share.cumsum(axis=1)
        quantiles = [
            np.array([levels[min(255, int(np.searchsorted(row, q)))] for row in below])
            for q in QUANTILES.values()
        ]
        rows = dict(zip(NAMES, (ends[:, 0], ends[:, 1], mean, std, None, *quantiles), strict=True))
        return {
            name: [self.count] if row is None else row.reshape(3, 1, 1).tolist() for name, row in rows.items()
        }


def sampled(length: int) -> npt.NDArray[np.int64]:
    """The frames of an episode whose pictures are counted: all up to 100, then ever fewer (length to .75)."""
    count = min(length, max(100, int(length**0.75)), 10_000)
    return np.unique(np.linspace(0, length - 1, count).round().astype(np.int64))
