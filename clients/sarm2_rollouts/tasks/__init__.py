"""The tasks of the simulated robot, a file each: words, stages, labels and the scripted expert.

To add a task: a file that ends in `TASK = TaskSpec(...)`, and its name in `TASKS` below.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from sarm2_client.errors import NotFound
from sarm2_rollouts.views import CAMERAS, VIEWS, View

from . import (
    assembly,
    bin_picking,
    box_close,
    button_press_topdown,
    door_open,
    drawer_close,
    drawer_open,
    faucet_open,
    hammer,
    handle_pull,
    peg_insert_side,
    peg_unplug_side,
    pick_place,
    sweep_into,
    window_open,
)
from .spec import TaskSpec

FPS = 10.0
"""Frames a second of the robot's own clock."""

CONTROL_STEPS_PER_FRAME = 2
"""Simulator control steps from one frame to the next; one second is thus 20 control steps."""

IMAGE_SIZE = 96
"""Side of every camera's square picture in pixels."""

STATE_NAMES = ("tool_x", "tool_y", "tool_z", "gripper_opening")
"""Proprioceptive state: tool position in metres, gripper opening in [0, 1] (1 = 10 cm). Nothing else."""

ACTION_NAMES = ("move_x", "move_y", "move_z", "gripper_effort")
"""What the robot does from one frame to the next, each in [-1, 1] and the mean of the frame's control steps:
tool motion (1 = 1 cm a control step) and effort of the fingers (1 closes them)."""

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


TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {
        module.TASK.name: module.TASK
        for module in (
            pick_place,
            hammer,
            drawer_open,
            assembly,
            bin_picking,
            box_close,
            button_press_topdown,
            door_open,
            drawer_close,
            faucet_open,
            handle_pull,
            peg_insert_side,
            peg_unplug_side,
            sweep_into,
            window_open,
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


__all__ = [
    "ACTION_NAMES",
    "CAMERAS",
    "CONTROL_STEPS_PER_FRAME",
    "FPS",
    "IMAGE_SIZE",
    "PRIMITIVES",
    "STATE_NAMES",
    "TASKS",
    "VIEWS",
    "TaskSpec",
    "View",
    "task_spec",
]
