"""How much a benchmark records and trains, and on which tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sarm2_models.benchmark.layout import BenchmarkFolder, Extras
from sarm2_models.benchmark.setting import SETTINGS
from sarm2_models.checkpoint import default_bundle
from sarm2_models.device import check_device
from sarm2_models.train.given_encoder import GivenEncoder
from sarm2_models.train.layout import RunFolder
from sarm2_models.train.plan import Episodes, HeadPlan, TrainPlan

TASKS = (
    "pick-place",
    "bin-picking",
    "box-close",
    "assembly",
    "peg-insert-side",
    "hammer",
    "door-open",
    "drawer-open",
    "button-press-topdown",
    "faucet-open",
)
"""The ten tasks of the benchmark."""

UNSEEN = ("window-open", "drawer-close", "peg-unplug-side", "sweep-into", "handle-pull")
"""Five tasks that no contender is trained on. The shipped encoder has seen pictures of them."""

SEEDS = (0, 1, 2)

FULL = TrainPlan(
    name="benchmark",
    episodes={
        "train": Episodes(demo=50, clean_demo=4, perturbed=45, random=8),
        # Of each kind the share of its source that `test` has: an interval holds for what it was fitted on.
        "calibration": Episodes(demo=5, clean_demo=5, perturbed=8, random=2),
        "test": Episodes(demo=20, clean_demo=20, perturbed=20, random=5),
    },
    heads=HeadPlan(stage_steps=2400, value_steps=2400),
)
QUICK = TrainPlan(
    name="benchmark-quick",
    episodes={
        "train": Episodes(demo=6, clean_demo=2, perturbed=6, random=1),
        "calibration": Episodes(demo=2, clean_demo=1, perturbed=2, random=0),
        "test": Episodes(demo=4, clean_demo=2, perturbed=6, random=1),
    },
    heads=HeadPlan(stage_steps=60, value_steps=60, batch=64),
)
FULL_EXTRAS = Extras(1500, 12, UNSEEN, Episodes(demo=10, clean_demo=0, perturbed=12, random=2), SETTINGS)
QUICK_EXTRAS = Extras(40, 2, UNSEEN[:1], Episodes(demo=2, clean_demo=0, perturbed=2, random=0), SETTINGS[:2])
"""`QUICK` proves in some minutes that everything works; its numbers mean nothing."""


def make_benchmark(
    root: Path,
    *,
    quick: bool = False,
    tasks: tuple[str, ...] = TASKS,
    seeds: tuple[int, ...] = SEEDS,
    encoder: str | None = None,
    device: str = "cpu",
) -> BenchmarkFolder:
    """A benchmark's folder; nothing is written yet.

    Args:
        encoder: the frozen encoder of every contender, a folder or a name on the hub; by default the shipped
            bundle's.
        device: `cpu` or `cuda`: where contenders learn and answer.

    Raises NotFound or InvalidInput where there is no such encoder or device.
    """
    check_device(device)
    given = GivenEncoder.of(encoder or str(default_bundle() / "encoder"))
    plan, extras = (QUICK, QUICK_EXTRAS) if quick else (FULL, FULL_EXTRAS)
    unseen = tuple(task for task in extras.unseen_tasks if task not in tasks)
    run = RunFolder(root, plan, tasks, 0, given, device)
    return BenchmarkFolder(run, seeds, replace(extras, unseen_tasks=unseen))
