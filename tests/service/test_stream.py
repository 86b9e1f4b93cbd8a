"""The websocket, as a robot sees it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import fakes
from running_server import RunningServer, Serve
from sarm2_client import wire
from sarm2_client.images import decode_image
from sarm2_models.predictor import Predictor
from sarm2_models.reward_model import RewardModel


def test_the_server_says_hello_first_with_model_preprocessing_and_limits(server: RunningServer) -> None:
    with server.robot() as robot:
        hello = robot.hello
        assert hello.protocol == "sarm.v1"
        assert hello.model == server.model.info
        assert hello.preprocess == server.model.preprocess
        assert hello.limits == server.settings.limits()


def test_every_frame_gets_one_score_and_the_episode_a_summary(server: RunningServer) -> None:
    with server.robot() as robot:
        started = robot.start("whole")
        assert (started.next_seq, started.resumed, started.task_known) == (0, False, True)
        scores = [robot.score(fakes.frame(seq)) for seq in range(12)]
        summary = robot.end(11)
    assert [score.seq for score in scores] == list(range(12))
    for score in scores:
        assert 0 <= score.interval[0] <= score.progress <= score.interval[1] <= 1
        assert score.value == score.progress - 1
        assert abs(sum(score.primitive_probs) - 1) < 1e-5
        assert score.durable_seq == score.seq
        assert score.t_ns == score.seq  # the robot's clock, echoed
    assert scores[0].reward is None
    progress = [score.progress for score in scores]
    assert [score.reward for score in scores[1:]] == pytest.approx(np.diff(progress), abs=1e-6)
    assert (summary.frames, summary.scored, summary.dropped) == (12, 12, 0)
    assert summary.final_progress == progress[-1]
    assert summary.max_progress == max(progress)
    assert summary.duration_s == pytest.approx(1.2)
    assert summary.segments[0].start_seq == 0
    assert summary.segments[-1].end_seq == 11


def test_streamed_scores_equal_the_predictors_within_a_ten_thousandth(
    server: RunningServer, model: RewardModel
) -> None:
    predictor = Predictor(model)
    predictor.reset(fakes.TASKS[1], fakes.FPS)
    with server.robot() as robot:
        robot.start("equal", task=fakes.TASKS[1])
        for seq in (0, 1, 2, 3, 7, 8, 40, 41):  # gaps included
            frame = fakes.frame(seq, seed=5)
            score = robot.score(frame)
            pixels = {name: decode_image(image, max_pixels=10**6) for name, image in frame.images.items()}
            expected = predictor.step(pixels, np.asarray(frame.state, np.float32), seq=seq)
            assert score.progress == pytest.approx(expected.progress, abs=1e-4)
            assert score.primitive_probs == pytest.approx(expected.probs_P, abs=1e-4)
            assert score.filled == expected.filled


def test_a_score_does_not_depend_on_other_robots(serve: Serve) -> None:
    server = serve(cache_bytes=0)

    def stream(name: str, seed: int, results: dict[str, list[float]]) -> None:
        with server.robot() as robot:
            robot.start(name)
            for seq in range(10):
                robot.send(fakes.frame(seq, seed=seed))
            results[name] = [robot.expect(wire.Score).progress for _ in range(10)]

    alone: dict[str, list[float]] = {}
    stream("alone", 3, alone)
    together: dict[str, list[float]] = {}
    threads = [
        threading.Thread(target=stream, args=(f"robot-{i}", 3 if i == 0 else 10 + i, together))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together["robot-0"] == pytest.approx(alone["alone"], abs=1e-4)
    assert len(together) == 6


def test_with_the_cache_off_every_step_costs_exactly_three_encoded_pictures(serve: Serve) -> None:
    server = serve(cache_bytes=0)
    with server.robot() as robot:
        robot.start("three")
        for seq in range(20):
            robot.score(fakes.frame(seq))
    assert server.metric("sarm2_scored_steps_total") == 20
    assert server.metric("sarm2_encoder_images_total") == 60


def test_a_picture_seen_before_is_not_encoded_again(serve: Serve) -> None:
    server = serve()
    for name in ("first", "second"):
        with server.robot() as robot:
            robot.start(name)
            curve = [robot.score(fakes.frame(seq)).progress for seq in range(5)]
        if name == "first":
            fresh = curve
    assert curve == fresh
    assert server.metric("sarm2_encoder_images_total") == 15
    assert server.metric("sarm2_cache_requests_total", tier="memory", result="hit") == 15


def test_shaped_reward_discounts_the_new_progress(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("shaped", reward="shaped.v1")
        first, second = (robot.score(fakes.frame(seq)) for seq in range(2))
    assert second.reward == pytest.approx(0.99 * second.progress - first.progress, abs=1e-6)


def test_the_interval_is_that_of_the_episodes_source_and_the_wider_one_where_it_is_not_told(
    server: RunningServer,
) -> None:
    width = {}
    for source in (None, "demonstration", "rollout"):
        with server.robot() as robot:
            robot.start(f"from-{source}", source=source)
            score = robot.score(fakes.frame(0))
        width[source] = score.interval[1] - score.progress
    assert width["demonstration"] == pytest.approx(width["rollout"] / 2, abs=1e-6)
    assert width[None] == width["rollout"]


def test_missing_frames_are_reported_with_the_next_score(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("gaps")
        assert robot.score(fakes.frame(4)).filled == 0  # the first frame may have any seq
        assert robot.score(fakes.frame(5)).filled == 0
        assert robot.score(fakes.frame(9)).filled == 3
        assert robot.score(fakes.frame(1000)).filled == 990


def test_an_unknown_instruction_is_scored_and_marked(server: RunningServer) -> None:
    with server.robot() as robot:
        assert robot.start("stranger", task="juggle three eggs").task_known is False
        score = robot.score(fakes.frame(0))
        assert (score.task_known, score.uncertain, score.group) == (False, True, "other")


def test_a_repeated_frame_gets_its_stored_score_and_is_not_scored_again(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("twice")
        scores = [robot.score(fakes.frame(seq)) for seq in range(3)]
        before = server.metric("sarm2_scored_steps_total")
        assert [robot.score(fakes.frame(seq)) for seq in range(3)] == scores
        assert server.metric("sarm2_scored_steps_total") == before
        assert robot.score(fakes.frame(3)).filled == 0


def test_ping_is_answered_with_both_clocks_before_and_during_an_episode(server: RunningServer) -> None:
    with server.robot() as robot:
        for started in (False, True):
            if started:
                robot.start("ping")
            robot.send(wire.Ping(t_ns=123))
            pong = robot.expect(wire.Pong)
            assert pong.t_ns == 123
            assert abs(pong.server_time_ns - time.time_ns()) < 60e9


def test_one_connection_can_run_one_episode_after_another(server: RunningServer) -> None:
    with server.robot() as robot:
        for index in range(3):
            robot.start(f"row-{index}")
            robot.score(fakes.frame(0))
            assert robot.end(0).scored == 1


def test_an_empty_episode_has_a_summary_without_progress(server: RunningServer) -> None:
    with server.robot() as robot:
        robot.start("empty")
        summary = robot.end()
    assert (summary.frames, summary.final_progress, summary.segments) == (0, None, [])


@pytest.mark.parametrize("offered", [None, ["sarm.v0"], ["mqtt", "sarm.v2"]])
def test_another_subprotocol_is_refused_before_the_upgrade(
    server: RunningServer, offered: list[str] | None
) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(server.stream_url, subprotocols=offered):  # type: ignore[arg-type]
        pass
    assert refused.value.response.status_code == 400
    assert b"sarm.v1" in refused.value.response.body


def test_a_late_realtime_frame_is_dropped_with_its_reason_and_the_episode_goes_on(
    server: RunningServer,
) -> None:
    with server.robot() as robot:
        robot.start("late")
        robot.score(fakes.frame(0))
        robot.send(fakes.frame(1, deadline_ms=0.0001))
        assert robot.expect(wire.Dropped) == wire.Dropped(seq=1, reason="deadline")
        assert robot.score(fakes.frame(2, deadline_ms=60_000)).filled == 1
        summary = robot.end(2)
    assert (summary.frames, summary.scored, summary.dropped) == (3, 2, 1)


def test_batch_quality_of_service_ignores_deadlines_and_waits_for_room(serve: Serve) -> None:
    server = serve(max_in_flight=2)
    with server.robot() as robot:
        robot.start("batch", qos="batch")
        for seq in range(30):
            robot.send(fakes.frame(seq, deadline_ms=0.0001))
        assert [robot.expect(wire.Score).seq for _ in range(30)] == list(range(30))
