"""openpi's clients at the service: an observation in, a score out, and nothing that they do not know."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import fakes
from running_server import WAIT_S, RunningServer, Serve, wait_until
from sarm2_client import openpi_wire, wire
from sarm2_client.codec import encode
from sarm2_client.errors import TooLarge
from sarm2_service.openpi import OpenPiCodec

KEY = "robots-of-the-first-hall"

ADAPTERS = Path(os.environ.get("ADAPTERS", ".venv-adapters"))
"""The venv that `make test-adapters` makes."""


class PolicyClient:
    """What `openpi_client.WebsocketClientPolicy` does; it comes itself where the adapters' venv is there."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.metadata = self._answer()

    def infer(self, observation: Any) -> dict[str, Any]:
        """The server's answer. Raises RuntimeError with what it says where it fails."""
        self._connection.send(
            observation if isinstance(observation, bytes) else openpi_wire.pack(observation)
        )
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answer = self._connection.recv(timeout=WAIT_S)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return openpi_wire.unpack(answer)


@contextmanager
def client(server: RunningServer, **headers: str) -> Iterator[PolicyClient]:
    address = f"ws://{server.address}"
    with connect(
        address, compression=None, max_size=None, additional_headers=headers, close_timeout=1
    ) as connection:
        yield PolicyClient(connection)


def observation(number: int, **others: Any) -> dict[str, Any]:
    """What a robot sees at a step; `None` takes a key away."""
    pictures = {
        f"observation/{camera}": fakes.picture(1000 * number + index)
        for index, camera in enumerate(fakes.CAMERAS)
    }
    state = np.array(fakes.frame(number).state, np.float32)
    plain = {"observation/state": state, "prompt": fakes.TASKS[0], "fps": fakes.FPS}
    return {key: value for key, value in (pictures | plain | others).items() if value is not None}


def raw_frame(number: int) -> wire.Frame:
    seen = observation(number)
    images = {
        camera: wire.Image(
            enc="raw", data=seen[f"observation/{camera}"].tobytes(), shape=(32, 32, 3), dtype="uint8"
        )
        for camera in fakes.CAMERAS
    }
    return wire.Frame(seq=number, t_ns=0, images=images, state=seen["observation/state"].tolist())


def test_the_greeting_tells_of_the_model_and_what_it_wants_to_see(server: RunningServer) -> None:
    with client(server) as policy:
        assert policy.metadata["id"] == server.model.info.id
        assert policy.metadata["primitives"] == list(server.model.info.primitives)
        assert {"observation/corner", "observation/state", "fps"} <= set(policy.metadata["observation"])


def test_answers_are_the_scores_that_a_robot_gets(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("the-same")
        scores = [robot.score(raw_frame(number)) for number in range(9)]
    with client(server) as policy:
        answers = [policy.infer(observation(number)) for number in range(9)]
    for score, answer in zip(scores, answers, strict=True):
        assert answer["progress"] == pytest.approx(score.progress, abs=1e-6)
        assert answer["reward"] == pytest.approx(score.reward, abs=1e-6)
        assert (answer["seq"], answer["primitive"]) == (score.seq, score.primitive)
        assert answer["interval"].dtype == np.float32
        np.testing.assert_allclose(answer["interval"], score.interval, atol=1e-6)
        np.testing.assert_allclose(answer["primitive_probs"], score.primitive_probs, atol=1e-6)
        assert answer["server_timing"]["infer_ms"] > 0


@pytest.mark.parametrize("other", [{"reset": True}, {"episode_id": 8}])
def test_a_connection_is_one_episode_until_the_robot_says_otherwise(
    server: RunningServer, other: dict[str, Any]
) -> None:
    with client(server) as policy:
        first = policy.infer(observation(0, episode_id=7))
        assert policy.infer(observation(1, episode_id=7))["seq"] == 1
        assert policy.infer(observation(2))["seq"] == 2, "an id need not be said again"
        assert policy.infer(observation(3, fps=None, reset=False))["seq"] == 3
        again = policy.infer(observation(0, fps=None, **other))
        assert (again["seq"], again["reward"]) == (0, None)
        assert again["progress"] == pytest.approx(first["progress"], abs=1e-6), "no frame of before is left"
    with server.http() as http:
        listed = {episode["session_id"] for episode in http.get("/v1/episodes").json()["episodes"]}
    assert any(name.startswith("7.") for name in listed)


def test_an_episode_ends_with_its_connection(server: RunningServer) -> None:
    ended = partial(server.metric, "sarm2_final_progress_count", task=fakes.TASKS[0])
    before = ended()
    with client(server) as policy:
        policy.infer(observation(0))
        assert ended() == before
    wait_until(lambda: ended() == before + 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"observation/side": None}, r"lacks \['observation/side'\]"),
        ({"observation/top": np.zeros((8, 8, 3), np.uint8)}, r"has \['observation/top'\]"),
        ({"observation/side": np.zeros((3, 32, 32), np.float32)}, r"got float32 \(3, 32, 32\)"),
        ({"observation/side": np.zeros((3, 32, 32), np.uint8)}, "move the channels last"),
        ({"observation/side": "picture"}, "got str"),
        ({"observation/state": [0.0, "a"]}, "a row of numbers"),
        ({"observation/state": np.zeros((1, 4))}, "a row of numbers"),
        ({"observation/state": np.full(4, np.nan)}, "invalid_state"),
        ({"observation/state": np.zeros(5)}, "invalid_state"),
        ({"prompt": 5}, "prompt as text, got int"),
        ({"prompt": np.zeros(3)}, "prompt as text, got ndarray"),
        ({"prompt": fakes.TASKS[1]}, "prompt was .* `reset` true"),
        ({"fps": 20.0}, "fps was 10.0 .* `reset` true"),
        ({"fps": "10"}, "fps as a number, got str"),
        ({"fps": True}, "fps as a number, got bool"),
        ({"reset": np.ones(3)}, "reset as true or false, got ndarray"),
        ({"episode_id": "a/b"}, "invalid_session"),
    ],
)
def test_what_cannot_be_scored_costs_one_answer(
    server: RunningServer, wrong: dict[str, Any], said: str
) -> None:
    with client(server) as policy:
        before = policy.infer(observation(0))
        with pytest.raises(RuntimeError, match=said):
            policy.infer(observation(1, **wrong))
        after = policy.infer(observation(2))
    assert after["seq"] > before["seq"]
    assert after["reward"] == pytest.approx(after["progress"] - before["progress"], abs=1e-6)


def test_an_episode_cannot_begin_without_its_rate(server: RunningServer) -> None:
    with client(server) as policy:
        with pytest.raises(RuntimeError, match="how many frames a second"):
            policy.infer(observation(0, fps=None))
        with pytest.raises(RuntimeError, match="fps"):
            policy.infer(observation(0, fps=-1.0))
        assert policy.infer(observation(0))["seq"] == 0


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", b"\x90"])
def test_bytes_that_are_no_observation_end_the_connection(server: RunningServer, data: bytes) -> None:
    with client(server) as policy:
        with pytest.raises(RuntimeError, match="invalid_message"):
            policy.infer(data)
        with pytest.raises(ConnectionClosed):
            policy.infer(observation(0))


def test_an_observation_too_large_is_refused_unread(server: RunningServer) -> None:
    codec = OpenPiCodec(server.settings.limits(), list(fakes.CAMERAS))
    with pytest.raises(TooLarge, match="expected at most"):
        next(codec.read(bytes(server.settings.limits().max_message_bytes + 1)))


def test_a_dropped_frame_is_told_and_what_nobody_waits_for_is_not(server: RunningServer) -> None:
    codec = OpenPiCodec(server.settings.limits(), list(fakes.CAMERAS))
    told = codec.event(encode(wire.Dropped(seq=3, reason="deadline")))
    assert told == {"type": "websocket.send", "text": "dropped: deadline"}
    assert codec.event(encode(wire.DrainingNotice(deadline_s=1.0))) is None


def test_a_key_is_sent_as_openpis_clients_do(serve: Serve) -> None:
    locked = serve(api_keys=KEY)
    with pytest.raises(InvalidStatus) as refused, client(locked):
        pass
    assert refused.value.response.status_code == 401
    with client(locked, Authorization=f"Api-Key {KEY}") as policy:
        assert policy.infer(observation(0))["seq"] == 0


def test_the_page_is_still_there(server: RunningServer) -> None:
    with server.http() as http:
        assert "text/html" in http.get("/").headers["content-type"]


@pytest.mark.adapters
@pytest.mark.skipif(not ADAPTERS.exists(), reason="needs openpi-client: make test-adapters")
def test_openpis_own_client_gets_scores(server: RunningServer) -> None:
    script = Path(__file__).with_name("openpis_client.py")
    command = [str(ADAPTERS / "bin" / "python"), str(script), str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"id", "observation", "primitives"} <= set(told["metadata"])
    assert (told["seq"], told["again"]) == ([0, 1, 2], 0)
    assert all(0 <= progress <= 1 for progress in told["progress"])
    assert "expected 4 state values, got 9" in told["refused"]
