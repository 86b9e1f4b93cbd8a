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


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "corner": View((0.0, 0.68, 0.12), 0.95, 225.0, -30.0),
        "side": View((0.0, 0.65, 0.12), 0.95, 0.0, -20.0),
        "wrist": View(fixed="gripperPOV"),
    }
)
"""The three views that show the work. The model's own corner cameras are upside down and far away."""
