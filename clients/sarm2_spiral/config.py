"""Sizes and settings of policies, updates and the loop, with named presets."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

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

    def __post_init__(self) -> None:
        for name in ("horizon", "width", "layers", "flow_steps", "steps", "batch"):
            _check(self, name, 1)
        _check(self, "noise", 0)
        _check_above_0(self, "learning_rate")


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
        for name in ("executed", "returns", "critics", "width", "layers", "latents", "updates", "batch"):
            _check(self, name, 1)
        for name in ("gamma", "alpha", "demo_share", "tau"):
            _check(self, name, 0, 1)
        for name in ("beta", "smoothing", "smoothing_clip"):
            _check(self, name, 0)
        for name in ("scale", "learning_rate"):
            _check_above_0(self, name)
        _check(self, "critic_only", 0, self.updates - 1)  # with none left no actor would learn


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
        trial: episodes by which a candidate must hold its own before it is deployed, at most: they are scenes
            of the round that were flown without noise.
        margin: how much less mean final progress than the deployed policy's is still forgiven; below 0, how
            much more is asked for.
        evaluation: episodes by which a policy is judged in the end. between: the same after each round.
        longest: frames after which a rollout ends.
        smooth: standard deviation, in frames, of the Gaussian that the progress curve is smoothed with.
        gain_frames: frames over which a frame's gain of progress is taken.
        kappa: gain that earns full weight in the offline update, as does staying done; so much below done
            there is nothing to keep.
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
        if not all(0 <= noise < math.inf for noise in self.exploration):
            raise InvalidInput(
                f"exploration: expected finite noises of 0 and more, got {self.exploration}",
                field="exploration",
            )
        _check(self, "rounds", 0, MOST_ROUNDS)
        _check(self, "first", 1, ROUND_SEEDS)
        # Noises take turns: with fewer rollouts than noises there may be none without.
        _check(self, "rollouts", len(self.exploration), ROUND_SEEDS)
        for name in ("demos", "adapt_steps", "trial", "evaluation", "between", "longest", "gain_frames"):
            _check(self, name, 1)
        for name in ("demo_noise", "remember", "smooth"):
            _check(self, name, 0)
        _check(self, "demo_bad_rate", 0, 1)
        _check(self, "margin", -1, 1)
        _check_above_0(self, "kappa")


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


def with_settings(config: SpiralConfig, settings: Sequence[str]) -> SpiralConfig:
    """A config with some of its values changed.

    Args:
        settings: of these, each as SECTION.NAME=VALUE with the value as JSON: `update.beta=1`,
            `loop.exploration=[0, 0.1]`, `loop.labels=exact`.

    Raises InvalidInput for what is no setting, and for values that the setting cannot have.
    """
    told: dict[str, dict[str, Any]] = {section.name: {} for section in fields(SpiralConfig)}
    for setting in settings:
        path, _, value = setting.partition("=")
        section, _, name = path.partition(".")
        kinds = get_type_hints(type(getattr(config, section))) if section in told else {}
        if name not in kinds:
            known = [f"{one}.{field.name}" for one in told for field in fields(getattr(config, one))]
            near = difflib.get_close_matches(path, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidInput(
                f"{setting}: there is no setting {path!r}, expected SECTION.NAME=VALUE with a section of "
                f"{', '.join(told)}{hint}",
                field="set",
            )
        told[section][name] = _parsed(setting, value, kinds[name])
    return replace(config, **{one: replace(getattr(config, one), **values) for one, values in told.items()})


def _parsed(setting: str, value: str, kind: Any) -> Any:
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        found = value  # a word without quotes
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        expected = f"expected {', '.join(get_args(kind))}" if get_origin(kind) is Literal else str(error)
        raise InvalidInput(f"{setting}: {expected}", field="set") from error


def _check(config: object, name: str, low: float, high: float = math.inf) -> None:
    value = getattr(config, name)
    if not (low <= value <= high and math.isfinite(value)):
        expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise InvalidInput(f"{name}: expected {expected}, got {value}", field=name)


def _check_above_0(config: object, name: str) -> None:
    value = getattr(config, name)
    if not 0 < value < math.inf:
        raise InvalidInput(f"{name}: expected a finite number above 0, got {value}", field=name)


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
