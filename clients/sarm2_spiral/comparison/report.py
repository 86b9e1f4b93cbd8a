"""The comparison as spiral.json, .md and .png: bars, then every run, then where the gain is from."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sarm2_spiral.comparison.bars import (
    BARS,
    QUICK_MINUTES,
    WHOLE_MINUTES,
    Bar,
    auc_bar,
    gained,
    loop_bar,
    minutes_bar,
    success_bar,
)
from sarm2_spiral.comparison.cells import ARMS, MAIN, SEEDS, Cell, quick_outcome, quick_run
from sarm2_spiral.comparison.outcome import Outcome, Verdicts, kept_outcome
from sarm2_spiral.comparison.picture import draw_comparison
from sarm2_spiral.config import SpiralConfig
from sarm2_spiral.replay import DONE_ABOVE
from sarm2_spiral.wilson import Rate

ENDS = (
    "AUC: of final progress against success, rollouts of the last round, with exploration. Failures taken "
    f"for done: those that end above {DONE_ABOVE} by the run's rewards."
)
ROUNDS = (
    "Of the rounds whose candidate was deployed, those after which fewer of the same scenes succeeded, the "
    "worst first. What is deployed is decided by the run's rewards, on a trial of a few scenes, and a little "
    "less is forgiven: that keeps out a policy that is broken, and not every one that is a little worse."
)
PARTS = (
    "On the same scenes, with 95 % intervals by a bootstrap over them. 2b clones the demonstrations alone, "
    "weighted. What the loop adds is made of pi_1's rollouts, new ones in every round, the critics' "
    "correction and the adapted reward model; the arms take parts away: `rm1` has no adaptation, `ra-bc` no "
    "critics, `uniform` no rewards and no critics. What else differs: where the service gives no rewards, "
    "the simulator's verdict ends the rollouts that are learned from; by the clock a failure that flies on "
    "has gained more than a quick success; in its rounds `ra-bc` weighs as LeRobot does, with a ramp where "
    "2b weighs more sharply; and without critics there is no best of several chunks to carry out."
)


def write_comparison(root: Path, cells: Iterable[Cell], more: Sequence[int], config: SpiralConfig) -> Path:
    """Write the report of all runs that are finished, to `root`/report, which is returned.

    Args:
        more: seeds, besides those of the cells.
    """
    outcomes, finished = {}, set()
    for cell in cells:
        known = {seed: cell.outcome(root, seed, config) for seed in sorted({*cell.seeds, *more})}
        done = {seed: found for seed, found in known.items() if found is not None}
        if done:
            outcomes[cell] = Outcome.of(list(done.values()))
            finished |= {*done}
    held = bars(outcomes, _quick_minutes(root))
    content = {
        "settings": {"seeds": sorted(finished), "config": asdict(config)},
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "bars": {name: bar.as_json() for name, bar in held.items()},
        "cells": {cell.name: found.as_json() for cell, found in outcomes.items()},
    }
    report = root / "report"
    report.mkdir(parents=True, exist_ok=True)
    _write(report / "spiral.json", json.dumps(content, indent=1) + "\n")
    _write(report / "spiral.md", markdown(held, outcomes, config))
    if outcomes:
        fresh = report / f".{os.getpid()}.png"
        draw_comparison({cell: found.success for cell, found in outcomes.items()}, fresh)
        fresh.replace(report / "spiral.png")
    return report


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")  # other comparisons may write it too
    fresh.write_text(text)
    fresh.replace(path)


def bars(outcomes: Mapping[Cell, Outcome], quick_minutes: float | None) -> dict[str, Bar]:
    """Every bar whose runs are there."""
    held: dict[str, Bar] = {}
    main = {task: outcomes.get(Cell(task, kind, "spiral")) for task, kind in MAIN}
    for task, kind in MAIN:
        found, control = main[task], outcomes.get(Cell(task, kind, "uniform"))
        if found is not None and control is not None:
            seeds = min(found.seeds, control.seeds)
            held[task] = replace(success_bar(task, _last(found), _last(control)), seeds=seeds)
    known = {task: found for task, found in main.items() if found is not None}
    seeds = min((found.seeds for found in known.values()), default=0)
    if len(known) == len(MAIN):
        offline = {task: one.offline for task, one in known.items()}
        gain = loop_bar(offline, {task: one.final for task, one in known.items()})
        held["loop_gain"] = replace(gain, seeds=seeds)
    finals = {task: found.finals for task, found in known.items()}
    auc = auc_bar(finals, {task: found.successes for task, found in known.items()})
    if auc is not None:
        held["success_auc"] = replace(auc, seeds=seeds if len(known) == len(MAIN) else 0)
    hammer = main["hammer"]
    if hammer is not None and hammer.minutes is not None:
        held["hammer_minutes"] = minutes_bar(hammer.minutes, WHOLE_MINUTES)
    if quick_minutes is not None:
        held["quick_minutes"] = minutes_bar(quick_minutes, QUICK_MINUTES)
    return held


def markdown(held: Mapping[str, Bar], outcomes: Mapping[Cell, Outcome], config: SpiralConfig) -> str:
    """The report in words and tables."""
    rounds = [f"round{number}" for number in range(1, config.loop.rounds + 1)]
    steps = ["bc", "offline", *rounds]
    lines = [
        "# SPIRAL beside its controls",
        "",
        _verdict(held),
        "",
        _rewarded_by(outcomes),
        "",
        "## Bars",
        "",
    ]
    lines += ["| | value | 95 % interval | rule | met | aim |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {bar.value:.3f} | {bar.low:.3f} to {bar.high:.3f} | {bar.rule} | "
        f"{_met(bar)} | {'' if bar.aim is None else format(bar.aim, 'g')} |"
        for name, bar in held.items()
    ]
    lines += ["", "## Success, all seeds together", ""]
    lines += ["![success by policy](spiral.png)", ""]
    lines += [f"| run | demos | {' | '.join(steps)} | by seed | AUC | failures taken for done |"]
    lines += ["|---" * (len(steps) + 5) + "|"]
    for cell, found in outcomes.items():
        demos = cell.folder(Path(), 0, config).config.loop.demos
        shown = " | ".join(_shown(found.success[step]) for step in steps)
        seeds = ", ".join(f"{value:.0%}" for value in found.by_seed)
        auc = "" if found.auc is None else f"{found.auc:.3f}"
        taken = "" if found.taken_for_done is None else _of(found.taken_for_done)
        lines.append(f"| {cell.name} | {demos} | {shown} | {seeds} | {auc} | {taken} |")
    lines += ["", ENDS, "", "Arms:", ""]
    lines += [f"- `{arm}`: {about}" for arm, (_, _, _, about) in ARMS.items()]
    lines += ["", "## What the rounds changed", "", ROUNDS, ""]
    lines += ["| run | deployed | of them worse | which |", "|---|---|---|---|"]
    lines += [
        f"| {cell.name} | {_of(found.deployed)} | {len(found.worse)} | {'; '.join(map(str, found.worse))} |"
        for cell, found in outcomes.items()
    ]
    lines += ["", "## Where the gain comes from", ""]
    lines += ["| run | re-weighting (2b less pi_1) | the loop (last round less 2b) |", "|---|---|---|"]
    lines += [
        f"| {cell.name} | {_points(found.first, found.offline)} | {_points(found.offline, found.final)} |"
        for cell, found in outcomes.items()
    ]
    lines += ["", PARTS]
    return "\n".join([*lines, ""])


def _verdict(held: Mapping[str, Bar]) -> str:
    missed = [name for name, bar in held.items() if not bar.met]
    begun = [name for name, bar in held.items() if not bar.whole]
    absent = [name for name in BARS if name not in held]
    if not missed and not begun and not absent:
        return f"All {len(BARS)} bars are met."
    parts = {"Missed": missed, f"Fewer than {len(SEEDS)} seeds so far": begun, "Not measured": absent}
    return " ".join(f"{what}: {', '.join(names)}." for what, names in parts.items() if names)


def _rewarded_by(outcomes: Mapping[Cell, Outcome]) -> str:
    names = sorted({name for found in outcomes.values() for name in found.reward_models})
    if len(names) < 2:
        return f"Rewards: {', '.join(names) or 'of no service'}, adapted where an arm does so."
    return f"**Rewards of different models, whose runs do not compare**: {', '.join(names)}."


def _met(bar: Bar) -> str:
    verdict = "yes" if bar.met else "**no**"
    return verdict if bar.whole else f"so far {verdict} ({bar.seeds} of {len(SEEDS)} seeds)"


def _points(before_N: Verdicts, after_N: Verdicts) -> str:
    value, low, high = (100 * share for share in gained([(before_N, after_N)]))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def _shown(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}, n {rate.trials})" if rate.trials else ""


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def _last(found: Outcome) -> Rate:
    return list(found.success.values())[-1]


def _quick_minutes(root: Path) -> float | None:
    quick = kept_outcome(quick_run(root), quick_outcome(root))
    return None if quick is None else quick.minutes
