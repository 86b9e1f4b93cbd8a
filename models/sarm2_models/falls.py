"""Falls of progress: where true progress falls, and whether predicted progress notices.

Shapes: T frames.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating]

FALL = 0.2
"""A drop: true progress falls by at least this much within `FALL_WINDOW_S`."""
FALL_WINDOW_S = 1.2
"""A fall is measured, and must be noticed, within this many seconds of its first frame."""


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
