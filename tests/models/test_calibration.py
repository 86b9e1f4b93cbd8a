"""Calibration keeps its promises on data it has not seen."""

from __future__ import annotations

import json
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from sarm2_client.errors import InvalidInput
from sarm2_models.calibration import (
    LEAST_EPISODES,
    Calibration,
    ConformalInterval,
    UncertainRule,
    fit_temperature,
    fit_uncertain_threshold,
)
from sarm2_models.reward_model import softmax
from sarm2_models.window import UNTOLD

Floats: TypeAlias = npt.NDArray[np.float64]


def untold(interval: ConformalInterval, count: int) -> Floats:
    """What the interval has for episodes of an unknown task from nobody knows where."""
    return np.full(count, interval.quantiles_of("unknown")[UNTOLD])


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(true_temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 5)) * 3
    cumulative = softmax(logits / true_temperature).cumsum(-1)
    labels = (generator.random((20_000, 1)) > cumulative).sum(-1).clip(0, 4)
    assert fit_temperature(logits, labels) == pytest.approx(true_temperature, rel=0.05)


def test_a_temperature_stays_within_its_bounds() -> None:
    logits = np.eye(3) * 5
    assert 0.05 <= fit_temperature(logits, np.arange(3)) < 0.2
    assert fit_temperature(logits, np.array([1, 2, 0])) == pytest.approx(20, rel=1e-2)


def test_certain_answers_are_wrong_at_most_as_often_as_stated_on_new_data() -> None:
    generator = np.random.default_rng(0)

    def draw(
        count: int,
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        confidence = generator.random(count)
        return confidence, generator.random(count) < confidence

    rule = fit_uncertain_threshold(*draw(20_000), stated_error=0.1)
    confidence, correct = draw(20_000)
    certain = confidence >= rule.threshold
    assert np.mean(~correct[certain]) == pytest.approx(0.1, abs=0.01)
    assert rule.threshold == pytest.approx(0.8, abs=0.03)
    assert rule.certain_share == pytest.approx(0.2, abs=0.03)
    assert rule.frames == 20_000


def test_frames_of_equal_confidence_stand_or_fall_together() -> None:
    confidence = np.array([0.9] * 50 + [0.5] * 50)
    correct = np.array([True] * 75 + [False] * 25)
    rule = fit_uncertain_threshold(confidence, correct, stated_error=0.2)
    assert rule.threshold == 0.9
    assert rule.observed_error == 0.0


def test_when_all_is_right_all_is_certain_and_when_nothing_is_nothing_is() -> None:
    confidence = np.linspace(0.3, 0.9, 100)
    assert fit_uncertain_threshold(confidence, np.ones(100, bool)).threshold == confidence[0]
    hopeless = fit_uncertain_threshold(confidence, np.zeros(100, bool))
    assert hopeless.threshold > 1
    assert hopeless.certain_share == 0


def test_three_lucky_frames_promise_nothing() -> None:
    assert fit_uncertain_threshold(np.full(3, 0.99), np.ones(3, bool), stated_error=0.05).threshold > 1


Arrays = tuple[
    np.ndarray[tuple[int], np.dtype[np.float32]],
    np.ndarray[tuple[int], np.dtype[np.float32]],
    np.ndarray[tuple[int], np.dtype[np.bool_]],
    np.ndarray[tuple[int], np.dtype[np.int64]],
]


def draw(episodes: int, seed: int) -> Arrays:
    """Errors that grow with progress and double where the answer is uncertain."""
    generator = np.random.default_rng(seed)
    episode = np.repeat(np.arange(episodes), 50)
    target = np.tile(np.linspace(0, 1, 50), episodes)
    uncertain = generator.random(len(target)) < 0.2
    noise = generator.normal(size=len(target)) * (0.01 + 0.05 * target) * (1 + uncertain)
    progress = np.clip(target + noise, 0, 1)
    return progress.astype(np.float32), target.astype(np.float32), uncertain, episode


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_the_interval_covers_what_it_promises_on_new_episodes(coverage: float) -> None:
    progress, target, uncertain, episode = draw(100, seed=0)
    interval = ConformalInterval.fit(progress, target, uncertain, coverage=coverage, episode_N=episode)
    progress, target, uncertain, _ = draw(200, seed=1)
    low, high = interval.apply(progress, uncertain, untold(interval, len(progress)))
    assert np.mean((low <= target) & (target <= high)) == pytest.approx(coverage, abs=0.02)


def test_the_interval_is_wider_where_errors_are_larger() -> None:
    progress, target, uncertain, episode = draw(100, seed=0)
    interval = ConformalInterval.fit(progress, target, uncertain, episode_N=episode)
    flags = np.array([False, False, True])
    low, high = interval.apply(np.array([0.3, 0.6, 0.6]), flags, untold(interval, 3))
    width = high - low
    assert width[0] < width[1] < width[2]


def test_the_interval_holds_for_each_source_apart_and_the_wider_one_where_it_is_not_told() -> None:
    rng = np.random.default_rng(0)
    source = np.arange(8000) // 40 % 2  # in turn: halves by parity would have one of them each
    progress = np.full(8000, 0.5)
    target = progress + np.where(source == 1, 0.1, 0.02) * rng.uniform(-1, 1, 8000)
    episode, certain = np.arange(8000) // 40, np.zeros(8000, dtype=bool)

    def covered(interval: ConformalInterval, which: int, told: bool) -> float:
        quantile = interval.quantiles_of("any")[source if told else UNTOLD]
        low, high = interval.apply(progress, certain, np.broadcast_to(quantile, source.shape))
        return float(np.mean(((low <= target) & (target <= high))[source == which]))

    together = ConformalInterval.fit(progress, target, certain, episode_N=episode)
    apart = ConformalInterval.fit(progress, target, certain, episode_N=episode, source_N=source)
    assert covered(together, 1, told=True) == pytest.approx(0.8, abs=0.02)  # what demos have too much
    assert [covered(apart, which, told=True) for which in (0, 1)] == pytest.approx([0.9, 0.9], abs=0.02)
    assert covered(apart, 1, told=False) == pytest.approx(0.9, abs=0.02)
    assert covered(apart, 0, told=False) == 1.0


def test_the_interval_holds_for_each_task_apart_where_the_task_has_enough_episodes() -> None:
    rng = np.random.default_rng(0)
    episode = np.arange(8000) // 40
    place = np.where(episode < LEAST_EPISODES - 1, 2, episode % 2)  # the third task is one episode short
    task = np.array(["open", "shut", "turn"])[place]
    progress, certain, source = np.full(8000, 0.5), np.zeros(8000, dtype=bool), np.zeros(8000, dtype=np.int64)
    target = progress + np.array([0.02, 0.1, 0.06])[place] * rng.uniform(-1, 1, 8000)
    interval = ConformalInterval.fit(
        progress, target, certain, episode_N=episode, source_N=source, task_N=task
    )
    assert sorted(interval.by_task) == ["open", "shut"]
    for name in ("turn", "never seen"):
        np.testing.assert_array_equal(interval.quantiles_of(name)[:-1], interval.quantiles)
    for name in ("open", "shut"):
        quantiles = interval.quantiles_of(name)
        low, high = interval.apply(progress, certain, np.full(8000, quantiles[0]))
        inside = ((low <= target) & (target <= high))[task == name]
        assert inside.mean() == pytest.approx(0.9, abs=0.02)
        assert quantiles[1] == interval.quantiles[1], "of rollouts there are none: as over all tasks"
        assert quantiles[UNTOLD] == quantiles.max()


def test_the_interval_lies_in_0_to_1_and_always_holds_the_progress() -> None:
    interval = ConformalInterval(0.9, (3.0, 3.0), ((0.1, 0.2), (0.3, 0.4)), 10)
    progress = np.linspace(0, 1, 101, dtype=np.float32)
    for flag in (False, True):
        low, high = interval.apply(progress, np.full(101, flag), np.full(101, 3.0))
        assert ((low >= 0) & (low <= progress) & (progress <= high) & (high <= 1)).all()
        assert low.dtype == np.float32


def test_too_few_frames_for_the_promise_give_the_whole_range() -> None:
    interval = ConformalInterval.fit(np.full(4, 0.5), np.full(4, 0.5), np.zeros(4, bool), coverage=0.9)
    low, high = interval.apply(np.array([0.5]), np.array([False]), untold(interval, 1))
    assert (low[0], high[0]) == (0, 1)


def test_what_was_never_fitted_promises_nothing() -> None:
    never = Calibration().interval
    low, high = never.apply(np.array([0.0, 0.4, 1.0]), np.zeros(3, bool), untold(never, 3))
    assert low.tolist() == [0, 0, 0]
    assert high.tolist() == [1, 1, 1]


def test_a_calibration_survives_json() -> None:
    progress, target, uncertain, episode = draw(LEAST_EPISODES, seed=0)
    source, task = np.zeros(len(episode), dtype=np.int64), np.full(len(episode), "hammer")
    calibration = Calibration(
        1.7,
        fit_uncertain_threshold(progress, target > 0.1),
        ConformalInterval.fit(progress, target, uncertain, episode_N=episode, task_N=task, source_N=source),
    )
    assert list(calibration.interval.by_task) == ["hammer"]
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_what_makes_no_sense_is_refused() -> None:
    nothing = np.zeros(0)
    with pytest.raises(InvalidInput, match="at least one labelled frame"):
        fit_temperature(np.zeros((0, 3)), nothing.astype(int))
    with pytest.raises(InvalidInput, match="stated error"):
        fit_uncertain_threshold(np.ones(3), np.ones(3, bool), stated_error=0.0)
    with pytest.raises(InvalidInput, match="coverage"):
        ConformalInterval.fit(np.ones(3), np.ones(3), np.ones(3, bool), coverage=1.0)
    with pytest.raises(InvalidInput, match="positive scales"):
        ConformalInterval(0.9, (1.0, 1.0), ((0.1,), (0.1, 0.2)))
    with pytest.raises(InvalidInput, match="positive temperature"):
        Calibration(temperature=0.0)
    with pytest.raises(InvalidInput, match="finite threshold"):
        Calibration(rule=UncertainRule(threshold=float("nan")))
    with pytest.raises(InvalidInput, match="as `to_dict` gives"):
        Calibration.from_dict({"temperature": 1.0})
