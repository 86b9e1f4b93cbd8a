"""Segment F1: matches are counted by overlap, each true segment once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sarm2_models.segments import matched_segments, runs


def frames(*parts: tuple[int, int]) -> npt.NDArray[np.int64]:
    return np.repeat([primitive for primitive, _ in parts], [length for _, length in parts])


def test_runs_give_primitive_start_and_end() -> None:
    assert runs(frames((4, 2), (1, 3), (4, 1))).tolist() == [[4, 0, 2], [1, 2, 5], [4, 5, 6]]
    assert runs(frames((7, 5))).tolist() == [[7, 0, 5]]
    assert runs(np.zeros(0, dtype=np.int64)).shape == (0, 3)


def test_a_border_that_is_off_by_less_than_half_costs_nothing() -> None:
    true = frames((1, 10), (2, 10))
    assert matched_segments(frames((1, 13), (2, 7)), true) == (2, 2, 2)


def test_an_overlap_of_exactly_half_counts_and_less_does_not() -> None:
    true = frames((1, 4), (2, 8))
    assert matched_segments(frames((1, 8), (2, 4)), true) == (2, 2, 2)
    assert matched_segments(frames((1, 9), (2, 3)), true) == (0, 2, 2)


def test_a_segment_broken_in_two_is_found_at_most_once() -> None:
    true = frames((1, 10))
    assert matched_segments(frames((1, 5), (3, 1), (1, 4)), true) == (1, 3, 1)


def test_the_right_place_with_another_primitive_is_no_match() -> None:
    assert matched_segments(frames((2, 10)), frames((1, 10))) == (0, 1, 1)
