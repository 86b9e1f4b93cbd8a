"""How much is recorded and trained, with three presets, and which seeds belong to whom.

Seeds below 100000 are for training, 100000 and up for evaluation alone. Inside the lower range each split has
its own block, so that no episode is ever seen by two of them; blocks begin at multiples of the robot's
`SEED_BLOCK`, so that not even a retried demonstration leaves its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

from sarm2_client.errors import NotFound
from sarm2_models.value import ProgressError
from sarm2_rollouts.episode import EpisodeKind

Split: TypeAlias = Literal["train", "calibration", "validation", "test", "policy"]

EVALUATION_SEEDS_FROM = 100_000
"""Seeds from here on are never used by training or calibration."""

SEED_BLOCKS: MappingProxyType[Split, tuple[int, int]] = MappingProxyType(
    {
        "train": (0, 60_000),
        "calibration": (60_000, 80_000),
        "validation": (80_000, EVALUATION_SEEDS_FROM),
        "test": (EVALUATION_SEEDS_FROM, 200_000),
        "policy": (200_000, 300_000),
    }
)
"""First seed and end of each split's block. A training run has no `test` (fresh episodes) and
no `policy` (rollouts of learned policies): those are a benchmark's."""

FEW_TASKS = 3
"""A plan's steps are enough for this many tasks."""

KINDS: tuple[EpisodeKind, ...] = ("demo", "clean_demo", "perturbed", "random", "policy")


@dataclass(frozen=True)
class Episodes:
    """How many episodes of each kind one task gets.

    Random motion is what shows the tower where a tool can be: with 5 such episodes a task it misplaced a tool
    that had left its usual ways by 10 to 20 cm, everywhere else by 1 to 2.
    """

    demo: int
    clean_demo: int
    perturbed: int
    random: int

    def count(self, kind: EpisodeKind) -> int:
        """Episodes of `kind`."""
        counts: dict[str, int] = asdict(self)
        return counts.get(kind, 0)


@dataclass(frozen=True)
class TowerPlan:
    """The image tower: a SigLIP vision Transformer of `layers` x `dim`, with a small text side.

    `steps` of `batch` pictures, AdamW with warm-up and a cosine to zero; each task beyond `FEW_TASKS` adds a
    share `growth` of the steps (what tasks have in common is learnt once). `classify` (task and primitive
    alike), `dense` and `text` weigh the terms of `tower.tower_loss` beside the regression. Small batches
    learn more from as many pictures (500 steps of 64 leave an error of .316 on held-out ones, 1000 of 32 one
    of .287), and two cores do fewer of them a second (465 against 380).
    """

    steps: int = 4700
    batch: int = 48
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    image_size: int = 96
    patch_size: int = 16
    dim: int = 192
    layers: int = 4
    attention_heads: int = 3
    text_layers: int = 1
    growth: float = 0.0
    classify: float = 0.2
    dense: float = 0.3
    text: float = 0.1


@dataclass(frozen=True)
class HeadPlan:
    """Stage estimator and value decoder: `stage_steps` and `value_steps` of `batch` windows.

    Attributes:
        rewind: share of value windows that end in 1 to 3 frames played backwards.
        predicted: share of value windows that are given the stage estimator's primitive, not the true one.
        fallback: share of value windows that go through the `other` gate with the null text.
        error: which error of progress the value decoder makes small.
        smooth: weight of the squared error of the *change* of progress from one frame to the next.
        hints: weight of the squared error of `windows.hints_of` in the stage estimator's loss.
        wrong_instruction: share of value windows that are given another task's instruction: progress 0.
        noise: standard deviation of the noise on inputs, in standard deviations of each input.
        ema: decay of the running mean of the weights, which is what is kept.
        growth: share of the steps that each task beyond `FEW_TASKS` adds.
        stage_warm_up, value_warm_up: share of the steps in which the learning rate rises.
    """

    stage_steps: int = 1800
    value_steps: int = 1000
    batch: int = 128
    stage_learning_rate: float = 1e-3
    value_learning_rate: float = 1e-3
    stage_weight_decay: float = 0.02
    value_weight_decay: float = 0.02
    stage_warm_up: float = 0.05
    value_warm_up: float = 0.05
    rewind: float = 0.3
    predicted: float = 0.5
    fallback: float = 0.1
    error: ProgressError = "squared"
    smooth: float = 1.0
    hints: float = 1.0
    wrong_instruction: float = 0.05
    noise: float = 0.1
    ema: float = 0.99
    growth: float = 0.0


@dataclass(frozen=True)
class TrainPlan:
    """Everything that a training run depends on, apart from the tasks, the seed and a given encoder.

    Attributes:
        model: name of the sizes, see `config.preset`.
        default_encoder: the frozen encoder of runs that are given no other: a folder or a name on the hub.
            None: they train `tower`.
        label_checks: demonstrations of each task, and as many rollouts, whose labels are checked against the
            expert's steps to go.
    """

    name: str
    episodes: dict[Split, Episodes]
    model: str = "small"
    default_encoder: str | None = None
    tower: TowerPlan = field(default_factory=TowerPlan)
    heads: HeadPlan = field(default_factory=HeadPlan)
    label_checks: int = 4

    def for_tasks(self, count: int) -> TrainPlan:
        """The plan with as many steps as `count` tasks need."""
        more = max(0, count - FEW_TASKS)
        tower, heads = 1.0 + more * self.tower.growth, 1.0 + more * self.heads.growth
        return replace(
            self,
            tower=replace(self.tower, steps=round(self.tower.steps * tower)),
            heads=replace(
                self.heads,
                stage_steps=round(self.heads.stage_steps * heads),
                value_steps=round(self.heads.value_steps * heads),
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)


_EPISODES: dict[Split, Episodes] = {
    "train": Episodes(demo=60, clean_demo=6, perturbed=50, random=18),
    # Kinds in an evaluation's proportions: an interval holds for what it was fitted on, task by task.
    "calibration": Episodes(demo=16, clean_demo=16, perturbed=28, random=7),
    "validation": Episodes(demo=8, clean_demo=4, perturbed=8, random=1),
}
PLANS: MappingProxyType[str, TrainPlan] = MappingProxyType(
    {
        "small": TrainPlan(
            name="small",
            episodes=_EPISODES,
            tower=TowerPlan(growth=0.22),
            heads=HeadPlan(growth=0.11),
        ),
        "published": TrainPlan(
            name="published",
            episodes=_EPISODES,
            model="published-simulated",
            default_encoder="google/siglip2-base-patch16-224",
            heads=HeadPlan(
                stage_steps=16_000,
                value_steps=30_000,
                batch=64,
                stage_learning_rate=2.5e-5,
                value_learning_rate=5e-5,
                stage_weight_decay=0.01,
                value_weight_decay=5e-3,
                value_warm_up=1000 / 30_000,
                rewind=0.8,
            ),
        ),
        "demos": TrainPlan(
            name="demos",
            episodes={split: replace(counts, perturbed=0, random=0) for split, counts in _EPISODES.items()},
            tower=TowerPlan(growth=0.22),
            heads=HeadPlan(growth=0.11),
        ),
        "quick": TrainPlan(
            name="quick",
            episodes={
                "train": Episodes(demo=4, clean_demo=1, perturbed=4, random=1),
                "calibration": Episodes(demo=2, clean_demo=1, perturbed=2, random=0),
                "validation": Episodes(demo=1, clean_demo=1, perturbed=2, random=0),
            },
            tower=TowerPlan(steps=20, batch=32),
            heads=HeadPlan(stage_steps=30, value_steps=30, batch=64),
            label_checks=1,
        ),
    }
)
"""`small` makes the shipped bundle, `demos` one from demonstrations alone; `quick` proves in a minute or two
that everything works.

`published` has the encoder, head sizes, steps and optimiser of the publication (arXiv 2606.10305); what that
does not state is as in `small`. Its cameras, state and vocabulary do not describe simulated episodes: those
are the simulated robot's.
"""


def train_plan(name: str) -> TrainPlan:
    """A plan by name. Raises NotFound with the nearest name."""
    if name in PLANS:
        return PLANS[name]
    near = difflib.get_close_matches(name, PLANS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise NotFound(f"no training preset {name!r}; known: {', '.join(PLANS)}{hint}", field="preset")


@dataclass(frozen=True)
class PlannedEpisode:
    """One episode to make."""

    task_name: str
    kind: EpisodeKind
    seed: int


def planned_episodes(plan: TrainPlan, tasks: Sequence[str], split: Split, seed: int) -> list[PlannedEpisode]:
    """The episodes of one split, tasks and kinds interleaved; the same arguments give the same list.

    Seeds are drawn without repetition from the split's block, separately for each task and kind.
    """
    low, high = SEED_BLOCKS[split]
    planned: list[tuple[float, PlannedEpisode]] = []
    for kind_index, kind in enumerate(KINDS):
        count = plan.episodes[split].count(kind)
        for task_index, task in enumerate(tasks):
            rng = np.random.default_rng([seed, low, kind_index, task_index])
            seeds = low + rng.choice(high - low, size=count, replace=False)
            # Position in (0, 1) along the recording: any prefix of the list holds every task and kind.
            planned += [
                ((place + 0.5) / count, PlannedEpisode(task, kind, int(one)))
                for place, one in enumerate(seeds)
            ]
    return [episode for _, episode in sorted(planned, key=lambda pair: pair[0])]
