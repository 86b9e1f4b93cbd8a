"""Scoring through a service whose device is overloaded now and then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rollouts.small_episodes import small_episode
from sarm2_client.client import RewardClient
from sarm2_client.errors import InvalidInput, Overloaded, Sarm2Error
from sarm2_rollouts.episode_scorer import PAUSES_S, ServiceScorer

FRAMES = 3


def answered(*errors: Sarm2Error) -> Any:
    """A finished episode: a score for every frame but those of the errors."""
    missing = {error.seq for error in errors}
    scores = [
        SimpleNamespace(seq=seq, progress=0.5, uncertain=False, primitive="reach")
        for seq in range(FRAMES)
        if seq not in missing
    ]
    return SimpleNamespace(scores=scores, errors=list(errors))


def at(seq: int, error: Sarm2Error) -> Sarm2Error:
    error.seq = seq
    return error


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("sarm2_rollouts.episode_scorer.time.sleep", slept.append)
    return slept


def scorer_that_is_answered(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> ServiceScorer:
    left = list(answers)
    monkeypatch.setattr("sarm2_rollouts.episode_scorer.stream_episode", lambda *_: left.pop(0))
    return ServiceScorer(cast(RewardClient, None))


def test_an_overloaded_device_is_asked_again(monkeypatch: pytest.MonkeyPatch, naps: list[float]) -> None:
    busy = answered(at(1, Overloaded("busy")))
    scorer = scorer_that_is_answered(monkeypatch, busy, busy, answered())
    scores = scorer.score(small_episode(0, FRAMES))
    assert scores.failures == ()
    np.testing.assert_array_equal(scores.progress_T, np.full(FRAMES, np.float32(0.5)))
    assert naps == [*PAUSES_S[:2]]


def test_one_that_stays_overloaded_is_told_of(monkeypatch: pytest.MonkeyPatch, naps: list[float]) -> None:
    busy = answered(at(1, Overloaded("busy")))
    scorer = scorer_that_is_answered(monkeypatch, *[busy] * (len(PAUSES_S) + 1))
    with pytest.raises(Overloaded, match="busy"):
        scorer.score(small_episode(0, FRAMES))
    assert naps == [*PAUSES_S]


def test_a_frame_that_will_never_do_is_reported_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    scorer = scorer_that_is_answered(monkeypatch, answered(at(2, InvalidInput("no picture"))))
    scores = scorer.score(small_episode(0, FRAMES))
    assert scores.failures == ((2, "no picture"),)
    assert np.isnan(scores.progress_T[2])
    assert naps == []
