"""The cameras of the simulated robot, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CAMERAS = ("corner", "side", "wrist")
"""The three views, in the order of every array."""


@dataclass(frozen=True)
class View:
    """A camera: free (looking at a point) or, with `fixed`, one that the model names.

    lookat and distance in metres, azimuth and elevation in degrees.
    """

    lookat: tuple[float, float, float] = (0.0, 0.0, 0.0)
    distance: float = 0.0
    azimuth: float = 0.0
    elevation: float = 0.0
    fixed: str | None = None


def views_of(
    lookat: tuple[float, float, float] = (0.0, 0.68, 0.12),
    distance: float = 0.95,
    *,
    corner: float = 225.0,
    side: float = 0.0,
) -> Mapping[str, View]:
    """The three views of one work place. The model's own corner cameras are upside down and far away.

    Args:
        lookat: what both free cameras look at, metres.
        distance: how far they stand, metres. Near ones show small things in more pixels.
        corner, side: the azimuths, degrees, from which they look: 0 from the left, 90 from behind the robot,
            180 from the right, 270 towards the robot. Choose them so that neither furniture nor hand stands
            before what moves.
    """
    return MappingProxyType(
        {
            "corner": View(lookat, distance, corner, -30.0),
            "side": View(lookat, distance, side, -20.0),
            "wrist": View(fixed="gripperPOV"),
        }
    )


VIEWS = views_of()
"""The views that show most of the table."""
