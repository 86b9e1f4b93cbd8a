"""Bytes from strangers: a message of the protocol, or a typed error, quickly and in little memory."""

from __future__ import annotations

import resource
import struct
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.peer import CAMERAS, LIMITS, hello, score_of, summary_of
from client.peer import Session as PeerSession
from sarm2_client import wire
from sarm2_client.codec import (
    decode_client_message,
    decode_embed_request,
    decode_embed_response,
    decode_episode_request,
    decode_episode_response,
    decode_server_message,
    encode,
    error_from,
    error_message,
)
from sarm2_client.errors import (
    BY_CODE,
    InvalidImage,
    InvalidInput,
    InvalidMessage,
    InvalidSequence,
    InvalidSession,
    InvalidState,
    Overloaded,
    Sarm2Error,
    TooLarge,
)
from sarm2_client.images import decode_image

JPEG = wire.Image(enc="jpeg", data=b"\xff\xd8")
START = wire.Start(session_id="a", task="open the drawer", fps=10.0, cameras=CAMERAS)
FRAME = wire.Frame(seq=3, t_ns=1, images={"corner": JPEG}, state=[0.0])


def raw(message: Any, **changes: Any) -> bytes:
    """The message as bytes with fields set to anything, as a hostile client would."""
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    return msgspec.msgpack.encode({**fields, **changes})


def decode(data: bytes) -> wire.ClientMessage:
    return decode_client_message(data, LIMITS)


# --- whole messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [START, FRAME, wire.End(seq=3), wire.End(), wire.Ping(t_ns=-5)],
    ids=lambda message: type(message).__name__,
)
def test_what_a_client_sends_comes_back_equal(message: wire.ClientMessage) -> None:
    assert decode(encode(message)) == message


def server_messages() -> list[wire.ServerMessage]:
    return [
        hello(),
        wire.Started(session_id="a", next_seq=0, resumed=False, task_known=True),
        score_of(FRAME, 0.5),
        wire.Dropped(seq=1, reason="deadline"),
        summary_of(PeerSession(START)),
        wire.Error(code="internal", message="m", retryable=False, error_id="e"),
        wire.DrainingNotice(deadline_s=3.0),
        wire.Pong(t_ns=1, server_time_ns=2),
    ]


@pytest.mark.parametrize("message", server_messages(), ids=lambda message: type(message).__name__)
def test_what_a_server_sends_comes_back_equal(message: wire.ServerMessage) -> None:
    assert decode_server_message(encode(message)) == message


def test_a_newer_server_may_send_fields_that_an_older_client_ignores() -> None:
    message = wire.Dropped(seq=1, reason="deadline")
    assert decode_server_message(raw(message, novelty=[1, 2])) == message


def test_a_client_may_not_send_fields_that_the_protocol_does_not_know() -> None:
    with pytest.raises(InvalidMessage, match="novelty"):
        decode(raw(START, novelty=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["progress", "value", "reward", "confidence", "interval", "primitive_probs"])
def test_a_score_that_is_not_finite_is_refused(name: str, value: float) -> None:
    broken: Any = [value, value] if name in ("interval", "primitive_probs") else value
    with pytest.raises(InvalidMessage, match="finite"):
        decode_server_message(raw(score_of(FRAME, 0.5), **{name: broken}))


# --- hostile bytes --------------------------------------------------------------------------------------


def packed(text: str) -> bytes:
    return msgspec.msgpack.encode(text)


HEAD = b"\x85" + packed("type") + packed("frame") + packed("seq") + b"\x01" + packed("t_ns") + b"\x01"
HOSTILE = {
    "empty": b"",
    "nil": b"\xc0",
    "number": b"\x05",
    "empty map": b"\x80",
    "empty array": b"\x90",
    "text": packed("frame"),
    "unused byte": b"\xc1",
    "trailing bytes": encode(wire.Ping(t_ns=1)) + b"\x00",
    "two messages": encode(wire.Ping(t_ns=1)) * 2,
    "nested arrays": b"\x91" * 1_000_000,
    "nested arrays in an unknown field": b"\x82" + packed("x") + b"\x91" * 1_000_000,
    "nested maps in an unknown field": b"\x82" + packed("x") + b"\x81\xa1a" * 300_000,
    "nested arrays as state": b"\x82"
    + packed("type")
    + packed("frame")
    + packed("state")
    + b"\x91" * 900_000,
    "array of 2^32 items": b"\xdd\xff\xff\xff\xff",
    "map of 2^32 items": b"\xdf\xff\xff\xff\xff" + packed("type") + packed("frame"),
    "state of 2^32 items": HEAD + packed("images") + b"\x80" + packed("state") + b"\xdd\xff\xff\xff\xff",
    "images of 2^32 items": HEAD + packed("images") + b"\xdf\xff\xff\xff\xff",
    "data of 2^32 bytes": HEAD
    + packed("images")
    + b"\x81\xa1a\x82"
    + packed("enc")
    + packed("raw")
    + packed("data")
    + b"\xc6\xff\xff\xff\xff",
    "lone surrogate": encode(START).replace(packed("open the drawer"), b"\xa3\xed\xa0\x80"),
    "extension type": b"\x82" + packed("type") + packed("ping") + packed("t_ns") + b"\xd4\x01\x01",
    "no type": b"\x81" + packed("seq") + b"\x01",
    "type is a number": b"\x81" + packed("type") + b"\x01",
    "unknown type": b"\x81" + packed("type") + packed("exec"),
    "a server's type": encode(wire.Dropped(seq=1, reason="x")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_quickly_and_in_little_memory(name: str) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(InvalidInput):
        decode(HOSTILE[name])
    assert time.perf_counter() - started < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


def test_text_on_the_binary_protocol_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="binary"):
        decode("{}")  # type: ignore[arg-type]


def test_every_cut_of_a_message_is_refused() -> None:
    data = encode(FRAME)
    for length in range(len(data)):
        with pytest.raises(InvalidMessage):
            decode(data[:length])


def test_the_size_limit_is_exact() -> None:
    data = encode(START)
    exact = msgspec.structs.replace(LIMITS, max_message_bytes=len(data))
    assert decode_client_message(data, exact) == START
    with pytest.raises(TooLarge):
        decode_client_message(data + b"\x00", exact)


def test_of_duplicate_keys_the_last_one_counts() -> None:
    data = b"\x83" + packed("type") + packed("ping") + packed("t_ns") + b"\x01" + packed("t_ns") + b"\x02"
    assert decode(data) == wire.Ping(t_ns=2)


DECODERS = [
    decode,
    decode_server_message,
    lambda data: decode_episode_request(data, LIMITS, max_bytes=2**20),
    lambda data: decode_embed_request(data, max_bytes=2**20),
    decode_episode_response,
    decode_embed_response,
]


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
def test_random_bytes_never_raise_anything_but_the_error_tree(data: bytes) -> None:
    for decoder in DECODERS:
        with suppress(Sarm2Error):
            decoder(data)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["start", "frame", "end", "ping", "score", "hello", "error"]), st.data())
def test_well_formed_maps_of_wrong_values_never_raise_anything_but_the_error_tree(
    kind: str, data: st.DataObject
) -> None:
    names = sorted(
        {*START.__struct_fields__, *FRAME.__struct_fields__, *score_of(FRAME, None).__struct_fields__}
    )
    fields = data.draw(st.dictionaries(st.sampled_from(names), ANYTHING, max_size=8))
    message = msgspec.msgpack.encode({"type": kind, **fields})
    for decoder in DECODERS:
        with suppress(Sarm2Error):
            decoder(message)


@settings(max_examples=100, deadline=2000)
@given(st.binary(max_size=300), st.sampled_from(["jpeg", "raw"]), st.data())
def test_random_pictures_never_raise_anything_but_the_error_tree(
    noise: bytes, enc: Any, data: st.DataObject
) -> None:
    sides = st.integers(-(2**63), 2**63)
    shape = data.draw(st.none() | st.tuples(sides, sides, sides))
    for payload in (noise, b"\xff\xd8" + noise, b"\xff\xd8\xff\xc0" + noise):
        with suppress(Sarm2Error):
            decode_image(wire.Image(enc=enc, data=payload, shape=shape, dtype="uint8"), max_pixels=10**6)
        with suppress(Sarm2Error):
            decode_image(wire.Image(enc="jpeg", data=payload), max_pixels=10**6)


# --- single fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e308, -1.1e9, 2**63])
def test_a_state_that_is_not_finite_or_absurd_is_refused_with_its_index_and_seq(bad: float) -> None:
    with pytest.raises(InvalidState, match="index 1") as caught:
        decode(raw(FRAME, state=[0.0, bad]))
    assert caught.value.seq == 3


@pytest.mark.parametrize("bad", [["a"], "abc", None, [[0.0]], {"x": 1.0}, [None], [True], [0.0] * 1025])
def test_a_state_of_other_things_than_numbers_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidState) as caught:
        decode(raw(FRAME, state=bad))
    assert caught.value.seq == 3


def test_state_values_on_the_edge_are_taken() -> None:
    message = decode(raw(FRAME, state=[1e9, -1e9, 0, 5e-324]))
    assert isinstance(message, wire.Frame)
    assert message.state == [1e9, -1e9, 0.0, 5e-324]


@pytest.mark.parametrize("bad", [-1, 2**53, 2**64 - 1, 1.5, "1", None, True])
def test_a_seq_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidSequence) as caught:
        decode(raw(FRAME, seq=bad))
    assert caught.value.seq is None
    assert decode(raw(FRAME, seq=wire.MAX_SEQ))


@pytest.mark.parametrize("clock", [-(2**63), 0, 2**64 - 1])
def test_any_whole_clock_is_taken_and_echoed(clock: int) -> None:
    message = decode(raw(FRAME, t_ns=clock))
    assert isinstance(message, wire.Frame)
    assert message.t_ns == clock


@pytest.mark.parametrize("clock", [1.5, "now", None])
def test_a_clock_that_is_no_whole_number_is_refused(clock: Any) -> None:
    with pytest.raises(InvalidMessage, match="t_ns"):
        decode(raw(FRAME, t_ns=clock))


@pytest.mark.parametrize(
    "bad",
    ["", "x" * 129, "x" * 10**6, "a\0b", "a\n", "a\nb", "../etc", "a/b", ".hidden", "-x", "é", "\u202e"],
    ids=lambda bad: repr(bad[:8]),
)
def test_a_malformed_session_id_is_refused(bad: str) -> None:
    with pytest.raises((InvalidSession, TooLarge)) as caught:
        decode(raw(START, session_id=bad))
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("good", ["a", "x" * 128, "0", "Robot-1:run_2.b"])
def test_a_well_formed_session_id_is_taken(good: str) -> None:
    assert decode(raw(START, session_id=good))


@pytest.mark.parametrize(
    "bad",
    ["", "   ", "a\nb", "a\0", "\x1b[31m", "x" * 201, "x" * 10**6, "\u2028", "\x85"],
    ids=lambda bad: repr(bad[:8]),
)
def test_a_task_that_is_blank_long_or_has_control_characters_is_refused(bad: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(raw(START, task=bad))
    assert caught.value.field == "task" or isinstance(caught.value, TooLarge)
    assert caught.value.message.isprintable()


def test_a_task_of_exactly_the_limit_and_in_any_language_is_taken() -> None:
    assert decode(raw(START, task="x" * 200))
    assert decode(raw(START, task="Öffne die Schublade, bitte! 请打开抽屉"))


@pytest.mark.parametrize("bad", [0, -1.0, 1e9, 240.1, float("nan"), float("inf"), "10", None])
def test_an_fps_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput, match="fps"):
        decode(raw(START, fps=bad))


@pytest.mark.parametrize("good", [240, 240.0, 0.01])
def test_an_fps_on_the_edge_is_taken(good: float) -> None:
    assert decode(raw(START, fps=good))


@pytest.mark.parametrize(
    "bad", [[], ["a", "a"], [""], ["a/b"], ["../x"], ["x" * 65], [f"c{n}" for n in range(100)], [1], "corner"]
)
def test_camera_lists_that_are_empty_repeated_malformed_or_long_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput):
        decode(raw(START, cameras=bad))


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), 1e12, "5"])
def test_a_deadline_out_of_range_is_refused_for_its_frame_alone(bad: Any) -> None:
    with pytest.raises(InvalidInput, match="deadline") as caught:
        decode(raw(FRAME, deadline_ms=bad))
    assert caught.value.seq == 3


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_gamma_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(InvalidInput, match="gamma"):
        decode(raw(START, gamma=bad))


@pytest.mark.parametrize(
    "bad",
    [
        {"a": {"enc": "png", "data": b""}},
        {"a": {"enc": "jpeg"}},
        {"a": {"enc": "jpeg", "data": "text"}},
        {"a": {"enc": "raw", "data": b"", "shape": [1, 1]}},
        {"a": {"enc": "raw", "data": b"", "shape": [1, 1, 1, 1]}},
        {"a": {"enc": "raw", "data": b"", "shape": [1.5, 1, 3]}},
        {"a": {"enc": "jpeg", "data": b"", "url": "x"}},
        {f"c{n}": {"enc": "jpeg", "data": b""} for n in range(17)},
        [],
    ],
)
def test_a_malformed_picture_is_an_image_error_that_keeps_the_seq(bad: Any) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode(raw(FRAME, images=bad))
    assert caught.value.seq == 3


# --- HTTP bodies ----------------------------------------------------------------------------------------


def episode(**changes: Any) -> bytes:
    frames = [wire.EpisodeFrame(images={"corner": JPEG}, state=[0.0]) for _ in range(3)]
    return raw(wire.EpisodeRequest(task="open", fps=10.0, frames=frames), **changes)


def request(data: bytes, **limits: int) -> wire.EpisodeRequest:
    return decode_episode_request(data, msgspec.structs.replace(LIMITS, **limits), max_bytes=10**6)


def test_an_episode_of_exactly_the_limit_is_taken_and_one_more_is_not() -> None:
    assert len(request(episode(), max_episode_frames=3).frames) == 3
    with pytest.raises(TooLarge, match="at most 2"):
        request(episode(), max_episode_frames=2)


def test_an_episode_without_frames_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one frame"):
        request(episode(frames=[]))


def test_the_frames_of_an_episode_may_leave_gaps_but_not_go_back() -> None:
    def numbered(*seqs: int | None) -> bytes:
        return episode(frames=[{"images": {}, "state": [0.0], "seq": seq} for seq in seqs])

    assert len(request(numbered(None, 5, None, 9)).frames) == 4
    for seqs in [(3, 3), (3, 2), (0, 0)]:
        with pytest.raises(InvalidSequence):
            request(numbered(*seqs))


def test_a_bad_state_deep_in_an_episode_names_its_frame() -> None:
    frames = [{"images": {}, "state": [0.0]}, {"images": {}, "state": [float("nan")]}]
    with pytest.raises(InvalidState) as caught:
        request(episode(frames=frames))
    assert caught.value.seq == 1


def test_a_state_of_another_length_than_the_models_is_refused_at_the_first_frame_that_has_one() -> None:
    frames = [{"images": {}, "state": [0.0]}, {"images": {}, "state": [0.0, 0.0]}, {"images": "no map"}]
    with pytest.raises(InvalidState) as caught:
        decode_episode_request(episode(frames=frames), LIMITS, max_bytes=10**6, state_dim=1)
    assert (caught.value.field, caught.value.seq) == ("state", 1)
    assert caught.value.message == "frame 1: expected 1 state values, got 2"
    with pytest.raises(InvalidImage) as malformed:
        decode_episode_request(episode(frames=[*frames[:1] * 2, frames[2]]), LIMITS, max_bytes=10**6)
    assert malformed.value.seq == 2


def test_a_body_of_many_numbers_takes_no_memory_before_it_is_refused() -> None:
    body = episode(frames=[{"images": {}, "state": [0] * wire.MAX_STATE_DIM}] * 500)
    tracemalloc.start()
    with pytest.raises(InvalidState):
        decode_episode_request(body, LIMITS, max_bytes=10**6, state_dim=4)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < len(body)


def test_embeddings_of_half_a_row_are_refused() -> None:
    whole = wire.EmbedResponse(dim=4, data=bytes(16), encoder_id="e")
    assert decode_embed_response(encode(whole)) == whole
    for broken in ({"data": bytes(15)}, {"dim": 0}, {"dim": -4}, {"dim": 3}):
        with pytest.raises(InvalidMessage):
            decode_embed_response(raw(whole, **broken))


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_an_error_reported_by_the_server_is_raised_as_the_same_class(code: str) -> None:
    error = BY_CODE[code]("text", field="f")
    message = error_message(error, error_id="e1", seq=4)
    back = error_from(decode_error(encode(message)))
    assert type(back) is BY_CODE[code]
    assert (back.message, back.field, back.error_id, back.seq) == ("text", "f", "e1", 4)


def decode_error(data: bytes) -> wire.Error:
    message = decode_server_message(data)
    assert isinstance(message, wire.Error)
    return message


def test_an_error_code_of_a_newer_server_becomes_the_root_of_the_tree() -> None:
    message = wire.Error(code="novel", message="m", retryable=True, error_id="e")
    assert type(error_from(message)) is Sarm2Error
    assert Overloaded.retryable


def test_what_msgpack_cannot_hold_is_refused_when_it_is_written() -> None:
    for bad in [{"a": 2**64}, {"a": object()}, struct, "\ud800"]:
        with pytest.raises(InvalidMessage):
            encode(bad)
