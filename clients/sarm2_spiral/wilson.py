"""How sure a success rate is."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 1.959963984540054
"""Two-sided 95 %."""


@dataclass(frozen=True)
class Rate:
    """Successes of trials, with Wilson's score interval at 95 % (Wilson 1927)."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share; NaN without trials."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self._end(-1)

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self._end(1)

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.successes + other.successes, self.trials + other.trials)

    def _end(self, side: int) -> float:
        if self.trials == 0:
            return 0.0 if side < 0 else 1.0
        n, p = self.trials, self.value
        middle = p + Z**2 / (2 * n)
        half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        end = (middle + side * half) / (1 + Z**2 / n)
        # Rounding may put the end of 0 of 6 a hair above 0, and so above the value itself.
        return min(p, max(0.0, end)) if side < 0 else max(p, min(1.0, end))

    def as_json(self) -> dict[str, float | int]:
        """Plain numbers."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.trials}
