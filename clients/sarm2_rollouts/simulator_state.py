"""The privileged quantities of the simulator, by name. They never enter a reward model or an image policy.

`object` is what the tool must take hold of, `part` is the part of it that must reach the `goal`: the same
point but for the hammer, where they are the middle of the handle and the striking face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .cameras import project
from .views import CAMERAS

if TYPE_CHECKING:
    from .tasks import TaskSpec

POINTS = ("tool", "object", "part", "goal")

PROJECTED = ("tool", "object", "goal")
"""The points whose place in every picture is known."""

PHYSICAL_NAMES = (
    *(f"{point}_{axis}" for point in POINTS for axis in "xyz"),
    "gripper",  # opening in [0, 1], 1 = 10 cm between the fingers
    "held",  # 1 while both fingers press on the object
    "reach_distance",  # metres from the tool to the nearest point where the object may be taken
    "joint",  # how far nail or drawer is moved, 0 = untouched, 1 = success; 0 where there is no joint
    "success",  # 1 while the simulator calls the task done
)

SIMULATOR_NAMES = (
    *PHYSICAL_NAMES,
    *(
        f"{camera}_{point}_{what}"
        for camera in CAMERAS
        for point in PROJECTED
        for what in ("u", "v", "visible")
    ),
)
"""Names of the K columns of `Episode.simulator_TK`. `u` (right) and `v` (down) are in [0, 1] inside the
picture and clipped to [-1, 2] outside; `visible` is 1 inside the picture (occlusion is not considered)."""


@dataclass(frozen=True)
class Reading:
    """What a task reads from the simulator: positions float64 (3,) in metres, and scalars.

    `reach_distance` is metres from the tool to the nearest point where the object may be taken, `held`
    whether fingers press on it, `joint` how far an articulated part is moved: 0 untouched, 1 success.
    """

    object: npt.NDArray[np.float64]
    part: npt.NDArray[np.float64]
    goal: npt.NDArray[np.float64]
    reach_distance: float
    held: bool
    joint: float = 0.0


def column(simulator_TK: npt.NDArray[Any], name: str, names: Sequence[str] = SIMULATOR_NAMES) -> Any:
    """Column `name` as float64 (T,). Raises ValueError for an unknown name."""
    return np.asarray(simulator_TK[:, names.index(name)], dtype=np.float64)


def columns(
    simulator_TK: npt.NDArray[Any], prefix: str, names: Sequence[str] = SIMULATOR_NAMES
) -> npt.NDArray[np.float64]:
    """The position of a point of `POINTS`, float64 (T, 3), metres."""
    return np.stack([column(simulator_TK, f"{prefix}_{axis}", names) for axis in "xyz"], axis=1)


def read_simulator(env: Any, spec: TaskSpec, success: bool) -> npt.NDArray[np.float32]:
    """All quantities of the simulator's current state, float32 (K,) in the order of `SIMULATOR_NAMES`."""
    tool = np.array(env.tcp_center)
    opening = float(np.clip(np.linalg.norm(_finger(env, "right") - _finger(env, "left")) / 0.1, 0.0, 1.0))
    read = spec.read(env, tool)
    positions = [*tool, *read.object, *read.part, *read.goal]
    scalars = [opening, float(read.held), read.reach_distance, read.joint, float(success)]
    points = np.stack([tool, read.object, read.goal])
    pictures = [project(env.model, env.data, spec.views[camera], points).ravel() for camera in CAMERAS]
    return np.concatenate([positions, scalars, *pictures]).astype(np.float32)


def colliding(model: Any, body: str) -> set[int]:
    """Ids of a body's geometries that can touch others."""
    on_body_G = model.geom_bodyid == model.body(body).id
    touching_G = (model.geom_contype | model.geom_conaffinity) != 0
    return set(np.flatnonzero(on_body_G & touching_G).tolist())


def fingers_touch(env: Any, body: str) -> bool:
    """Whether any finger touches a body."""
    return any(_touched_by(env, body).values())


def fingers_hold(env: Any, body: str) -> bool:
    """Whether both fingers touch one and the same part of a body."""
    touched = _touched_by(env, body)
    return bool(touched["left"] & touched["right"])


def _touched_by(env: Any, body: str) -> dict[str, set[int]]:
    """The geometries of a body that each finger touches."""
    parts = colliding(env.model, body)
    pairs = [set(pair) for pair in env.data.contact.geom.tolist()]
    fingers = {side: env.model.geom(f"{side}pad_geom").id for side in ("left", "right")}
    return {
        side: parts & set().union(*(pair for pair in pairs if finger in pair))
        for side, finger in fingers.items()
    }


def _finger(env: Any, side: str) -> npt.NDArray[np.float64]:
    return np.array(env.data.body(f"{side}claw").xpos)
