"""One training run from nothing to a bundle, stage by stage; what is finished is never done twice.

record      episodes into LeRobot v3.0 datasets, three splits, two simulator processes
labels      a few episodes of every task labelled by the expert's steps to go too, to check the labels
index       the datasets as flat arrays
blind       heads on the true simulator state (the ceiling) and on proprioception alone
tower       the image tower, then frozen; left out if the run was given an encoder
embed       every frame once
heads       the model's heads, and heads on images alone
calibrate   temperature, uncertain rule and interval, on held-out episodes
bundle      the result
report      every rung of the ladder on other held-out episodes, the labels' check; pictures
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sarm2_models.train import stages
from sarm2_models.train.jobs import Job, dealt, run_jobs
from sarm2_models.train.label_check import Checker
from sarm2_models.train.ladder import CEILING_BAR, RUNG_METRICS
from sarm2_models.train.layout import SHARDS, RunFolder
from sarm2_models.train.plan import Split, planned_episodes
from sarm2_models.train.variants import Variant
from sarm2_rollouts.expert_label import cross_check
from sarm2_rollouts.recorder import record
from sarm2_rollouts.run_record import RunRecord

Recorder = Callable[[RunFolder, Split, int, Console], None]


def record_split(run: RunFolder, split: Split, workers: int, console: Console) -> None:
    """Record one split with the simulated robot; a dataset that is there is kept."""
    plan = planned_episodes(run.plan, run.tasks, split, run.seed)
    record(plan, run.dataset(split), storage="image", workers=workers, console=console)


@dataclass
class TrainingRun:
    """A run that can be started, stopped and gone on with.

    Args:
        run: its folder and settings.
        workers: processes for recording and training.
        console: where bars and tables go.
        recorder: makes a split's dataset; the simulated robot by default.
        checker: labels an episode both ways; with the simulated robot by default.
        runner: carries jobs out; child processes by default.
    """

    run: RunFolder
    workers: int = 2
    console: Console = field(default_factory=Console)
    recorder: Recorder = record_split
    checker: Checker = cross_check
    runner: Callable[..., None] = run_jobs

    def start(self, *, resume: bool) -> Path:
        """Do every stage that is not done yet. Returns the bundle's folder.

        Raises:
            Conflict: the folder holds a run and `resume` is false, or there is a run with other settings.
            ModelFailed: a stage failed; what was finished is kept.
        """
        kept = RunRecord(self.run.root, self.run.settings(), "training run")
        kept.open(resume=resume)
        began = time.monotonic()
        for name, work in self._stages():
            kept.do(name, work, self.console)
        self._show(time.monotonic() - began)
        return self.run.bundle

    def _stages(self) -> list[tuple[str, Callable[[], None]]]:
        tower = ("tower", lambda: self._jobs(("image tower", stages.tower, ()), alone=True))
        return [
            ("record", self._record),
            ("labels", self._labels),
            ("index", lambda: self._jobs(("index", stages.index, ()))),
            ("blind", lambda: self._heads("ceiling", "state_only")),
            *([] if self.run.given else [tower]),
            ("embed", self._embed),
            ("heads", lambda: self._heads("full", "images_only")),
            ("calibrate", lambda: self._jobs(("calibration", stages.calibration, ()), alone=True)),
            ("bundle", lambda: self._jobs(("bundle", stages.bundle, ()))),
            ("report", self._report),
        ]

    def _record(self) -> None:
        for split in self.run.splits:
            if not (self.run.dataset(split) / "meta" / "info.json").exists():
                self.console.print(f"episodes for {split}")
                self.recorder(self.run, split, self.workers, self.console)

    def _labels(self) -> None:
        self._shared("labels", stages.labels, self.run.tasks, self.checker)

    def _embed(self) -> None:
        self._shared("embed", stages.embed, list(range(SHARDS)))

    def _heads(self, *variants: Variant) -> None:
        self._jobs(*((f"heads {variant}", stages.heads, (variant,)) for variant in variants))

    def _report(self) -> None:
        self._jobs(("report", stages.report, ()), alone=True)
        shutil.copytree(self.run.report, self.run.bundle / "report", dirs_exist_ok=True)

    def _shared(self, name: str, call: Callable[..., None], things: Sequence[Any], *more: Any) -> None:
        """The same job for every worker, each on its share of `things`."""
        shares = enumerate(dealt(things, self.workers))
        self._jobs(*((f"{name} {number + 1}", call, (share, *more)) for number, share in shares))

    def _jobs(self, *work: tuple[str, Callable[..., None], tuple[Any, ...]], alone: bool = False) -> None:
        """Run jobs side by side; one that runs alone gets all the threads."""
        jobs = [
            Job(name, call, (self.run, *arguments), self.run.root / "logs", self.workers if alone else 1)
            for name, call, arguments in work
        ]
        self.runner(jobs, at_once=self.workers, console=self.console)

    def _show(self, seconds: float) -> None:
        report = json.loads((self.run.report / "report.json").read_text())
        self.console.print(ladder_table(report["ladder"]))
        ceiling = report["ladder"]["ceiling"]["demo_mse"]["value"]
        if ceiling is not None and ceiling > CEILING_BAR:
            self.console.print(
                f"[yellow]the ceiling is {ceiling:.4f}: progress does not follow from the simulator's state; "
                "mend the labels before anything else (or train longer than --quick)[/yellow]"
            )
        self.console.print(f"bundle in {self.run.bundle} after {seconds / 60:.1f} minutes")


def ladder_table(ladder: dict[str, Any]) -> Table:
    """The ladder as a table: a column a rung."""
    table = Table("validation episodes", *ladder)
    for metric in RUNG_METRICS:
        values = [measured.get(metric, {}).get("value") for measured in ladder.values()]
        table.add_row(metric, *("" if value is None else f"{value:.4f}" for value in values))
    return table
