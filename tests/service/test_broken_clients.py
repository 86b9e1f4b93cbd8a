"""Whatever a client sends, it gets a typed answer; its episode goes on where it can; nobody else notices."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

import fakes
from running_server import Robot, RunningServer, Serve
from sarm2_client import wire
from sarm2_client.codec import encode

FRAME: dict[str, Any] = msgspec.to_builtins(fakes.frame(1), builtin_types=(bytes,))
START: dict[str, Any] = msgspec.to_builtins(fakes.start("x"))
JPEG: bytes = FRAME["images"]["corner"]["data"]


def with_image(image: dict[str, Any]) -> dict[str, Any]:
    """Frame 1 with another picture of the first camera."""
    return {**FRAME, "images": {**FRAME["images"], "corner": image}}


def raw(shape: tuple[int, ...], dtype: str = "uint8", size: int | None = None) -> dict[str, Any]:
    """A raw picture that may lie about its size."""
    count = max(0, shape[0] * shape[1] * shape[2]) if size is None else size
    return {"enc": "raw", "data": bytes(count), "shape": shape, "dtype": dtype}


def huge_jpeg_header() -> bytes:
    """A JPEG whose header claims 65500 x 65500 pixels."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", 65500, 65500) + JPEG[at + 4 :]


BAD_FRAMES: dict[str, tuple[Any, str]] = {
    "jpeg cut in half": (with_image({"enc": "jpeg", "data": JPEG[: len(JPEG) // 2]}), "invalid_image"),
    "empty jpeg": (with_image({"enc": "jpeg", "data": b""}), "invalid_image"),
    "png": (with_image({"enc": "jpeg", "data": b"\x89PNG\r\n\x1a\n" + bytes(64)}), "invalid_image"),
    "jpeg of 65500 x 65500": (with_image({"enc": "jpeg", "data": huge_jpeg_header()}), "too_large"),
    "jpeg of noise": (with_image({"enc": "jpeg", "data": JPEG[:300] + bytes(300)}), "invalid_image"),
    "raw of wrong byte count": (with_image(raw((32, 32, 3), size=100)), "invalid_image"),
    "raw with a side of zero": (with_image(raw((0, 32, 3))), "invalid_image"),
    "raw with a negative side": (with_image(raw((-32, -32, 3))), "invalid_image"),
    "raw with channels first": (with_image(raw((3, 32, 32))), "invalid_image"),
    "raw of floats": (with_image(raw((32, 32, 3), dtype="float32")), "invalid_image"),
    "raw of objects": (with_image(raw((32, 32, 3), dtype="object")), "invalid_image"),
    "raw with overflowing sides": (with_image(raw((2**40, 2**40, 3), size=3)), "too_large"),
    "unknown encoding": (with_image({"enc": "webp", "data": b"x"}), "invalid_image"),
    "missing camera": ({**FRAME, "images": {"corner": FRAME["images"]["corner"]}}, "invalid_input"),
    "unknown camera": (
        {**FRAME, "images": {**FRAME["images"], "nose": FRAME["images"]["side"]}},
        "invalid_input",
    ),
    "a hundred cameras": (
        {**FRAME, "images": {f"c{i}": FRAME["images"]["side"] for i in range(100)}},
        "invalid_image",
    ),
    "no cameras": ({**FRAME, "images": {}}, "invalid_input"),
    "state too long": ({**FRAME, "state": [0.0] * 5}, "invalid_state"),
    "state empty": ({**FRAME, "state": []}, "invalid_state"),
    "state not a number": ({**FRAME, "state": [0.0, float("nan"), 0.0, 0.0]}, "invalid_state"),
    "state infinite": ({**FRAME, "state": [float("inf")] * 4}, "invalid_state"),
    "state of 1e308": ({**FRAME, "state": [1e308] * 4}, "invalid_state"),
    "state of strings": ({**FRAME, "state": ["a"] * 4}, "invalid_state"),
    "negative deadline": ({**FRAME, "deadline_ms": -1.0}, "invalid_input"),
    "deadline of zero": ({**FRAME, "deadline_ms": 0.0}, "invalid_input"),
    "unknown field": ({**FRAME, "colour": "red"}, "invalid_message"),
    "float timestamp": ({**FRAME, "t_ns": 1.5}, "invalid_message"),
    "episode too long": ({**FRAME, "seq": 10**9}, "too_large"),
    "same seq, other content": ({**FRAME, "seq": 0}, "invalid_sequence"),
}

BAD_SEQ: dict[str, Any] = {
    "negative seq": {**FRAME, "seq": -1},
    "seq of 2^64 - 1": {**FRAME, "seq": 2**64 - 1},
}

BAD_MESSAGES: dict[str, tuple[bytes | str, int]] = {
    "empty": (b"", 1002),
    "text": ("hello", 1003),
    "random bytes": (bytes(range(256)), 1002),
    "truncated": (encode(fakes.frame(0))[:100], 1002),
    "trailing bytes": (encode(wire.Ping(t_ns=1)) + b"x", 1002),
    "deep nesting": (b"\x91" * 1_000_000 + b"\xc0", 1002),
    "array of 2^32 items": (b"\xdd\xff\xff\xff\xff", 1002),
    "map of 2^32 items": (b"\xdf\xff\xff\xff\xff", 1002),
    "unknown type": (msgspec.msgpack.encode({"type": "exec", "code": "1"}), 1002),
    "no type": (msgspec.msgpack.encode({"task": "a"}), 1002),
    "frame before start": (encode(fakes.frame(0)), 1008),
    "end before start": (encode(wire.End(seq=0)), 1008),
}

BAD_STARTS: dict[str, tuple[dict[str, Any], str]] = {
    "session id empty": ({"session_id": ""}, "invalid_session"),
    "session id of 1 MB": ({"session_id": "a" * 2**20}, "invalid_session"),
    "session id with NUL": ({"session_id": "a\0b"}, "invalid_session"),
    "session id with newline": ({"session_id": "ab\n"}, "invalid_session"),
    "session id that climbs": ({"session_id": "../etc"}, "invalid_session"),
    "task empty": ({"task": ""}, "invalid_input"),
    "task of 1 MB": ({"task": "a" * 2**20}, "too_large"),
    "task with control characters": ({"task": "a\x1b[31m"}, "invalid_input"),
    "fps of zero": ({"fps": 0.0}, "invalid_input"),
    "fps negative": ({"fps": -10.0}, "invalid_input"),
    "fps of 1e9": ({"fps": 1e9}, "invalid_input"),
    "fps not a number": ({"fps": float("nan")}, "invalid_input"),
    "fps infinite": ({"fps": float("inf")}, "invalid_input"),
    "wrong cameras": ({"cameras": ["top"]}, "invalid_input"),
    "a camera twice": ({"cameras": ["corner", "corner", "side"]}, "invalid_input"),
    "no cameras": ({"cameras": []}, "invalid_input"),
}


@pytest.fixture
def robot(server: RunningServer) -> Iterator[Robot]:
    with server.robot() as robot:
        yield robot


@pytest.fixture(autouse=True)
def bystander(server: RunningServer) -> Iterator[None]:
    """Another robot streams through every test of this file, and all its frames are scored."""
    with server.robot() as other:
        other.start(f"bystander-{time.monotonic_ns()}")
        assert other.score(fakes.frame(0, seed=1)).filled == 0
        yield
        assert other.score(fakes.frame(1, seed=1)).filled == 0
        assert other.end(1).scored == 2


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_a_bad_frame_is_an_error_with_its_seq_and_the_episode_goes_on(robot: Robot, case: str) -> None:
    message, code = BAD_FRAMES[case]
    robot.start(f"bad-{time.monotonic_ns()}")
    robot.score(fakes.frame(0))
    robot.send(msgspec.msgpack.encode(message))
    error = robot.expect(wire.Error)
    assert (error.code, error.seq) == (code, message["seq"]), error
    assert len(error.error_id) == 12
    assert "Traceback" not in error.message
    assert robot.score(fakes.frame(2)).filled == 1
    assert robot.end(2).scored == 2


@pytest.mark.parametrize("case", BAD_SEQ)
def test_a_seq_out_of_range_is_an_error_and_the_episode_goes_on(robot: Robot, case: str) -> None:
    robot.start(f"seq-{time.monotonic_ns()}")
    robot.send(msgspec.msgpack.encode(BAD_SEQ[case]))
    assert robot.expect(wire.Error).code == "invalid_sequence"
    robot.score(fakes.frame(0))


def test_a_decreasing_seq_that_was_never_sent_is_an_error_and_the_episode_goes_on(robot: Robot) -> None:
    robot.start("decreasing")
    robot.score(fakes.frame(5))
    robot.send(fakes.frame(3))
    error = robot.expect(wire.Error)
    assert (error.code, error.seq) == ("invalid_sequence", 3)
    assert robot.score(fakes.frame(6)).filled == 0


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_jpeg_cut_anywhere_is_an_error_and_the_episode_goes_on(robot: Robot, sixteenth: int) -> None:
    robot.start(f"cut-{sixteenth}")
    data = JPEG[: len(JPEG) * sixteenth // 16]
    robot.send(msgspec.msgpack.encode(with_image({"enc": "jpeg", "data": data})))
    assert robot.expect(wire.Error).code == "invalid_image"
    robot.score(fakes.frame(2))


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_a_message_outside_the_protocol_is_an_error_and_a_close_code(robot: Robot, case: str) -> None:
    data, close_code = BAD_MESSAGES[case]
    robot.send(data)
    robot.expect(wire.Error)
    assert robot.closed() == close_code


@pytest.mark.parametrize("case", BAD_STARTS)
def test_a_bad_start_is_an_error_and_a_good_one_may_follow(robot: Robot, case: str) -> None:
    fields, code = BAD_STARTS[case]
    robot.send(msgspec.msgpack.encode({**START, **fields}))
    assert robot.expect(wire.Error).code == code
    robot.start(f"good-{time.monotonic_ns()}")
    robot.score(fakes.frame(0))


def test_a_task_with_lone_surrogates_is_refused(robot: Robot) -> None:
    data = msgspec.msgpack.encode({**START, "task": "ab"}).replace(b"\xa2ab", b"\xa3\xed\xa0\x80")
    robot.send(data)
    assert robot.expect(wire.Error).code == "invalid_message"


@pytest.mark.parametrize("again", ["start", "end", "frame"])
def test_start_twice_end_twice_and_frames_after_the_end_disconnect(robot: Robot, again: str) -> None:
    robot.start(f"again-{again}")
    robot.score(fakes.frame(0))
    if again != "start":
        robot.end(0)
    messages = {"start": fakes.start("other"), "end": wire.End(seq=0), "frame": fakes.frame(1)}
    robot.send(messages[again])
    assert robot.expect(wire.Error).code == "invalid_sequence"
    assert robot.closed() == 1008


def test_timestamps_are_echoed_and_never_trusted(robot: Robot) -> None:
    robot.start("clocks")
    for seq, t_ns in enumerate([0, -1, 2**62, 5]):
        frame = msgspec.structs.replace(fakes.frame(seq), t_ns=t_ns)
        assert robot.score(frame).t_ns == t_ns


def test_pictures_of_any_size_and_changing_sizes_are_scored(robot: Robot) -> None:
    robot.start("sizes")
    for seq, shape in enumerate([(1, 1, 3), (1, 4096, 3), (480, 640, 3), (32, 32, 3)]):
        image = wire.Image(enc="raw", data=bytes(shape[0] * shape[1] * 3), shape=shape, dtype="uint8")
        frame = msgspec.structs.replace(fakes.frame(seq), images=dict.fromkeys(fakes.CAMERAS, image))
        assert robot.score(frame).seq == seq


def test_a_message_over_the_limit_is_refused_and_far_over_it_disconnected(serve: Serve) -> None:
    server = serve(max_message_bytes=20_000)
    with server.robot() as robot:
        robot.start("large")
        robot.send(bytes(20_001))
        assert robot.expect(wire.Error).code == "too_large"
        robot.score(fakes.frame(0))
        robot.send(bytes(100_000))
        assert robot.closed() == 1009


def test_a_fragmented_message_that_never_ends_is_cut_off_at_the_limit(serve: Serve) -> None:
    server = serve(max_message_bytes=20_000)

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    with server.robot() as robot:
        with pytest.raises(ConnectionClosed):
            robot.connection.send(endless())
        assert robot.closed() in (1009, 1006)  # 1006: the socket was reset before the close could be read


def test_a_client_that_floods_is_refused_over_its_credit_and_loses_nothing_granted(serve: Serve) -> None:
    server = serve(max_in_flight=2)
    with server.robot() as robot:
        robot.start("flood")
        for seq in range(60):
            robot.send(fakes.frame(seq))
        answers = [robot.receive() for _ in range(60)]
        refused = [answer for answer in answers if isinstance(answer, wire.Error)]
        scored = [answer for answer in answers if isinstance(answer, wire.Score)]
        assert refused
        assert {error.code for error in refused} == {"overloaded"}
        assert all(error.retryable for error in refused)
        answered = [error.seq for error in refused if error.seq is not None] + [s.seq for s in scored]
        assert sorted(answered) == list(range(60))
        assert robot.end(59).scored == len(scored)


def send_for_ever(robot: Robot, frame: bytes) -> None:
    """Each repeat is answered again, and nobody reads the answers."""
    while True:
        robot.send(frame)


def test_a_reader_that_never_reads_is_disconnected_and_its_episode_kept(serve: Serve) -> None:
    server = serve(send_timeout_s=0.3, max_in_flight=8)
    with server.robot() as lazy, server.robot() as other:
        lazy.start("lazy")
        lazy.connection.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
        lazy.connection.socket.settimeout(5)
        with pytest.raises((ConnectionClosed, OSError)):
            send_for_ever(lazy, encode(fakes.frame(0)))
        other.start("other")
        other.score(fakes.frame(0))
    assert server.service.sessions._open["lazy"].sink is None


def test_silence_longer_than_the_idle_timeout_closes_the_connection(serve: Serve) -> None:
    server = serve(idle_timeout_s=0.2)
    with server.robot() as robot:
        robot.start("silent")
        assert robot.expect(wire.Error).code == "wait_timeout"
        assert robot.closed() == 1001


def test_more_episodes_than_allowed_are_refused(serve: Serve) -> None:
    server = serve(max_sessions=1)
    with server.robot() as first, server.robot() as second:
        first.start("one")
        second.send(fakes.start("two"))
        error = second.expect(wire.Error)
        assert (error.code, error.retryable) == ("overloaded", True)
        assert second.closed() == 1013
        first.score(fakes.frame(0))


def test_more_connections_than_allowed_are_refused_before_the_upgrade(serve: Serve) -> None:
    server = serve(max_connections=1)
    with server.robot(), pytest.raises(InvalidStatus) as refused, server.robot():
        pass
    assert refused.value.response.status_code == 429
    with server.robot() as robot:  # the slot is free again
        robot.start("free")


def test_a_storm_of_reconnects_is_refused_over_the_accept_limit(serve: Serve) -> None:
    server = serve(accepts_per_s=3)
    outcomes = []
    for _ in range(12):
        try:
            with server.robot():
                outcomes.append(101)
        except InvalidStatus as refused:
            outcomes.append(refused.response.status_code)
    assert set(outcomes) == {101, 429}
    assert outcomes[0] == 101


def test_black_white_and_frozen_pictures_are_ordinary_pictures(robot: Robot) -> None:
    robot.start("frozen")
    for seq in range(30):
        value = 0 if seq < 10 else 255
        image = wire.Image(enc="raw", data=bytes([value]) * 3072, shape=(32, 32, 3), dtype="uint8")
        frame = msgspec.structs.replace(fakes.frame(seq), images=dict.fromkeys(fakes.CAMERAS, image))
        assert 0 <= robot.score(frame).progress <= 1
