"""A policy behind openpi's server: the same bytes as openpi's own client, and every wait has an end."""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from sarm2_client import openpi_wire
from sarm2_client.errors import ConnectionLost, InvalidInput, InvalidMessage, ModelFailed, WaitTimeout
from sarm2_spiral.base_policy import Float32Array
from sarm2_spiral.given_policy import ROBOT
from sarm2_spiral.input_map import parse_map
from sarm2_spiral.openpi_connection import Waits
from sarm2_spiral.openpi_policy import OpenPiPolicy
from spiral.policy_server import Answer, PolicyServer
from spiral.small_moments import small_frame, small_moment

needs_openpi = pytest.mark.skipif(
    importlib.util.find_spec("openpi_client") is None, reason="needs openpi-client: make test-adapters"
)

MESSAGE: dict[str, Any] = {
    "observation/state": np.arange(3, dtype=np.float32),
    "prompt": "hé",
    "img": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
}
PACKED = bytes.fromhex(
    "83b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c40c000000000000803f"
    "00000040c4056474797065a33c6634c40573686170659103a670726f6d7074a368c3a9a3696d6784c40b5f5f6e6461727261"
    "795f5fc3c40464617461c40c000102030405060708090a0bc4056474797065a37c7531c405736861706593020203"
)
"""What `openpi_client.msgpack_numpy.packb(MESSAGE)` of release 0.1.2 gives."""


def still(question: dict[str, Any]) -> dict[str, Any]:
    return {"actions": np.zeros((8, 4), np.float64)}


@contextmanager
def asking(
    answer: Answer, *maps: str, waits: Waits | None = None
) -> Iterator[tuple[OpenPiPolicy, PolicyServer]]:
    with PolicyServer(answer) as server:
        policy = OpenPiPolicy("127.0.0.1", server.port, parse_map(maps, ROBOT), ROBOT, waits)
        try:
            yield policy, server
        finally:
            policy.close()


def latents(moments: int, count: int) -> Float32Array:
    return np.zeros((moments, count, 0), np.float32)


def test_messages_are_the_bytes_that_openpi_packs() -> None:
    assert openpi_wire.pack(MESSAGE) == PACKED
    read = openpi_wire.unpack(PACKED)
    assert read["prompt"] == "hé"
    for key in ("observation/state", "img"):
        assert read[key].dtype == MESSAGE[key].dtype
        np.testing.assert_array_equal(read[key], MESSAGE[key])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({b"data": b"12345678", b"dtype": "|O", b"shape": [1]}, "dtype object"),
        ({b"data": b"12345678", b"dtype": "<M8[s]", b"shape": [1]}, "dtype datetime64"),
        ({b"data": b"12345678", b"dtype": "nonsense", b"shape": [1]}, "no dtype"),
        ({b"data": b"12345678", b"dtype": "<f4", b"shape": [3]}, "other bytes than its shape"),
        ({b"data": b"12345678", b"dtype": "<f4", b"shape": [-2]}, "expected the shape"),
        ({b"data": b"12345678", b"dtype": "<f4"}, "expected the shape"),
        ({b"data": b"", b"dtype": "<f4", b"shape": [2**62, 0, 2**62]}, "cannot have the shape"),
    ],
)
def test_an_array_that_is_none_is_refused(fields: dict[bytes, object], said: str) -> None:
    data = msgspec.msgpack.encode({"actions": {b"__ndarray__": True, **fields}})
    with pytest.raises(InvalidMessage, match=said):
        openpi_wire.unpack(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", msgspec.msgpack.encode([1, 2])])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        openpi_wire.unpack(data)


def test_the_server_is_told_what_the_map_says() -> None:
    maps = ("cam=side", "hand=gripper_opening,tool_x", "text=instruction")
    with asking(still, *maps) as (policy, server):
        policy.sample_chunks([small_moment(1, 5)], latents(1, 1))
    (question,) = server.asked
    assert question.keys() == {"cam", "hand", "text"}
    frame = small_frame(5)
    np.testing.assert_array_equal(question["cam"], frame.images["side"])
    np.testing.assert_array_equal(question["hand"], frame.state_S[[3, 0]])
    assert question["hand"].dtype == np.float32
    assert question["text"] == "open the drawer"


def test_without_a_map_the_keys_are_those_of_libero() -> None:
    with asking(still) as (policy, server):
        policy.sample_chunks([small_moment(1)], latents(1, 1))
    assert server.asked[0].keys() == {
        "observation/image",
        "observation/wrist_image",
        "observation/state",
        "prompt",
    }


def test_each_chunk_of_a_moment_is_an_answer_of_its_own_within_the_robots_limits() -> None:
    answers = iter(range(100))

    def counted(question: dict[str, Any]) -> dict[str, Any]:
        return {"actions": np.full((8, 4), next(answers) / 2), "server_timing": {"infer_ms": 1.5}}

    with asking(counted) as (policy, _):
        chunk_BMHA = policy.sample_chunks([small_moment(1), small_moment(2)], latents(2, 2))
    assert (policy.latent_size, policy.history) == (0, 1)
    assert chunk_BMHA.shape == (2, 2, 8, 4)
    assert chunk_BMHA.dtype == np.float32
    assert chunk_BMHA[:, :, 0, 0].ravel().tolist() == [0.0, 0.5, 1.0, 1.0]


def test_chunks_of_different_lengths_are_refused() -> None:
    lengths = iter((8, 6))

    def growing(question: dict[str, Any]) -> dict[str, Any]:
        return {"actions": np.zeros((next(lengths), 4))}

    told = re.escape("chunks of one length from the policy server, got [6, 8]")
    with asking(growing) as (policy, _), pytest.raises(InvalidMessage, match=told):
        policy.sample_chunks([small_moment(1)], latents(1, 2))


def test_a_server_that_is_not_there_is_said_to_be_away() -> None:
    with PolicyServer(still) as server:
        port = server.port
    with pytest.raises(ConnectionLost, match=f"no policy server at ws://127.0.0.1:{port}"):
        OpenPiPolicy("127.0.0.1", port, {}, ROBOT)


def test_a_server_that_went_away_is_found_again_when_it_is_back() -> None:
    with asking(still) as (policy, server):
        server.hang_up()
        with pytest.raises(ConnectionLost, match="went away"):
            policy.sample_chunks([small_moment(1)], latents(1, 1))
        assert policy.sample_chunks([small_moment(1)], latents(1, 1)).shape == (1, 1, 8, 4)


def test_an_answer_that_comes_too_late_is_never_taken_for_the_next_one() -> None:
    late = threading.Event()
    waits = iter([10.0, 0.0])

    def slow(question: dict[str, Any]) -> dict[str, Any]:
        wait_s = next(waits)
        late.wait(wait_s)
        return {"actions": np.full((8, 4), wait_s / 10)}

    with asking(slow, waits=Waits(answer=0.2)) as (policy, _):
        with pytest.raises(WaitTimeout, match=r"waited 0.2 s for an answer of the policy server"):
            policy.sample_chunks([small_moment(1)], latents(1, 1))
        late.set()
        assert (policy.sample_chunks([small_moment(1)], latents(1, 1)) == 0).all()


def test_a_failure_of_the_server_is_told_in_one_line() -> None:
    def failing(question: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no key 'state'")

    with (
        asking(failing) as (policy, _),
        pytest.raises(ModelFailed, match=r"failed: ValueError: no key 'state'$"),
    ):
        policy.sample_chunks([small_moment(1)], latents(1, 1))


@pytest.mark.parametrize(
    ("actions", "error", "said"),
    [
        (np.zeros((8, 7)), InvalidInput, r"expected 'actions' of the shape \(H, 4\).*got the shape \(8, 7\)"),
        (np.zeros(4), InvalidInput, r"got the shape \(4,\)"),
        ("none", InvalidInput, r"got keys \['actions'\]"),
        (np.full((8, 4), np.nan), ModelFailed, "not finite"),
    ],
)
def test_actions_that_do_not_fit_the_robot_are_refused(
    actions: object, error: type[Exception], said: str
) -> None:
    with asking(lambda question: {"actions": actions}) as (policy, _), pytest.raises(error, match=said):
        policy.sample_chunks([small_moment(1)], latents(1, 1))


def test_a_camera_that_a_frame_does_not_have_is_named() -> None:
    moment = small_moment(1)
    del moment.frames[-1].images["wrist"]  # type: ignore[attr-defined]
    with (
        asking(still) as (policy, _),
        pytest.raises(InvalidInput, match=r"camera 'wrist'.*it has corner, side"),
    ):
        policy.sample_chunks([moment], latents(1, 1))


# --- with openpi's own client ------------------------------------------------------------------------


@pytest.mark.adapters
@needs_openpi
def test_openpis_own_codec_reads_and_writes_the_same() -> None:
    from openpi_client import msgpack_numpy

    assert msgpack_numpy.packb(MESSAGE) == openpi_wire.pack(MESSAGE)
    timing = {"infer_ms": np.float64(2.5), "steps": [np.int64(3)], "actions": np.ones((2, 4), np.float32)}
    read = openpi_wire.unpack(msgpack_numpy.packb(timing))
    assert (read["infer_ms"], read["steps"]) == (2.5, [3])
    np.testing.assert_array_equal(read["actions"], timing["actions"])


@pytest.mark.adapters
@needs_openpi
def test_a_server_with_openpis_own_codec_answers() -> None:
    from openpi_client import msgpack_numpy

    wire = {"pack": msgpack_numpy.packb, "unpack": msgpack_numpy.unpackb}
    with PolicyServer(
        lambda question: {"actions": np.full((8, 4), question["observation/state"][0])}, **wire
    ) as s:
        policy = OpenPiPolicy("127.0.0.1", s.port, {}, ROBOT)
        chunk_BMHA = policy.sample_chunks([small_moment(3)], latents(1, 2))
        policy.close()
    assert chunk_BMHA.shape == (1, 2, 8, 4)
    np.testing.assert_allclose(chunk_BMHA, np.clip(small_frame(3).state_S[0], -1, 1), rtol=1e-6)


@pytest.mark.adapters
@needs_openpi
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it uses websockets in an older way
def test_the_server_of_these_tests_is_one_that_openpis_own_client_speaks_to() -> None:
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    with PolicyServer(still) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        assert client.get_server_metadata() == {"policy": "small"}
        assert client.infer({"state": np.zeros(4, np.float32)})["actions"].shape == (8, 4)
        client._ws.close()
