"""Progress from a person's marks."""

from __future__ import annotations

from typing import Any

import pytest

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.rollout_marks import MarkedSegment, RolloutMarks


def test_one_speed_serves_all_marks_and_ends_where_it_was_told() -> None:
    marks = [MarkedSegment("slow", 0, 11), MarkedSegment("adjust", 11, 16), MarkedSegment("fast", 16, 26)]
    curve_T = RolloutMarks(marks, 0.9).progress()
    # 10 steps at s and 10 at 2 s make .9: s = .03
    assert curve_T[10] == pytest.approx(0.3)
    assert curve_T[15] == pytest.approx(0.3)
    assert curve_T[-1] == pytest.approx(0.9)
    assert curve_T[0] == 0.0


def test_a_mistake_takes_progress_back_and_never_below_zero() -> None:
    marks = [MarkedSegment("mistake", 0, 5), MarkedSegment("fast", 5, 15), MarkedSegment("mistake", 15, 20)]
    curve_T = RolloutMarks(marks, 0.6).progress()
    # the first mistake finds nothing to undo; then 10 steps of 2 s less 5 of s make .6: s = .04
    assert curve_T[4] == 0.0
    assert curve_T[14] == pytest.approx(0.8)
    assert curve_T[-1] == pytest.approx(0.6)


def test_every_stretch_between_turns_has_a_speed_of_its_own() -> None:
    marks = [
        MarkedSegment("slow", 0, 6),
        MarkedSegment("fast", 6, 11),
        MarkedSegment("mistake", 11, 13),
        MarkedSegment("adjust", 13, 17),
        MarkedSegment("slow", 17, 21),
    ]
    curve_T = RolloutMarks(marks, 0.3, {10: 0.6, 16: 0.1}).progress()
    # 5 steps at s and 5 at 2 s make .6; two steps take .5 of it back at once; four steps make .2 of new
    assert curve_T[:11] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.28, 0.36, 0.44, 0.52, 0.6])
    assert curve_T[11:] == pytest.approx([0.35, 0.1, 0.1, 0.1, 0.1, 0.1, 0.15, 0.2, 0.25, 0.3])


def test_after_a_catastrophe_there_is_no_progress() -> None:
    marks = [MarkedSegment("slow", 0, 11), MarkedSegment("adjust", 11, 21)]
    curve_T = RolloutMarks(marks, 0.5, catastrophe=15).progress()
    assert curve_T[14] == pytest.approx(0.5)
    assert not curve_T[15:].any()


SLOW = [MarkedSegment("slow", 0, 9)]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"final": 1.2}, "final: expected progress of 0 to 1, got 1.2"),
        ({"segments": []}, "at least one"),
        ({"segments": [MarkedSegment("slow", 0, 4), MarkedSegment("slow", 5, 9)]}, "from frame 4 on"),
        ({"turns": {4: -0.1}}, "turns: expected progress of 0 to 1, got -0.1"),
        ({"turns": {4: 0.2, 3: 0.1}}, "turns: expected a frame from 5 to 7, got 3"),
        ({"turns": {8: 0.2}}, "turns: expected a frame from 1 to 7, got 8"),
        ({"turns": {0: 0.2}}, "turns: expected a frame from 1 to 7, got 0"),
        ({"turns": {5: 0.2}, "catastrophe": 6}, "turns: expected a frame from 1 to 4, got 5"),
        ({"catastrophe": 9}, "catastrophe: expected a frame from 1 to 8, got 9"),
    ],
)
def test_marks_that_say_nothing_sensible_are_refused(said: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        RolloutMarks(**{"segments": SLOW, "final": 0.5, **said})


@pytest.mark.parametrize(
    ("marks", "told"),
    [
        (RolloutMarks([MarkedSegment("adjust", 0, 9)], 0.8), "from 0 to 0.8 at frame 8: mark what gets on"),
        (RolloutMarks(SLOW, 0.2, {4: 0.5}), "from 0.5 to 0.2 at frame 8: mark what goes back"),
    ],
)
def test_marks_that_cannot_get_there_make_no_curve(marks: RolloutMarks, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        marks.progress()
