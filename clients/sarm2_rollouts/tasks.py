"""The tasks of the simulated robot, as data: instruction, environment, views, stages and their shares.

To add a task: an entry here, an expert in `experts.py`, and a potential and a rule in `labels.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sarm2_client.errors import NotFound

FPS = 10.0
"""Frames a second of the robot's own clock."""

CONTROL_STEPS_PER_FRAME = 2
"""Simulator control steps from one frame to the next; one second is thus 20 control steps."""

IMAGE_SIZE = 96
"""Side of every camera's square picture in pixels."""

CAMERAS = ("corner", "side", "wrist")
"""The three views, in the order of every array."""

STATE_NAMES = ("tool_x", "tool_y", "tool_z", "gripper_opening")
"""Proprioceptive state: tool position in metres, gripper opening in [0, 1] (1 = 10 cm). Nothing else."""

PRIMITIVES = (
    *(
        "reach",
        "grasp",
        "lift",
        "transport",
        "align",
        "lower",
        "insert",
        "release",
        "retract",
        "hold",
        "push",
    ),
    *("pull", "slide", "press", "turn", "open", "close", "extract", "strike", "raise", "sweep", "null"),
)
"""The vocabulary that the whole of MT50 needs; `null` is idling, dithering and fumbling."""


@dataclass(frozen=True)
class View:
    """A camera: free (looking at a point) or, with `fixed`, one that the model names.

    lookat and distance in metres, azimuth and elevation in degrees.
    """

    lookat: tuple[float, float, float] = (0.0, 0.0, 0.0)
    distance: float = 0.0
    azimuth: float = 0.0
    elevation: float = 0.0
    fixed: str | None = None


VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "corner": View((0.0, 0.68, 0.12), 0.95, 225.0, -30.0),
        "side": View((0.0, 0.65, 0.12), 0.95, 0.0, -20.0),
        "wrist": View(fixed="gripperPOV"),
    }
)
"""The three views that show the work. The model's own corner cameras are upside down and far away."""


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
        warm_up: control steps after a reset until the observation is true.
        views: the cameras; each task may turn one whose sight is blocked.
    """

    name: str
    env_name: str
    instruction: str
    stages: Mapping[str, float]
    primitives: tuple[str, ...]
    warm_up: int = 2
    views: Mapping[str, View] = field(default_factory=lambda: VIEWS)


TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            TaskSpec(
                name="pick-place",
                env_name="pick-place-v3",
                instruction="pick up the red puck and carry it to the blue goal",
                stages={"reach": 0.33, "grasp": 0.27, "transport": 0.40},
                primitives=("reach", "grasp", "transport", "release", "hold"),
            ),
            TaskSpec(
                name="hammer",
                env_name="hammer-v3",
                instruction="pick up the hammer and drive the nail into the box",
                stages={"reach": 0.22, "grasp": 0.17, "lift": 0.21, "transport": 0.24, "strike": 0.16},
                primitives=("reach", "grasp", "lift", "transport", "strike", "release", "retract"),
                warm_up=15,  # the hammer drops a centimetre and settles
            ),
            TaskSpec(
                name="drawer-open",
                env_name="drawer-open-v3",
                instruction="open the green drawer by its handle",
                stages={"reach": 0.20, "lower": 0.37, "pull": 0.43},
                primitives=("reach", "lower", "pull", "push", "retract"),
            ),
        )
    }
)
"""Every task by its short name."""


def task_spec(name: str) -> TaskSpec:
    """The task called `name`. Raises NotFound with the nearest name where there is none."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(TASKS)}"
    raise NotFound(f"there is no task {name!r}; {hint}", field="task")
