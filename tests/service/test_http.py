"""The HTTP routes: the same scores as live, and refusals that say what to do."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2 as httpx
import msgspec
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

import fakes
from running_server import WAIT_S, RunningServer, Serve, wait_until
from sarm2_client import wire
from sarm2_client.codec import decode_episode_request, decode_episode_response, encode
from sarm2_service import protocols

MSGPACK = {"content-type": "application/msgpack"}
LENGTH = 9


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def episode(length: int = LENGTH, **fields: Any) -> dict[str, Any]:
    frames = [wire.EpisodeFrame(images=f.images, state=f.state) for f in map(fakes.frame, range(length))]
    request = wire.EpisodeRequest(task=fakes.TASKS[0], fps=10, frames=frames)
    body: dict[str, Any] = msgspec.to_builtins(request, builtin_types=(bytes,))
    return {**body, **fields}


def _width(score: wire.Score) -> float:
    return score.interval[1] - score.interval[0]


def post(http: httpx.Client, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    return http.post("/v1/episodes:score", content=content, headers={**MSGPACK, **headers})


def test_a_whole_episode_gets_the_scores_a_robot_gets_live(server: RunningServer, http: httpx.Client) -> None:
    with server.robot() as robot:
        robot.start("live")
        live = [robot.score(fakes.frame(seq)) for seq in range(LENGTH)]
        summary = robot.end(LENGTH - 1)
    answer = msgspec.msgpack.decode(post(http, episode()).content, type=wire.EpisodeResponse)
    shown = decode_episode_response(post(http, episode(source="demonstration")).content)
    assert all(_width(one) < _width(other) for one, other in zip(shown.scores, answer.scores, strict=True))
    assert [s.progress for s in answer.scores] == pytest.approx([s.progress for s in live], abs=1e-4)
    assert [s.primitive for s in answer.scores] == [s.primitive for s in live]
    assert answer.summary.segments == summary.segments
    assert answer.summary.scored == LENGTH


def test_the_answer_is_json_where_json_is_accepted(http: httpx.Client) -> None:
    answer = post(http, episode(2), accept="application/json").json()
    assert len(answer["scores"]) == 2
    assert answer["summary"]["frames"] == 2


def test_multipart_gives_the_same_scores_as_msgpack(http: httpx.Client) -> None:
    frames = [fakes.frame(seq) for seq in range(LENGTH)]
    files = [(camera, ("f.jpg", frame.images[camera].data)) for frame in frames for camera in fakes.CAMERAS]
    data = {"task": fakes.TASKS[0], "fps": "10", "state": json.dumps([frame.state for frame in frames])}
    data["source"] = "rollout"
    form = http.post("/v1/episodes:score", data=data, files=files)
    assert form.status_code == 200, form.text
    one, other = (decode_episode_response(answer.content) for answer in (form, post(http, episode())))
    assert [s.progress for s in one.scores] == [s.progress for s in other.scores]


@pytest.mark.parametrize("length", [1, 2, 40])
def test_episodes_shorter_and_longer_than_the_window_are_scored(http: httpx.Client, length: int) -> None:
    answer = msgspec.msgpack.decode(post(http, episode(length)).content, type=wire.EpisodeResponse)
    assert [score.seq for score in answer.scores] == list(range(length))


def test_embeddings_are_the_encoders_own(server: RunningServer, http: httpx.Client) -> None:
    body = encode(wire.EmbedRequest(images=[fakes.jpeg(seed) for seed in range(20)]))
    answer = msgspec.msgpack.decode(http.post("/v1/embed", content=body).content, type=wire.EmbedResponse)
    rows = np.frombuffer(answer.data, "<f2").reshape(20, answer.dim)
    assert answer.encoder_id == server.model.encoder.id
    assert answer.dim == server.model.encoder.dim
    assert np.isfinite(rows).all()
    again = msgspec.msgpack.decode(http.post("/v1/embed", content=body).content, type=wire.EmbedResponse)
    assert again.data == answer.data


def test_texts_are_embedded_after_the_pictures_as_the_model_reads_them(
    server: RunningServer, http: httpx.Client
) -> None:
    text = fakes.TASKS[0].upper()
    body = encode(wire.EmbedRequest(images=[fakes.jpeg(1)], texts=[text, "juggle three eggs"]))
    answer = msgspec.msgpack.decode(http.post("/v1/embed", content=body).content, type=wire.EmbedResponse)
    rows = np.frombuffer(answer.data, "<f2").reshape(3, answer.dim)
    np.testing.assert_array_equal(rows[1], server.model.instruction(text).embedding_D)
    np.testing.assert_array_equal(rows[2], server.model.instruction("juggle three eggs").embedding_D)
    refused = http.post("/v1/embed", content=encode(wire.EmbedRequest(texts=["  "])))
    assert (refused.status_code, refused.json()["field"]) == (400, "task")
    nothing = http.post("/v1/embed", content=encode(wire.EmbedRequest()))
    assert nothing.status_code >= 400


# --- refusals ----------------------------------------------------------------------------------------


def bad_frame() -> dict[str, Any]:
    body = episode(3)
    body["frames"][1]["images"]["side"] = {"enc": "jpeg", "data": b"no picture"}
    return body


FRAME: dict[str, Any] = episode(1)["frames"][0]

BAD_BODIES: dict[str, tuple[Any, int, str]] = {
    "empty": (b"", 400, "invalid_message"),
    "rubbish": (b"\x00\x01rubbish", 400, "invalid_message"),
    "truncated": (msgspec.msgpack.encode(episode(2))[:500], 400, "invalid_message"),
    "no frames": (episode(0), 400, "invalid_input"),
    "too many frames": (episode(61), 413, "too_large"),
    "task empty": (episode(1, task=""), 400, "invalid_input"),
    "fps of zero": (episode(1, fps=0.0), 400, "invalid_input"),
    "session id that climbs": (episode(1, session_id="../x"), 400, "invalid_session"),
    "unknown field": (episode(1, model="other"), 400, "invalid_message"),
    "a bad picture": (bad_frame(), 400, "invalid_image"),
    "state too long": (episode(1, frames=[{**FRAME, "state": [0.0] * 9}]), 400, "invalid_state"),
    "not finite": (
        episode(1, frames=[{**FRAME, "state": [float("nan")] * 4}]),
        400,
        "invalid_state",
    ),
}


@pytest.fixture(scope="module")
def small(model: Any) -> Iterator[httpx.Client]:
    with RunningServer(model, max_episode_frames=60) as server, server.http() as client:
        yield client


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_refused_with_code_message_field_and_error_id(small: httpx.Client, case: str) -> None:
    body, status, code = BAD_BODIES[case]
    answer = post(small, body)
    assert answer.status_code == status, answer.text
    refusal = answer.json()
    assert set(refusal) == {"code", "message", "field", "error_id"}
    assert refusal["code"] == code
    assert "Traceback" not in answer.text
    assert post(small, episode(1)).status_code == 200


def test_the_first_bad_frame_is_named(small: httpx.Client) -> None:
    assert "frame 1" in post(small, bad_frame()).json()["message"]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"fps": "10", "state": "[[0,0,0,0]]"}, None),
        ({"task": "t", "state": "[[0,0,0,0]]"}, "fps"),
        ({"task": "t", "fps": "10"}, "state"),
        ({"task": "t", "fps": "10", "state": "no json"}, "state"),
        ({"task": "t", "fps": "10", "state": "{}"}, "state"),
        ({"task": "t", "fps": "10", "state": "[[0,0,0,0],[0,0,0,0]]"}, "corner"),
        ({"task": "t", "fps": "10", "state": "[[0,0,0,0]]", "colour": "red"}, "colour"),
    ],
)
def test_a_bad_form_is_refused_and_the_field_named(
    http: httpx.Client, data: dict[str, str], field: str | None
) -> None:
    files = [(camera, ("f.jpg", fakes.jpeg(0).data)) for camera in fakes.CAMERAS]
    answer = http.post("/v1/episodes:score", data=data, files=files)
    assert answer.status_code == 400
    assert answer.json()["field"] == field or field is None


def test_a_form_of_ten_thousand_fields_is_refused(http: httpx.Client) -> None:
    files = [(f"field-{index}", (None, "x")) for index in range(10_000)]
    assert http.post("/v1/episodes:score", files=files).status_code == 400


def test_another_content_type_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/episodes:score", json={"task": "t"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_message")


def test_compressed_bodies_are_refused(http: httpx.Client) -> None:
    answer = post(http, episode(1), **{"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["field"]) == (400, "content-encoding")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_with_and_without_a_length(serve: Serve, chunked: bool) -> None:
    server = serve(max_body_bytes=10_000)

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1000)

    with server.http() as http:
        try:
            content = chunks() if chunked else bytes(10_001)
            answer = http.post("/v1/episodes:score", content=content, headers=MSGPACK)
        except httpx.TransportError:
            assert chunked  # the answer came, and the connection went, before all was sent
        else:
            assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_body_that_never_ends_is_refused_after_its_time(serve: Serve) -> None:
    server = serve(body_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        head = b"POST /v1/episodes:score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 504")


def test_headers_that_never_end_are_cut_off_after_their_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "HEADER_TIMEOUT_S", 0.2)
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: local")
        assert connection.recv(100) == b""


def test_a_second_request_whose_headers_never_end_is_cut_off_too(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "HEADER_TIMEOUT_S", 0.2)
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = connection.recv(4096)
        while b'"ok"' not in answer:
            answer += connection.recv(4096)
        connection.sendall(b"G")
        assert connection.recv(100) == b""


def test_streams_and_websockets_outlive_the_wait_for_headers(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocols, "HEADER_TIMEOUT_S", 0.1)
    server = serve()
    with server.robot() as robot, server.http() as http:
        robot.start("long")
        with http.stream("GET", "/v1/episodes/long/events") as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: start"
            time.sleep(0.3)
            robot.score(fakes.frame(0))
            assert "event: score" in itertools.islice(lines, 10)


def test_ten_thousand_headers_are_refused(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        lines = b"".join(b"X-%d: 1\r\n" % index for index in range(10_000))
        try:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 4")
        except ConnectionError:
            pass  # refused before all was sent


def test_robots_are_answered_while_a_long_body_is_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> wire.EpisodeRequest:
        begun.set()
        assert go_on.wait(WAIT_S)
        return decode_episode_request(*arguments, **options)

    monkeypatch.setattr("sarm2_service.episodes.decode_episode_request", slow)
    server = serve()
    with server.http() as http, server.robot() as robot, ThreadPoolExecutor() as pool:
        robot.start("beside")
        posted = pool.submit(post, http, episode(2))
        assert begun.wait(WAIT_S)
        robot.score(fakes.frame(0))
        go_on.set()
        assert posted.result().status_code == 200


def test_a_caller_who_leaves_frees_the_slot_before_the_episode_is_through(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(max_uploads=1, max_in_flight=4)
    begun, go_on = threading.Event(), threading.Event()
    encode_images = server.model.encoder.encode_images

    def held(images: Any) -> Any:
        begun.set()
        assert go_on.wait(WAIT_S)
        return encode_images(images)

    monkeypatch.setattr(server.model.encoder, "encode_images", held)
    body = encode(episode(40))
    head = (
        f"POST /v1/episodes:score HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK['content-type']}\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert begun.wait(WAIT_S)
    go_on.set()
    wait_until(lambda: not server.service.uploads.locked())
    assert 0 < server.metric("sarm2_scored_steps_total") < 40
    assert server.metric("sarm2_errors_total", code="internal") == 0
    with server.http() as http:
        assert post(http, episode(1)).status_code == 200


def test_more_whole_episodes_at_once_than_allowed_are_refused(serve: Serve) -> None:
    server = serve(max_uploads=1, body_timeout_s=2)
    with socket.create_connection(("127.0.0.1", server.port)) as slow, server.http() as http:
        head = b"POST /v1/episodes:score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/msgpack\r\n"
        slow.sendall(head + b"Content-Length: 1000\r\n\r\nx")
        wait_until(server.service.uploads.locked)
        answer = post(http, episode(1))
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert answer.headers["retry-after"] == "1"


def test_more_embeddings_at_once_than_allowed_wait_for_their_turn(serve: Serve) -> None:
    server = serve(max_embeds=1)
    bodies = [encode(wire.EmbedRequest(images=[fakes.jpeg(seed)])) for seed in range(12)]
    with server.http() as http, ThreadPoolExecutor(12) as robots:
        answers = list(robots.map(lambda body: http.post("/v1/embed", content=body), bodies * 3))
    assert [answer.status_code for answer in answers] == [200] * 36


def test_a_turn_for_embeddings_is_not_waited_for_without_end(serve: Serve) -> None:
    server = serve(max_embeds=1, embed_wait_s=0.2, body_timeout_s=5)
    with socket.create_connection(("127.0.0.1", server.port)) as slow, server.http() as http:
        slow.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        wait_until(server.service.embeds.locked)
        answer = http.post("/v1/embed", content=encode(wire.EmbedRequest(images=[fakes.jpeg(1)])))
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert "1 calls of /v1/embed are being answered" in answer.json()["message"]
        assert post(http, episode(1)).status_code == 200, "whole episodes have places of their own"
    wait_until(lambda: not server.service.embeds.locked())


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/episodes/none/events", "/v1/episodes/none/frames/x", "/static/x.js"]
)
def test_what_is_not_there_is_a_json_404(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"])
def test_no_path_leads_out_of_the_pages_folder(server: RunningServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 404")


# --- who may ask -------------------------------------------------------------------------------------

FOREIGN = {"origin": "https://elsewhere.example"}


@pytest.mark.parametrize(
    "origin",
    ["https://elsewhere.example", "null", "http://localhost.elsewhere.example", "http://", "http://["],
)
def test_pages_of_another_origin_may_neither_write_nor_listen(server: RunningServer, origin: str) -> None:
    with server.http(headers={"origin": origin}) as http:
        assert post(http, episode(1)).status_code == 403
        assert http.get("/v1/episodes").status_code == 403
    with pytest.raises(InvalidStatus) as refused, server.robot(origin=origin):
        pass
    assert refused.value.response.status_code == 403


def test_the_servers_own_page_may_do_both(server: RunningServer) -> None:
    with server.http(headers={"origin": server.url}) as http:
        assert http.get("/v1/episodes").status_code == 200
        assert post(http, episode(1)).status_code == 200
    with server.robot(origin=server.url) as robot:
        robot.start("page")


def test_an_allowed_origin_may_do_both_and_is_told_so(serve: Serve) -> None:
    server = serve(allowed_origins=FOREIGN["origin"])
    with server.http(headers=FOREIGN) as http:
        answer = http.get("/v1/episodes")
        assert answer.headers["access-control-allow-origin"] == FOREIGN["origin"]
        assert http.options("/v1/episodes:score").status_code == 204
    with server.robot(origin=FOREIGN["origin"]) as robot:
        robot.start("allowed")


def test_a_foreign_name_that_resolves_here_is_not_served_on_loopback(http: httpx.Client) -> None:
    answer = http.get("/v1/episodes", headers={"host": "rebound.example"})
    assert (answer.status_code, answer.json()["field"]) == (403, "host")


def test_an_allowed_host_may_be_written_in_any_case(serve: Serve) -> None:
    server = serve(allowed_hosts="Robots.Example")
    with server.http() as http:
        assert http.get("/v1/episodes", headers={"host": "robots.example:8765"}).status_code == 200
        assert http.get("/v1/episodes", headers={"host": "localhost"}).status_code == 403


def test_pictures_cannot_be_embedded_by_other_pages(http: httpx.Client) -> None:
    answer = http.get("/v1/episodes", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"})
    assert answer.status_code == 403


# --- what the service says of itself -----------------------------------------------------------------


def test_models_tell_what_hello_tells(server: RunningServer, http: httpx.Client) -> None:
    (entry,) = http.get("/v1/models").json()["models"]
    assert entry["model"] == msgspec.to_builtins(server.model.info)
    assert entry["preprocess"] == msgspec.to_builtins(server.model.preprocess)
    assert entry["limits"] == msgspec.to_builtins(server.settings.limits())


def test_live_and_ready(http: httpx.Client) -> None:
    assert http.get("/livez").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ok"}


def test_a_draining_server_is_alive_not_ready_and_refuses_new_work(serve: Serve) -> None:
    server = serve()
    with server.http() as http:
        server.service.draining = True
        assert http.get("/livez").status_code == 200
        assert http.get("/readyz").status_code == 503
        assert http.get("/metrics").status_code == 200
        answer = post(http, episode(1))
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        with pytest.raises(InvalidStatus) as refused, server.robot():
            pass
        assert refused.value.response.status_code == 503


def test_a_server_full_of_idle_connections_is_alive_and_takes_no_other_request(serve: Serve) -> None:
    server = serve(max_connections=1, max_subscribers=1)  # 66 sockets
    with ExitStack() as stack:
        for _ in range(70):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        http = stack.enter_context(server.http())
        assert http.get("/v1/models").status_code == 503
        assert http.get("/livez").json() == {"status": "ok"}
        assert http.get("/readyz").status_code == 503


def test_openapi_describes_every_route(server: RunningServer, http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/livez",
        "/readyz",
        "/metrics",
        "/v1/episodes:score",
        "/v1/embed",
        "/v1/models",
        "/v1/model:reload",
        "/v1/episodes",
        "/v1/episodes/{session_id}/events",
        "/v1/episodes/{session_id}/frames/{camera}",
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
    assert "requestBody" in document["paths"]["/v1/embed"]["post"]


def test_every_answer_carries_the_headers_that_protect_a_browser(http: httpx.Client) -> None:
    for path in ("/", "/v1/episodes", "/nothing"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "server" not in headers


def test_the_page_and_its_files_are_served(http: httpx.Client) -> None:
    page = http.get("/")
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert http.get("/static/style.css").headers["content-type"].startswith("text/css")


def test_an_unexpected_failure_is_a_500_without_details(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()

    def fail() -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(server.service.feed, "list", fail)
    with server.http() as http:
        answer = http.get("/v1/episodes")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
