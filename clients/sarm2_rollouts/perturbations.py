"""What goes wrong: noise, bad segments, drops, freezes, fumbles, wrong places, giving up, going back.

A `Script` is drawn from a generator before the episode and a `Driver` carries it out step by step on top of
the expert. All durations are control steps (20 a second of the robot's time).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .episode import EpisodeKind
from .experts import CLOSE, HAND, OBJECT, OPEN, Action, Array, move_to
from .tasks import TaskSpec

Mishap: TypeAlias = Literal[
    "drop",
    "push_back",
    "freeze",
    "fumble",
    "drift",
    "wrong_place",
    "knock",
    "go_back",
    "empty_run",
    "give_up",
]
"""drop: the gripper opens. push_back: what was moved goes back. wrong_place: hand and goal are misjudged by
a few centimetres. knock: the tool swings sideways and low. go_back: towards where the hand started, with
whatever it holds. empty_run: on to the goal without the object. give_up: no more motion but a tremble."""

BAD_SEGMENTS: tuple[Mishap, ...] = ("drift", "freeze", "fumble")

FINISH_STEPS = 20
"""Control steps from success to the end of an episode."""

GRACE_STEPS = 50
"""More control steps for an episode that is under way when its time is up."""

MAX_STEPS = 250
"""Control steps after which a demonstration counts as failed."""


@dataclass(frozen=True)
class Planned:
    """A mishap that begins when progress first reaches `at_progress`, or at step `at_step`, and then lasts.

    `offset` is a direction or displacement in metres. The episode ends with a `final` one.
    """

    mishap: Mishap
    steps: int
    at_progress: float | None = None
    at_step: int | None = None
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    final: bool = False


@dataclass(frozen=True)
class Unevenness:
    """How uneven a demonstration is; see `Script`."""

    noise: float = 0.2
    bad_rate: float = 0.02


UNEVEN = Unevenness()


@dataclass(frozen=True)
class Script:
    """One episode's plan.

    Attributes:
        noise: standard deviation of the noise on every motion (1 = one centimetre a step).
        bad_rate: chance per step that a bad segment of 10 to 25 steps begins.
        planned: mishaps in the order in which they are waited for.
        max_steps: the episode ends then, done or not.
        wander: no expert at all: random motion.
    """

    noise: float = 0.0
    bad_rate: float = 0.0
    planned: tuple[Planned, ...] = ()
    max_steps: int = MAX_STEPS
    wander: bool = False


def write_script(
    kind: EpisodeKind, spec: TaskSpec, rng: np.random.Generator, uneven: Unevenness = UNEVEN
) -> Script:
    """Draw the plan of an episode of `kind`. Raises ValueError for a kind that no robot makes.

    Args:
        uneven: of a `demo`.
    """
    if kind == "clean_demo":
        return Script(noise=0.03)
    if kind == "demo":
        return Script(noise=uneven.noise, bad_rate=uneven.bad_rate)
    if kind == "random":
        return Script(max_steps=int(rng.integers(80, 150)), wander=True)
    if kind == "perturbed":
        return _write_perturbed(spec, rng)
    raise ValueError(
        f"no robot makes episodes of kind {kind!r}; choose clean_demo, demo, perturbed or random"
    )


def _write_perturbed(spec: TaskSpec, rng: np.random.Generator) -> Script:
    noise = float(rng.choice([0.05, 0.2, 0.4, 0.7], p=[0.3, 0.35, 0.2, 0.15]))
    planned: list[Planned] = []
    regress = rng.random() < 0.5 and spec.regress is not None
    if rng.random() < (0.25 if regress else 0.75):
        planned.append(_early(spec, rng))
    if regress:
        planned.append(_regress(spec, rng))
        if rng.random() < 0.3:
            planned.append(_ending(rng))
        elif rng.random() < 0.2:
            planned.append(_regress(spec, rng))
    elif rng.random() < 0.45:
        planned.append(_ending(rng, float(rng.uniform(0.15, 0.85))))
    bad_rate = float(rng.choice([0.0, 0.015]))
    return Script(noise, bad_rate, tuple(planned), max_steps=int(rng.integers(150, 230)))


def _early(spec: TaskSpec, rng: np.random.Generator) -> Planned:
    names: tuple[Mishap, ...] = ("freeze", "fumble", "drift", "wrong_place", "knock", "go_back")
    mishap = names[rng.integers(len(names))]
    steps = {"freeze": (20, 60), "fumble": (15, 45), "wrong_place": (25, 60), "go_back": (10, 25)}
    low, high = steps.get(mishap, (10, 25))
    return Planned(
        mishap,
        int(rng.integers(low, high)),
        at_progress=float(rng.uniform(0.0, 0.8)),
        offset=_sideways(rng, 0.04, 0.09),
    )


def _regress(spec: TaskSpec, rng: np.random.Generator) -> Planned:
    first = _work_begins(spec)
    carrying = float(rng.uniform(first + 0.15 * (1 - first), spec.lost_until))
    if spec.regress == "push_back":
        steps = int(rng.integers(18, 40)) * (2 if callable(spec.undo) else 1)  # it must first go round
        return Planned("push_back", steps, at_progress=float(rng.uniform(min(first + 0.2, 0.9), 1.0)))
    if rng.random() < 0.2:
        return Planned("go_back", int(rng.integers(20, 35)), at_progress=carrying)
    return Planned("drop", int(rng.integers(8, 18)), at_progress=carrying, offset=_sideways(rng, 0.0, 1.0))


def _work_begins(spec: TaskSpec) -> float:
    """Progress from which on there is something to undo: the object is held, or the last stage begun."""
    names = list(spec.stages)
    early = names.index("grasp") + 1 if "grasp" in names else len(names) - 1
    return sum(list(spec.stages.values())[:early])


def _ending(rng: np.random.Generator, at_progress: float = 0.0) -> Planned:
    names: tuple[Mishap, ...] = ("give_up", "go_back", "empty_run", "wrong_place")
    return Planned(
        names[rng.integers(len(names))],
        int(rng.integers(35, 80)),
        at_progress=at_progress,
        offset=_sideways(rng, 0.12, 0.2),
        final=True,
    )


def _sideways(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
    return (
        float(length * np.cos(angle)),
        float(length * np.sin(angle)),
        float(rng.uniform(-0.3, 0.3) * length),
    )


class Driver:
    """Carries a script out.

    Args:
        rng: draws the noise and the bad segments.
        home: position of the hand at the start, metres (3,).

    Attributes:
        events: every mishap that came about: name, first and last control step.
        done_for: control steps since the first success that still stands.
    """

    def __init__(self, spec: TaskSpec, script: Script, rng: np.random.Generator, home: Array) -> None:
        self._spec, self._script, self._rng, self._home = spec, script, rng, home
        self._expert = spec.expert()
        self._waiting = list(script.planned)
        self._active: Planned | None = None
        self._left = 0
        self._over = False
        self._progress = 0.0
        self._drift: npt.NDArray[np.float64] = np.zeros(4)
        self._grip = OPEN
        self._step = 0
        self.events: list[dict[str, str | int]] = []
        self.done_for = 0

    @property
    def mishap(self) -> Mishap | None:
        """What is going wrong right now."""
        return None if self._active is None else self._active.mishap

    @property
    def finished(self) -> bool:
        """Whether the episode ends here."""
        # Who is more than half way when the time is up gets a little more: few episodes end just short.
        limit = self._script.max_steps + (GRACE_STEPS if self._progress > 0.5 and self._active is None else 0)
        finished = self.done_for >= FINISH_STEPS and self.mishap != "push_back"
        return self._over or self._step >= limit or finished

    def act(self, observation: Array, progress: float) -> Action:
        """The next action, from the simulator's observation (39,) and the true progress."""
        self._progress = progress
        self.done_for = self.done_for + 1 if progress >= 1.0 else 0
        if self._script.wander:
            action = self._wander()
        else:
            self._update(progress)
            action = self._perform(observation)
            action[:3] += self._rng.normal(0.0, 1.0, 3) * self._script.noise
        self._step += 1
        self._grip = float(action[3])
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _update(self, progress: float) -> None:
        if self._active is not None:
            self._left -= 1
            self.events[-1]["end"] = self._step
            if self._left > 0:
                return
            self._over = self._active.final
            self._active = None
        due = self._waiting and (
            (self._waiting[0].at_step is not None and self._step >= self._waiting[0].at_step)
            or (self._waiting[0].at_progress is not None and progress >= self._waiting[0].at_progress)
        )
        if due:
            self._begin(self._waiting.pop(0))
        elif self.done_for == 0 and self._rng.random() < self._script.bad_rate:
            name = BAD_SEGMENTS[self._rng.integers(len(BAD_SEGMENTS))]
            self._begin(Planned(name, int(self._rng.integers(10, 26))))

    def _begin(self, planned: Planned) -> None:
        self._active, self._left = planned, planned.steps
        self._drift = self._rng.uniform(-0.6, 0.6, 4)
        self.events.append({"mishap": planned.mishap, "start": self._step, "end": self._step})

    def _perform(self, observation: Array) -> Action:
        planned = self._active
        if planned is None:
            return self._normal(observation)
        hand, offset = observation[HAND], np.array(planned.offset)
        grip = self._grip
        if planned.mishap == "drop":
            # Most drops are a hand that opens on the way; a few are one that jerks while it opens.
            away = 0.25 * offset if planned.steps % 2 else np.zeros(3)
            return np.append(away, OPEN).astype(np.float32)
        if planned.mishap == "push_back":
            undo = self._spec.undo
            return undo(observation) if callable(undo) else np.array([*undo, OPEN], dtype=np.float32)
        if planned.mishap in ("freeze", "give_up"):
            return np.append(0.05 * self._rng.normal(size=3), grip).astype(np.float32)
        if planned.mishap == "drift":
            return np.append(self._drift[:3], grip).astype(np.float32)
        if planned.mishap == "fumble":
            self._drift = 0.8 * self._drift + 0.5 * self._rng.normal(size=4)
            return np.append(self._drift[:3], CLOSE if self._drift[3] > 0 else grip).astype(np.float32)
        if planned.mishap == "knock":
            target = np.array([hand[0] + offset[0], hand[1] + offset[1], 0.07])
            return move_to(hand, target, grip)
        if planned.mishap == "go_back":
            return move_to(hand, self._home, grip, gain=6.0)
        if planned.mishap == "empty_run":
            return self._expert(_with_object_at_hand(self._spec, observation))
        shifted = observation.copy()
        shifted[HAND] += offset
        return self._expert(shifted)

    def _normal(self, observation: Array) -> Action:
        if self.done_for > 0:
            return self._spec.finish(observation, self.done_for, self._home)
        return self._expert(observation)

    def _wander(self) -> Action:
        if self._step % 25 == 0:
            self._grip = CLOSE if self._rng.random() < 0.4 else OPEN
            self._heading = self._rng.uniform(-0.8, 0.8, 3)
        self._drift = 0.9 * self._drift + 0.3 * self._rng.normal(size=4)
        return np.append(self._heading + self._drift[:3], self._grip).astype(np.float32)


def _with_object_at_hand(spec: TaskSpec, observation: Array) -> Array:
    """The observation of a robot that believes it holds the object (or the handle)."""
    believed = observation.copy()
    believed[OBJECT] = believed[HAND] + np.array(spec.in_hand)
    return believed
