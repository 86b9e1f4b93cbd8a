"""What a task is: its words and stages, how its state is read, its labels and its expert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_rollouts.experts import Action, Array, Expert
from sarm2_rollouts.simulator_state import Reading
from sarm2_rollouts.views import VIEWS, View

from .quantities import Quantities

Rests: TypeAlias = Mapping[str, Array]
"""How much of each stage's way is left, float64 (T,) in [0, 1] by stage."""

Rule: TypeAlias = tuple[list[str], npt.NDArray[np.bool_]]
"""Primitive of every frame, and whether it gives way to `null` when nothing gets better."""


@dataclass(frozen=True)
class TaskSpec:
    """One task.

    Attributes:
        name: short machine name.
        env_name: Meta-World's name of the environment.
        instruction: the task in words, as the reward model reads it.
        stages: the expert's stages in order, each with its mean share of the expert's time up to success;
            the shares sum to 1. Measured by `labels.measure_shares` on 100 clean demonstrations.
        primitives: every primitive that a rollout of this task can hold, `null` apart.
        read: the simulator and the tool's position (3,) to what `simulator_state` keeps of this task.
        rests: the quantities of all frames and of the first one to what is left of every stage.
        rules: the quantities and rests to the primitive of every frame.
        expert: a fresh scripted expert.
        finish: what the robot does after success, which the simulator's experts leave out, from the
            observation (39,), the control steps since success and the hand's first position (3,).
        regress: how the work is undone on purpose: the object is let go of, or pushed back with the open
            hand along `undo`; None where nothing undoes it.
        undo: motion of the tool that undoes the work, in the units of an action, or an expert that does.
        lost_until: progress from which on letting go undoes nothing any more.
        in_hand: where the object lies from the hand when it is held, metres.
        start: where the hand starts, metres; None: where the simulator puts it.
        warm_up: control steps after a reset until the observation is true.
        views: the cameras; each task may turn one whose sight is blocked.
    """

    name: str
    env_name: str
    instruction: str
    stages: Mapping[str, float]
    primitives: tuple[str, ...]
    read: Callable[[Any, Array], Reading]
    rests: Callable[[Quantities, Quantities], Rests]
    rules: Callable[[Quantities, Rests], Rule]
    expert: Callable[[], Expert]
    finish: Callable[[Array, int, Array], Action]
    regress: Literal["drop", "push_back"] | None = "drop"
    undo: tuple[float, float, float] | Expert = (0.0, 0.0, 0.0)
    lost_until: float = 0.97
    in_hand: tuple[float, float, float] = (0.0, 0.0, 0.0)
    start: tuple[float, float, float] | None = None
    warm_up: int = 2
    views: Mapping[str, View] = field(default_factory=lambda: VIEWS)
