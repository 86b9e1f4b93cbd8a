"""Falls of progress: where true progress falls, and whether predicted progress notices.

Shapes: T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating]

FALL = 0.2
"""A drop: true progress falls by at least this much within `FALL_WINDOW_S`."""
FALL_WINDOW_S = 1.2
"""A fall is measured, and must be noticed, within this many seconds of its first frame."""

FALSE_ALARM_RATE = 0.02
"""Share of clean demonstrations in which an alarm may go off."""
LEAST_ALARM = 0.02
"""A smaller fall is trembling, however still the clean demonstrations are."""


def fall_window(fps: float) -> int:
    """Frames in `FALL_WINDOW_S` at `fps`, at least 1."""
    return max(1, round(FALL_WINDOW_S * fps))


def falls(values_T: Floats, fps: float, threshold: float = FALL) -> list[tuple[int, float]]:
    """Where a curve falls by `threshold` or more within `FALL_WINDOW_S`: (first frame, depth) of each fall.

    The first frame is the last one before the curve goes down; the depth is to the lowest point inside the
    window. Falls do not overlap: the search goes on from the lowest point, so one long slide counts once a
    window and a dropped object counts once.
    """
    window, found, start = fall_window(fps), [], 0
    while start < len(values_T) - 1:
        ahead = values_T[start : start + window + 1]
        bottom = int(np.argmin(ahead))
        depth = float(ahead[0] - ahead[bottom])
        # The fall starts where the curve leaves its last high point, not anywhere on a plateau before it.
        if depth >= threshold and values_T[start + 1] < values_T[start]:
            found.append((start, depth))
            start += bottom
        else:
            start += 1
    return found


def fall_caught(progress_T: Floats, start: int, depth: float, fps: float) -> bool:
    """Whether predicted progress falls by at least half of `depth` inside the window that starts there."""
    ahead = progress_T[start : start + fall_window(fps) + 1]
    return bool(ahead[0] - ahead.min() >= depth / 2)


def fallen(progress_T: Floats, fps: float) -> Floats:
    """How far each frame lies below the highest of the `FALL_WINDOW_S` before it, at least 0."""
    window = fall_window(fps)
    values = np.asarray(progress_T, dtype=np.float64)
    padded = np.concatenate([np.full(window, -np.inf), values])
    highest_T = np.lib.stride_tricks.sliding_window_view(padded, window + 1).max(axis=1)
    return np.asarray(highest_T - values)


def alarm_size(
    clean: Sequence[Floats], fps: Sequence[float], share: float = FALSE_ALARM_RATE
) -> float | None:
    """The smallest fall that at most `share` of some clean demonstrations ever go beyond; None without any.

    Args:
        clean: progress of each demonstration, in none of which anything is undone. fps: of each.
    """
    if not clean:
        return None
    largest = sorted(
        (float(fallen(one, rate).max()) for one, rate in zip(clean, fps, strict=True)), reverse=True
    )
    return max(LEAST_ALARM, largest[int(share * len(largest))])


def alarm_delay(progress_T: Floats, start: int, fps: float, size: float) -> float | None:
    """Seconds from a true fall's first frame until progress has fallen by more than `size` since then; None
    where it has not within `FALL_WINDOW_S`.
    """
    ahead = np.asarray(progress_T[start : start + fall_window(fps) + 1], dtype=np.float64)
    below = np.flatnonzero(np.maximum.accumulate(ahead) - ahead > size)
    return float(below[0] / fps) if len(below) else None


def falls_for_no_reason(progress_T: Floats, truth_T: Floats, fps: float) -> bool:
    """Whether prediction falls by half of `FALL` somewhere that truth does not fall at all nearby.

    Half of `FALL` is what would count as noticing the smallest drop, so this is the same alarm on an episode
    that holds no drop.
    """
    window = fall_window(fps)
    for start, _ in falls(progress_T, fps, FALL / 2):
        near_T = truth_T[max(0, start - window) : start + window + 1]
        if not falls(near_T, fps, FALL / 2):
            return True
    return False
