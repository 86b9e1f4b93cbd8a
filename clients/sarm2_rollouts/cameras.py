"""Cameras of the simulated robot: fast rendering, and where a point of the world falls in a picture.

The simulator's defaults (4096² shadow map, mirrored table, 4x multisampling) cost 110 ms a picture. With
shadow, mirror and multisampling off a picture costs 5 to 8 ms on one core. Small things are 3 to 5 pixels
wide, so pictures are drawn at twice the size and averaged 2 x 2: that costs 1.2 to 1.45 times as much.

Shapes: N points; pictures are (size, size, 3) uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .views import View

SUPERSAMPLE = 2


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

    def render(self, data: Any) -> dict[str, npt.NDArray[np.uint8]]:
        """One uint8 (size, size, 3) RGB picture per view of the simulator's current state."""
        images = {}
        for name, camera in self._cameras.items():
            self._renderer.update_scene(data, camera)
            images[name] = _shrink(self._renderer.render(), self._size, self._supersample)
        return images

    def close(self) -> None:
        """Free the GL context. A second call does nothing."""
        self._renderer.close()


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
