"""A base policy behind an openpi policy server: pi0 and its like, as their authors serve them.

The server draws its noise itself and takes none, so equal questions may get other answers: such a policy has
no latent, and the M chunks of a moment are M answers.

Shapes: B moments, M answers a moment, H actions of a chunk, A action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sarm2_client import openpi_wire
from sarm2_client.errors import InvalidInput, InvalidMessage, ModelFailed
from sarm2_spiral.base_policy import Float32Array, Moment
from sarm2_spiral.input_map import Robot, Source, parse_map
from sarm2_spiral.openpi_connection import OpenPiConnection, Waits

INPUTS = (
    "observation/image={camera}",
    "observation/wrist_image={wrist}",
    "observation/state=state",
    "prompt=instruction",
)
"""The keys of openpi's LIBERO policies, where no map is given. A server does not tell which keys it wants."""

ACTIONS = "actions"
"""The key under which every policy of openpi answers."""


class OpenPiPolicy:
    """A policy server. A `BasePolicy`.

    Args:
        host, port: of the server.
        inputs: what it is told under which key; `INPUTS` where empty. Pictures go as they are, uint8
            (H, W, 3): openpi's own transforms fit them.
        robot: whose actions it gives.

    Raises ConnectionLost or WaitTimeout where the server cannot be reached.
    """

    latent_size = 0
    history = 1

    def __init__(
        self, host: str, port: int, inputs: Mapping[str, Source], robot: Robot, waits: Waits | None = None
    ) -> None:
        self._inputs, self._actions = dict(inputs) or default_inputs(robot), robot.actions
        self._connection = OpenPiConnection(host, port, waits or Waits())
        self._connection.open()

    def sample_chunks(self, moments: Sequence[Moment], latent_BML: Float32Array) -> Float32Array:
        """Chunks (B, M, H, A): M answers to each moment, clipped to [-1, 1]."""
        answers = range(latent_BML.shape[1])
        questions = [openpi_wire.pack(self._question(moment)) for moment in moments]
        chunks = [[self._chunk(question) for _ in answers] for question in questions]
        lengths = {len(chunk_HA) for row in chunks for chunk_HA in row}
        if len(lengths) > 1:
            raise InvalidMessage(
                f"expected chunks of one length from the policy server, got {sorted(lengths)} actions"
            )
        return np.stack([np.stack(row) for row in chunks])

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        self._connection.close()

    def _question(self, moment: Moment) -> dict[str, Any]:
        frame = moment.frames[-1]
        images = frame.images
        found: dict[str, Any] = {}
        for key, source in self._inputs.items():
            if source.kind == "camera":
                found[key] = source.picture(images)
            else:
                found[key] = moment.instruction if source.kind == "instruction" else source.numbers(frame)
        return found

    def _chunk(self, question: bytes) -> Float32Array:
        answer = openpi_wire.unpack(self._connection.ask(question))
        chunk = answer.get(ACTIONS)
        if not isinstance(chunk, np.ndarray) or chunk.ndim != 2 or chunk.shape[1] != self._actions:
            got = f"the shape {chunk.shape}" if isinstance(chunk, np.ndarray) else f"keys {sorted(answer)}"
            raise InvalidInput(
                f"expected {ACTIONS!r} of the shape (H, {self._actions}) from the policy server, got {got}; "
                "serve a policy that was trained for this robot",
                field="policy",
            )
        if not np.isfinite(chunk).all():
            raise ModelFailed("the policy server answered with actions that are not finite")
        return np.clip(chunk, -1.0, 1.0).astype(np.float32)


def default_inputs(robot: Robot) -> dict[str, Source]:
    """`INPUTS` for a robot: its first camera, and the one called wrist or else its last."""
    wrist = "wrist" if "wrist" in robot.cameras else robot.cameras[-1]
    return parse_map([line.format(camera=robot.cameras[0], wrist=wrist) for line in INPUTS], robot)
