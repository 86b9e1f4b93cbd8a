"""The comparison as one picture: success from pi_1 to the last round, one panel a task and kind of policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sarm2_spiral.comparison.bars import SUCCESS
from sarm2_spiral.comparison.cells import MAIN, Arm, Cell
from sarm2_spiral.report import BLUE, GREY, INK, blank_axes, whiskers
from sarm2_spiral.wilson import Rate

COLOURS: MappingProxyType[Arm, str] = MappingProxyType(
    {
        "spiral": BLUE,
        "rm1": "#7c3aed",
        "ra-bc": "#0d9488",
        "uniform": GREY,
        "linear": "#ca8a04",
        "success": "#db2777",
        "true": INK,
    }
)
NAMES = MappingProxyType({"bc": "pi_1", "offline": "2b"})
"""Of policies under the time axis; rounds have their numbers."""
COLUMNS = 3
APART = 0.06
"""Steps between the points of two arms, so that their intervals can be told from one another."""


def draw_comparison(rates: Mapping[Cell, Mapping[str, Rate]], path: Path) -> None:
    """Success with Wilson's 95 % intervals, all seeds together; dotted where a lower bound has to reach.

    Args:
        rates: of every run, by policy: `bc`, `offline`, `round1`, ...
        path: of the picture.
    """
    panels = list(dict.fromkeys((cell.task, cell.kind) for cell in rates))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = blank_axes(3.3 * columns + 0.9, 3.1 * rows + 0.4, columns, rows)
    lines: dict[Arm, Any] = {}
    for place, panel in zip(axes, panels, strict=False):
        arms = {cell.arm: found for cell, found in rates.items() if (cell.task, cell.kind) == panel}
        lines |= _draw_panel(place, arms)
        place.set_title(f"{panel[0]}, {panel[1]} policy", fontsize=10)
        if panel in MAIN:
            place.axhline(SUCCESS[panel[0]], color=INK, ls=":", lw=1)
    for left in axes[::columns]:
        left.set_ylabel("success")
    for spare in axes[len(panels) :]:
        spare.set_visible(False)
    shown = [arm for arm in COLOURS if arm in lines]
    figure.legend([lines[arm] for arm in shown], shown, loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_panel(place: Any, arms: Mapping[Arm, Mapping[str, Rate]]) -> dict[Arm, Any]:
    lines: dict[Arm, Any] = {}
    steps = list(next(iter(arms.values())))
    for number, (arm, rates) in enumerate(arms.items()):
        flown = [(i, rates[step]) for i, step in enumerate(steps) if rates[step].trials]
        shift = APART * (number - (len(arms) - 1) / 2)
        lines[arm] = place.errorbar(
            [i + shift for i, _ in flown],
            [rate.value for _, rate in flown],
            yerr=whiskers([rate for _, rate in flown]),
            color=COLOURS[arm],
            lw=2.2 if arm == "spiral" else 1.3,
            elinewidth=1,
            marker="o",
            markersize=4,
            zorder=3 if arm == "spiral" else 2,
        )
    place.set_xticks(range(len(steps)), [NAMES.get(step, step.removeprefix("round")) for step in steps])
    place.set_xlabel("policy, then rounds")
    place.set_ylim(-0.02, 1.02)
    return lines
