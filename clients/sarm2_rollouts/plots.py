"""An episode as one picture: key frames, progress with its interval, and primitives, over one time axis.

matplotlib is imported when a picture is drawn, never before, and draws to a file without a display.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from sarm2_client import wire
from sarm2_client.errors import InvalidImage, InvalidInput
from sarm2_client.images import ImageHWC, decode_jpeg
from sarm2_rollouts.episode import Episode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN: Final = 12.0
LEFT_IN, RIGHT_IN = 1.05, 0.25
KEY_FRAMES: Final = 8
MAX_CAMERAS: Final = 3
MARGIN: Final = 0.015
DPI: Final = 140

INK, MUTED, GRID = "#1c2430", "#6b7686", "#e4e8ee"
PREDICTED, TRUE, FALL = "#2563eb", "#111827", "#dc2626"
NULL_COLOUR: Final = "#d5dae1"
# Light enough for dark text, different in hue and lightness from neighbour to neighbour.
PALETTE: Final = (
    "#8ecae6", "#ffb703", "#90be6d", "#f4978e", "#cdb4db", "#ffd166", "#83c5be", "#e5989b", "#a3b18a",
    "#b8c0ff", "#f8ad9d", "#99d98c", "#d6ccc2", "#ffcad4", "#76c893", "#bde0fe", "#e9c46a", "#c8b6ff",
    "#f2cc8f", "#81b29a", "#eab69f",
)  # fmt: skip


@dataclass(frozen=True)
class _Span:
    """Seconds `start` to `end` under one primitive; `strength` in [0, 1] is how sure the model was."""

    primitive: str
    start: float
    end: float
    strength: float = 1.0


def draw_episode(
    path: Path | str,
    episode: Episode,
    scores: Sequence[wire.Score] | None = None,
    title: str | None = None,
) -> Path:
    """Draw an episode to a PNG file, and the model's scores with it where there are any.

    Args:
        path: the file to make.
        episode: at least one frame. Its true progress and primitives are drawn where they are known.
        scores: in any order; `seq` counts the episode's frames from 0. Missing frames leave a gap.
        title: above the picture; the instruction if left out.

    Raises InvalidInput for an episode without frames or a score of a frame that the episode does not have.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted(scores or (), key=lambda score: score.seq)
    if not len(episode):
        raise InvalidInput("expected at least one frame to draw, got none")
    if ordered and ordered[-1].seq >= len(episode):
        raise InvalidInput(f"score of frame {ordered[-1].seq}, but the episode has {len(episode)} frames")
    true, predicted = _true_spans(episode), _predicted_spans(ordered, episode.fps)
    strips = [(name, spans) for name, spans in (("truth", true), ("model", predicted)) if spans]
    cameras = list(episode.images)[:MAX_CAMERAS]
    layout = _Layout([_aspect(episode.images[camera][0]) for camera in cameras], len(strips))
    figure = Figure(figsize=(WIDTH_IN, layout.height), facecolor="white")
    FigureCanvasAgg(figure)
    _draw_title(figure, layout, episode, ordered, title)
    for row, camera in enumerate(cameras):
        _draw_frames(layout.frames(figure, row), episode, camera)
    _draw_progress(layout.progress(figure), episode, ordered)
    colours = _colours([*true, *predicted])
    named: set[str] = set()
    for row, (name, spans) in enumerate(strips):
        named |= _draw_strip(layout.strip(figure, row), name, spans, colours, len(episode) / episode.fps)
    _label_time(figure)
    _name_the_rest(figure, {span.primitive: colours[span.primitive] for span in (*true, *predicted)}, named)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")
    return path


class _Layout:
    """Where everything stands, in inches from the top."""

    TITLE, LEGEND, PROGRESS, GAP, STRIP, BOTTOM = 0.86, 0.36, 2.7, 0.16, 0.44, 0.52

    def __init__(self, aspects: Sequence[float], strips: int) -> None:
        self.width = WIDTH_IN - LEFT_IN - RIGHT_IN
        tile = self.width / KEY_FRAMES
        heights = [tile * (1 - 2 * MARGIN) * aspect + 2 * MARGIN * tile for aspect in aspects]
        self._frames = [self.TITLE + sum(heights[:row]) for row in range(len(heights) + 1)]
        self._progress = self._frames[-1] + self.LEGEND
        self._strips = self._progress + self.PROGRESS + self.GAP
        self.height = self._strips + strips * self.STRIP + self.BOTTOM

    def frames(self, figure: Figure, row: int) -> Axes:
        top, bottom = self._frames[row : row + 2]
        return self._axes(figure, top, bottom - top)

    def progress(self, figure: Figure) -> Axes:
        return self._axes(figure, self._progress, self.PROGRESS)

    def strip(self, figure: Figure, row: int) -> Axes:
        return self._axes(figure, self._strips + row * self.STRIP, self.STRIP - 0.08)

    def _axes(self, figure: Figure, top: float, height: float) -> Axes:
        bottom = self.height - top - height
        box = (LEFT_IN / WIDTH_IN, bottom / self.height, self.width / WIDTH_IN, height / self.height)
        return figure.add_axes(box)


def _draw_title(
    figure: Figure, layout: _Layout, episode: Episode, scores: Sequence[wire.Score], title: str | None
) -> None:
    left = LEFT_IN / WIDTH_IN
    heading = textwrap.shorten(title or episode.task or "Episode", width=90, placeholder=" ...")
    figure.text(left, 1 - 0.36 / layout.height, heading, fontsize=16, fontweight="bold", color=INK)
    facts: list[str] = []
    if title is not None and title != episode.task:
        facts.append(textwrap.shorten(episode.task, width=70, placeholder=" ..."))
    facts += [f"{len(episode)} frames", f"{len(episode) / episode.fps:.1f} s at {episode.fps:g} frames/s"]
    if episode.kind != "unknown":
        facts.append(episode.kind.replace("_", " "))
    if episode.success is not None:
        facts.append("succeeded" if episode.success else "failed")
    if scores:
        facts.append(f"scored {scores[-1].progress:.2f} at the end")
    figure.text(left, 1 - 0.66 / layout.height, "  ·  ".join(facts), fontsize=10, color=MUTED)


def _draw_frames(axes: Axes, episode: Episode, camera: str) -> None:
    """Key frames from the middle of equal stretches, so that each stands above its own time."""
    files = episode.images[camera]
    for column in range(KEY_FRAMES):
        middle = min(len(files) - 1, int((column + 0.5) / KEY_FRAMES * len(files)))
        picture = shown_picture(files[middle])
        extent = (column + MARGIN, column + 1 - MARGIN, 0.0, 1.0)
        axes.imshow(picture, extent=extent, aspect="auto", interpolation="lanczos")
    axes.set_xlim(0, KEY_FRAMES)
    axes.set_ylim(-MARGIN, 1 + MARGIN)
    axes.axis("off")
    axes.text(-0.06, 0.5, camera, ha="right", va="center", fontsize=10, color=MUTED, clip_on=False)


def shown_picture(data: bytes) -> ImageHWC:
    """A stored picture, or a grey one where it is damaged: the rest of the episode is still to be seen."""
    try:
        return decode_jpeg(data)
    except InvalidImage:
        return np.full((3, 4, 3), 128, dtype=np.uint8)


def _aspect(data: bytes) -> float:
    height, width, _ = shown_picture(data).shape
    return float(height / width)


def _draw_progress(axes: Axes, episode: Episode, scores: Sequence[wire.Score]) -> None:
    fps, duration_s = episode.fps, len(episode) / episode.fps
    for score in (score for score in scores if score.uncertain):
        left = score.seq / fps
        axes.axvspan(left, left + 1 / fps, color=NULL_COLOUR, alpha=0.45, lw=0, zorder=0)
    if scores:
        seconds, values = _gapped(scores, fps)
        axes.fill_between(seconds, values[:, 1], values[:, 2], color=PREDICTED, alpha=0.16, lw=0, zorder=2)
        axes.plot(seconds, values[:, 0], color=PREDICTED, lw=2.4, solid_capstyle="round", zorder=4)
    if episode.progress_T is not None:
        # Middles of the frames' stretches, as for the scores.
        seconds = (np.arange(len(episode)) + 0.5) / fps
        axes.plot(seconds, episode.progress_T, color=TRUE, lw=1.4, ls=(0, (4, 2)), zorder=3)
    if episode.progress_T is not None or scores:
        _draw_legend(axes, episode, scores)
    else:
        axes.text(0.5, 0.5, "no progress known", transform=axes.transAxes, ha="center", color=MUTED)
    axes.set_xlim(0, duration_s)
    axes.set_ylim(-0.03, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axes.set_ylabel("progress", fontsize=10, color=MUTED)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _draw_legend(axes: Axes, episode: Episode, scores: Sequence[wire.Score]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Line2D | Patch, str]] = []
    if scores:
        entries.append((Line2D([], [], color=PREDICTED, lw=2.4), "predicted"))
        entries.append((Patch(color=PREDICTED, alpha=0.16, lw=0), "interval"))
    if episode.progress_T is not None:
        entries.append((Line2D([], [], color=TRUE, lw=1.4, ls=(0, (4, 2))), "true"))
    if any(score.uncertain for score in scores):
        entries.append((Patch(color=NULL_COLOUR, alpha=0.45, lw=0), "uncertain"))
    handles, labels = zip(*entries, strict=True)
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.006, 0.98),
        ncols=len(entries),
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )


def _draw_strip(
    axes: Axes, name: str, spans: Sequence[_Span], colours: dict[str, str], duration_s: float
) -> set[str]:
    """One bar in which each primitive has its colour; paler where the model was less sure.

    Returns the primitives whose names found room.
    """
    named: set[str] = set()
    for span in spans:
        axes.axvspan(span.start, span.end, color=colours[span.primitive], alpha=span.strength, lw=0)
    for run in _runs(spans):
        # About .1 inch a letter at this size: a name that does not fit would run into its neighbours.
        room = (run.end - run.start) / duration_s * (WIDTH_IN - LEFT_IN - RIGHT_IN) / 0.083
        text = run.primitive.replace("_", " ")
        if room >= len(text) + 1:
            middle = (run.start + run.end) / 2
            named.add(run.primitive)
            axes.text(middle, 0.48, text, ha="center", va="center", fontsize=9, color=INK)
        axes.axvline(run.end, color="white", lw=1.2)
    axes.set_xlim(0, duration_s)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10, color=MUTED)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return named


def _name_the_rest(figure: Figure, colours: dict[str, str], named: set[str]) -> None:
    """A legend, below, for the primitives that were too short to hold their name."""
    from matplotlib.patches import Patch

    rest = [name for name in colours if name not in named]
    if rest:
        figure.legend(
            [Patch(color=colours[name], lw=0) for name in rest],
            [name.replace("_", " ") for name in rest],
            loc="lower right",
            bbox_to_anchor=(1 - RIGHT_IN / WIDTH_IN, 0),
            ncols=min(len(rest), 6),
            fontsize=9,
            frameon=False,
            labelcolor=INK,
        )


def _label_time(figure: Figure) -> None:
    """Seconds under the lowest axes alone."""
    *upper, lowest = figure.axes
    for axes in upper:
        axes.tick_params(labelbottom=False)
    lowest.set_xlabel("seconds", fontsize=10, color=MUTED)


def _gapped(scores: Sequence[wire.Score], fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Times (N,) and (progress, low, high) (N, 3); a row of NaN where frames are missing breaks the line."""
    seconds: list[float] = []
    rows: list[tuple[float, float, float]] = []
    for index, score in enumerate(scores):
        if index and score.seq > scores[index - 1].seq + 1:
            seconds.append(score.seq / fps)
            rows.append((np.nan, np.nan, np.nan))
        seconds.append((score.seq + 0.5) / fps)
        rows.append((score.progress, *score.interval))
    return np.array(seconds), np.array(rows)


def _true_spans(episode: Episode) -> list[_Span]:
    fps = episode.fps
    return [_Span(s.primitive, s.start / fps, s.end / fps) for s in episode.segments or ()]


def _predicted_spans(scores: Sequence[wire.Score], fps: float) -> list[_Span]:
    return [
        _Span(score.primitive, score.seq / fps, (score.seq + 1) / fps, 0.25 + 0.75 * score.confidence)
        for score in scores
    ]


def _runs(spans: Sequence[_Span]) -> list[_Span]:
    """Neighbouring spans of the same primitive as one."""
    runs: list[_Span] = []
    for span in spans:
        last = runs[-1] if runs else None
        if last is not None and last.primitive == span.primitive and abs(last.end - span.start) < 1e-6:
            runs[-1] = _Span(last.primitive, last.start, span.end)
        else:
            runs.append(span)
    return runs


def _colours(spans: Sequence[_Span]) -> dict[str, str]:
    """A colour for each primitive, in order of appearance; null is always grey."""
    names = list(dict.fromkeys(span.primitive for span in spans if span.primitive != "null"))
    return {"null": NULL_COLOUR} | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
