"""The privileged quantities of the simulator, by name. They never enter a reward model or an image policy.

`object` is what the tool must take hold of, `part` is the part of it that must reach the `goal`: the same
point but for the hammer, where they are the middle of the handle and the striking face.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .cameras import project
from .tasks import CAMERAS, TaskSpec

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

HANDLE_REACH = 0.05
"""The hammer may be taken this far (metres) to either side of its handle's middle."""

HAMMER_FACE = np.array([0.16, 0.07, 0.01])
"""The striking face in the hammer's own frame, metres."""

NAIL_DONE = 0.09
"""Travel of the nail (metres) above which the simulator calls it driven in."""

DRAWER_DONE = 0.16
"""Travel of the drawer (metres) from which the simulator calls it open: 3 cm short of its 19 cm target."""


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
    thing, part, goal, distance, held, joint = _READERS[spec.name](env, tool)
    physical = [*tool, *thing, *part, *goal, opening, float(held), distance, joint, float(success)]
    points = np.stack([tool, thing, goal])
    pictures = [project(env.model, env.data, spec.views[camera], points).ravel() for camera in CAMERAS]
    return np.concatenate([physical, *pictures]).astype(np.float32)


def _finger(env: Any, side: str) -> npt.NDArray[np.float64]:
    return np.array(env.data.body(f"{side}claw").xpos)


def _read_pick_place(env: Any, tool: npt.NDArray[np.float64]) -> tuple[Any, Any, Any, float, bool, float]:
    puck = np.array(env.data.body("obj").xpos)
    goal = np.array(env._target_pos)
    held = env.touching_object(env.model.geom("objGeom").id)
    return puck, puck, goal, float(np.linalg.norm(puck - tool)), held, 0.0


def _read_hammer(env: Any, tool: npt.NDArray[np.float64]) -> tuple[Any, Any, Any, float, bool, float]:
    body = env.data.body("hammer")
    middle, axes = np.array(body.xpos), np.array(body.xmat).reshape(3, 3)
    along = float(np.clip(axes[:, 0] @ (tool - middle), -HANDLE_REACH, HANDLE_REACH))
    grip = middle + along * axes[:, 0]
    handle = _colliding(env.model, "hammer")
    held = any(env.touching_object(geom) for geom in handle)
    nail = np.array(env.data.site("nailHead").xpos)
    travel = float(env.data.joint("NailSlideJoint").qpos[0])
    joint = float(np.clip(travel / NAIL_DONE, 0.0, 1.0))
    return middle, middle + axes @ HAMMER_FACE, nail, float(np.linalg.norm(grip - tool)), held, joint


def _read_drawer(env: Any, tool: npt.NDArray[np.float64]) -> tuple[Any, Any, Any, float, bool, float]:
    handle = np.array(env.data.body("drawer_link").xpos) + np.array([0.0, -0.16, 0.0])
    opening = -float(env.data.joint("goal_slidey").qpos[0])
    bars = _colliding(env.model, "drawer_link")
    fingers = {env.model.geom(f"{side}pad_geom").id for side in ("left", "right")}
    held = any(
        bool(fingers & set(pair)) and bool(bars & set(pair)) for pair in env.data.contact.geom.tolist()
    )
    distance = float(np.linalg.norm(handle - tool))
    return (
        handle,
        handle,
        np.array(env._target_pos),
        distance,
        held,
        float(np.clip(opening / DRAWER_DONE, 0, 1)),
    )


def _colliding(model: Any, body: str) -> set[int]:
    index = model.body(body).id
    return {
        geom for geom in range(model.ngeom) if model.geom_bodyid[geom] == index and model.geom_contype[geom]
    }


_READERS = {"pick-place": _read_pick_place, "hammer": _read_hammer, "drawer-open": _read_drawer}
