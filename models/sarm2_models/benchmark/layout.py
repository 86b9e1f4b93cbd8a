"""Where a benchmark keeps what: a training run's folder for the data, and beside it each contender's work.

data/, index/, embeddings/          as in a training run, with a split `test` of fresh episodes
data/policy/, ...                   rollouts of cloned policies
policies/TASK/                      the cloned policies
unseen/                             data of tasks that nothing here is trained on
tuning/SETTING/NAME/seedS/          the trials of tuning: weights and error.json
contenders/NAME/seedS/              weights, and EXAM.npz: what it says of every frame of an exam
report/                             benchmark.json, benchmark.md and pictures
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarm2_models.benchmark.setting import Setting
from sarm2_models.train.calibrate import Predictions
from sarm2_models.train.layout import RunFolder
from sarm2_models.train.plan import SEED_BLOCKS, Episodes, PlannedEpisode
from sarm2_rollouts.whole_file import whole_file


@dataclass(frozen=True)
class Extras:
    """What a benchmark measures on beside fresh scripted episodes.

    Attributes:
        policy_steps: of training each cloned policy. policy_rollouts: of each policy.
        unseen_tasks: tasks that nothing is trained on.
        unseen: how many episodes of each of them.
        settings: what tuning tries.
    """

    policy_steps: int
    policy_rollouts: int
    unseen_tasks: tuple[str, ...]
    unseen: Episodes
    settings: tuple[Setting, ...]


TRAINED_ON = "trained_on.txt"


@dataclass(frozen=True)
class BenchmarkFolder:
    """A benchmark's folder and settings; picklable, so that child processes can be given it.

    Attributes:
        run: the data, the frozen encoder and the plan.
        seeds: of training; every contender that learns is trained once from each.
        extras: policies, unseen tasks and tuning.
        work: where inside the folder contenders are.
    """

    run: RunFolder
    seeds: tuple[int, ...]
    extras: Extras
    work: str = "contenders"

    @property
    def unseen(self) -> RunFolder:
        """The folder of the tasks that nothing is trained on; its only split is `test`."""
        plan = replace(self.run.plan, episodes={"test": self.extras.unseen})
        return replace(self.run, root=self.run.root / "unseen", plan=plan, tasks=self.extras.unseen_tasks)

    @property
    def policies(self) -> RunFolder:
        """The run's own folder, with rollouts of cloned policies as its only split."""
        none = Episodes(demo=0, clean_demo=0, perturbed=0, random=0)
        return replace(self.run, plan=replace(self.run.plan, episodes={"policy": none}))

    def policy_plan(self) -> list[PlannedEpisode]:
        """Which rollouts of cloned policies are made."""
        first, _ = SEED_BLOCKS["policy"]
        seeds = range(first, first + self.extras.policy_rollouts)
        return [PlannedEpisode(task, "policy", seed) for seed in seeds for task in self.run.tasks]

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.run.root / "report"

    def contender(self, name: str, seed: int) -> Path:
        """Where a contender keeps its weights and its answers."""
        return self.run.root / self.work / name / f"seed{seed}"

    def answers(self, name: str, seed: int, exam: str) -> Path:
        """What it says of every frame of an exam."""
        return self.contender(name, seed) / f"{exam}.npz"

    def note_training(self, name: str, seed: int) -> None:
        """Write down where a contender is trained, where that was not written down before."""
        path = self.contender(name, seed) / TRAINED_ON
        if not path.exists():
            with whole_file(path) as fresh:
                fresh.write_text(f"{_machine(self.run.device)}, torch {torch.__version__}")

    def trained_on(self, name: str) -> list[str]:
        """Where a contender was trained, in words; several where seeds differ."""
        paths = [self.contender(name, seed) / TRAINED_ON for seed in self.seeds]
        return sorted({path.read_text() for path in paths if path.exists()})

    def settings(self) -> dict[str, Any]:
        """What must be equal for a benchmark to be gone on with."""
        return self.run.settings() | {"training_seeds": list(self.seeds), "extras": asdict(self.extras)}


def _machine(device: str) -> str:
    """A device in words: a GPU's own name beside `cuda`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device != "cpu" else device


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write what a contender says of every frame; the file appears when it is whole."""
    with whole_file(path) as fresh, fresh.open("wb") as file:
        np.savez(file, allow_pickle=False, **vars(predictions))


def load_predictions(path: Path) -> Predictions:
    """What `save_predictions` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Predictions(**{name: arrays[name] for name in arrays.files})
