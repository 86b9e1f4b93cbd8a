"""The HTTP side of the client against a server that answers wrongly, late or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sarm2_client import wire
from sarm2_client.client import RewardClient
from sarm2_client.codec import decode_embed_request, encode
from sarm2_client.errors import (
    ConnectionLost,
    Draining,
    InvalidImage,
    InvalidInput,
    InvalidMessage,
    NotAllowed,
    NotFound,
    Overloaded,
    Sarm2Error,
    TooLarge,
    WaitTimeout,
)
from sarm2_client.timeouts import Timeouts

PICTURE = np.zeros((8, 8, 3), np.uint8)


class Answering(ThreadingHTTPServer):
    """Gives one scripted answer to everything, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = (status, body, delay_s)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, answer, delay_s = self.server.answer
        time.sleep(delay_s)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@contextmanager
def running(status: int, body: bytes = b"", delay_s: float = 0.0) -> Iterator[Answering]:
    with Answering(status, body, delay_s) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering(
    status: int, body: bytes = b"", delay_s: float = 0.0
) -> Iterator[tuple[Answering, RewardClient]]:
    with running(status, body, delay_s) as server:
        waits = Timeouts(request=0.3 if delay_s else 5.0)
        client = RewardClient(port=server.server_address[1], timeouts=waits, image_size=8, api_key="secret")
        with client:
            yield server, client


def test_pictures_are_embedded_in_one_request_with_the_key_in_the_header() -> None:
    rows = np.arange(8, dtype="<f2").reshape(2, 4)
    body = encode(wire.EmbedResponse(dim=4, data=rows.tobytes(), encoder_id="e"))
    with answering(200, body) as (server, client):
        embeddings = client.embed([PICTURE, PICTURE])
    assert embeddings.dtype == np.float16
    assert (embeddings == rows).all()
    path, headers, sent = server.asked[0]
    assert path == "/v1/embed"
    assert "secret" not in path
    assert headers["Authorization"] == "Bearer secret"
    assert len(decode_embed_request(sent, max_bytes=10**6).images) == 2


def test_a_picture_that_is_wrong_is_refused_before_anything_is_sent() -> None:
    with answering(200) as (server, client):
        with pytest.raises(InvalidImage):
            client.embed([PICTURE.astype(np.float32)])
        assert server.asked == []


def test_models_are_plain_lists_and_dicts() -> None:
    with answering(200, b'{"models": []}') as (_, client):
        assert client.models() == {"models": []}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_image", InvalidImage),
        (413, "too_large", TooLarge),
        (429, "overloaded", Overloaded),
        (503, "draining", Draining),
        (500, "internal", Sarm2Error),
    ],
)
def test_an_error_in_the_services_own_words_is_raised_as_the_same_class(
    status: int, code: str, kind: type[Sarm2Error]
) -> None:
    body = json.dumps({"code": code, "message": "so and so", "field": "images", "error_id": "e1"}).encode()
    with answering(status, body) as (_, client), pytest.raises(kind, match="so and so") as caught:
        client.embed([PICTURE])
    assert (caught.value.field, caught.value.error_id) == ("images", "e1")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, NotAllowed),
        (403, NotAllowed),
        (404, NotFound),
        (413, TooLarge),
        (418, InvalidInput),
        (429, Overloaded),
        (502, Sarm2Error),
        (503, Draining),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>proxy</html>", b"[]", b"{}", b'{"code": 1, "message": null}'])
def test_an_error_without_words_is_raised_by_its_status(
    status: int, kind: type[Sarm2Error], body: bytes
) -> None:
    with answering(status, body) as (_, client), pytest.raises(kind):
        client.embed([PICTURE])


@pytest.mark.parametrize("body", [b"", b"\xc1", b"<html>", encode(wire.Ping(t_ns=1))])
def test_a_good_status_with_a_body_of_something_else_is_an_invalid_message(body: bytes) -> None:
    with answering(200, body) as (_, client), pytest.raises((InvalidMessage, InvalidInput)):
        client.embed([PICTURE])


def test_an_answer_that_does_not_come_ends_in_wait_timeout() -> None:
    with answering(200, delay_s=3.0) as (_, client):
        started = time.monotonic()
        with pytest.raises(WaitTimeout, match="request"):
            client.models()
        assert time.monotonic() - started < 2.5


def test_nobody_listening_is_a_lost_connection() -> None:
    with answering(200) as (server, _):
        port = server.server_address[1]
    with RewardClient(port=port, image_size=8) as client, pytest.raises(ConnectionLost, match=str(port)):
        client.models()


def client_of_both(first: Answering, second: Answering) -> RewardClient:
    port, other = (server.server_address[1] for server in (first, second))
    return RewardClient(port=port, timeouts=Timeouts(request=0.5), replicas=[("127.0.0.1", other)])


@pytest.mark.parametrize(("status", "delay_s"), [(503, 0.0), (502, 0.0), (200, 2.0)])
def test_a_call_goes_to_a_replica_when_the_service_in_use_is_draining_lost_or_silent(
    status: int, delay_s: float
) -> None:
    good = b'{"models": []}'
    with (
        running(status, b"", delay_s) as first,
        running(200, good) as second,
        client_of_both(first, second) as client,
    ):
        assert client.models() == client.models() == {"models": []}
    assert len(first.asked) == 1  # the second call went to the replica at once
    assert len(second.asked) == 2


def test_a_call_goes_to_a_replica_when_nobody_listens() -> None:
    with running(200, encode(wire.EmbedResponse(dim=1, data=b"\0\0", encoder_id="e"))) as second:
        with running(200) as first:
            client = client_of_both(first, second)
        with client:
            assert client.embed_texts(["open the drawer"]).shape == (1, 1)


def test_a_call_that_the_service_refuses_is_not_taken_to_a_replica() -> None:
    with running(400) as first, running(200) as second, client_of_both(first, second) as client:
        with pytest.raises(InvalidInput):
            client.embed_texts(["open the drawer"])
        assert second.asked == []


def test_a_reload_is_asked_of_the_service_in_use_alone() -> None:
    with running(503) as first, running(200, b"{}") as second, client_of_both(first, second) as client:
        with pytest.raises(Draining):
            client.reload()
        assert second.asked == []
