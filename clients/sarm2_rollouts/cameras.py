"""Cameras of the simulated robot: fast rendering, and where a point of the world falls in a picture.

The simulator's defaults (4096² shadow map, mirrored table, 4x multisampling) cost 110 ms a picture. With
shadow, mirror and multisampling off a picture costs 5 to 8 ms on one core. Small things are 3 to 5 pixels
wide, so pictures are drawn at twice the size and averaged 2 x 2: that costs 1.2 to 1.45 times as much. What
costs most are the arm's 67 thousand triangles, wherever they are: leaving out parts that a camera cannot see
saves a quarter.

Shapes: N points, G meshes; pictures are (size, size, 3) uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .views import View

SUPERSAMPLE = 2

SLACK = 1e-3
"""Metres by which a mesh has to lie outside of a picture."""


def prepare_display() -> None:
    """Choose software rendering unless the user chose otherwise. Call before mujoco is imported."""
    os.environ.setdefault("MUJOCO_GL", "osmesa")


class ViewRenderer:
    """Renders the views of one simulator model. Owns one GL context; close it.

    Args:
        model: the `mujoco.MjModel`.
        views: the cameras by name.
        size: side of the square pictures in pixels.
        supersample: how many times larger they are drawn before averaging.
    """

    def __init__(
        self, model: Any, views: Mapping[str, View], size: int, supersample: int = SUPERSAMPLE
    ) -> None:
        import mujoco

        side = size * supersample
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        self._renderer = mujoco.Renderer(model, side, side)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._cameras = {name: _mujoco_camera(view) for name, view in views.items()}
        self._size = size
        self._supersample = supersample
        self._boxes = _MeshBoxes(model)

    def render(self, data: Any) -> dict[str, npt.NDArray[np.uint8]]:
        """One uint8 (size, size, 3) RGB picture per view of the simulator's current state."""
        images = {}
        for name, camera in self._cameras.items():
            self._renderer.update_scene(data, camera)
            self._boxes.leave_out(data, self._renderer.scene)
            images[name] = _shrink(self._renderer.render(), self._size, self._supersample)
        return images

    def close(self) -> None:
        """Free the GL context. A second call does nothing."""
        self._renderer.close()


class _MeshBoxes:
    """The boxes around a model's meshes, by which those outside of a picture are found."""

    def __init__(self, model: Any) -> None:
        import mujoco

        self._nothing, self._geom = mujoco.mjtGeom.mjGEOM_NONE, int(mujoco.mjtObj.mjOBJ_GEOM)
        self._index_G = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)
        centre_G3, half_G3 = np.split(model.geom_aabb[self._index_G], 2, axis=1)
        signs_83 = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        self._corner_G83 = centre_G3[:, None] + signs_83 * half_G3[:, None]

    def leave_out(self, data: Any, scene: Any) -> None:
        """Take out of a square picture's scene what lies outside of it; the picture stays the same. The next
        `update_scene` brings everything back."""
        unseen = set(self._index_G[self._outside_G(data, scene)].tolist())
        for place in range(scene.ngeom):
            geom = scene.geoms[place]
            if geom.objtype == self._geom and geom.objid in unseen:
                geom.type = self._nothing

    def _outside_G(self, data: Any, scene: Any) -> npt.NDArray[np.bool_]:
        """Whether all corners lie beyond one same side of what the camera sees."""
        left, right = scene.camera[0], scene.camera[1]  # of a stereo pair; a picture is taken from between
        forward, up = np.asarray(left.forward), np.asarray(left.up)
        turn_G33 = data.geom_xmat[self._index_G].reshape(-1, 3, 3)
        corner_G83 = self._corner_G83 @ turn_G33.transpose(0, 2, 1) + data.geom_xpos[self._index_G][:, None]
        offset_G83 = corner_G83 - (np.asarray(left.pos) + np.asarray(right.pos)) / 2
        depth_G8 = offset_G83 @ forward
        reach_G8 = depth_G8 * left.frustum_top / left.frustum_near + SLACK
        across_G8, high_G8 = offset_G83 @ np.cross(forward, up), offset_G83 @ up
        beyond = (
            depth_G8 < -SLACK,
            *(side > reach_G8 for side in (across_G8, -across_G8, high_G8, -high_G8)),
        )
        outside_G: npt.NDArray[np.bool_] = np.any([each_G8.all(axis=1) for each_G8 in beyond], axis=0)
        return outside_G


def project(model: Any, data: Any, view: View, points_N3: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where points of the world fall in a square picture of `view`.

    Returns:
        float64 (N, 3): u to the right and v downwards in [0, 1] inside the picture (clipped to [-1, 2]
        outside), and 1.0 where the point lies in front of the camera and inside the picture, else 0.0.
        What stands in between is not considered.
    """
    position, right, up, forward, fovy = _pose(model, data, view)
    offset_N3 = points_N3 - position
    depth_N = offset_N3 @ forward
    scale_N = np.maximum(depth_N, 1e-3) * np.tan(np.radians(fovy) / 2) * 2
    u_N = 0.5 + (offset_N3 @ right) / scale_N
    v_N = 0.5 - (offset_N3 @ up) / scale_N
    inside_N = (depth_N > 0.01) & (u_N >= 0) & (u_N <= 1) & (v_N >= 0) & (v_N <= 1)
    return np.stack([np.clip(u_N, -1, 2), np.clip(v_N, -1, 2), inside_N.astype(np.float64)], axis=1)


def _mujoco_camera(view: View) -> Any:
    import mujoco

    if view.fixed is not None:
        return view.fixed
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = view.lookat
    camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
    return camera


def _pose(model: Any, data: Any, view: View) -> tuple[Any, Any, Any, Any, float]:
    if view.fixed is not None:
        index = model.camera(view.fixed).id
        axes = data.cam_xmat[index].reshape(3, 3)
        return data.cam_xpos[index], axes[:, 0], axes[:, 1], -axes[:, 2], float(model.cam_fovy[index])
    azimuth, elevation = np.radians(view.azimuth), np.radians(view.elevation)
    flat = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    forward = np.cos(elevation) * flat + np.array([0.0, 0.0, np.sin(elevation)])
    up = -np.sin(elevation) * flat + np.array([0.0, 0.0, np.cos(elevation)])
    position = np.asarray(view.lookat) - view.distance * forward
    return position, np.cross(forward, up), up, forward, float(model.vis.global_.fovy)


def _shrink(image_HWC: npt.NDArray[np.uint8], size: int, factor: int) -> npt.NDArray[np.uint8]:
    if factor == 1:
        return image_HWC.copy()
    if factor == 2:  # four times as fast as the mean over axes
        wide = image_HWC.astype(np.uint16)
        rows = wide[0::2] + wide[1::2]
        total = rows[:, 0::2] + rows[:, 1::2] + np.uint16(2)
        return (total >> 2).astype(np.uint8)
    blocks = image_HWC.reshape(size, factor, size, factor, 3)
    return np.asarray(np.rint(blocks.mean(axis=(1, 3), dtype=np.float32)), dtype=np.uint8)
