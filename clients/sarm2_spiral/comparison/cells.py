"""Which runs are compared, and with how many demonstrations each starts: fixed before any of them runs.

Four tasks carry the bars. Each has a control without any reward (`uniform`: everything that was collected is
cloned alike), and the state policies of two tasks have every other control too. `Cell.seeds` are the
comparison's alone: whatever is tuned is tuned on runs with seeds from 100 on, whose scenes are others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from sarm2_rollouts.perturbations import UNEVEN, Unevenness
from sarm2_spiral.comparison.outcome import RunOutcome, kept_outcome
from sarm2_spiral.config import QUICK, PolicyKind, SpiralConfig
from sarm2_spiral.folder import SpiralFolder, Updater
from sarm2_spiral.progress import Reward

Arm: TypeAlias = Literal["spiral", "rm1", "ra-bc", "uniform", "linear", "success", "true"]

ARMS: MappingProxyType[Arm, tuple[Reward, Updater, bool, str]] = MappingProxyType(
    {
        "spiral": ("service", "residual", True, "the whole loop: rewards of the adapted reward model"),
        "rm1": ("service", "residual", False, "the same without adaptation"),
        "ra-bc": ("service", "rabc", True, "reward-weighted cloning in place of the residual update"),
        "uniform": ("uniform", "rabc", False, "no reward: demonstrations and rollouts cloned alike"),
        "linear": ("linear", "residual", False, "the clock as progress"),
        "success": ("success", "residual", False, "the simulator's verdict at the end alone"),
        "true": ("true", "residual", False, "the simulator's own progress"),
    }
)
"""Reward, updater, adaptation, and what the arm is."""


@dataclass(frozen=True)
class Demonstrations:
    """What pi_1 is cloned from: how many, and how uneven."""

    count: int
    uneven: Unevenness = UNEVEN


DEMOS: MappingProxyType[tuple[str, PolicyKind], Demonstrations] = MappingProxyType(
    {
        ("hammer", "image"): Demonstrations(12),
        ("drawer-open", "image"): Demonstrations(8, Unevenness(noise=0.5, bad_rate=0.1)),
        ("bin-picking", "state"): Demonstrations(7),
        ("pick-place", "state"): Demonstrations(16),
        ("pick-place", "image"): Demonstrations(25),
        ("hammer", "state"): Demonstrations(10),
    }
)
"""Meant to be such that pi_1 succeeds in 40 to 65 % of the scenes, in the mean of seeds: single ones differ
more than counts do (7 of bin-picking: .28, .75 and .88). No count of the usual demonstrations does that for
images of drawer-open (.28 with one, .88 with 2 and with 3, .81 with 5, .75 with 8: three seeds each), but 8
rougher ones do: .51 (.53, .48, .53 on seeds 101 to 103, 40 scenes each; with experts that let go of the
drawer once it is open, which `OWN_SEEDS` tells of). For images of pick-place nothing is tuned."""

MAIN: tuple[tuple[str, PolicyKind], ...] = (
    ("hammer", "image"),
    ("drawer-open", "image"),
    ("bin-picking", "state"),
    ("pick-place", "state"),
)
"""What the bars are about."""

SEEDS = (13, 14, 15)
"""Of training. 0 to 12 are left out: the loop was tuned on seeds from 100 on, but what to look at was learned
from earlier comparisons, which flew these."""

OWN_SEEDS: MappingProxyType[str, tuple[int, ...]] = MappingProxyType(
    {"drawer-open": (16, 17, 18), "bin-picking": (14, 15, 16)}
)
"""Of tasks whose runs with some of `SEEDS` had been looked at before something was changed. drawer-open's
experts let go of the drawer at the very line from which it counts as open, and so did the policies. With 13
bin-picking was flown, to 98 %, before marks told how far a rollout had come where it turned; and once more
after that, to 100 %."""

CONTROLLED: tuple[tuple[str, PolicyKind], ...] = (("hammer", "state"), ("pick-place", "state"))
"""What every control is run on."""


@dataclass(frozen=True)
class Cell:
    """One run of the comparison, at any seed."""

    task: str
    kind: PolicyKind
    arm: Arm

    @property
    def seeds(self) -> tuple[int, ...]:
        """The comparison's, of training."""
        return OWN_SEEDS.get(self.task, SEEDS)

    @property
    def name(self) -> str:
        """Its name in folders and tables."""
        return f"{self.task}/{self.kind}/{self.arm}"

    def folder(self, root: Path, seed: int, base: SpiralConfig) -> SpiralFolder:
        """Its run at a seed, with the settings of a preset and its own demonstrations."""
        reward, updater, adapt, _ = ARMS[self.arm]
        demos = DEMOS[self.task, self.kind]
        loop = replace(
            base.loop,
            adapt=adapt,
            demos=min(demos.count, base.loop.demos),
            demo_noise=demos.uneven.noise,
            demo_bad_rate=demos.uneven.bad_rate,
        )
        place = root / self.name / f"seed{seed}"
        return SpiralFolder(place, self.task, self.kind, seed, replace(base, loop=loop), reward, updater)

    def outcome(self, root: Path, seed: int, base: SpiralConfig) -> RunOutcome | None:
        """What its run at a seed came to; None where it is not finished, or another one is."""
        return kept_outcome(self.folder(root, seed, base), self.outcome_file(root, seed))

    def outcome_file(self, root: Path, seed: int) -> Path:
        """Where that is kept."""
        return root / "outcomes" / self.name / f"seed{seed}.json"


QUICK_CELL = Cell("hammer", "image", "spiral")
"""What is also flown with `--quick`, to tell how long that takes."""


def quick_run(root: Path) -> SpiralFolder:
    """The run with `--quick`."""
    return QUICK_CELL.folder(root / "quick", 0, QUICK)


def quick_outcome(root: Path) -> Path:
    """Where what it came to is kept."""
    return root / "outcomes" / "quick.json"


def cells() -> Iterator[Cell]:
    """All of them. Of each task and kind of policy `spiral` comes first: the others start from its work."""
    for task, kind in DEMOS:
        yield Cell(task, kind, "spiral")
        controls = [arm for arm in ARMS if arm != "spiral"]
        if (task, kind) in CONTROLLED:
            yield from (Cell(task, kind, arm) for arm in controls)
        elif (task, kind) in MAIN:
            yield Cell(task, kind, "uniform")
