"""A base policy that other people trained, by its address: `lerobot:FOLDER` or `openpi:HOST:PORT`.

The classes that speak to it are imported when it is loaded: nothing else needs their libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.metaworld_robot import ACTION_NAMES, CAMERAS, STATE_NAMES
from sarm2_spiral.base_policy import BasePolicy
from sarm2_spiral.input_map import Robot, parse_map

LIBRARIES = ("lerobot", "openpi")
WEIGHTS = "model.safetensors"
"""Of a LeRobot policy, in its folder."""

ROBOT = Robot(CAMERAS, STATE_NAMES, len(ACTION_NAMES))


@dataclass(frozen=True)
class GivenPolicy:
    """Where a policy is, and what it is given.

    Attributes:
        library: one of `LIBRARIES`.
        place: a folder or a hub name; HOST:PORT.
        inputs: lines of its map (see `input_map`).
        device: where a LeRobot policy runs, "cpu" or "cuda".
    """

    library: str
    place: str
    inputs: tuple[str, ...] = ()
    device: str = "cpu"

    @classmethod
    def parse(cls, text: str, inputs: Sequence[str] = (), device: str = "cpu") -> GivenPolicy | None:
        """A policy by its address, or None for the name of a built-in one, which has no colon.

        Raises InvalidInput for an address or a map that cannot be right.
        """
        library, colon, place = text.partition(":")
        if not colon:
            return None
        if library not in LIBRARIES:
            raise InvalidInput(
                f"--policy {text!r}: expected lerobot:FOLDER, openpi:HOST:PORT, image or state",
                field="policy",
            )
        if library == "openpi":
            host_and_port(place)
        elif Path(place).exists():
            place = str(Path(place).resolve())  # the same run from another folder
        parse_map(inputs, ROBOT)
        return cls(library, place, tuple(inputs), device)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GivenPolicy:
        """The inverse of `dataclasses.asdict`, through JSON."""
        return cls(data["library"], data["place"], tuple(data["inputs"]), data["device"])

    def __str__(self) -> str:
        return f"{self.library}:{self.place}"

    def weights_sha256(self) -> str | None:
        """Of its file of weights; None where it has none here: one of the hub, or behind a server."""
        path = Path(self.place) / WEIGHTS
        if self.library != "lerobot" or not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def load(self) -> BasePolicy:
        """The policy, ready to be asked.

        Raises NotFound or InvalidInput for one that is not there or does not fit the robot, ConnectionLost or
        WaitTimeout for a server that does not answer.
        """
        inputs = parse_map(self.inputs, ROBOT)
        if self.library == "lerobot":
            from sarm2_spiral.lerobot_policy import LeRobotPolicy

            return LeRobotPolicy.load(self.place, inputs, ROBOT, self.device)
        from sarm2_spiral.openpi_policy import OpenPiPolicy

        return OpenPiPolicy(*host_and_port(self.place), inputs, ROBOT)


def host_and_port(place: str) -> tuple[str, int]:
    """An address as `HOST:PORT`. Raises InvalidInput for another."""
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise InvalidInput(
            f"openpi:{place}: expected openpi:HOST:PORT, openpi:127.0.0.1:8000 say", field="policy"
        )
    return host, int(port)
