"""The client and the service together: real sockets, a real (tiny, untrained) model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import fakes
from e2e.chaos_proxy import ChaosProxy
from running_server import RunningServer, wait_until
from sarm2_client import Backoff, Episode, RewardClient, Score, Timeouts
from sarm2_client.errors import (
    Conflict,
    ConnectionLost,
    InvalidImage,
    InvalidInput,
    InvalidSession,
    TooLarge,
)
from sarm2_client.images import encode_jpeg
from sarm2_models.reward_model import RewardModel

TASK = fakes.TASKS[0]
LENGTH = 30
TOLERANCE = 1e-4
BACKOFF = Backoff(first=0.02, longest=0.2)
WAITS = Timeouts(connect=5, hello=5, start=5, score=10, resume=15, summary=20, close=0.5)


@pytest.fixture(scope="module")
def service(model: RewardModel) -> Iterator[RunningServer]:
    with RunningServer(model) as running:
        yield running


@pytest.fixture
def client(service: RunningServer) -> Iterator[RewardClient]:
    with RewardClient(port=service.port, timeouts=WAITS, backoff=BACKOFF) as client:
        yield client


def step(seq: int, seed: int = 1) -> dict[str, Any]:
    frame = fakes.frame(seq, seed=seed)
    return {"images": {name: image.data for name, image in frame.images.items()}, "state": frame.state}


def steps(seed: int = 1, length: int = LENGTH) -> list[dict[str, Any]]:
    return [step(seq, seed) for seq in range(length)]


def open_episode(client: RewardClient, **options: Any) -> Episode:
    return client.episode(TASK, fps=fakes.FPS, cameras=fakes.CAMERAS, **{"qos": "batch", **options})


def push_all(episode: Episode, frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        episode.push(frame["images"], frame["state"])


def stream(client: RewardClient, frames: list[dict[str, Any]], **options: Any) -> Episode:
    with open_episode(client, **options) as episode:
        push_all(episode, frames)
    return episode


def assert_same_curve(one: list[Score], two: list[Score]) -> None:
    assert [score.seq for score in one] == [score.seq for score in two]
    for mine, theirs in zip(one, two, strict=True):
        assert mine.progress == pytest.approx(theirs.progress, abs=TOLERANCE)
        assert mine.primitive_probs == pytest.approx(theirs.primitive_probs, abs=TOLERANCE)
        assert mine.primitive == theirs.primitive


@pytest.fixture(scope="module")
def reference(service: RunningServer) -> list[Score]:
    """Every frame of the episode scored in one HTTP call."""
    with RewardClient(port=service.port, timeouts=WAITS) as client:
        return client.score_episode(TASK, fps=fakes.FPS, frames=steps()).scores


# --- the same curve on every way -------------------------------------------------------------------------


def test_a_streamed_episode_equals_the_same_episode_scored_in_one_call(
    client: RewardClient, reference: list[Score]
) -> None:
    episode = stream(client, steps())
    assert_same_curve(episode.scores, reference)
    assert episode.errors == []
    assert episode.summary is not None
    assert episode.summary.scored == LENGTH
    assert episode.summary.final_progress == pytest.approx(reference[-1].progress, abs=TOLERANCE)


def test_stepping_by_infer_equals_streaming(client: RewardClient, reference: list[Score]) -> None:
    answers = [client.infer({**frame, "prompt": TASK}) for frame in steps()]
    summary = client.reset()
    assert [answer["progress"] for answer in answers] == pytest.approx(
        [score.progress for score in reference], abs=TOLERANCE
    )
    assert answers[1]["reward"] == pytest.approx(answers[1]["progress"] - answers[0]["progress"], abs=1e-6)
    assert summary is not None
    assert summary.frames == LENGTH


def test_arrays_of_the_cameras_own_size_are_scored_too(client: RewardClient) -> None:
    images = {camera: fakes.picture(index, 64)[:48] for index, camera in enumerate(fakes.CAMERAS)}
    answer = client.infer({"images": images, "state": [0.0] * fakes.STATE_DIM, "task": TASK})
    assert 0.0 <= answer["progress"] <= 1.0
    assert sum(answer["primitive_probs"]) == pytest.approx(1.0, abs=1e-3)
    assert answer["task_known"]


def test_an_unknown_task_scores_as_uncertain(client: RewardClient) -> None:
    answer = client.infer({**step(0), "task": "paint the fence"})
    assert not answer["task_known"]
    assert answer["uncertain"]


def test_robots_side_by_side_do_not_change_each_others_scores(
    service: RunningServer, reference: list[Score]
) -> None:
    episodes: dict[int, Episode] = {}

    def robot(seed: int) -> None:
        with RewardClient(port=service.port, timeouts=WAITS) as client:
            episodes[seed] = stream(client, steps(seed))

    threads = [threading.Thread(target=robot, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_curve(episodes[1].scores, reference)
    assert all(len(episode.scores) == LENGTH for episode in episodes.values())


# --- broken on the way -----------------------------------------------------------------------------------


def test_resets_in_the_middle_of_messages_change_nothing(
    service: RunningServer, reference: list[Score]
) -> None:
    with ChaosProxy(service.port, budgets=[9_000, 2_500, 20_001, 700]) as proxy:
        with RewardClient(port=proxy.port, timeouts=WAITS, backoff=BACKOFF) as client:
            episode = stream(client, steps())
        assert proxy.resets >= 3
    assert_same_curve(sorted(episode.scores, key=lambda score: score.seq), reference)
    assert episode.resumes >= 3
    assert episode.summary is not None
    assert episode.summary.scored == LENGTH


@pytest.mark.parametrize(
    ("deadline_ms", "metric", "labels", "errors", "dropped"),
    [
        (None, "sarm2_errors_total", {"code": "model_failed"}, 8, 0),
        (1e-3, "sarm2_dropped_frames_total", {"reason": "deadline"}, 0, 8),
    ],
    ids=["errors", "drops"],
)
def test_an_answer_that_a_resume_brings_twice_counts_once(
    model: RewardModel,
    monkeypatch: pytest.MonkeyPatch,
    deadline_ms: float | None,
    metric: str,
    labels: dict[str, str],
    errors: int,
    dropped: int,
) -> None:
    """The service sends again what it answered, and answers again each frame that the client sends again."""

    def fail(images_BHWC: object) -> None:
        raise ZeroDivisionError

    with (
        RunningServer(model) as server,
        ChaosProxy(server.port, budgets=[]) as proxy,
        RewardClient(port=proxy.port, timeouts=WAITS, backoff=BACKOFF) as client,
        open_episode(client, qos="realtime") as episode,
    ):
        monkeypatch.setattr(model.encoder, "encode_images", fail)
        proxy.mute()
        for frame in steps(length=8):
            episode.push(frame["images"], frame["state"], deadline_ms=deadline_ms)
        wait_until(lambda: server.metric(metric, **labels) == 8)
        proxy.reset()
        episode.close()
    assert episode.resumes == 1
    assert [error.seq for error in episode.errors] == list(range(errors))
    assert episode.dropped == dropped


def test_a_service_that_stops_and_comes_back_gives_the_same_curve(
    model: RewardModel, reference: list[Score]
) -> None:
    frames = steps()
    with RunningServer(model) as first:
        port = first.port
        client = RewardClient(port=port, timeouts=WAITS, backoff=BACKOFF)
        episode = open_episode(client).__enter__()
        push_all(episode, frames[:15])
    with RunningServer(model, port=port), client:
        push_all(episode, frames[15:])
        episode.close()
    assert_same_curve(sorted(episode.scores, key=lambda score: score.seq), reference)
    assert episode.resumes >= 1


def test_a_draining_service_sends_its_robots_to_a_replica(
    model: RewardModel, service: RunningServer, reference: list[Score]
) -> None:
    frames = steps()
    with RunningServer(model) as first:
        client = RewardClient(
            port=first.port, timeouts=WAITS, backoff=BACKOFF, replicas=[("127.0.0.1", service.port)]
        )
        episode = open_episode(client).__enter__()
        push_all(episode, frames[:15])
    with client:
        push_all(episode, frames[15:])
        episode.close()
    assert_same_curve(sorted(episode.scores, key=lambda score: score.seq), reference)


def test_a_service_that_is_gone_ends_in_connection_lost(model: RewardModel) -> None:
    waits = Timeouts(resume=0.3, close=0.5)
    with RunningServer(model) as service:
        client = RewardClient(port=service.port, timeouts=waits, backoff=BACKOFF)
        client.infer({**step(0), "task": TASK})
    with client, pytest.raises(ConnectionLost):
        client.infer(step(1))


# --- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"cameras": ["corner"]}, InvalidInput),
        ({"cameras": ["corner", "side", "elbow"]}, InvalidInput),
        ({"fps": 0}, InvalidInput),
        ({"fps": float("nan")}, InvalidInput),
        ({"fps": 1e9}, InvalidInput),
        ({"task": ""}, InvalidInput),
        ({"task": "a\0b"}, InvalidInput),
        ({"task": "x" * 100_000}, TooLarge),
        ({"session_id": "../etc"}, InvalidSession),
    ],
    ids=str,
)
def test_an_episode_that_the_service_refuses_raises_its_words_and_the_next_one_opens(
    client: RewardClient, options: Mapping[str, Any], kind: type[Exception]
) -> None:
    arguments: dict[str, Any] = {"task": TASK, "fps": 10.0, "cameras": fakes.CAMERAS, **options}
    with pytest.raises(kind):
        client.episode(**arguments).__enter__()
    assert client.infer({**step(0), "task": TASK})["seq"] == 0


def test_a_frame_that_the_service_refuses_is_reported_and_the_episode_goes_on(
    service: RunningServer, reference: list[Score]
) -> None:
    """A client that is told another size sends pictures that break the service's pixel limit."""
    frames = steps(length=3)
    with RewardClient(port=service.port, timeouts=WAITS, image_size=4096) as client:
        too_large = encode_jpeg(np.zeros((4096, 4096, 3), np.uint8), quality=10)
        with open_episode(client) as episode:
            episode.push(dict.fromkeys(fakes.CAMERAS, too_large), frames[0]["state"])
        assert [type(error) for error in episode.errors] == [TooLarge]
        assert episode.errors[0].seq == 0


def test_a_session_id_in_use_is_a_conflict(client: RewardClient, service: RunningServer) -> None:
    with (
        RewardClient(port=service.port, timeouts=WAITS) as other,
        open_episode(client, session_id="mine"),
        pytest.raises(Conflict),
    ):
        open_episode(other, session_id="mine").__enter__()


def test_a_whole_episode_that_is_wrong_raises_the_services_words(client: RewardClient) -> None:
    with pytest.raises(InvalidInput, match="frame"):
        client.score_episode(TASK, fps=fakes.FPS, frames=[])
    damaged = {"images": dict.fromkeys(fakes.CAMERAS, b"no jpeg"), "state": [0.0] * fakes.STATE_DIM}
    with pytest.raises(InvalidImage):
        client.score_episode(TASK, fps=fakes.FPS, frames=[damaged])
    going_back = [{**step(0), "seq": 4}, {**step(1), "seq": 3}]
    with pytest.raises(InvalidInput, match="seq"):
        client.score_episode(TASK, fps=fakes.FPS, frames=going_back)


# --- the other routes ------------------------------------------------------------------------------------


def test_metadata_and_models_say_the_same(client: RewardClient) -> None:
    metadata, listed = client.get_server_metadata(), client.models()["models"][0]
    assert listed["model"] == metadata["model"]
    assert listed["preprocess"] == metadata["preprocess"]
    assert metadata["model"]["cameras"] == list(fakes.CAMERAS)


def test_embeddings_have_a_row_a_picture_and_equal_pictures_have_equal_rows(client: RewardClient) -> None:
    rows_ND = client.embed([fakes.picture(1), fakes.picture(2), fakes.picture(1)])
    assert rows_ND.shape == (3, fakes.TINY.dim)
    assert rows_ND.dtype == np.float16
    assert (rows_ND[0] == rows_ND[2]).all()
    assert (rows_ND[0] != rows_ND[1]).any()
