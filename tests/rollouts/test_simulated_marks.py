"""What a person would mark on a rollout whose true progress is known."""

from __future__ import annotations

import numpy as np
import pytest

from sarm2_rollouts.simulated_marks import as_marked, marks_of, turns_of

PACES = [np.linspace(0, 0.1, 10), np.linspace(0.12, 0.6, 10), np.full(10, 0.6), np.linspace(0.55, 0.3, 10)]
TRUTH_T = np.concatenate(PACES).astype(np.float32)


def test_the_person_sees_pace_pauses_and_falls() -> None:
    marks = marks_of(TRUTH_T, fps=10)
    seen = np.concatenate([[one.mark] * (one.end - one.start) for one in marks.segments])
    assert list(seen[[0, 4, 14, 34]]) == ["slow", "slow", "fast", "mistake"]
    goes_on_T = np.linspace(0.62, 1, 10, dtype=np.float32)
    paused = np.concatenate([TRUTH_T[:30], goes_on_T])
    marks = marks_of(paused, fps=10)
    assert [one.mark for one in marks.segments if one.start <= 25 < one.end] == ["adjust"]
    assert (marks.segments[0].start, marks.segments[-1].end) == (0, 40)


def test_the_person_tells_in_tenths_where_it_turned_and_ended() -> None:
    marks = marks_of(TRUTH_T, fps=10)
    assert marks.turns == {19: pytest.approx(0.6)}
    assert marks.final == pytest.approx(0.3)


def test_what_is_lost_or_won_back_by_less_than_a_tenth_is_no_turn() -> None:
    truth_T = np.array([0, 0.2, 0.4, 0.32, 0.5, 0.3, 0.38, 0.2, 0.6], np.float32)
    assert turns_of(truth_T) == [4, 7]


@pytest.mark.parametrize(
    ("final", "told"), [(1.0, 1.0), (0.99, 0.95), (0.96, 0.95), (0.93, 0.9), (0.02, 0.0)]
)
def test_nobody_takes_what_is_not_done_for_done(final: float, told: float) -> None:
    assert marks_of(np.linspace(0, final, 40, dtype=np.float32), fps=10).final == pytest.approx(told)


def test_marks_bring_a_curve_back_roughly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        steps = np.repeat(rng.choice([0.0, 0.01, 0.02, -0.04], size=8), 10)
        truth_T = np.clip(np.cumsum(steps), 0, 1).astype(np.float32)
        curve_T = as_marked(truth_T, fps=10)
        assert np.abs(curve_T - truth_T).mean() < 0.05
        assert curve_T[-1] == pytest.approx(truth_T[-1], abs=0.051)


def test_work_that_is_lost_in_the_end_was_done_all_the_same() -> None:
    """With the final progress alone, which is 0 here, the curve would be 0 throughout."""
    truth_T = np.concatenate([np.linspace(0, 0.6, 30), np.linspace(0.5, 0, 6), np.zeros(10)]).astype(
        np.float32
    )
    curve_T = as_marked(truth_T, fps=10)
    assert curve_T.max() == pytest.approx(0.6)
    assert np.abs(curve_T - truth_T).mean() < 0.05


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_short_and_odd_rollouts_are_marked_as_well(start: float) -> None:
    for frames in range(1, 9):
        for end in (0.0, start, 1.0):
            curve_T = as_marked(np.linspace(start, end, frames, dtype=np.float32), fps=10)
            assert curve_T.shape == (frames,)
            assert np.isfinite(curve_T).all()


def test_a_rollout_in_which_nothing_happens_stays_where_it_is() -> None:
    assert not as_marked(np.full(30, 0.01, np.float32), fps=10).any()
    assert not as_marked(np.zeros(30, np.float32), fps=10).any()


def test_a_slow_creep_ends_where_it_was_told() -> None:
    creep = np.linspace(0, 0.4, 120, dtype=np.float32)  # .017 in half a second
    curve_T = as_marked(creep, fps=10)
    assert curve_T[-1] == pytest.approx(0.4)
    assert curve_T == pytest.approx(creep, abs=1e-6)
    steps = [0.02] * 5 + [-0.01] * 8
    start = np.cumsum(steps).astype(np.float32)
    assert as_marked(start, fps=10)[-1] == pytest.approx(start[-1], abs=0.05)


@pytest.mark.parametrize("progress", [0.0, 0.7])
def test_a_single_frame_stays_what_it_is(progress: float) -> None:
    curve_T = np.array([progress], np.float32)
    np.testing.assert_array_equal(as_marked(curve_T, fps=10), curve_T)
