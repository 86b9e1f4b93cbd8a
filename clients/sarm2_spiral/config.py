"""Sizes and settings of policies, updates and the loop, with named presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_rollouts.perturbations import UNEVEN

PolicyKind: TypeAlias = Literal["image", "state"]
"""What a policy sees: the service's frozen frame embeddings and the proprioceptive state, or, as a fast
control, the true positions of object and goal."""

Ends: TypeAlias = Literal["success", "service"]
"""Who ends a rollout before its time: the simulator, or the service, whose progress has to stay high."""

ROUND_SEEDS, MOST_ROUNDS = 1000, 19
"""Scenes that a round may use, and rounds: more would fly scenes that others learn from."""

MonteCarlo: TypeAlias = Literal["return", "final_progress"]
Labels: TypeAlias = Literal["marks", "exact"]


@dataclass(frozen=True)
class PolicyConfig:
    """The built-in base policy: a flow-matching head that makes action chunks.

    Attributes:
        horizon: actions of a chunk.
        width, layers: of the MLP.
        flow_steps: Euler steps from noise to a chunk.
        steps, batch, learning_rate: of behaviour cloning.
        noise: on the features in cloning, in their standard deviations.
    """

    horizon: int = 8
    width: int = 256
    layers: int = 3
    flow_steps: int = 4
    steps: int = 3000
    batch: int = 256
    learning_rate: float = 1e-3
    noise: float = 0.05


@dataclass(frozen=True)
class UpdateConfig:
    """The residual update (see `residual_update`).

    Attributes:
        executed: actions of a chunk that are carried out before the policy looks again; what critics judge.
        returns: frames of reward before the critics' own estimate takes over.
        gamma: discount a frame.
        alpha: weight of the Monte-Carlo part of the target; 0, as tuned, leaves the other part alone.
        monte_carlo: `return` adds up the same rewards as the rest of the target; `final_progress` is the
            publication's p_T gamma^(T-1-t), which does not add up with rewards that are differences.
        scale: largest residual, in units of the action. beta: weight of its square in the actor's loss.
        critics: in the ensemble. width, layers: of actor and critics.
        tau: of the target networks. learning_rate, batch: of both.
        demo_share: share of a batch that is drawn from demonstrations.
        latents: base chunks a frame, over which the actor's loss is averaged, and of which the best is
            carried out at deployment.
        smoothing, smoothing_clip: noise on the target's action (TD3), in units of `scale` (TD3's are those of
            the largest action, and the largest correction is what is learned here).
        updates: a round; those of one that was rolled back are made up for.
        critic_only: how many of them, at the start of a round, leave the actor alone.
    """

    executed: int = 4
    returns: int = 8
    gamma: float = 0.98
    alpha: float = 0.0
    monte_carlo: MonteCarlo = "return"
    scale: float = 0.3
    beta: float = 0.1
    critics: int = 5
    width: int = 128
    layers: int = 2
    tau: float = 0.005
    learning_rate: float = 3e-4
    batch: int = 128
    demo_share: float = 0.5
    latents: int = 4
    smoothing: float = 0.2
    smoothing_clip: float = 0.5
    updates: int = 6000
    critic_only: int = 1000

    def __post_init__(self) -> None:
        for name in ("executed", "returns", "critics", "latents", "updates", "batch"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}: expected at least 1, got {getattr(self, name)}", field=name)
        for name in ("gamma", "alpha", "demo_share", "tau"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name}: expected 0 to 1, got {getattr(self, name)}", field=name)


@dataclass(frozen=True)
class LoopConfig:
    """The loop around the updates.

    Attributes:
        demos: uneven demonstrations that the first policy is cloned from.
        demo_noise: standard deviation of the noise on the demonstrator's motions (1 = one centimetre a step).
        demo_bad_rate: its chance, at every step, of a bad segment: drift, freeze or fumble.
        first: rollouts of pi_1: the reward model is adapted to them, and they are the replay's first.
        adapt: whether the reward model is adapted at all.
        labels: of the rollouts it is adapted to: `marks`, as a person labels them (`simulated_marks`), or the
            simulator's `exact` progress and primitives, which no person could give.
        adapt_steps: of the adaptation, see `sarm2 adapt --steps`.
        remember: episodes of the kind it was trained on that are mixed in, of each kind.
        rounds: of collection, relabelling and update.
        rollouts: episodes a round.
        exploration: standard deviations of the noise on actions; the rollouts of a round take them in turn.
        trial: episodes by which a candidate must hold its own before it is deployed.
        margin: how much less mean final progress than the deployed policy's is still forgiven.
        evaluation: episodes by which a policy is judged in the end. between: the same after each round.
        longest: frames after which a rollout ends.
        smooth: standard deviation, in frames, of the Gaussian that the progress curve is smoothed with.
        kappa: gain of progress over `gain_frames` that earns full weight in the offline update, as does
            staying done; so much below done there is nothing to keep.
    """

    demos: int = 25
    demo_noise: float = UNEVEN.noise
    demo_bad_rate: float = UNEVEN.bad_rate
    first: int = 100
    adapt: bool = True
    labels: Labels = "marks"
    adapt_steps: int = 800
    remember: int = 40
    rounds: int = 3
    rollouts: int = 60
    exploration: tuple[float, ...] = (0.0, 0.15, 0.3)
    trial: int = 20
    margin: float = 0.02
    evaluation: int = 100
    between: int = 30
    longest: int = 120
    smooth: float = 2.0
    kappa: float = 0.1
    gain_frames: int = 10

    def __post_init__(self) -> None:
        if 0.0 not in self.exploration:
            raise InvalidInput(
                f"exploration: expected a 0 among the noises, got {self.exploration}: candidates are tried "
                "on the scenes that were flown without noise",
                field="exploration",
            )
        # Noises take turns: with fewer rollouts than noises there may be none without.
        least = {"rounds": 0, "rollouts": len(self.exploration)}
        most = {"rounds": MOST_ROUNDS, "first": ROUND_SEEDS, "rollouts": ROUND_SEEDS}
        for name in (
            "demos",
            "first",
            "adapt_steps",
            "rounds",
            "rollouts",
            "trial",
            "evaluation",
            "between",
            "longest",
        ):
            value, low, high = getattr(self, name), least.get(name, 1), most.get(name, math.inf)
            if not low <= value <= high:
                expected = f"{low} to {high}" if name in most else f"at least {low}"
                raise InvalidInput(f"{name}: expected {expected}, got {value}", field=name)


@dataclass(frozen=True)
class SpiralConfig:
    """Everything a run can be told."""

    policy: PolicyConfig
    update: UpdateConfig
    loop: LoopConfig

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SpiralConfig:
        """The inverse of `dataclasses.asdict`, through JSON. Raises InvalidInput for unknown fields."""
        try:
            loop = {**data["loop"], "exploration": tuple(data["loop"]["exploration"])}
            return cls(PolicyConfig(**data["policy"]), UpdateConfig(**data["update"]), LoopConfig(**loop))
        except (TypeError, KeyError) as error:
            raise InvalidInput(f"the run was begun by another version of SPIRAL: {error}") from error


METAWORLD = SpiralConfig(PolicyConfig(), UpdateConfig(), LoopConfig())
"""Tuned on the simulated robot."""

PUBLISHED = SpiralConfig(
    PolicyConfig(horizon=8),
    UpdateConfig(
        executed=8,
        returns=8,
        gamma=0.9995,
        alpha=0.5,
        monte_carlo="final_progress",
        scale=0.1,
        beta=30.0,
        width=1024,
        layers=3,
        learning_rate=1e-4,
        batch=16,
        updates=10_000,
        critic_only=0,
    ),
    LoopConfig(rollouts=75, exploration=(0.0,)),
)
"""The publication's constants, which suit a vision-language-action model of three billion parameters."""

QUICK = SpiralConfig(
    PolicyConfig(steps=300),
    replace(METAWORLD.update, updates=200, critic_only=50),
    LoopConfig(
        demos=10,
        first=10,
        adapt_steps=100,
        remember=5,
        rounds=1,
        rollouts=6,
        trial=2,
        evaluation=6,
        between=4,
    ),
)
"""A few minutes, to see that it works; its numbers mean nothing."""

PRESETS = MappingProxyType({"metaworld": METAWORLD, "published": PUBLISHED, "quick": QUICK})


def spiral_config(name: str) -> SpiralConfig:
    """A preset by name. Raises NotFound for another."""
    if name not in PRESETS:
        raise NotFound(f"there is no preset {name!r}; choose {', '.join(PRESETS)}", field="preset")
    return PRESETS[name]
