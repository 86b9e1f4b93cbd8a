"""Messages to bytes and back. Whatever comes in, only a `Sarm2Error` comes out, fast and in bounded memory.

What a client sent goes through `checks` as well.

Two documented leniencies: of duplicate keys in a map the last one counts; any clock value is a valid `t_ns`,
for clocks are echoed and never trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec

from sarm2_client import wire
from sarm2_client.checks import (
    check_client_message,
    check_episode_frame,
    check_episode_request,
    check_score,
    shown,
)
from sarm2_client.errors import (
    BY_CODE,
    InvalidImage,
    InvalidInput,
    InvalidMessage,
    InvalidSequence,
    InvalidSession,
    InvalidState,
    Sarm2Error,
    TooLarge,
)

_T = TypeVar("_T")

_encoder: Final = msgspec.msgpack.Encoder()
_client_decoder: Final[msgspec.msgpack.Decoder[wire.ClientMessage]] = msgspec.msgpack.Decoder(
    wire.ClientMessage
)
_server_decoder: Final[msgspec.msgpack.Decoder[wire.ServerMessage]] = msgspec.msgpack.Decoder(
    wire.ServerMessage
)
_episode_response: Final = msgspec.msgpack.Decoder(wire.EpisodeResponse)
_embed_request: Final = msgspec.msgpack.Decoder(wire.EmbedRequest)
_embed_response: Final = msgspec.msgpack.Decoder(wire.EmbedResponse)

# What an undecodable field is called; the longest prefix that fits wins.
_FIELD_ERRORS: Final[tuple[tuple[str, type[InvalidInput]], ...]] = (
    ("$.images", InvalidImage),
    ("$.state", InvalidState),
    ("$.seq", InvalidSequence),
    ("$.resume_from", InvalidSequence),
    ("$.session_id", InvalidSession),
)


class _UnreadEpisode(wire.EpisodeRequest, kw_only=True, frozen=True, forbid_unknown_fields=True):
    frames: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=wire.MAX_EPISODE_FRAMES)]  # type: ignore[assignment]


_unread_episode: Final = msgspec.msgpack.Decoder(_UnreadEpisode)
_episode_frame: Final = msgspec.msgpack.Decoder(wire.EpisodeFrame)


class _FramePeek(msgspec.Struct, tag="frame", tag_field="type"):
    seq: wire.Seq


_peek: Final = msgspec.msgpack.Decoder(_FramePeek)


def encode(message: Any) -> bytes:
    """The msgpack bytes of a message or HTTP body. Raises InvalidMessage for what msgpack cannot hold."""
    try:
        return _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"this message cannot be written as msgpack: {error}") from error


# --- what a client sends -----------------------------------------------------------------------------


def decode_client_message(data: bytes, limits: wire.Limits) -> wire.ClientMessage:
    """One checked message of a client.

    Raises a subclass of InvalidInput that names the field; where the bytes are a frame whose `seq` can
    still be read, the error carries that `seq`, so that the episode need not end with it.
    """
    check_size(data, limits.max_message_bytes)
    try:
        message = _decode(_client_decoder, data)
        check_client_message(message, limits)
    except InvalidInput as error:
        error.seq = _seq_of(data)
        raise
    return message


def decode_episode_request(
    data: bytes, limits: wire.Limits, *, max_bytes: int, state_dim: int | None = None
) -> wire.EpisodeRequest:
    """The checked body of `POST /v1/episodes:score`, at most `max_bytes` long. Raises InvalidInput.

    Frames are read one by one: a thread that does it lets others run in between, and of a body of many
    numbers no more than the first wrong frame takes memory.

    Args:
        state_dim: how many state values the model takes, where it is known.
    """
    check_size(data, max_bytes)
    unread = _decode(_unread_episode, data)
    check_episode_request(unread, limits)
    fields = {name: getattr(unread, name) for name in unread.__struct_fields__ if name != "frames"}
    return wire.EpisodeRequest(**fields, frames=_read_frames(unread.frames, state_dim))


def _read_frames(unread: Sequence[msgspec.Raw], state_dim: int | None) -> list[wire.EpisodeFrame]:
    frames: list[wire.EpisodeFrame] = []
    last = -1
    for data in unread:
        try:
            frame = _decode(_episode_frame, data)
            last = check_episode_frame(frame, last, state_dim)
        except InvalidInput as error:
            error.seq = last + 1 if error.seq is None else error.seq
            error.message = f"frame {error.seq}: {error.message}"
            raise
        frames.append(frame)
    return frames


def decode_embed_request(data: bytes, *, max_bytes: int) -> wire.EmbedRequest:
    """The body of `POST /v1/embed`, at most `max_bytes` long. Raises InvalidInput."""
    check_size(data, max_bytes)
    return _decode(_embed_request, data)


# --- what a server sends -----------------------------------------------------------------------------


def decode_server_message(data: bytes) -> wire.ServerMessage:
    """One message of a server; unknown fields are ignored. Raises InvalidMessage, also for NaN in scores."""
    _check_bytes(data)
    message = _decode(_server_decoder, data)
    if isinstance(message, wire.Score):
        check_score(message)
    return message


def decode_episode_response(data: bytes) -> wire.EpisodeResponse:
    """The answer of `POST /v1/episodes:score`. Raises InvalidMessage."""
    _check_bytes(data)
    response = _decode(_episode_response, data)
    for score in response.scores:
        check_score(score)
    return response


def decode_embed_response(data: bytes) -> wire.EmbedResponse:
    """The answer of `POST /v1/embed`. Raises InvalidMessage, also where `data` is no whole number of rows."""
    _check_bytes(data)
    response = _decode(_embed_response, data)
    if response.dim < 1 or len(response.data) % (2 * response.dim):
        raise InvalidMessage(
            f"expected float16 rows of {response.dim} values, got {len(response.data)} bytes"
        )
    return response


def error_from(message: wire.Error) -> Sarm2Error:
    """The exception to raise for an error that a server reported."""
    error = BY_CODE.get(message.code, Sarm2Error)
    return error(message.message, field=message.field, error_id=message.error_id, seq=message.seq)


def error_message(error: Sarm2Error, *, error_id: str, seq: int | None = None) -> wire.Error:
    """The message that reports an exception to a client."""
    return wire.Error(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        error_id=error_id,
        seq=error.seq if seq is None else seq,
        field=error.field,
    )


# --- bytes -------------------------------------------------------------------------------------------


def _check_bytes(data: bytes) -> None:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidMessage(f"expected a binary message, got {type(data).__name__}; send msgpack, not text")
    if len(data) == 0:
        raise InvalidMessage("expected a msgpack map, got an empty message")


def check_size(data: bytes, max_bytes: int) -> None:
    """Raise TooLarge for more bytes than a message may have, InvalidMessage for what is no bytes."""
    _check_bytes(data)
    if len(data) > max_bytes:
        raise TooLarge(
            f"expected at most {max_bytes} bytes in a message, got {len(data)}; send smaller pictures"
        )


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes | msgspec.Raw) -> _T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from error
    except (ValueError, RecursionError, OverflowError) as error:  # a DecodeError is a ValueError
        raise InvalidMessage(f"expected a whole msgpack message: {shown(str(error))}") from error


def _named(text: str) -> InvalidInput:
    """The error of the field at fault: msgspec ends its message with a path such as `$.state[2]`."""
    _, _, path = text.rpartition(" - at ")
    path = path.rpartition(" in ")[2].strip("`")
    for prefix, error in _FIELD_ERRORS:
        if path.startswith(prefix):
            return error(shown(text), field=prefix.removeprefix("$."))
    field = path.removeprefix("$.") if path.startswith("$.") else None
    return InvalidMessage(shown(text), field=field)


def _seq_of(data: bytes) -> int | None:
    try:
        return _peek.decode(data).seq
    except (ValueError, RecursionError, OverflowError):
        return None
