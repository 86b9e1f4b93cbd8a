"""What the runs of a comparison came to: one small file a run, which is enough when the run's folder is gone.

OUT/outcomes/TASK/POLICY/ARM/seedN.json. Copy them into the folder of a comparison on another machine, and
what they tell of is neither flown again nor left out of the report there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import Conflict, InvalidInput
from sarm2_rollouts.relabel import scored_by
from sarm2_rollouts.run_record import finished_stages, other_settings, tries_of_stages
from sarm2_rollouts.whole_file import whole_file
from sarm2_spiral.evaluation import verdicts
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.report import believed, rank_auc
from sarm2_spiral.wilson import Rate

Verdicts = npt.NDArray[np.bool_]
"""Whether each evaluation episode succeeded, scenes of all seeds in one order."""

INHERITED = "inherited_from"
"""The file that names the run from which some of a run's work was taken over."""


@dataclass(frozen=True)
class Change:
    """What a round that was deployed changed: successes before and after it, of the same scenes."""

    round: str
    before: int
    after: int
    scenes: int

    def __str__(self) -> str:
        return f"{self.round}: {self.before} to {self.after} of {self.scenes}"


@dataclass(frozen=True)
class RunOutcome:
    """What one finished run came to.

    Attributes:
        verdicts: by policy (`bc`, `offline`, `round1`, ...), whether each evaluation episode succeeded, in
            the order of the scenes.
        finals, successes: of the last round's rollouts, progress at the end and the simulator's verdict.
        deployed: of each round, whether its candidate was deployed.
        minutes: it took; None where a stage was broken off and begun again, or taken over.
        reward_model: RM1, which gave the rewards, adapted or not; None where they come from elsewhere.
    """

    verdicts: Mapping[str, Sequence[bool]]
    finals: Sequence[float]
    successes: Sequence[bool]
    deployed: Sequence[bool]
    minutes: float | None
    reward_model: str | None

    @classmethod
    def of(cls, run: SpiralFolder) -> RunOutcome:
        """Of a run whose folder is there."""
        plan = run.evaluation_plan(run.config.loop.evaluation)
        rounds = json.loads((run.report / "report.json").read_text())["rounds"]
        last = rounds[-1] if rounds else {"finals": [], "successes": []}
        names = ["bc", "offline", *(f"round{number}" for number in range(1, run.config.loop.rounds + 1))]
        return cls(
            verdicts={name: verdicts(run.evaluation(name), plan) for name in names},
            finals=last["finals"],
            successes=last["successes"],
            deployed=[bool(row["deployed"]) for row in rounds],
            minutes=_minutes(run.root),
            reward_model=_reward_model(run),
        )

    @property
    def changes(self) -> list[Change]:
        """Of every round whose candidate was deployed."""
        names = [name for name in self.verdicts if name != "bc"]
        found = []
        for before, after, deployed in zip(names, names[1:], self.deployed, strict=False):
            pairs = list(zip(self.verdicts[before], self.verdicts[after], strict=False))  # the scenes of both
            if deployed and pairs:
                stood, stands = (sum(verdicts) for verdicts in zip(*pairs, strict=True))
                found.append(Change(after, stood, stands, len(pairs)))
        return found


@dataclass(frozen=True)
class Outcome:
    """What a cell came to, over the seeds that are finished.

    Attributes:
        seeds: how many.
        success: by policy (`bc`, `offline`, `round1`, ...), all seeds together.
        first, offline, final: verdict of every evaluation episode, of pi_1, of pi_2 and of what stood after
            the last round.
        finals, successes: as `RunOutcome` has them, of all runs.
        deployed: rounds whose candidate was deployed, of how many. changes: what those changed.
        by_seed: success after the last round, seed by seed: scenes of one seed hang on one training.
        minutes: the longest run's; None where one does not know.
        reward_models: names of those that gave the rewards before they were adapted.
    """

    seeds: int
    success: Mapping[str, Rate]
    first: Verdicts
    offline: Verdicts
    final: Verdicts
    finals: tuple[float, ...]
    successes: tuple[bool, ...]
    deployed: tuple[int, int]
    changes: tuple[Change, ...]
    by_seed: tuple[float, ...]
    minutes: float | None
    reward_models: frozenset[str]

    @classmethod
    def of(cls, runs: Sequence[RunOutcome]) -> Outcome:
        """Of the runs of one cell, at least one."""
        names = list(runs[0].verdicts)
        decisions = [one for run in runs for one in run.deployed]
        minutes = [run.minutes for run in runs if run.minutes is not None]
        return cls(
            seeds=len(runs),
            success={name: sum((_rate(run, name) for run in runs), Rate(0, 0)) for name in names},
            first=_verdicts(runs, "bc"),
            offline=_verdicts(runs, "offline"),
            final=_verdicts(runs, names[-1]),
            finals=tuple(value for run in runs for value in run.finals),
            successes=tuple(value for run in runs for value in run.successes),
            deployed=(sum(decisions), len(decisions)),
            changes=tuple(change for run in runs for change in run.changes),
            by_seed=tuple(_rate(run, names[-1]).value for run in runs),
            minutes=max(minutes) if len(minutes) == len(runs) else None,
            reward_models=frozenset(run.reward_model for run in runs if run.reward_model is not None),
        )

    @property
    def auc(self) -> float | None:
        """ROC-AUC of final progress against success, rollouts of the last round; None where all succeeded or
        failed, or where the rewards end every rollout alike."""
        return rank_auc(self.finals, self.successes) if len({*self.finals}) > 1 else None

    @property
    def taken_for_done(self) -> tuple[int, int] | None:
        """How many failures of the last round's rollouts end as if they were done, of how many; None where
        the rewards end every rollout alike."""
        if len({*self.finals}) < 2:
            return None
        ends = believed(self.finals, self.successes)
        return sum(ends), len(ends)

    @property
    def worse(self) -> list[Change]:
        """Rounds that were deployed, and after which fewer scenes succeeded; the worst first."""
        found = [change for change in self.changes if change.after < change.before]
        return sorted(found, key=lambda change: (change.after - change.before) / change.scenes)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "seeds": self.seeds,
            "success": {name: rate.as_json() for name, rate in self.success.items()},
            "by_seed": list(self.by_seed),
            "auc": self.auc,
            "failures_taken_for_done": self.taken_for_done and list(self.taken_for_done),
            "deployed": list(self.deployed),
            "deployed_and_worse": [str(change) for change in self.worse],
            "minutes": self.minutes,
            "reward_models": sorted(self.reward_models),
        }


def keep_outcome(run: SpiralFolder, path: Path, reward_model: str | None = None) -> None:
    """Write what a finished run came to. Only whoever flew it does: comparisons may share a folder.

    Raises Conflict where its rewards are another model's than `reward_model`.
    """
    if _is_another(_reward_model(run), reward_model):
        raise Conflict(
            f"{run.root} holds a run with the rewards of {_reward_model(run)}, and not of {reward_model}; "
            "move it away to fly this one, or choose another folder with --out"
        )
    with whole_file(path) as fresh:
        fresh.write_text(json.dumps({"settings": run.settings(), **asdict(RunOutcome.of(run))}) + "\n")


def kept_outcome(run: SpiralFolder, path: Path) -> RunOutcome | None:
    """What a run came to, from its file; None where there is none, or that of a run with other settings.

    Raises InvalidInput for a file that another version wrote.
    """
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    if other_settings(run.settings(), kept["settings"]):
        return None
    names = [field.name for field in fields(RunOutcome)]
    if missing := [name for name in names if name not in kept]:
        raise InvalidInput(f"{path} lacks {', '.join(missing)}: another version wrote it; move it away")
    return RunOutcome(**{name: kept[name] for name in names})


def check_outcome(run: SpiralFolder, path: Path, reward_model: str | None = None) -> None:
    """Raise Conflict where the file at `path` tells of a run with other settings, or of one whose rewards
    another model than `reward_model` gave."""
    if not path.exists():
        return
    kept = json.loads(path.read_text())
    other = other_settings(run.settings(), kept["settings"])
    if _is_another(kept.get("reward_model"), reward_model):
        other = [*other, f"reward_model: {kept['reward_model']}, now {reward_model}"]
    if other:
        raise Conflict(
            f"{path} tells of a run with other settings ({'; '.join(other)}); move it, and the folder of "
            "that run, away to fly this one, or choose another folder with --out"
        )


def is_finished(run: SpiralFolder, reward_model: str | None = None) -> bool:
    """Whether there is a finished run with these very settings, and with the rewards of a model if one is
    named and it has a model's."""
    if not run.record.whole or "report" not in finished_stages(run.root):
        return False
    return reward_model is None or not _is_another(_reward_model(run), reward_model)


def _is_another(found: str | None, wanted: str | None) -> bool:
    """Whether a run's rewards are of another model than the wanted one; no model at all is no other."""
    return None not in (found, wanted) and found != wanted


def _minutes(root: Path) -> float | None:
    again = max(tries_of_stages(root).values(), default=0) > 1
    return None if again or (root / INHERITED).exists() else sum(finished_stages(root).values()) / 60


def _reward_model(run: SpiralFolder) -> str | None:
    if run.reward != "service":
        return None
    return json.loads(run.adaptation.read_text())["adapted_from"] if run.adapts else scored_by(run.demos)


def _rate(run: RunOutcome, name: str) -> Rate:
    return Rate(sum(run.verdicts[name]), len(run.verdicts[name]))


def _verdicts(runs: Sequence[RunOutcome], name: str) -> Verdicts:
    return np.array([verdict for run in runs for verdict in run.verdicts[name]], dtype=bool)
