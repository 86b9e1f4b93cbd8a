"""Where a benchmark keeps what: a training run's folder for the data, and beside it each contender's work.

data/, index/, embeddings/          as in a training run, with a split `test` of fresh episodes
contenders/NAME/seedS/              weights, and test.npz: what it says of every frame of `test`
report/                             benchmark.json, benchmark.md and pictures
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sarm2_models.train.calibrate import Predictions
from sarm2_models.train.layout import RunFolder


@dataclass(frozen=True)
class BenchmarkFolder:
    """A benchmark's folder and settings; picklable, so that child processes can be given it.

    Attributes:
        run: the data, the frozen encoder and the plan.
        seeds: of training; every contender that learns is trained once from each.
    """

    run: RunFolder
    seeds: tuple[int, ...]

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.run.root / "report"

    def contender(self, name: str, seed: int) -> Path:
        """Where a contender keeps its weights and its answers."""
        return self.run.root / "contenders" / name / f"seed{seed}"

    def answers(self, name: str, seed: int) -> Path:
        """What it says of every test frame."""
        return self.contender(name, seed) / "test.npz"

    def settings(self) -> dict[str, Any]:
        """What must be equal for a benchmark to be gone on with."""
        return self.run.settings() | {"training_seeds": list(self.seeds)}


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write what a contender says of every frame; the file appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.savez(file, allow_pickle=False, **vars(predictions))
    fresh.replace(path)


def load_predictions(path: Path) -> Predictions:
    """What `save_predictions` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Predictions(**{name: arrays[name] for name in arrays.files})
