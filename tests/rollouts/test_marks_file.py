"""A person's marks, read from a file: whole, or told what is wrong and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.marks_file import marked_curves
from sarm2_rollouts.rollout_marks import MarkedSegment, RolloutMarks

LENGTHS = (12, 9)


def line(episode: int, **fields: Any) -> dict[str, Any]:
    segments = [{"mark": "slow", "start": 0, "end": LENGTHS[episode % 2]}]
    return {"episode": episode, "segments": segments, "final": 0.5, **fields}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return path


def test_lines_in_any_order_become_the_curves_of_their_episodes(tmp_path: Path) -> None:
    segments = [("fast", 0, 6), ("mistake", 6, 12)]
    told = [{"mark": mark, "start": start, "end": end} for mark, start, end in segments]
    first = line(0, segments=told, final=0.2, turns={"5": 0.6}, catastrophe=11)
    curves = marked_curves(write(tmp_path / "m", line(1), "", first), LENGTHS)
    marks = RolloutMarks([MarkedSegment(*one) for one in segments], 0.2, {5: 0.6}, 11)  # type: ignore[arg-type]
    np.testing.assert_array_equal(curves[0], marks.progress())
    np.testing.assert_allclose(curves[1], np.linspace(0, 0.5, 9), atol=1e-6)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("{", "line 2 of .*: Input data was truncated"),
        (line(1, final="half"), r"line 2 of .*: Expected `float`, got `str` - at `\$.final`"),
        (line(1, finish=1), "line 2 of .*: Object contains unknown field `finish`"),
        (
            line(1, segments=[{"mark": "quick", "start": 0, "end": 9}]),
            "line 2 of .*: Invalid enum value 'quick'",
        ),
        (line(0), "line 2 of .*: episode: expected 0 to 1, each once, got 0"),
        (line(3), "line 2 of .*: episode: expected 0 to 1, each once, got 3"),
        (line(1, final=1.5), "line 2 of .*: final: expected progress of 0 to 1, got 1.5"),
        (line(1, segments=line(0)["segments"]), "expected them to end at frame 9, as episode 1 does, got 12"),
        (line(1, segments=[{"mark": "adjust", "start": 0, "end": 9}]), "line 2 of .*: the marks cannot come"),
        (line(1, turns={"4": 0.9, "2": 0.1}), "line 2 of .*: turns: expected a frame from 5 to 7, got 2"),
        ("", "1 episodes are not marked: 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(second: dict[str, Any] | str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=told):
        marked_curves(write(tmp_path / "m", line(0), second), LENGTHS)
