"""Episodes: streaming equals batch, each frame is encoded once, bad frames harm nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from models.tiny import SIDE, random_images, random_states
from sarm2_client import checks
from sarm2_client.checks import MAX_STATE_MAGNITUDE
from sarm2_client.errors import InvalidImage, InvalidInput, InvalidSequence, InvalidState
from sarm2_models.predictor import Predictor, StepScore, check_state, step_score
from sarm2_models.reward_model import RewardModel, ScoreBatch

TASK, FPS = "pick up the ball", 10.0


def frame(images: dict[str, Any], t: int) -> dict[str, Any]:
    return {camera: pictures[t] for camera, pictures in images.items()}


def stream(model: RewardModel, frames: int, seqs: list[int] | None = None, seed: int = 0) -> list[StepScore]:
    images, states = random_images(frames, seed), random_states(frames, seed)
    predictor = Predictor(model)
    predictor.reset(TASK, FPS)
    return [
        predictor.step(frame(images, t), states[t], seq=None if seqs is None else seqs[t])
        for t in range(frames)
    ]


def assert_equal(streamed: list[StepScore], scores: ScoreBatch, model: RewardModel, atol: float) -> None:
    for t, one in enumerate(streamed):
        other = step_score(model, scores, t, one.seq, one.task_known, one.filled)
        for field in fields(StepScore):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, (str, bool)):
                assert a == b
            else:
                np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=field.name)


def test_streaming_equals_batch(model: RewardModel) -> None:
    """The bar is 1e-4; on one thread, as here, it is the last bit."""
    streamed = stream(model, 70)
    scores = Predictor(model).score_episode(TASK, FPS, random_images(70), random_states(70))
    assert_equal(streamed, scores, model, atol=1e-6)
    assert [one.seq for one in streamed] == list(range(70))


def test_streaming_equals_batch_where_frames_are_missing(model: RewardModel) -> None:
    seqs = [3, 4, 5, 9, 10, 30, 31, 90]
    streamed = stream(model, 8, seqs)
    scores = Predictor(model).score_episode(TASK, FPS, random_images(8), random_states(8), seqs)
    assert_equal(streamed, scores, model, atol=1e-6)
    assert [one.filled for one in streamed] == [0, 0, 0, 3, 0, 19, 0, 58]


def test_a_missing_frame_is_the_last_earlier_one(model: RewardModel) -> None:
    """Leave frame 5 out, or send frame 4 again in its place: the frames after it score the same."""
    images, states = random_images(12), random_states(12)
    again = {camera: pictures.copy() for camera, pictures in images.items()}
    for pictures in again.values():
        pictures[5] = pictures[4]
    states[5] = states[4]
    kept = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    whole = Predictor(model).score_episode(TASK, FPS, again, states)
    part = Predictor(model).score_episode(
        TASK, FPS, {camera: pictures[kept] for camera, pictures in again.items()}, states[kept], kept
    )
    np.testing.assert_allclose(part.progress_B, whole.progress_B[kept], atol=1e-6)


@pytest.mark.parametrize("t", [0, 1, 9, 25])
def test_nothing_at_time_t_depends_on_later_frames(model: RewardModel, t: int) -> None:
    images, states = random_images(30), random_states(30)
    other_images, other_states = random_images(30, seed=9), random_states(30, seed=9)
    for camera, pictures in other_images.items():
        pictures[: t + 1] = images[camera][: t + 1]
    other_states[: t + 1] = states[: t + 1]
    one = Predictor(model).score_episode(TASK, FPS, images, states)
    other = Predictor(model).score_episode(TASK, FPS, other_images, other_states)
    np.testing.assert_array_equal(one.progress_B[: t + 1], other.progress_B[: t + 1])
    np.testing.assert_array_equal(one.probs_BP[: t + 1], other.probs_BP[: t + 1])
    assert (one.progress_B[t + 1 :] != other.progress_B[t + 1 :]).any()


def test_each_frame_is_encoded_once(model: RewardModel) -> None:
    before = model.encoder.images_encoded
    stream(model, 40)
    assert model.encoder.images_encoded - before == 40 * 3


def test_reset_forgets_the_episode_before(model: RewardModel) -> None:
    images, states = random_images(3), random_states(3)
    predictor = Predictor(model)
    predictor.reset(TASK, FPS)
    first = [predictor.step(frame(images, t), states[t]).progress for t in range(3)]
    predictor.reset(TASK, FPS)
    assert [predictor.step(frame(images, t), states[t]).progress for t in range(3)] == first


def test_an_unknown_task_is_scored_and_said_to_be_uncertain(model: RewardModel) -> None:
    predictor = Predictor(model)
    predictor.reset("tie a knot", FPS)
    score = predictor.step(frame(random_images(1), 0), random_states(1)[0])
    assert (score.task_known, score.uncertain, score.group) == (False, True, "other")
    assert 0 <= score.progress <= 1
    assert score.value == score.progress - 1


def test_pictures_of_any_size_are_resized(model: RewardModel) -> None:
    predictor = Predictor(model)
    predictor.reset(TASK, FPS)
    images = {camera: np.zeros((48 + i, 64, 3), np.uint8) for i, camera in enumerate(model.config.cameras)}
    assert predictor.step(images, random_states(1)[0]).seq == 0


def test_a_bad_frame_is_refused_and_the_episode_goes_on_as_without_it(model: RewardModel) -> None:
    images, states = random_images(4), random_states(4)
    good = frame(images, 1)
    predictor = Predictor(model)
    predictor.reset(TASK, FPS)
    predictor.step(frame(images, 0), states[0])
    bad_frames: list[tuple[type[Exception], dict[str, Any], Any]] = [
        (InvalidImage, {"corner": good["corner"]}, states[1]),
        (InvalidImage, good | {"nose": good["corner"]}, states[1]),
        (InvalidImage, good | {"side": good["side"].astype(np.float32)}, states[1]),
        (InvalidImage, good | {"side": good["side"][..., :1]}, states[1]),
        (InvalidImage, good | {"side": np.zeros((0, 5, 3), np.uint8)}, states[1]),
        (InvalidState, good, states[1][:3]),
        (InvalidState, good, [0.0, 1.0, float("nan"), 0.0]),
        (InvalidState, good, [0.0, 1.0, float("inf"), 0.0]),
        (InvalidState, good, [0.0, 1.0, 1e308, 0.0]),
        (InvalidState, good, ["a", 1.0, 2.0, 0.0]),
    ]
    for expected, pictures, state in bad_frames:
        with pytest.raises(expected):
            predictor.step(pictures, state)
    with pytest.raises(InvalidSequence, match="above 0"):
        predictor.step(good, states[1], seq=0)
    rest = [predictor.step(frame(images, t), states[t]).progress for t in (1, 2, 3)]
    whole = Predictor(model).score_episode(TASK, FPS, images, states).progress_B[1:]
    np.testing.assert_allclose(rest, whole, atol=1e-6)


def test_a_step_before_reset_is_refused(model: RewardModel) -> None:
    with pytest.raises(InvalidSequence, match="reset"):
        Predictor(model).step(frame(random_images(1), 0), random_states(1)[0])


@pytest.mark.parametrize("fps", [0.0, -3.0, float("nan"), 1e9])
def test_an_impossible_frame_rate_is_refused(model: RewardModel, fps: float) -> None:
    with pytest.raises(InvalidInput, match="fps"):
        Predictor(model).reset(TASK, fps)


def test_an_episode_shorter_than_the_window_is_scored(model: RewardModel) -> None:
    assert len(Predictor(model).score_episode(TASK, FPS, random_images(1), random_states(1))) == 1


def test_an_episode_without_frames_or_of_unequal_lengths_is_refused(model: RewardModel) -> None:
    predictor = Predictor(model)
    with pytest.raises(InvalidInput, match="at least one frame"):
        predictor.score_episode(TASK, FPS, random_images(0), np.zeros((0, 4)))
    with pytest.raises(InvalidInput, match="one a state"):
        predictor.score_episode(TASK, FPS, random_images(3), random_states(2))
    with pytest.raises(InvalidSequence, match="rising"):
        predictor.score_episode(TASK, FPS, random_images(2), random_states(2), [4, 4])


def test_a_frozen_black_camera_scores_and_stays_finite(model: RewardModel) -> None:
    black = {camera: np.zeros((60, SIDE, SIDE, 3), np.uint8) for camera in model.config.cameras}
    scores = Predictor(model).score_episode(TASK, FPS, black, np.zeros((60, 4)))
    assert np.isfinite(scores.progress_B).all()
    # Once the window is full nothing changes any more, so nothing may move.
    assert len(set(scores.progress_B[24:].tolist())) == 1


def test_a_state_is_checked_and_made_float32() -> None:
    assert check_state([1, 2], 2).dtype == np.float32


@pytest.mark.parametrize("sign", [1, -1])
def test_a_state_may_be_as_large_as_on_the_wire_and_no_larger(sign: int) -> None:
    check_state([0, sign * MAX_STATE_MAGNITUDE], 2)
    for check in (lambda state: check_state(state, 2), checks.check_state):
        with pytest.raises(InvalidState, match="up to 1e"):
            check([0, sign * MAX_STATE_MAGNITUDE * (1 + 1e-9)])
