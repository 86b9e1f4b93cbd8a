"""Every run of the comparison, one after the other; what is finished is never done twice.

What a finished run came to is kept when its folder is deleted, or when the comparison goes on elsewhere: see
`outcome`.

Runs of the same task, kind of policy and seed begin alike. Where their folders lie side by side, what they
share is made once: demonstrations, pi_1 and how often it succeeds; for those with the service's rewards pi_2,
the rollouts of pi_1, and the adapted reward model too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from sarm2_spiral.comparison.cells import QUICK_CELL, Cell, cells, quick_outcome, quick_run
from sarm2_spiral.comparison.outcome import INHERITED, check_outcome, is_finished, keep_outcome
from sarm2_spiral.comparison.report import write_comparison
from sarm2_spiral.config import SpiralConfig
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.run import SpiralRun

Reach: TypeAlias = Callable[[SpiralFolder], AbstractContextManager[SpiralRun]]
"""Starts what a run needs, a service say, and ends it afterwards."""

SHARED = ("demos", "policies/bc.safetensors", "evaluations/bc.jsonl", "features/demos")
SHARED_BY_REWARD = (
    "policies/offline.safetensors",
    "evaluations/offline.jsonl",
    "rounds/0",  # the source of rewards ends rollouts, so other arms have other ones
    "features/round0",
)
SHARED_BY_MODEL = ("remember", "first_model", "reward_model")


@dataclass
class Comparison:
    """A comparison that can be started, killed and gone on with.

    Args:
        root: its folder.
        config: the preset of every run.
        seeds: of training; None for those of each run's cell.
        reach: how a run reaches its service.
        chosen: which runs; all of them by default.
        console: where titles go.
        reward_model: whose rewards new runs have; those of another model are not gone on with.
    """

    root: Path
    config: SpiralConfig
    seeds: Sequence[int] | None
    reach: Reach
    chosen: Sequence[Cell] = field(default_factory=lambda: tuple(cells()))
    console: Console = field(default_factory=Console)
    reward_model: str | None = None

    def start(self) -> Path:
        """Do every run that is not done, write the report after each, and return its folder."""
        plan = self.plan()
        for cell, seed in plan:  # what cannot be flown is told before anything is
            folder, outcome = self._places(cell, seed)
            check_outcome(folder, outcome, self.reward_model)
            folder.record.check(resume=True)
        if QUICK_CELL in self.chosen:
            self._fly("quick", quick_run(self.root), quick_outcome(self.root))
        for cell, seed in plan:
            folder, outcome = self._places(cell, seed)
            if not outcome.exists() and not folder.root.exists():  # so `spiral` finds nothing of its own
                first, _ = self._places(replace(cell, arm="spiral"), seed)
                inherit(folder, first, self.reward_model)
            self._fly(f"{cell.name}, seed {seed}", folder, outcome)
            self.write()
        return self.write()

    def plan(self) -> list[tuple[Cell, int]]:
        """The first seed of every run, then the second, and so on."""
        seeds = [cell.seeds if self.seeds is None else self.seeds for cell in self.chosen]
        return [pair for row in zip(*seeds, strict=True) for pair in zip(self.chosen, row, strict=True)]

    def write(self) -> Path:
        """The report of every run that is finished so far, those that are not chosen too."""
        return write_comparison(self.root, cells(), self.seeds or (), self.config)

    def _places(self, cell: Cell, seed: int) -> tuple[SpiralFolder, Path]:
        return cell.folder(self.root, seed, self.config), cell.outcome_file(self.root, seed)

    def _fly(self, title: str, folder: SpiralFolder, outcome: Path) -> None:
        check_outcome(folder, outcome, self.reward_model)
        if outcome.exists():
            return
        folder.record.open(resume=True)  # a run with other settings is none of this comparison's
        if not is_finished(folder):
            self.console.rule(f"[bold]{title}", align="left")
            with self.reach(folder) as run:
                run.start(resume=True)
        keep_outcome(folder, outcome, self.reward_model)


def inherit(folder: SpiralFolder, first: SpiralFolder, reward_model: str | None = None) -> None:
    """Copy from a finished run what this one would make just the same; nothing where there is none, or where
    another model than `reward_model` gave its rewards.

    The folder appears when all of it is copied.
    """
    if not is_finished(first, reward_model):
        return
    names = [*SHARED]
    if folder.reward == first.reward:
        names += SHARED_BY_REWARD
        if folder.config.loop.adapt == first.config.loop.adapt:
            names += SHARED_BY_MODEL
    fresh = folder.root.with_name(f".{folder.root.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in names:
        source, place = first.root / name, fresh / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place)
        elif source.exists():
            shutil.copyfile(source, place)
    (fresh / INHERITED).write_text(f"{first.root}\n")
    fresh.replace(folder.root)
