"""One SPIRAL run from demonstrations to an improved policy; what is finished is never done twice.

demos      uneven demonstrations of the scripted expert
bc         pi_1, cloned from all of them alike (1 in the paper's figure)
offline    pi_2, cloned anew, weighted by the rewards: the frozen base of all that follows (2b)
adapt      RM1 becomes RM2 by rollouts of pi_1, labelled once; the service takes it (2a)
round K    collect with the deployed policy, score, update the correction, let the candidate try (3)
report     success after each step with Wilson intervals, curves, pictures

A candidate that does worse than the deployed policy by the loop's own rewards is kept and reported but not
deployed. What it tried goes into the replay all the same: so the critics learn where they were wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict
from sarm2_rollouts.episode_scorer import ServiceScorer, scores_of
from sarm2_rollouts.episode_video import draw_video
from sarm2_rollouts.metaworld_robot import EpisodePlan
from sarm2_spiral import stages
from sarm2_spiral.evaluation import evaluate
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.patience import patiently
from sarm2_spiral.pilot import Pilot
from sarm2_spiral.report import write_report
from sarm2_spiral.residual_update import Tick
from sarm2_spiral.wilson import Rate

RECORD = "run.json"

FILMS = 2
"""Scenes that the cloned and the improved policy are filmed in."""


@dataclass
class SpiralRun:
    """A run that can be started, killed and gone on with.

    Args:
        run: its folder and settings.
        client: reaches the service, which gives rewards and embeddings.
        host, port: of that service, for the robots.
        own_model: whether the service serves `run.reward_model` and may reload it: without, no adaptation.
        workers: robots at a time.
        console: where bars and tables go.
    """

    run: SpiralFolder
    client: RewardClient
    host: str
    port: int
    own_model: bool = False
    workers: int = 2
    console: Console = field(default_factory=Console)

    def start(self, *, resume: bool) -> Path:
        """Do every stage that is not done yet. Returns the report's page.

        Raises:
            Conflict: the folder holds a run and `resume` is false, or there is a run with other settings.
            ConnectionLost: the service was away for longer than `OUTAGE_S`; what was finished is kept.
        """
        self._open(resume)
        self._stage("demos", self._demos)
        self._stage("bc", self._clone)
        self._stage("offline", self._offline)
        if self.own_model and self.run.config.loop.adapt and self.run.reward == "service":
            self._stage("adapt", self._adapt)
        for number in range(1, self.run.config.loop.rounds + 1):
            self._stage(f"round {number}", lambda n=number: self._round(n))  # type: ignore[misc]
        self._stage("report", self._report)
        return self.run.report / "report.html"

    # --- stages ----------------------------------------------------------------------------------------

    def _demos(self) -> None:
        stages.record_scripted(self.run.demo_plan(), self.run.demos, self.workers, self.console)
        self._score(self.run.demos, "demos")

    def _clone(self) -> None:
        with self._bar("cloning pi_1") as tick:
            path = stages.clone_policy(self.run, "bc", [self._load("demos")], False, tick)
        self._judge("bc", self._pilot(path, None), self.run.config.loop.evaluation)

    def _offline(self) -> None:
        with self._bar("cloning pi_2") as tick:
            path = stages.clone_policy(self.run, "offline", [self._load("demos")], True, tick)
        self._judge("offline", self._pilot(path, None), self.run.config.loop.evaluation)

    def _adapt(self) -> None:
        run, folder = self.run, self.run.root / "adapt"
        pilot = replace(self._pilot(run.policy("bc"), None), stream=True)
        stages.collect(pilot, run.adapt_plan(), folder / "rollouts", self.workers, self.console)
        stages.record_scripted(run.remember_plan(), folder / "remember", self.workers, self.console)
        if not (run.reward_model / "report" / "adaptation.json").exists():
            stages.adapt_reward_model(run, self.console)
        patiently(self.client.reload, tell=self._say)
        self._score(run.demos, "demos again")

    def _round(self, number: int) -> None:
        run, folder = self.run, self.run.round(number)
        deployed = self.deployed(number - 1)
        stages.collect(
            stages.exploring(deployed),
            run.rollout_plan(number),
            folder / "rollouts",
            self.workers,
            self.console,
        )
        self._score(folder / "rollouts", f"round {number}")
        candidate = self._candidate(number)
        stages.collect(
            replace(candidate, stream=True),
            run.trial_plan(number),
            folder / "trial",
            self.workers,
            self.console,
        )
        self._score(folder / "trial", f"trial {number}")
        decision = stages.decide(run, number, self._load(f"round{number}"), self._load(f"trial{number}"))
        word = "deployed" if decision.deployed else "not deployed"
        self.console.print(
            f"mean final progress {decision.before:.3f} -> {decision.after:.3f}: {word}", highlight=False
        )
        last = number == run.config.loop.rounds
        episodes = run.config.loop.evaluation if last else run.config.loop.between
        self._judge(f"round{number}", self.deployed(number), episodes)

    def _report(self) -> None:
        first, last = self._pilot(self.run.policy("bc"), None), self.deployed(self.run.config.loop.rounds)
        films = {}
        for number in range(FILMS):
            entry = EpisodePlan(self.run.task, "policy", self.run.first_seed("pictures") + number)
            for name, pilot in (("cloned", first), ("improved", last)):
                path = self.run.report / f"{name}_{number}.mp4"
                episode = replace(pilot, stream=True).fly(entry)
                draw_video(path, episode, scores_of(self.client, episode))
                films[f"{name} policy, scene {number}: {'success' if episode.success else 'failure'}"] = path
        write_report(self.run, self._read()["seconds"], films)

    def _candidate(self, number: int) -> Pilot:
        run = self.run
        data = [self._load("demos")]
        for past in range(1, number + 1):
            data.append(self._load(f"round{past}"))
            if past < number:
                data.append(self._load(f"trial{past}"))
        if run.updater == "rabc":
            with self._bar(f"cloning, round {number}") as tick:
                return self._pilot(stages.clone_policy(run, f"round{number}", data, True, tick), None)
        with self._bar(f"update, round {number}") as tick:
            stages.update(run, number, run.policy("offline"), data, tick)
        return self._pilot(run.policy("offline"), run.learner(number))

    def deployed(self, number: int) -> Pilot:
        """The policy that stands after a round: the last candidate that held its own."""
        for past in range(number, 0, -1):
            decision = self.run.round(past) / "decision.json"
            if json.loads(decision.read_text())["deployed"]:
                if self.run.updater == "rabc":
                    return self._pilot(self.run.policy(f"round{past}"), None)
                return self._pilot(self.run.policy("offline"), self.run.learner(past))
        return self._pilot(self.run.policy("offline"), None)

    # --- helpers ---------------------------------------------------------------------------------------

    def _pilot(self, base: Path, learner: Path | None) -> Pilot:
        return Pilot(self.run.kind, base, learner, self.run.config, self.host, self.port)

    def _load(self, name: str) -> stages.Data:
        """A dataset by the name of its features."""
        places = {"demos": self.run.demos}
        for number in range(1, self.run.config.loop.rounds + 1):
            places[f"round{number}"] = self.run.round(number) / "rollouts"
            places[f"trial{number}"] = self.run.round(number) / "trial"
        pilot = self._pilot(self.run.policy("bc"), None)
        return stages.load(self.run, name, places[name], pilot, self._say)

    def _score(self, root: Path, name: str) -> None:
        with self._bar(f"scoring {name}") as tick:
            stages.score(self.run, root, ServiceScorer(self.client), tick, self._say)

    def _judge(self, name: str, pilot: Pilot, episodes: int) -> Rate:
        with self._bar(f"evaluating {name}") as tick:
            plan = self.run.evaluation_plan(episodes)
            rate = evaluate(pilot, plan, self.run.evaluation(name), self.workers, tick)
        self.console.print(
            f"[bold]{name}[/bold]: {rate.value:.0%} success ({rate.low:.0%} to {rate.high:.0%})",
            highlight=False,
        )
        return rate

    def _say(self, text: str) -> None:
        self.console.print(f"[yellow]{text}[/yellow]", highlight=False)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Tick]:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(name, total=None)
            yield lambda done, total: progress.update(bar, completed=done, total=total)

    # --- the record ------------------------------------------------------------------------------------

    def _stage(self, name: str, work: Callable[[], None]) -> None:
        record = self._read()
        if name in record["seconds"]:
            self.console.print(f"[dim]{name}: done before[/dim]")
            return
        self.console.rule(name, align="left")
        started = time.monotonic()
        work()
        record["seconds"][name] = round(time.monotonic() - started, 1)
        self._write(record)

    def _open(self, resume: bool) -> None:
        path = self.run.root / RECORD
        settings = json.loads(json.dumps(self.run.settings()))
        if not path.exists():
            self.run.root.mkdir(parents=True, exist_ok=True)
            self._write({"settings": settings, "seconds": {}})
        elif not resume:
            raise Conflict(f"{self.run.root} holds a run; go on with --resume, or choose another --out")
        elif (before := self._read()["settings"]) != settings:
            different = sorted(key for key in settings if before.get(key) != settings[key])
            raise Conflict(
                f"{self.run.root} holds a run with other settings ({', '.join(different)}); "
                "choose another --out"
            )

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run.root / RECORD).read_text())
        return found

    def _write(self, record: dict[str, Any]) -> None:
        path = self.run.root / RECORD
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(record, indent=1) + "\n")
        fresh.replace(path)
