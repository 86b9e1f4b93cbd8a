"""The simulated robot: Meta-World's arm with three cameras, ten frames a second, and its episodes.

The simulator is imported when the first robot is made, so that this module costs nothing to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput

from .episode import Episode, EpisodeKind
from .experts import HAND
from .labels import progress_of
from .perturbations import UNEVEN, Driver, Script, Unevenness, write_script
from .simulator import Machine, Snapshot, borrow, give_back, load_state, save_state
from .simulator_state import SIMULATOR_NAMES, read_simulator
from .take import Take
from .tasks import (
    ACTION_NAMES,
    CAMERAS,
    CONTROL_STEPS_PER_FRAME,
    FPS,
    IMAGE_SIZE,
    PRIMITIVES,
    STATE_NAMES,
    TASKS,
    TaskSpec,
    task_spec,
)

__all__ = [
    "ACTION_NAMES",
    "CAMERAS",
    "CONTROL_STEPS_PER_FRAME",
    "FPS",
    "IMAGE_SIZE",
    "PRIMITIVES",
    "SIMULATOR_NAMES",
    "STATE_NAMES",
    "TASKS",
    "EpisodePlan",
    "MetaWorldRobot",
    "Observation",
    "TaskSpec",
    "run_episode",
]

Watcher: TypeAlias = "Callable[[MetaWorldRobot], None]"

MAX_TRIES = 20
"""Seeds that a demonstration is tried from before giving up. Experts succeed in about 95 of 100."""

SEED_BLOCK = 20_000
"""Seeds from a multiple of this up to the next belong together: a retry draws its scene from the same block,
so splits that own whole blocks never share one."""

STILL = np.array([0.0, 0.0, 0.0, -1.0], dtype=np.float32)


@dataclass(frozen=True)
class Observation:
    """What the robot's computer knows at one moment.

    Attributes:
        images: per camera of `CAMERAS`, uint8 (size, size, 3) RGB; empty for a robot that does not render.
        state_S: float32 (4,), proprioception in the order of `STATE_NAMES`.
        simulator_K: float32 (K,), privileged, in the order of `SIMULATOR_NAMES`. Not for models.
        expert_39: float64 (39,), the simulator's own observation, for the scripted expert alone.
        success: whether the simulator calls the task done at this moment.
    """

    images: dict[str, npt.NDArray[np.uint8]]
    state_S: npt.NDArray[np.float32]
    simulator_K: npt.NDArray[np.float32]
    expert_39: npt.NDArray[np.float64]
    success: bool


class MetaWorldRobot:
    """One robot doing one task from one seed. Deterministic: the same calls give the same arrays.

    Simulators and renderers are kept for the next robot of the same task in this process when a robot is
    closed, since making one costs half a second. Use a robot in the thread that made it.

    Args:
        task_name: a key of `TASKS`.
        seed: places the object and the goal.
        image_size: side of the pictures in pixels.
        render: without it, `observe` gives no pictures and no GL library is needed.

    Raises:
        NotFound: no such task.
        InvalidInput: the simulator is not installed.
    """

    def __init__(
        self, task_name: str, seed: int, image_size: int = IMAGE_SIZE, *, render: bool = True
    ) -> None:
        self.spec = task_spec(task_name)
        self.task = self.spec.instruction
        self._machine: Machine | None = borrow(self.spec, image_size if render else 0)
        self._env = self._machine.env
        self._env.seed(seed)
        self._env.reset()
        self._success = False
        for _ in range(self.spec.warm_up):
            self.step(STILL)

    def step(self, action: npt.NDArray[np.float32]) -> None:
        """One control step (1/20 s of the robot's time; a frame is two of them).

        Args:
            action: float32 (4,): tool motion in x, y, z (1 = 1 cm, clipped to [-1, 1]) and gripper effort
                (1 closes).
        """
        if action.shape != (4,) or not np.isfinite(action).all():
            raise InvalidInput(f"an action is 4 finite numbers; got {action!r}", field="action")
        limited = np.clip(action, -1.0, 1.0).astype(np.float32)
        self._observation, _, _, _, info = self._env.step(limited)
        self._success = bool(info["success"])

    def observe(self, *, images: bool = True) -> Observation:
        """The current moment. `images=False` skips rendering for this call."""
        machine = self._open_machine()
        simulator_K = read_simulator(self._env, self.spec, self._success)
        tool = np.array(self._env.tcp_center)
        rendered = machine.renderer.render(self._env.data) if images and machine.renderer else {}
        return Observation(
            images=rendered,
            state_S=np.append(tool, self._observation[3]).astype(np.float32),
            simulator_K=simulator_K,
            expert_39=np.array(self._observation, dtype=np.float64),
            success=self._success,
        )

    def save(self) -> tuple[Snapshot, npt.NDArray[np.float64], bool]:
        """The moment, to come back to with `load`."""
        return save_state(self._env), self._observation, self._success

    def load(self, moment: tuple[Snapshot, npt.NDArray[np.float64], bool]) -> None:
        """Go back to a moment of this same episode."""
        snapshot, self._observation, self._success = moment
        load_state(self._env, snapshot)

    def close(self) -> None:
        """Give the simulator back for the next robot. A second call does nothing."""
        if self._machine is not None:
            give_back(self._machine)
            self._machine = None

    def __enter__(self) -> MetaWorldRobot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_machine(self) -> Machine:
        if self._machine is None:
            raise InvalidInput("this robot is closed; make a new one")
        return self._machine


@dataclass(frozen=True)
class EpisodePlan:
    """An episode to be made: it is wholly determined by these.

    Attributes:
        uneven: how uneven a `demo` is; other kinds do not ask.
    """

    task_name: str
    kind: EpisodeKind
    seed: int
    uneven: Unevenness = UNEVEN


def run_episode(
    task_name: str,
    kind: EpisodeKind,
    seed: int,
    *,
    image_size: int = IMAGE_SIZE,
    render: bool = True,
    watch: Watcher | None = None,
    uneven: Unevenness = UNEVEN,
) -> Episode:
    """Make one episode with full labels. Deterministic in (task, kind, seed, uneven) on one kind of machine.

    A demonstration that does not succeed is tried again from a seed derived from this one;
    `info["simulator_seed"]` and `info["tries"]` tell. `info["mishaps"]` lists what went wrong on purpose
    (name, first and last frame), `info["perturbation"]` names them in one string, and `info["drops"]` lists
    the frames of drops and push-backs; `info["falls"]` lists every regress of true progress of .2 or more.

    Args:
        task_name: a key of `TASKS`.
        kind: `clean_demo`, `demo`, `perturbed` or `random`.
        seed: any integer from 0 up.
        image_size: side of the pictures in pixels.
        render: without it the episode has no cameras (for what needs labels only).
        watch: called with the robot at every frame, of failed tries too unless pictures are made; it must
            leave the robot as it was.
        uneven: how uneven a `demo` is.

    Raises:
        NotFound: no such task.
        ValueError: no such kind.
        InvalidInput: the simulator is not installed, or no demonstration succeeded in `MAX_TRIES` tries.
    """
    must_succeed = kind in ("clean_demo", "demo")
    plan = EpisodePlan(task_name, kind, seed, uneven)
    for attempt in range(MAX_TRIES):
        # Pictures are nine tenths of the work, and those of a failed try would be thrown away: rehearse it.
        if must_succeed and render and not _Run(plan, attempt, 0).success:
            continue
        run = _Run(plan, attempt, image_size if render else 0, watch)
        if run.success or not must_succeed:
            return run.episode()
    raise InvalidInput(
        f"no {kind} of {task_name} from seed {seed} succeeded in {MAX_TRIES} tries; take another"
    )


def _seed_nearby(seed: int, rng: np.random.Generator) -> int:
    return seed // SEED_BLOCK * SEED_BLOCK + int(rng.integers(SEED_BLOCK))


class _Run:
    """One try at an episode."""

    def __init__(
        self, plan: EpisodePlan, attempt: int, image_size: int, watch: Watcher | None = None
    ) -> None:
        self._watch = watch
        self._plan = plan
        self._attempt = attempt
        spec = task_spec(plan.task_name)
        # The text of the key keeps tasks and kinds apart; the attempt makes the derived seed.
        key = f"{plan.task_name}/{plan.kind}".encode()
        rng = np.random.default_rng([plan.seed, attempt, *key])
        self._simulator_seed = plan.seed if attempt == 0 else _seed_nearby(plan.seed, rng)
        script = write_script(plan.kind, spec, rng, plan.uneven)
        self._take = Take(plan.task_name, pictures=image_size > 0)
        with MetaWorldRobot(
            plan.task_name, self._simulator_seed, image_size or 1, render=image_size > 0
        ) as robot:
            self._drive(robot, script, rng)
        self.success = self._take.success

    def _drive(self, robot: MetaWorldRobot, script: Script, rng: np.random.Generator) -> None:
        now = robot.observe()
        first_K = now.simulator_K
        self._keep(now, robot)
        self._driver = Driver(robot.spec, script, rng, now.expert_39[HAND].copy())
        step = 0
        while not (self._driver.finished and step % CONTROL_STEPS_PER_FRAME == 0):
            progress_1 = progress_of(self._plan.task_name, now.simulator_K[None], first_K=first_K)
            action = self._driver.act(now.expert_39, float(progress_1[0]))
            self._take.control(action)
            robot.step(action)
            step += 1
            frame = step % CONTROL_STEPS_PER_FRAME == 0
            now = robot.observe(images=frame)
            if frame:
                self._keep(now, robot)

    def _keep(self, now: Observation, robot: MetaWorldRobot) -> None:
        self._take.frame(now.images, now.state_S, now.simulator_K)
        if self._watch is not None:
            self._watch(robot)

    def episode(self) -> Episode:
        """The episode with its labels."""
        return self._take.episode(self._plan.kind, self._plan.seed, self._info())

    def _info(self) -> dict[str, Any]:
        mishaps = [
            {
                "mishap": event["mishap"],
                "start": int(event["start"]) // CONTROL_STEPS_PER_FRAME,
                "end": min(int(event["end"]) // CONTROL_STEPS_PER_FRAME, len(self._take) - 1),
            }
            for event in self._driver.events
        ]
        return {
            "simulator_seed": self._simulator_seed,
            "tries": self._attempt + 1,
            "perturbation": "+".join(str(mishap["mishap"]) for mishap in mishaps),
            "mishaps": mishaps,
            "drops": [m["start"] for m in mishaps if m["mishap"] in ("drop", "push_back")],
        }
