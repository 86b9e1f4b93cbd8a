"""What a policy from elsewhere is given under which of its own keys.

A line of the map reads `KEY=SOURCE`. The source is a camera of the robot, `state` (all of its state), names
of state dimensions separated by commas, or `instruction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput
from sarm2_spiral.base_policy import Float32Array, Frame

SourceKind: TypeAlias = Literal["camera", "state", "instruction"]


@dataclass(frozen=True)
class Robot:
    """What a robot has to offer: its cameras, the names of its state dimensions, and its actions' number."""

    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    actions: int

    def __str__(self) -> str:
        return (
            f"the robot has the cameras {', '.join(self.cameras)} and the state {', '.join(self.state_names)}"
        )


@dataclass(frozen=True)
class Source:
    """Where the value of a key comes from.

    Attributes:
        kind: what it is. name: as it was written; of a camera its name.
        columns: of the state.
    """

    kind: SourceKind
    name: str
    columns: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str, robot: Robot) -> Source:
        """A source as it is written in a map. Raises InvalidInput for one that the robot does not have."""
        if text == "instruction":
            return cls("instruction", text)
        if text == "state":
            return cls("state", text, tuple(range(len(robot.state_names))))
        if text in robot.cameras:
            return cls("camera", text)
        names = [name.strip() for name in text.split(",")]
        if any(name not in robot.state_names for name in names):
            raise InvalidInput(
                f"there is no input {text!r}: expected a camera, `state`, names of the state separated by "
                f"commas, or `instruction`; {robot}",
                field="map",
            )
        return cls("state", text, tuple(robot.state_names.index(name) for name in names))

    def picture(self, images: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """A camera's picture out of a frame's, uint8 (H, W, 3). Raises InvalidInput where it is not there."""
        if self.name not in images:
            there = f"it has {', '.join(images)}" if images else "it has none"
            raise InvalidInput(
                f"the policy looks at the camera {self.name!r}, and a frame has no such picture; {there}",
                field="map",
            )
        return images[self.name]

    def numbers(self, frame: Frame) -> Float32Array:
        """The state's columns, float32."""
        chosen: Float32Array = frame.state_S[list(self.columns)].astype(np.float32)
        return chosen


def parse_map(lines: Sequence[str], robot: Robot) -> dict[str, Source]:
    """Sources by key. Raises InvalidInput for a line that is none, or a key that stands twice."""
    found: dict[str, Source] = {}
    for line in lines:
        key, equals, text = line.partition("=")
        if not (key and equals and text):
            raise InvalidInput(
                f"--map {line!r}: expected KEY=SOURCE, observation.image=corner say", field="map"
            )
        if key in found:
            raise InvalidInput(f"--map {line!r}: the key {key!r} has a source already", field="map")
        found[key] = Source.parse(text, robot)
    return found
