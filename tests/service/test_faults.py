"""A model that fails: one frame pays, the others are scored."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

import fakes
from running_server import RunningServer, Serve, wait_until
from sarm2_client import wire
from sarm2_client.images import decode_image
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.reward_model import RewardModel, ScoreBatch
from sarm2_models.window import WindowBatch

POISON = np.full((32, 32, 3), 7, np.uint8)


@pytest.fixture
def fragile(tmp_path: Path) -> RewardModel:
    """A model of its own, for tests that break it."""
    return fakes.make_model(tmp_path)


def poisoned(seq: int) -> wire.Frame:
    """A frame whose pictures break the encoder of `break_encoder`."""
    image = wire.Image(enc="raw", data=POISON.tobytes(), shape=(32, 32, 3), dtype="uint8")
    frame = fakes.frame(seq)
    return wire.Frame(seq=seq, t_ns=0, images=dict.fromkeys(fakes.CAMERAS, image), state=frame.state)


def break_encoder(monkeypatch: pytest.MonkeyPatch, encoder: ImageTextEncoder, *, raises: bool) -> None:
    """Make poisoned pictures fail: by an exception, or by embeddings that are not finite."""
    encode = encoder.encode_images

    def fragile_encode(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        bad = (images_BHWC == POISON).all((1, 2, 3))
        if bad.any() and raises:
            raise ZeroDivisionError("secret detail")
        rows = encode(images_BHWC)
        rows[bad] = np.nan
        return rows

    monkeypatch.setattr(encoder, "encode_images", fragile_encode)


def watch_decoding(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files of the pictures that are decoded from now on, in their order."""
    decoded: list[bytes] = []

    def observed(image: wire.Image, *, max_pixels: int) -> npt.NDArray[np.uint8]:
        decoded.append(image.data)
        return decode_image(image, max_pixels=max_pixels)

    monkeypatch.setattr("sarm2_service.scorer.decode_image", observed)
    return decoded


@contextmanager
def busy_device(server: RunningServer) -> Iterator[None]:
    """Nothing is taken from the queues inside the `with` block."""
    ready = threading.Event()
    held = server.call(
        lambda: server.service.loop.create_task(server.service.scorer._device.call(ready.wait))
    )
    wait_until(lambda: server.service.scorer._device.busy)
    try:
        yield
    finally:
        ready.set()
        wait_until(held.done)


def queued(server: RunningServer, frames: int) -> None:
    """Wait until so many frames are in the queue."""
    wait_until(lambda: server.metric("sarm2_queue_depth", queue="frames") == frames)


@pytest.mark.parametrize("raises", [True, False], ids=["exception", "not finite"])
def test_a_frame_that_breaks_the_encoder_fails_alone_among_its_batch_mates(
    serve: Serve, fragile: RewardModel, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    server = serve(fragile)
    break_encoder(monkeypatch, fragile.encoder, raises=raises)
    with server.robot() as robot, server.robot() as other:
        robot.start("poison")
        other.start("mate")
        for seq in range(12):
            robot.send(poisoned(seq) if seq == 5 else fakes.frame(seq))
            other.send(fakes.frame(seq, seed=1))
        answers = [robot.receive() for _ in range(12)]
        scores = [answer for answer in answers if isinstance(answer, wire.Score)]
        (error,) = [answer for answer in answers if isinstance(answer, wire.Error)]
        assert (error.code, error.seq) == ("model_failed", 5)
        assert "secret" not in error.message
        assert [score.seq for score in scores] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert scores[5].filled == 1
        assert [other.expect(wire.Score).seq for _ in range(12)] == list(range(12))
        assert other.end(11).scored == 12


def test_a_frame_that_breaks_the_heads_fails_and_the_episode_goes_on(
    serve: Serve, fragile: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(fragile)
    score = fragile.score

    def fragile_score(batch: WindowBatch) -> ScoreBatch:
        if (batch.state_BWS[:, -1] == 99).any():
            raise RuntimeError("broken heads")
        return score(batch)

    monkeypatch.setattr(fragile, "score", fragile_score)
    with server.robot() as robot:
        robot.start("heads")
        robot.score(fakes.frame(0))
        bad = fakes.frame(1)
        robot.send(wire.Frame(seq=1, t_ns=0, images=bad.images, state=[99.0] * 4))
        assert robot.expect(wire.Error).code == "model_failed"
        robot.score(fakes.frame(2))


def test_probabilities_that_are_not_finite_are_a_failed_frame_and_no_score(
    serve: Serve, fragile: RewardModel
) -> None:
    server = serve(fragile)
    fragile.stage.head.bias.data.fill_(np.nan)
    with server.robot() as robot:
        robot.start("stage")
        robot.send(fakes.frame(0))
        assert robot.expect(wire.Error).code == "model_failed"


def test_memory_that_runs_out_on_one_frame_leaves_it_out_and_the_episode_goes_on(
    serve: Serve, fragile: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def exhausted(images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        raise OutOfMemoryError

    server = serve(fragile)
    with server.robot() as robot:
        robot.start("memory")
        robot.score(fakes.frame(0))
        with monkeypatch.context() as patch:
            patch.setattr(fragile.encoder, "encode_images", exhausted)
            robot.send(fakes.frame(1))
            error = robot.expect(wire.Error)
        assert (error.code, error.retryable) == ("overloaded", True)
        assert "leaves this frame out" in error.message
        robot.send(fakes.frame(1))
        assert robot.expect(wire.Error) == error
        assert robot.score(fakes.frame(2)).filled == 1


def test_a_full_queue_refuses_frames_and_accepts_again_when_it_has_room(
    serve: Serve, fragile: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(fragile, max_queue_frames=2, max_in_flight=50)
    with server.robot() as robot:
        robot.start("full")
        for seq in range(40):
            robot.send(fakes.frame(seq))
        answers = [robot.receive() for _ in range(40)]
        refused = [answer for answer in answers if isinstance(answer, wire.Error)]
        assert {error.code for error in refused} <= {"overloaded"}
        assert robot.score(fakes.frame(100)).seq == 100
        assert robot.end(100).scored == 41 - len(refused)


def test_pictures_are_decoded_by_a_pool_while_the_device_is_busy_with_the_same_result(
    serve: Serve, fragile: RewardModel
) -> None:
    curves = []
    for threads in (0, 2):
        server = serve(fragile, decode_threads=threads, cache_bytes=0)
        with server.robot() as robot:
            robot.start("pool")
            for seq in range(14):
                robot.send(fakes.frame(seq))
            curves.append([robot.expect(wire.Score).progress for _ in range(14)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_a_robot_waits_for_one_frame_of_large_pictures_at_most(
    serve: Serve, fragile: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    PillowImage.new("RGB", (1536, 1536)).save(file, "JPEG", progressive=True)
    large = wire.Image(enc="jpeg", data=file.getvalue())
    decoded = watch_decoding(monkeypatch)
    server = serve(fragile, cache_bytes=0)
    with server.robot() as robot, server.robot() as other:
        robot.start("large")
        other.start("usual")
        with busy_device(server):
            for seq in range(4):
                images = dict.fromkeys(fakes.CAMERAS, large)
                robot.send(wire.Frame(seq=seq, t_ns=0, images=images, state=[0.0] * 4))
            queued(server, 4)
            other.send(fakes.frame(0))
            robot.send(fakes.frame(4))  # small again, but behind the large ones
            queued(server, 6)
        other.expect(wire.Score)
        assert [robot.expect(wire.Score).seq for _ in range(5)] == list(range(5))
        sizes = ["large" if data == large.data else "usual" for data in decoded]
        assert sizes == ["usual"] * 3 + ["large"] * 12 + ["usual"] * 3
        batches = server.metric("sarm2_batch_size_count", queue="frames")
        assert batches == 6
        robot.send(fakes.frame(5))
        assert robot.expect(wire.Score).seq == 5


def test_a_long_deadline_holds_up_no_frame_that_comes_after_its_answer(
    serve: Serve, fragile: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = watch_decoding(monkeypatch)
    server = serve(fragile, cache_bytes=0)
    with server.robot() as robot, server.robot() as other:
        robot.start("patient")
        other.start("other")
        robot.score(fakes.frame(0, deadline_ms=600_000))
        first, second = fakes.frame(1), fakes.frame(0, seed=1)
        with busy_device(server):
            robot.send(first)
            queued(server, 1)
            other.send(second)
            queued(server, 2)
        robot.expect(wire.Score)
        other.expect(wire.Score)
    expected = [image.data for frame in (first, second) for image in frame.images.values()]
    assert decoded[3:] == expected


def test_robots_are_answered_in_time_while_a_trainer_relabels(serve: Serve, fragile: RewardModel) -> None:
    server = serve(fragile, cache_bytes=0, max_in_flight=64)
    stop = threading.Event()

    def relabel() -> None:
        with server.robot() as trainer:
            trainer.start("trainer", qos="batch")
            for seq in range(100_000):
                if stop.is_set():
                    return
                trainer.send(fakes.frame(seq))
                if seq >= 60:
                    trainer.receive()

    thread = threading.Thread(target=relabel)
    with server.robot() as robot:
        robot.start("robot")
        robot.score(fakes.frame(0))
        thread.start()
        wait_until(lambda: server.metric("sarm2_scored_steps_total") >= 20)
        waits = [robot.score(fakes.frame(seq)).timing.queue_ms for seq in range(1, 12)]
        stop.set()
        thread.join()
    # In line behind some 60 frames a robot would wait for all of them; here it waits for one small batch.
    batch_ms = 1e3 * server.metric("sarm2_model_seconds_sum", part="encode")
    batch_ms /= server.metric("sarm2_model_seconds_count", part="encode")
    assert sorted(waits)[len(waits) // 2] < max(20.0, 10 * batch_ms)
