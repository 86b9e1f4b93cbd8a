"""An equal budget of tuning: each contender tries every setting and keeps the one that errs least.

Whoever learns in a way of its own is trained once with each, and judged by the calibration episodes. The seed
of these trainings is none that is measured, and no test episode is looked at. Ablations keep what SARM2
chose: they are to differ from it in one part alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from sarm2_models.benchmark.contenders import CONTENDERS
from sarm2_models.benchmark.exams import exam_frames
from sarm2_models.benchmark.layout import BenchmarkFolder
from sarm2_models.benchmark.setting import Setting
from sarm2_models.train.loop import Tick
from sarm2_rollouts.whole_file import whole_file

SEED = 1000
"""Of every trial's training."""

ERROR = "error.json"

TUNED = tuple(name for name, one in CONTENDERS.items() if one.learns and one.tuned_as == name)
"""Who learns in a way of its own."""

Errors: TypeAlias = dict[str, float]
"""Mean squared error of progress by the setting's name."""


def trial(bench: BenchmarkFolder, name: str, setting: Setting, tick: Tick) -> None:
    """Train a contender with a setting and write down how much it errs on the calibration episodes: the mean
    over their frames of the squared error of progress."""
    tried = _trial(bench, setting)
    path = tried.contender(name, SEED) / ERROR
    if path.exists():
        return
    said = CONTENDERS[name].answer(tried, SEED, "calibration", tick)
    true_T = exam_frames(bench, "state_only", "calibration").progress_T
    error = float(np.mean(np.square(said.progress_T - true_T, dtype=np.float64)))
    with whole_file(path) as fresh:
        fresh.write_text(json.dumps({"progress_mse": error}))


def errors(bench: BenchmarkFolder, name: str) -> Errors:
    """What came out of a contender's trials, in the order of the settings."""
    folders = {one.name: _trial(bench, one).contender(name, SEED) for one in bench.extras.settings}
    return {one: json.loads((path / ERROR).read_text())["progress_mse"] for one, path in folders.items()}


def chosen(bench: BenchmarkFolder, name: str) -> Setting:
    """The setting that errs least; the earlier one of equals."""
    tried = errors(bench, CONTENDERS[name].tuned_as)
    return min(bench.extras.settings, key=lambda setting: tried[setting.name])


def tuned(bench: BenchmarkFolder, name: str) -> BenchmarkFolder:
    """The benchmark with the setting that a contender chose; as it is for who learns nothing."""
    return _with(bench, chosen(bench, name)) if CONTENDERS[name].learns else bench


def _with(bench: BenchmarkFolder, setting: Setting) -> BenchmarkFolder:
    plan = replace(bench.run.plan, heads=setting.of(bench.run.plan.heads))
    return replace(bench, run=replace(bench.run, plan=plan))


def _trial(bench: BenchmarkFolder, setting: Setting) -> BenchmarkFolder:
    return replace(_with(bench, setting), work=f"tuning/{setting.name}")
