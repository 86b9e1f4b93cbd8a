"""Progress from a person's marks."""

from __future__ import annotations

import numpy as np
import pytest

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.rollout_marks import (
    MarkedSegment,
    as_marked,
    marks_of,
    progress_of_marks,
)


def test_one_speed_serves_all_marks_and_ends_where_it_was_told() -> None:
    marks = [MarkedSegment("slow", 0, 11), MarkedSegment("adjust", 11, 16), MarkedSegment("fast", 16, 26)]
    curve_T = progress_of_marks(marks, 0.9)
    # 10 steps at s and 10 at 2 s make .9: s = .03
    assert curve_T[10] == pytest.approx(0.3)
    assert curve_T[15] == pytest.approx(0.3)
    assert curve_T[-1] == pytest.approx(0.9)
    assert curve_T[0] == 0.0


def test_a_mistake_takes_progress_back_and_never_below_zero() -> None:
    marks = [MarkedSegment("mistake", 0, 5), MarkedSegment("fast", 5, 15), MarkedSegment("mistake", 15, 20)]
    curve_T = progress_of_marks(marks, 0.6)
    # the first mistake finds nothing to undo; then 10 steps of 2 s less 5 of s make .6: s = .04
    assert curve_T[4] == 0.0
    assert curve_T[14] == pytest.approx(0.8)
    assert curve_T[-1] == pytest.approx(0.6)


def test_after_a_catastrophe_there_is_no_progress() -> None:
    marks = [MarkedSegment("slow", 0, 11), MarkedSegment("adjust", 11, 21)]
    curve_T = progress_of_marks(marks, 0.5, catastrophe=15)
    assert curve_T[14] == pytest.approx(0.5)
    assert not curve_T[15:].any()


@pytest.mark.parametrize(
    ("marks", "final", "told"),
    [
        ([MarkedSegment("adjust", 0, 9)], 0.8, "cannot end at 0.8"),
        ([MarkedSegment("slow", 0, 9)], 1.2, "expected 0 to 1"),
        ([MarkedSegment("slow", 0, 4), MarkedSegment("slow", 5, 9)], 0.5, "from frame 4 on"),
        ([], 0.5, "at least one"),
    ],
)
def test_marks_that_make_no_curve_are_refused(marks: list[MarkedSegment], final: float, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        progress_of_marks(marks, final)


def test_the_simulated_person_sees_pace_pauses_and_falls() -> None:
    pace = [np.linspace(0, 0.1, 10), np.linspace(0.12, 0.6, 10), np.full(10, 0.6), np.linspace(0.55, 0.3, 10)]
    marks = marks_of(np.concatenate(pace).astype(np.float32), fps=10)
    assert [one.mark for one in marks] == ["slow", "fast", "adjust", "mistake"]
    assert (marks[0].start, marks[-1].end) == (0, 40)


def test_marks_bring_a_curve_back_roughly_and_its_end_exactly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = np.repeat(rng.choice([0.0, 0.01, 0.02, -0.01], size=8), 10)
        truth_T = np.clip(np.cumsum(steps), 0, 1).astype(np.float32)
        curve_T = as_marked(truth_T, fps=10)
        if truth_T[-1] > 0:
            assert curve_T[-1] == pytest.approx(truth_T[-1], abs=1e-6)
        assert np.abs(curve_T - truth_T).mean() < 0.05


def test_a_rollout_in_which_nothing_happens_ends_where_it_was_told() -> None:
    curve_T = as_marked(np.full(30, 0.01, np.float32), fps=10)
    assert curve_T.max() == curve_T[-1] == pytest.approx(0.01)
    assert not as_marked(np.zeros(30, np.float32), fps=10).any()


def test_a_slow_creep_and_a_short_start_end_where_they_were_told() -> None:
    creep = np.linspace(0, 0.4, 120, dtype=np.float32)  # .017 in half a second
    assert as_marked(creep, fps=10)[-1] == pytest.approx(0.4)
    steps = [0.02] * 5 + [-0.01] * 8
    start = np.cumsum(steps).astype(np.float32)
    assert as_marked(start, fps=10)[-1] == pytest.approx(start[-1], abs=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.7])
def test_a_single_frame_stays_what_it_is(progress: float) -> None:
    curve_T = np.array([progress], np.float32)
    np.testing.assert_array_equal(as_marked(curve_T, fps=10), curve_T)
