"""Sizes of the reward model, as frozen dataclasses with three presets.

`published` has the sizes of the published system (SigLIP-2 base, three cameras, 14-d state at 30 fps);
`small` is what the embedded default ships (a 192-d tower, the simulated robot's cameras, 4-d state, 10 fps);
`published-simulated` has the published encoder and heads over the simulated robot's episodes.
A wrong value is refused when the config is made, with the field, the value and the rule.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

from sarm2_client.errors import InvalidInput, NotFound

Inputs: TypeAlias = Literal["all", "state", "images"]
"""Which tokens a head sees. `state` drops the cameras, `images` drops the state: for ablations only."""


@dataclass(frozen=True)
class WindowConfig:
    """What a score looks back on: the episode's first frame and `length` frames `gap_s` seconds apart."""

    length: int = 6
    gap_s: float = 1.0

    def __post_init__(self) -> None:
        _check("window.length", self.length, 1 <= self.length <= 64, "1 to 64")
        _check(
            "window.gap_s", self.gap_s, math.isfinite(self.gap_s) and 0 < self.gap_s <= 60, "0 to 60 seconds"
        )

    @property
    def slots(self) -> int:
        """W: slots of a window, the anchor included."""
        return self.length + 1

    def gap_frames(self, fps: float) -> int:
        """Frames between neighbouring slots at a frame rate: gap_s x fps, rounded half up, at least 1."""
        _check("fps", fps, math.isfinite(fps) and 0 < fps <= 1000, "a finite number above 0, at most 1000")
        return max(1, math.floor(self.gap_s * fps + 0.5))


@dataclass(frozen=True)
class StageConfig:
    """The stage estimator: pre-norm Transformer of width `dim`, feed-forward 4 x dim."""

    dim: int = 512
    heads: int = 8
    layers: int = 4
    dropout: float = 0.1
    inputs: Inputs = "all"

    def __post_init__(self) -> None:
        _check_trunk("stage", self)


@dataclass(frozen=True)
class ValueConfig:
    """The value decoder: the same kind of trunk, then one gate per group over shared experts.

    `auxiliary`, `load`, `importance` and `entropy` weigh the terms of `value.value_loss`.
    """

    dim: int = 512
    heads: int = 8
    layers: int = 6
    dropout: float = 0.1
    inputs: Inputs = "all"
    experts: int = 10
    top_k: int = 2
    gate_hidden: int = 256
    expert_hidden: int = 256
    auxiliary: float = 0.2
    load: float = 2.5
    importance: float = 0.1
    entropy: float = 0.5

    def __post_init__(self) -> None:
        _check_trunk("value", self)
        _check("value.experts", self.experts, 1 <= self.experts <= 256, "1 to 256")
        _check("value.top_k", self.top_k, 1 <= self.top_k <= self.experts, f"1 to experts ({self.experts})")
        for name in ("gate_hidden", "expert_hidden"):
            _check(f"value.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("auxiliary", "load", "importance", "entropy"):
            weight = getattr(self, name)
            _check(f"value.{name}", weight, math.isfinite(weight) and weight >= 0, "finite and not negative")


@dataclass(frozen=True)
class RewardModelConfig:
    """Everything that fixes the shapes of a reward model.

    Attributes:
        cameras: names, in the order of the camera axis C.
        state_dim: S, length of the proprioceptive state.
        embedding_dim: D, length of an image or text embedding.
        fps: frame rate of the training data (scoring takes any rate: gaps are in seconds).
        vocabulary: name of the vocabulary.
        window, stage, value: the parts.
    """

    cameras: tuple[str, ...] = ("top", "left_wrist", "right_wrist")
    state_dim: int = 14
    embedding_dim: int = 768
    fps: float = 30.0
    vocabulary: str = "published"
    window: WindowConfig = field(default_factory=WindowConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    value: ValueConfig = field(default_factory=ValueConfig)

    def __post_init__(self) -> None:
        unique = len(set(self.cameras)) == len(self.cameras)
        _check("cameras", self.cameras, bool(self.cameras) and unique, "at least one name, no name twice")
        _check("state_dim", self.state_dim, self.state_dim >= 1, "at least 1")
        _check("embedding_dim", self.embedding_dim, self.embedding_dim >= 1, "at least 1")
        self.window.gap_frames(self.fps)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return {**asdict(self), "cameras": list(self.cameras)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RewardModelConfig:
        """The inverse of `to_dict`. Raises InvalidInput for unknown or missing fields and wrong values."""
        _check_fields("config", cls, data)
        parts = {"window": WindowConfig, "stage": StageConfig, "value": ValueConfig}
        for name, part in parts.items():
            _check_fields(name, part, data[name])
        built = {name: part(**data[name]) for name, part in parts.items()}
        return cls(**{**data, "cameras": tuple(data["cameras"]), **built})


def preset(name: str) -> RewardModelConfig:
    """A config by name, see `PRESETS`. Raises NotFound with the nearest name."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NotFound(f"no preset {name!r}; known: {', '.join(PRESETS)}{hint}", field="preset")
    return PRESETS[name]


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise InvalidInput(f"{name} = {value!r}: expected {rule}", field=name)


def _check_trunk(part: str, config: StageConfig | ValueConfig) -> None:
    _check(f"{part}.dim", config.dim, config.dim >= 1, "at least 1")
    divides = config.heads >= 1 and config.dim % config.heads == 0
    _check(f"{part}.heads", config.heads, divides, f"a divisor of dim ({config.dim})")
    _check(f"{part}.layers", config.layers, 1 <= config.layers <= 64, "1 to 64")
    _check(f"{part}.dropout", config.dropout, 0 <= config.dropout < 1, "0 up to below 1")
    _check(
        f"{part}.inputs", config.inputs, config.inputs in ("all", "state", "images"), "all, state or images"
    )


def _check_fields(part: str, owner: type[Any], data: object) -> None:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{part}: expected a table of fields, got {type(data).__name__}", field=part)
    known = {one.name for one in fields(owner)}
    unknown, missing = sorted(set(data) - known), sorted(known - set(data))
    if unknown or missing:
        raise InvalidInput(f"{part}: unknown fields {unknown}, missing fields {missing}", field=part)


# Below the checks, because making a config runs them.
_SIMULATED = RewardModelConfig(
    cameras=("corner", "side", "wrist"),
    state_dim=4,
    fps=10.0,
    vocabulary="metaworld",
    window=WindowConfig(length=6, gap_s=0.4),
)
PRESETS: dict[str, RewardModelConfig] = {
    "published": RewardModelConfig(),
    "published-simulated": _SIMULATED,
    # No dropout: noise on the inputs and the running mean of the weights guard as well against learning by
    # heart (the same errors on held-out episodes), and drawing its masks took a quarter of a training step.
    "small": replace(
        _SIMULATED,
        embedding_dim=192,
        stage=StageConfig(dim=128, heads=4, layers=2, dropout=0.0),
        value=ValueConfig(dim=128, heads=4, layers=3, dropout=0.0, gate_hidden=128, expert_hidden=128),
    ),
}
