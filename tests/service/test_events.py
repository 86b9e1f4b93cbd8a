"""What pages see: the list of episodes, their events and their pictures; and that watching harms nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2 as httpx
import msgspec
import pytest

import fakes
from running_server import RunningServer, Serve, wait_until
from sarm2_client import wire
from sarm2_client.images import decode_jpeg


def events(answer: httpx.Response) -> Iterator[tuple[str, str | None, dict[str, object]]]:
    """Name, id and data of every server-sent event."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], fields.get("id"), json.loads(fields["data"])
            fields = {}


def test_a_page_sees_the_start_the_whole_history_live_scores_and_the_summary(server: RunningServer) -> None:
    with server.robot() as robot, server.http() as http:
        robot.start("watched")
        scores = [robot.score(fakes.frame(seq)) for seq in range(3)]
        with http.stream("GET", "/v1/episodes/watched/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            seen = events(answer)
            name, _, start = next(seen)
            assert name == "start"
            assert start["primitives"] == server.model.info.primitives
            assert (start["session_id"], start["fps"]) == ("watched", 10.0)
            assert start["cameras"] == list(fakes.CAMERAS)
            assert [next(seen)[2] for _ in range(3)] == [json.loads(msgspec.json.encode(s)) for s in scores]
            robot.score(fakes.frame(3))
            name, event_id, live = next(seen)
            assert (name, event_id, live["seq"]) == ("score", "3", 3)
            summary = robot.end(3)
            name, event_id, data = next(seen)
            assert (name, event_id, data["scored"]) == ("summary", "end", summary.scored)
            assert next(seen, None) is None


def test_a_page_that_reconnects_continues_after_its_last_event(server: RunningServer) -> None:
    with server.robot() as robot, server.http() as http:
        robot.start("again")
        for seq in range(5):
            robot.score(fakes.frame(seq))
        robot.end(4)
        with http.stream("GET", "/v1/episodes/again/events", headers={"last-event-id": "2"}) as answer:
            assert [name for name, _, _ in events(answer)] == ["start", "score", "score", "summary"]
        # 204 tells a browser that there is nothing more to come back for.
        assert http.get("/v1/episodes/again/events", headers={"last-event-id": "end"}).status_code == 204


def test_an_event_id_of_five_thousand_digits_is_refused(server: RunningServer) -> None:
    with server.robot() as robot, server.http() as http:
        robot.start("digits")
        answer = http.get("/v1/episodes/digits/events", headers={"last-event-id": "9" * 5000})
        assert (answer.status_code, answer.json()["field"]) == (400, "last-event-id")


def test_the_list_shows_live_and_ended_episodes_newest_first(serve: Serve) -> None:
    server = serve(ended_episodes=2)
    with server.robot() as robot, server.http() as http:
        for index in range(4):
            robot.start(f"episode-{index}")
            score = robot.score(fakes.frame(0))
            if index < 3:
                robot.end(0)
        rows = http.get("/v1/episodes").json()["episodes"]
    assert [(row["session_id"], row["state"]) for row in rows] == [
        ("episode-3", "live"),
        ("episode-2", "ended"),
        ("episode-1", "ended"),
    ]
    assert rows[0]["progress"] == pytest.approx(score.progress)
    assert rows[0]["frames"] == 1
    assert rows[0]["primitive"] == score.primitive


def test_history_is_bounded_and_keeps_the_latest(serve: Serve) -> None:
    server = serve(history_frames=16)
    with server.robot() as robot, server.http() as http:
        robot.start("long")
        for seq in range(40):
            robot.score(fakes.frame(seq))
        robot.end(39)
        with http.stream("GET", "/v1/episodes/long/events") as answer:
            seqs = [data["seq"] for name, _, data in events(answer) if name == "score"]
    assert seqs == list(range(24, 40))


def test_the_latest_picture_of_each_camera_is_a_jpeg_whatever_the_robot_sent(server: RunningServer) -> None:
    pixels = fakes.picture(3)
    raw = wire.Image(enc="raw", data=pixels.tobytes(), shape=(32, 32, 3), dtype="uint8")
    with server.robot() as robot, server.http() as http:
        robot.start("pictures")
        frame = fakes.frame(0)
        robot.score(msgspec.structs.replace(frame, images={**frame.images, "side": raw}))
        corner = http.get("/v1/episodes/pictures/frames/corner")
        assert corner.headers["content-type"] == "image/jpeg"
        assert corner.content == frame.images["corner"].data
        side = decode_jpeg(http.get("/v1/episodes/pictures/frames/side").content)
        assert abs(side.astype(int) - pixels).mean() < 4
        assert http.get("/v1/episodes/pictures/frames/nose").status_code == 404


def test_more_pages_than_allowed_are_refused(serve: Serve) -> None:
    server = serve(max_subscribers=1)
    with server.robot() as robot, server.http() as http:
        robot.start("popular")
        with http.stream("GET", "/v1/episodes/popular/events") as answer:
            seen = events(answer)
            next(seen)
            assert http.get("/v1/episodes/popular/events").status_code == 429


def test_a_page_that_leaves_frees_its_place(serve: Serve) -> None:
    server = serve(max_subscribers=1)
    with server.robot() as robot:
        robot.start("left")
        for seq in range(3):
            with server.http() as http, http.stream("GET", "/v1/episodes/left/events") as answer:
                assert answer.status_code == 200
                next(events(answer))
            robot.score(fakes.frame(seq))
            wait_until(lambda: not server.service.feed.get("left").subscribers)


def test_a_page_that_never_reads_does_not_slow_the_robot_and_is_let_go(serve: Serve) -> None:
    server = serve()
    with server.robot() as robot, server.http() as http:
        robot.start("unread")
        with http.stream("GET", "/v1/episodes/unread/events"):
            frame = fakes.frame(0)
            for seq in range(700):
                robot.score(msgspec.structs.replace(frame, seq=seq))
        assert robot.end(699).scored == 700


def test_episodes_scored_over_http_are_shown_like_live_ones(server: RunningServer) -> None:
    frames = [wire.EpisodeFrame(images=f.images, state=f.state) for f in map(fakes.frame, range(3))]
    request = wire.EpisodeRequest(task=fakes.TASKS[0], fps=10, frames=frames, session_id="uploaded")
    with server.http() as http:
        content = msgspec.msgpack.encode(request)
        http.post("/v1/episodes:score", content=content, headers={"content-type": "application/msgpack"})
        rows = http.get("/v1/episodes").json()["episodes"]
    assert ("uploaded", "ended", 3) in [(row["session_id"], row["state"], row["frames"]) for row in rows]


def test_draining_ends_the_subscriptions(serve: Serve) -> None:
    server = serve()
    with server.robot() as robot, server.http() as http:
        robot.start("going")
        with http.stream("GET", "/v1/episodes/going/events") as answer:
            seen = events(answer)
            next(seen)
            server.stop()
            assert list(seen) == []
