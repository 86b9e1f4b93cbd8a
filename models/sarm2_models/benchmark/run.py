"""A benchmark from nothing to its report, stage by stage; what is finished is never done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

from sarm2_models.benchmark import stages
from sarm2_models.benchmark.cloned_policy import policy_episode
from sarm2_models.benchmark.contenders import CONTENDERS, Told
from sarm2_models.benchmark.layout import BenchmarkFolder
from sarm2_models.benchmark.tuning import TUNED
from sarm2_models.train import stages as training
from sarm2_models.train.jobs import Job, dealt, run_jobs
from sarm2_models.train.layout import SHARDS, RunFolder
from sarm2_models.train.run import Recorder, record_split
from sarm2_rollouts.collection import iterate_episodes
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import STATE_NAMES, EpisodePlan
from sarm2_rollouts.recorder import PlannedEpisode, record
from sarm2_rollouts.run_record import RunRecord

Work: TypeAlias = tuple[str, Callable[..., None], tuple[Any, ...]]
"""Name, function and arguments of a job."""

Roller: TypeAlias = Callable[[BenchmarkFolder, int, Console], None]


def record_policies(bench: BenchmarkFolder, workers: int, console: Console) -> None:
    """Record the rollouts of the cloned policies with the simulated robot."""

    def source(plan: Sequence[PlannedEpisode]) -> Iterable[Episode]:
        entries = [EpisodePlan(entry.task_name, entry.kind, entry.seed) for entry in plan]
        return iterate_episodes(entries, workers, make=partial(policy_episode, bench))

    record(
        bench.policy_plan(),
        bench.run.dataset("policy"),
        storage="image",
        source=source,
        state_names=STATE_NAMES,
        console=console,
    )


@dataclass
class BenchmarkRun:
    """A benchmark that can be started, stopped and gone on with.

    Args:
        bench: its folder and settings.
        workers: processes.
        console: where bars go.
        recorder: makes a split's dataset; the simulated robot by default.
        roller: makes the dataset of the cloned policies' rollouts; on the simulated robot by default.
        runner: carries jobs out; child processes by default.
    """

    bench: BenchmarkFolder
    workers: int = 2
    console: Console = field(default_factory=Console)
    recorder: Recorder = record_split
    roller: Roller = record_policies
    runner: Callable[..., None] = run_jobs

    def start(self, *, resume: bool) -> Path:
        """Do what is not done yet. Returns the report's folder.

        Raises:
            Conflict: the folder holds a benchmark and `resume` is false, or one with other settings.
            ModelFailed: a job failed; what was finished is kept.
        """
        RunRecord(self.bench.run.root, self.bench.settings(), "benchmark").open(resume=resume)
        bench = self.bench
        self._scripted(bench.run, "")
        if bench.extras.unseen_tasks:
            self._scripted(bench.unseen, "unseen tasks: ")
        self._cloned()
        self._jobs("tuning", self._trials())
        self._jobs("stage estimators", self._shared())
        self._jobs("contenders", self._contenders(told=False))
        self._jobs("oracle", self._contenders(told=True))  # after those whose heads it uses
        self._jobs("report", [("report", stages.report, (bench,))])
        return bench.report

    def _scripted(self, run: RunFolder, title: str) -> None:
        """Scripted episodes: record, index, embed."""
        for split in run.splits:
            if not (run.dataset(split) / "meta" / "info.json").exists():
                self.console.rule(f"{title}episodes for {split}", align="left")
                self.recorder(run, split, self.workers, self.console)
        self._embed(run, title)

    def _cloned(self) -> None:
        """Cloned policies and their rollouts."""
        bench = self.bench
        shares = enumerate(dealt(bench.run.tasks, self.workers))
        work: list[Work] = [(f"clone {n + 1}", stages.clone_policies, (bench, share)) for n, share in shares]
        self._jobs("cloned policies", work)
        if not (bench.run.dataset("policy") / "meta" / "info.json").exists():
            self.console.rule("rollouts of the cloned policies", align="left")
            self.roller(bench, self.workers, self.console)
        self._embed(bench.policies, "policies: ")

    def _embed(self, run: RunFolder, title: str) -> None:
        self._jobs(f"{title}index", [("index", training.index, (run,))])
        shares = enumerate(dealt(list(range(SHARDS)), self.workers))
        work: list[Work] = [(f"embed {n + 1}", training.embed, (run, share)) for n, share in shares]
        self._jobs(f"{title}embed", work)

    def _trials(self) -> list[Work]:
        return [
            (f"{name} {setting.name}", stages.try_setting, (self.bench, name, setting))
            for name in TUNED
            for setting in self.bench.extras.settings
        ]

    def _shared(self) -> list[Work]:
        return [
            (f"stage {variant} {seed}", stages.stage, (self.bench, variant, seed))
            for seed in self.bench.seeds
            for variant in stages.SHARED
        ]

    def _contenders(self, *, told: bool) -> list[Work]:
        return [
            (f"{name} {seed}", stages.contend, (self.bench, name, seed))
            for name, contender in CONTENDERS.items()
            if isinstance(contender, Told) == told
            for seed in (self.bench.seeds if contender.learns else self.bench.seeds[:1])
        ]

    def _jobs(self, title: str, work: list[Work]) -> None:
        self.console.rule(title, align="left")
        jobs = [Job(name, call, arguments, self.bench.run.root / "logs") for name, call, arguments in work]
        self.runner(jobs, at_once=self.workers, console=self.console)
