"""One SPIRAL run from demonstrations to an improved policy; what is finished is never done twice.

demos        uneven demonstrations of the scripted expert, scored
bc           pi_1, cloned from all of them alike (1 in the paper's figure)
offline      pi_2, cloned anew, weighted by the rewards: the frozen base of all that follows (2b)
collect 0    rollouts of pi_1, with exploration
adapt        RM1 becomes RM2 by these rollouts, labelled once; the service takes it (2a)
collect K    rollouts of the deployed policy, with exploration, streamed to the service (3)
relabel K    their progress, by the service
update K     the correction, learned from everything so far; it makes a candidate
trial K      the candidate flies scenes of this round, and is deployed if it holds its own
evaluate P   how often policy P succeeds, by the simulator: for people, nothing learns from it
report       success after each step with Wilson intervals, curves, films

A base policy that other people trained takes the place of pi_1 and pi_2: then there is nothing to clone.

A candidate that does worse than the deployed policy by the loop's own rewards is kept and reported but not
deployed. What it tried goes into the replay all the same: so the critics learn where they were wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict, NotFound
from sarm2_rollouts.collection import Collector, iterate_episodes
from sarm2_rollouts.episode_scorer import ServiceScorer, scores_of
from sarm2_rollouts.episode_video import draw_video
from sarm2_rollouts.metaworld_robot import EpisodePlan
from sarm2_rollouts.run_record import finished_stages
from sarm2_spiral import stages
from sarm2_spiral.data import Data, load
from sarm2_spiral.decision import decide, load_decision
from sarm2_spiral.evaluation import evaluate, success_rate
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.metrics import LoopMetrics
from sarm2_spiral.patience import patiently
from sarm2_spiral.pilot import Base, Pilot, load_base
from sarm2_spiral.report import collected, rounds_through, write_report
from sarm2_spiral.residual_update import Tick
from sarm2_spiral.rewards import Rule
from sarm2_spiral.wilson import Rate

ABSENT = {
    "adapt": ": it needs rewards of a service that the run starts itself, so neither --server nor --no-adapt",
    "bc": ": a given policy is not cloned",
    "offline": ": a given policy is not cloned",
}
"""Why a run may be without a stage."""

FILMS = 2
"""Scenes that the cloned and the improved policy are filmed in."""


@dataclass
class SpiralRun:
    """A run that can be started, killed and gone on with.

    Args:
        run: its folder and settings.
        client: reaches the service, which gives rewards and embeddings.
        host, port: of that service, for the robots.
        collector: makes the episodes: in processes of this machine, or on a cluster.
        console: where bars and tables go.
        metrics: told what comes out, stage by stage.
    """

    run: SpiralFolder
    client: RewardClient
    host: str
    port: int
    collector: Collector = iterate_episodes
    console: Console = field(default_factory=Console)
    metrics: LoopMetrics | None = None
    _unchanged: bool = field(default=False, init=False)

    def start(self, *, resume: bool) -> Path:
        """Do every stage that is not done yet. Returns the report's page.

        Raises:
            Conflict: the folder holds a run and `resume` is false, or there is a run with other settings.
            ConnectionLost: the service was away for longer than `OUTAGE_S`; what was finished is kept.
        """
        self.begin(resume=resume)
        self._tell_again()
        for name, work in self.plan():
            if self.run.record.do(name, work, self.console) and name.startswith("evaluate"):
                self._write({})  # films wait for the end
        return self.run.report / "report.html"

    def begin(self, *, resume: bool) -> None:
        """Open the run's folder. Raises Conflict as `start` does, and what loading a given policy raises."""
        if self.run.given is not None:  # one that does not fit is refused before the run begins
            load_base(self.run.given, self.run.config)
        self.run.record.open(resume=resume)

    def step(self, *kinds: str) -> list[str]:
        """Do the next stages, as long as they are of these kinds: `collect` does `collect 2` once round 1 is
        through, `update` and `trial` a whole update, or what a kill has left of it. Returns their names.

        Raises Conflict where another stage has to come first (an evaluation never has), or none is left.
        """
        plan = self.plan()
        if all(name.split()[0] not in kinds for name, _ in plan):
            raise Conflict(
                f"{kinds[0]}: the run in {self.run.root} has no such stage{ABSENT.get(kinds[0], '')}"
            )
        done: list[str] = []
        for name, work in plan:
            if name in finished_stages(self.run.root) or name.startswith("evaluate"):
                continue
            if name.split()[0] not in kinds:
                if done:
                    return done
                raise Conflict(f"{kinds[0]}: the stage {name!r} of {self.run.root} has to come first")
            self.run.record.do(name, work, self.console)
            done.append(name)
        if not done:
            raise Conflict(f"{kinds[0]}: every such stage of {self.run.root} is done")
        return done

    def write_report(self) -> Path:
        """The report of what is through so far. Returns its page.

        Raises Conflict where there are no demonstrations yet.
        """
        if "demos" not in finished_stages(self.run.root):
            raise Conflict(f"report: the stage 'demos' of {self.run.root} has to come first")
        self._report()
        return self.run.report / "report.html"

    def plan(self) -> list[tuple[str, Callable[[], object]]]:
        """Every stage in its order, by name."""
        rounds = self.run.config.loop.rounds
        found: list[tuple[str, Callable[[], object]]] = [
            ("demos", self._demos),
            *self._first_policies(),
            ("collect 0", partial(self._collect, 0)),
        ]
        if self.run.adapts:
            found.append(("adapt", self._adapt))
        found.append(("relabel 0", partial(self._relabel, 0)))
        for number in range(1, rounds + 1):
            between = None if number == rounds else self.run.config.loop.between
            found += [
                (f"collect {number}", partial(self._collect, number)),
                (f"relabel {number}", partial(self._relabel, number)),
                (f"update {number}", partial(self._update, number)),
                (f"trial {number}", partial(self._trial, number)),
                (f"evaluate round{number}", partial(self.judge, f"round{number}", between)),
            ]
        return [*found, ("report", self._report)]

    def _first_policies(self) -> list[tuple[str, Callable[[], object]]]:
        if self.run.given is not None:
            return [("evaluate given", partial(self.judge, "given"))]
        return [
            ("bc", partial(self._clone, "bc", "alike")),
            ("evaluate bc", partial(self.judge, "bc")),
            ("offline", partial(self._clone, "offline", "gain")),
            ("evaluate offline", partial(self.judge, "offline")),
        ]

    def judge(self, name: str, episodes: int | None = None) -> Rate:
        """How often a policy succeeds: `bc`, `offline` or `given`, or what stood after `roundK`.

        Args:
            episodes: how many scenes; by default `LoopConfig.evaluation`. Those flown before are not again.

        Raises NotFound for a policy that is not there.
        """
        plan = self.run.evaluation_plan(episodes or self.run.config.loop.evaluation)
        with self._bar(f"evaluating {name}") as tick:
            rate = evaluate(self.policy(name), plan, self.run.evaluation(name), self.collector, tick)
        if self.metrics is not None:
            self.metrics.judged(name, rate)
        self.console.print(
            f"[bold]{name}[/bold]: {rate.value:.0%} success ({rate.low:.0%} to {rate.high:.0%})",
            highlight=False,
        )
        return rate

    def _tell_again(self) -> None:
        """Metrics of what an earlier start has finished."""
        if self.metrics is None:
            return
        for name in finished_stages(self.run.root):
            kind, _, what = name.partition(" ")
            if kind == "evaluate":
                plan = self.run.evaluation_plan(self.run.config.loop.evaluation)
                self.metrics.judged(what, success_rate(self.run.evaluation(what), plan))
            elif kind == "relabel" and int(what) > 0:
                self.metrics.collected(int(what), collected(self.run, int(what)))
            elif kind == "trial":
                self.metrics.decided(int(what), deployed=load_decision(self.run, int(what)).deployed)

    # --- stages ----------------------------------------------------------------------------------------

    def _demos(self) -> None:
        run = self.run
        stages.record_scripted(
            run.demo_plan(), run.demos, self.collector, self.console, rendered=run.rendered
        )
        self._score(self.run.demos, "demos")

    def _clone(self, name: str, rule: Rule) -> None:
        with self._bar(f"cloning {name}") as tick:
            stages.clone_policy(self.run, name, [self._load("demos")], rule, tick)

    def _adapt(self) -> None:
        run = self.run
        stages.record_scripted(run.remember_plan(), run.remember, self.collector, self.console)
        if not run.adapted:
            stages.adapt_reward_model(run, self.console)
        patiently(self.client.reload, tell=self._say)
        self._score(run.demos, "demos again")

    def _collect(self, number: int) -> None:
        policy = self.deployed(number - 1) if number else self.policy(self._first)
        pilot = replace(policy, explore=True, stream=self.run.rendered, ends=self.run.ends)
        root = self.run.round(number) / "rollouts"
        stages.collect(pilot, self.run.rollout_plan(number), root, self.collector, self.console)

    def _relabel(self, number: int) -> None:
        self._score(self.run.round(number) / "rollouts", f"round {number}")
        if self.metrics is not None and number > 0:
            self.metrics.collected(number, collected(self.run, number))

    def _update(self, number: int) -> None:
        run, tried = self.run, [f"trial{past}" for past in range(1, number)]
        seen = ["demos", *(f"round{past}" for past in range(number + 1)), *tried]
        for name in seen:  # scores of two models are never mixed: the service may have another one now
            self._score(self._place(name), name)
        data = [self._load(name) for name in seen]
        with self._bar(f"update, round {number}") as tick:
            if run.updater == "rabc":
                stages.clone_policy(run, f"round{number}", data, "lerobot", tick)
            else:
                stages.update(run, number, self._base("offline"), data, tick)

    def _trial(self, number: int) -> None:
        run, root = self.run, self.run.round(number) / "trial"
        pilot = replace(self._candidate(number), stream=run.rendered, ends=run.ends)
        stages.collect(pilot, run.trial_plan(number), root, self.collector, self.console)
        # Scores of two models are never compared: the service may have another one now.
        self._score(self._place(f"round{number}"), f"round {number} again")
        self._score(root, f"trial {number}")
        decision = decide(run, number, self._load(f"round{number}"), self._load(f"trial{number}"))
        if self.metrics is not None:
            self.metrics.decided(number, deployed=decision.deployed)
        word = "deployed" if decision.deployed else "not deployed"
        self.console.print(
            f"mean final progress {decision.before:.3f} -> {decision.after:.3f}: {word}", highlight=False
        )

    def _report(self) -> None:
        self._write(self._films() if self.run.rendered else {})

    def _write(self, films: dict[str, Path]) -> None:
        write_report(self.run, finished_stages(self.run.root), films)

    def _films(self) -> dict[str, Path]:
        films: dict[str, Path] = {}
        first = "cloned" if self.run.given is None else "given"
        pilots = {
            first: self._pilot(self._base("bc"), None),
            "improved": self.deployed(rounds_through(self.run)),
        }
        if any(isinstance(pilot.base, Path) and not pilot.base.exists() for pilot in pilots.values()):
            return films
        for number in range(FILMS):
            entry = EpisodePlan(self.run.task, "policy", self.run.first_seed("pictures") + number)
            for name, pilot in pilots.items():
                path = self.run.report / f"{name}_{number}.mp4"
                episode = replace(pilot, stream=True).fly(entry)
                scores = patiently(partial(scores_of, self.client, episode), tell=self._say)
                draw_video(path, episode, scores)
                films[f"{name} policy, scene {number}: {'success' if episode.success else 'failure'}"] = path
        return films

    # --- policies --------------------------------------------------------------------------------------

    def policy(self, name: str) -> Pilot:
        """A policy by its name: `bc`, `offline` or `given`, or what stood after `roundK`. Raises NotFound."""
        if name in (("bc", "offline") if self.run.given is None else ("given",)):
            pilot = self._pilot(self._base(name), None)
        elif (number := re.fullmatch("round(0|[1-9][0-9]*)", name)) is not None:
            pilot = self.deployed(int(number[1]))
        else:
            first = "bc, offline" if self.run.given is None else "given"
            raise NotFound(f"there is no policy {name!r}; expected {first}, round1, ...", field="policy")
        if isinstance(pilot.base, Path) and not pilot.base.exists():
            raise NotFound(f"the policy {name} is not there yet; do its stages first", field="policy")
        return pilot

    def deployed(self, number: int) -> Pilot:
        """The policy that stands after a round: the last candidate that held its own.

        Raises NotFound where the round is not through yet.
        """
        for past in range(number, 0, -1):
            if load_decision(self.run, past).deployed:
                return self._candidate(past)
        return self._pilot(self._base("offline"), None)

    def _candidate(self, number: int) -> Pilot:
        if self.run.updater == "rabc":
            return self._pilot(self.run.policy(f"round{number}"), None)
        return self._pilot(self._base("offline"), self.run.learner(number))

    @property
    def _first(self) -> str:
        """The policy that the loop begins with."""
        return "bc" if self.run.given is None else "given"

    def _check_unchanged(self) -> None:
        """Raise Conflict where the service's encoder or a given policy is another than at the beginning."""
        if self._unchanged:
            return
        if self.run.kind == "image" and not self.run.own_service:  # its own keeps its encoder
            stages.check_encoder(self.run, self.client.embed, self._say)
        stages.check_given(self.run)
        self._unchanged = True

    def _base(self, name: str) -> Base:
        """A cloned base policy by its name, or the given one, which takes the place of them all."""
        return self.run.given or self.run.policy(name)

    def _pilot(self, base: Base, learner: Path | None) -> Pilot:
        self._check_unchanged()
        # Absolute: workers on other machines begin in folders of their own.
        base = base.absolute() if isinstance(base, Path) else base
        learner = learner and learner.absolute()
        return Pilot(self.run.kind, base, learner, self.run.config, self.host, self.port)

    # --- helpers ---------------------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        """Where the dataset of this name lies: `demos`, `roundK`, `trialK`."""
        if name == "demos":
            return self.run.demos
        what, number = ("rollouts", name[5:]) if name.startswith("round") else ("trial", name[5:])
        return self.run.round(int(number)) / what

    def _load(self, name: str) -> Data:
        """A dataset by its name."""
        pilot = self._pilot(self._base("bc"), None)
        return load(self.run, name, self._place(name), pilot, self._say)

    def _score(self, root: Path, name: str) -> None:
        with self._bar(f"scoring {name}") as tick:
            stages.score(self.run, root, ServiceScorer(self.client), tick, self._say)

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
        progress = Progress(*columns, console=self.console)
        bar = progress.add_task(name, total=None)

        def tick(done: int, total: int) -> None:
            progress.start()  # not before: often there is nothing to do, and nothing to show
            progress.update(bar, completed=done, total=total)

        try:
            yield tick
        finally:
            if progress.live.is_started:
                progress.stop()
