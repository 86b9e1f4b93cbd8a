"""What openpi's clients speak: a robot that asks a policy server for actions asks this one for its reward.

`openpi_client.WebsocketClientPolicy(host, port).infer(observation)` answers with a score; nothing of it needs
to change. An observation holds, under openpi's manner of keys:

    observation/CAMERA      uint8 (height, width, 3), RGB, for each of the model's cameras
    observation/state       float (state_dim,), the proprioceptive state
    prompt                  the instruction
    fps                     frames a second, with the first observation of an episode
    episode_id, reset       optional: another id, or a true `reset`, begins another episode

Otherwise a connection is one episode. What cannot be scored is told as text, which openpi's client raises.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np

from sarm2_client import openpi_wire, wire
from sarm2_client.checks import check_client_message
from sarm2_client.codec import check_size, decode_server_message
from sarm2_client.errors import InvalidInput, Sarm2Error
from sarm2_service.stream_codec import Event

_M = TypeVar("_M", wire.Start, wire.Frame)

VIEW, STATE = "observation/{camera}", "observation/state"
_PLAIN: dict[str, tuple[set[type], str]] = {
    "prompt": ({str}, "text"),
    "fps": ({int, float}, "a number"),
    "episode_id": ({str, int}, "text or a number"),
    "reset": ({bool}, "true or false"),
}
"""What an observation holds beside pictures and state."""

_KEYS_OF_FIELDS = {"task": "prompt", "session_id": "episode_id", "state": STATE}
"""Where a field of `sarm.v1` stands in an observation."""


class OpenPiCodec:
    """One connection's observations and answers.

    Args:
        cameras: the model's.
    """

    resumes = False

    def __init__(self, limits: wire.Limits, cameras: list[str]) -> None:
        self._limits, self._views = limits, {VIEW.format(camera=camera): camera for camera in cameras}
        self._keys, self._needed = [*self._views, STATE, *_PLAIN], [*self._views, STATE, "prompt"]
        self._start: wire.Start | None = None
        self._episode: str | int | None = None
        self._seq = 0

    def read(self, data: bytes) -> Iterator[wire.ClientMessage]:
        """A frame, after `start` where an episode begins, and `end` where another was open.

        Raises InvalidInput for what is no observation, with the key at fault as its field. It then changes
        nothing: the episode goes on.
        """
        check_size(data, self._limits.max_message_bytes)
        observation = openpi_wire.unpack(data)
        self._check_keys(observation)
        begins = self._begins(observation)
        seq = 0 if begins else self._seq + 1
        frame = self._checked(self._frame(observation, seq))
        if begins:
            start = self._checked(self._started(observation))
            if self._start is not None:
                self._start = None
                yield wire.End()
            yield start
            self._start, self._episode = start, observation.get("episode_id")
        self._seq = seq
        yield frame

    def event(self, data: bytes) -> Event | None:
        """A score as a map, a failure as text; nothing of what openpi's clients do not wait for."""
        message = decode_server_message(data)
        if isinstance(message, wire.Hello):
            return {"type": "websocket.send", "bytes": openpi_wire.pack(self._metadata(message))}
        if isinstance(message, wire.Score):
            return {"type": "websocket.send", "bytes": openpi_wire.pack(_answer(message))}
        if isinstance(message, wire.Error):
            return {"type": "websocket.send", "text": f"{message.code}: {message.message}"}
        if isinstance(message, wire.Dropped):
            return {"type": "websocket.send", "text": f"dropped: {message.reason}"}
        return None

    def _metadata(self, hello: wire.Hello) -> dict[str, Any]:
        about: dict[str, Any] = msgspec.to_builtins(hello.model)
        return about | {"server_version": hello.server_version, "observation": self._keys}

    def _check_keys(self, observation: Mapping[Any, Any]) -> None:
        missing = [key for key in self._needed if observation.get(key) is None]
        unknown = [str(key)[:64] for key in observation if key not in self._keys]
        if missing or unknown:
            wrong = f"lacks {missing}" if missing else f"has {unknown[:10]}, which mean nothing here"
            raise InvalidInput(
                f"the observation {wrong}; its keys are {self._keys}", field=[*missing, *unknown][0]
            )
        for key, (kinds, words) in _PLAIN.items():
            value = observation.get(key)
            if value is not None and type(value) not in kinds:
                raise InvalidInput(f"expected {key} as {words}, got {type(value).__name__}", field=key)

    def _begins(self, observation: Mapping[str, Any]) -> bool:
        start, episode = self._start, observation.get("episode_id")
        if start is None or observation.get("reset") or (episode is not None and episode != self._episode):
            return True
        for key, before in (("prompt", start.task), ("fps", start.fps)):
            if observation.get(key) not in (None, before):
                raise InvalidInput(
                    f"{key} was {before!r} when this episode began and is another now; begin an episode with "
                    "`reset` true, or another `episode_id`",
                    field=key,
                )
        return False

    def _started(self, observation: Mapping[str, Any]) -> wire.Start:
        fps = observation.get("fps") or (self._start.fps if self._start is not None else None)
        if fps is None:
            raise InvalidInput(
                "the first observation of an episode says how many frames a second follow: fps, a number",
                field="fps",
            )
        episode = observation.get("episode_id")
        return wire.Start(
            # Of its own even where a robot counts its episodes from 0 again.
            session_id=f"{'openpi' if episode is None else episode}.{secrets.token_hex(4)}",
            task=observation["prompt"],
            fps=float(fps),
            cameras=list(self._views.values()),
        )

    def _frame(self, observation: Mapping[str, Any], seq: int) -> wire.Frame:
        images = {camera: _picture(key, observation[key]) for key, camera in self._views.items()}
        return wire.Frame(seq=seq, t_ns=time.time_ns(), images=images, state=_numbers(observation[STATE]))

    def _checked(self, message: _M) -> _M:
        """The same after the checks of `sarm.v1`: one set of rules. Errors name an observation's keys."""
        try:
            check_client_message(message, self._limits)
        except Sarm2Error as error:
            error.field = _KEYS_OF_FIELDS.get(error.field or "", error.field)
            raise
        return message


def _numbers(state: Any) -> list[float]:
    try:
        state_S = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError):
        state_S = np.empty((0, 0))
    if state_S.ndim != 1:
        raise InvalidInput(f"expected {STATE} as a row of numbers", field=STATE)
    return [float(value) for value in state_S]


def _picture(key: str, picture: Any) -> wire.Image:
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3:
        got = (
            f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        )
        raise InvalidInput(f"expected {key} as uint8 (height, width, 3), got {got}", field=key)
    height, width, colours = picture.shape
    return wire.Image(enc="raw", data=picture.tobytes(), shape=(height, width, colours), dtype="uint8")


def _answer(score: wire.Score) -> dict[str, Any]:
    """The score's fields; lists as float32 arrays, and openpi's own name for the time that it took."""
    fields = msgspec.structs.asdict(score)
    del fields["t_ns"], fields["durable_seq"], fields["timing"]
    arrays = {
        name: np.asarray(fields[name], np.float32) for name in ("primitive_probs", "interval", "experts")
    }
    return fields | arrays | {"server_timing": {"infer_ms": score.timing.total_ms}}
