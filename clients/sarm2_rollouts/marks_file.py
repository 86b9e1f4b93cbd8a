"""A person's marks of a dataset's rollouts, in a file of JSON lines, one a rollout.

{"episode": 0, "final": 0.4, "turns": {"30": 0.9}, "segments":
    [{"mark": "fast", "start": 0, "end": 31}, {"mark": "mistake", "start": 31, "end": 44}]}

Frames count from 0, `end` is the first that is no longer meant, and the segments cover the rollout. `turns`
(progress at frames where the robot turned) and `catastrophe` (a frame) may be left out: see `rollout_marks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_rollouts.rollout_marks import Floats, MarkedSegment, RolloutMarks


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    episode: int
    segments: list[MarkedSegment]
    final: float
    turns: dict[int, float] = {}
    catastrophe: int | None = None


def marked_curves(path: Path, lengths: Sequence[int]) -> list[Floats]:
    """The progress (T,) of every episode of a dataset as its marks have it, in order.

    Args:
        lengths: frames of each episode.

    Raises NotFound where there is no file, and InvalidInput for a line that cannot be read or drawn, and for
    an episode that is marked twice or not at all.
    """
    if not path.exists():
        raise NotFound(f"--marks {path}: there is no such file", field="marks")
    found: dict[int, Floats] = {}
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        if not text.strip():
            continue
        where = f"line {number} of {path}"
        try:
            line = msgspec.json.decode(text, type=_Line)
            if line.episode in found or not 0 <= line.episode < len(lengths):
                known = f"expected 0 to {len(lengths) - 1}, each once"
                raise InvalidInput(f"episode: {known}, got {line.episode}", field="episode")
            found[line.episode] = _curve(line, lengths[line.episode])
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{where}: {error}", field="marks") from error
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error.message}", field=error.field) from error
    if missing := [index for index in range(len(lengths)) if index not in found]:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise InvalidInput(f"{path}: {len(missing)} episodes are not marked: {shown}", field="marks")
    return [found[index] for index in range(len(lengths))]


def _curve(line: _Line, frames: int) -> Floats:
    marks = RolloutMarks(line.segments, line.final, line.turns, line.catastrophe)
    if (end := line.segments[-1].end) != frames:
        raise InvalidInput(
            f"segments: expected them to end at frame {frames}, as episode {line.episode} does, got {end}",
            field="segments",
        )
    return marks.progress()
