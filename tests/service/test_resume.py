"""Lost connections: an episode goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import fakes
from running_server import WAIT_S, Robot, RunningServer, Serve, wait_until
from sarm2_client import wire
from sarm2_client.codec import encode
from sarm2_service.stream import Connection
from sarm2_service.stream_codec import SarmCodec


def curve(robot: Robot, seqs: range, seed: int = 0) -> list[float]:
    return [robot.score(fakes.frame(seq, seed=seed)).progress for seq in seqs]


def wait_until_lost(server: RunningServer, session_id: str) -> None:
    wait_until(lambda: server.service.sessions._open[session_id].sink is None)


def test_a_resumed_curve_equals_the_uninterrupted_one(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("uninterrupted")
        whole = curve(robot, range(30), seed=3)
    with server.robot() as robot:
        robot.start("interrupted")
        first = curve(robot, range(13), seed=3)
    wait_until_lost(server, "interrupted")
    with server.robot() as robot:
        started = robot.start("interrupted", resume_from=13)
        assert (started.next_seq, started.resumed) == (13, True)
        assert first + curve(robot, range(13, 30), seed=3) == whole
        assert robot.end(29).scored == 30


def test_frames_sent_again_to_another_replica_are_scored_however_late(server: RunningServer) -> None:
    with server.robot() as robot:
        assert robot.start("context", resume_from=3).next_seq == 0
        for seq in range(3):
            assert robot.score(fakes.frame(seq, deadline_ms=0.0001)).filled == 0
        robot.send(fakes.frame(3, deadline_ms=0.0001))
        assert robot.expect(wire.Dropped).seq == 3


def test_answers_that_were_lost_on_the_way_come_again_after_a_resume(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("unread")
        scores = [robot.score(fakes.frame(seq)) for seq in range(8)]
    wait_until_lost(server, "unread")
    with server.robot() as robot:
        assert robot.start("unread", resume_from=5).next_seq == 8
        assert [robot.expect(wire.Score) for _ in range(3)] == scores[5:]
        robot.score(fakes.frame(8))


def test_more_lost_answers_than_may_wait_for_a_slow_reader_come_again(serve: Serve) -> None:
    server = serve(max_in_flight=1)  # 66 messages may wait
    with server.robot() as robot:
        robot.start("many")
        scores = [robot.score(fakes.frame(seq)) for seq in range(200)]
    wait_until_lost(server, "many")
    with server.robot() as robot:
        robot.start("many", resume_from=0)
        assert [robot.expect(wire.Score) for _ in range(200)] == scores
        robot.score(fakes.frame(200))


def test_frames_in_flight_when_the_connection_broke_are_scored_and_delivered_after_the_resume(
    server: RunningServer,
) -> None:
    with server.robot() as robot:
        robot.start("flight")
        for seq in range(10):
            robot.send(fakes.frame(seq))
        robot.connection.close()
    wait_until_lost(server, "flight")
    with server.robot() as robot:
        next_seq = robot.start("flight", resume_from=0).next_seq
        assert [robot.expect(wire.Score).seq for _ in range(next_seq)] == list(range(next_seq))


def test_a_session_id_in_use_is_refused_to_another_client(server: RunningServer) -> None:
    with server.robot() as owner, server.robot() as other:
        owner.start("mine")
        other.send(fakes.start("mine"))
        assert other.expect(wire.Error).code == "conflict"
        assert other.closed() == 1008
        owner.score(fakes.frame(0))


def test_an_active_episode_cannot_be_taken_over_by_a_resume(serve: Serve) -> None:
    server = serve(takeover_after_s=60)  # no busy machine makes the owner silent for so long
    with server.robot() as owner, server.robot() as thief:
        owner.start("active")
        owner.score(fakes.frame(0))
        thief.send(fakes.start("active", resume_from=1))
        assert thief.expect(wire.Error).code == "conflict"
        owner.score(fakes.frame(1))


def test_a_resume_takes_over_from_a_connection_that_fell_silent(server: RunningServer) -> None:
    with server.robot() as half_open, server.robot() as again:
        half_open.start("half-open")
        half_open.score(fakes.frame(0))
        time.sleep(server.settings.takeover_after_s)
        assert again.start("half-open", resume_from=1).resumed
        again.score(fakes.frame(1))
        assert half_open.expect(wire.Error).code == "conflict"
        assert half_open.closed() == 1008
        assert again.score(fakes.frame(2)).filled == 0


def test_a_connection_that_reads_nothing_does_not_end_the_episode_that_another_resumed(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, free = fakes.make_model(tmp_path), threading.Event()
    server = serve(model, takeover_after_s=0)
    encode_images = model.encoder.encode_images

    def slow(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        assert free.wait(WAIT_S)
        return encode_images(images_BHWC)

    monkeypatch.setattr(model.encoder, "encode_images", slow)
    messages = [fakes.start("taken"), fakes.frame(0), wire.End(seq=0)]
    events: list[dict[str, object]] = [
        {"type": "websocket.receive", "bytes": encode(message)} for message in messages
    ]

    async def receive() -> dict[str, object]:
        return events.pop(0) if events else await asyncio.Future()

    async def send(_: object) -> None:
        await asyncio.Event().wait()

    async def serve_half_open() -> None:
        codec = SarmCodec(server.service.limits)
        await Connection(server.service, codec, receive, send).run()

    half_open = asyncio.run_coroutine_threadsafe(serve_half_open(), server.service.loop)
    try:
        wait_until(lambda: not events)
        with server.robot() as robot:
            assert robot.start("taken", resume_from=0).resumed
            free.set()
            assert robot.expect(wire.Score).seq == 0
            robot.score(fakes.frame(1))
            assert robot.end(1).scored == 2
    finally:
        half_open.cancel()


def test_a_resume_as_another_task_is_refused(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("same-task")
        robot.score(fakes.frame(0))
    wait_until_lost(server, "same-task")
    with server.robot() as robot:
        robot.send(fakes.start("same-task", task=fakes.TASKS[1], resume_from=1))
        assert robot.expect(wire.Error).code == "conflict"


def test_a_resume_with_another_discount_is_refused(server: RunningServer) -> None:
    start = fakes.start("same-gamma", reward="shaped.v1")
    with server.robot() as robot:
        robot.send(start)
        robot.expect(wire.Started)
    wait_until_lost(server, "same-gamma")
    with server.robot() as robot:
        robot.send(msgspec.structs.replace(start, gamma=0.5, resume_from=0))
        assert robot.expect(wire.Error).code == "conflict"
    with server.robot() as robot:
        assert robot.start("same-gamma", reward="shaped.v1", resume_from=0).resumed


def test_after_the_resume_window_an_episode_begins_anew(serve: Serve) -> None:
    server = serve(resume_window_s=0.1)
    with server.robot() as robot:
        robot.start("forgotten")
        robot.score(fakes.frame(0))
    wait_until(lambda: "forgotten" not in server.service.sessions._open)
    with server.robot() as robot:
        started = robot.start("forgotten", resume_from=1)
        assert (started.next_seq, started.resumed) == (0, False)
        assert robot.score(fakes.frame(1)).filled == 0


def test_a_lost_episode_makes_room_when_all_slots_are_taken(serve: Serve) -> None:
    server = serve(max_sessions=1)
    with server.robot() as robot:
        robot.start("lost")
    wait_until_lost(server, "lost")
    with server.robot() as robot:
        robot.start("new")
        robot.score(fakes.frame(0))


def test_draining_finishes_accepted_frames_tells_clients_and_closes_with_1012(serve: Serve) -> None:
    server = serve(max_in_flight=64)
    with server.robot() as robot, server.robot() as idle:
        robot.start("draining", qos="batch")
        for seq in range(20):
            robot.send(fakes.frame(seq))
        first = robot.expect(wire.Score)
        server.stop()
        messages: list[wire.ServerMessage] = [first]
        robot.collect(messages)
        assert robot.connection.close_code == 1012
        accepted = server.service.sessions._open["draining"].next_seq
        assert [m.seq for m in messages if isinstance(m, wire.Score)] == list(range(accepted))
        assert [m.deadline_s for m in messages if isinstance(m, wire.DrainingNotice)] == [2]
        idle.expect(wire.DrainingNotice)
        assert idle.closed() == 1012


@pytest.mark.slow
def test_sigterm_drains_and_ends_the_process_within_its_time(tmp_path: Path) -> None:
    bundle = fakes.make_bundle(tmp_path)
    code = (
        "from pathlib import Path; from sarm2_service.run import serve; "
        "from sarm2_service.settings import load_settings; "
        f"serve(load_settings(bundle=Path({str(bundle)!r}), port=0, torch_threads=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if '"event": "listening"' in line:
                break
        process.send_signal(signal.SIGTERM)
        log = process.stderr.read()
        assert process.wait(WAIT_S) == -signal.SIGTERM
        assert '"event": "draining"' in log
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
