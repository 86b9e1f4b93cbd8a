"""What a LeRobot policy sees, by its own keys, and how a robot's frames become that.

Shapes: R rows, S state, C H W picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sarm2_client.errors import InvalidInput
from sarm2_spiral.base_policy import Frame
from sarm2_spiral.input_map import Robot, Source

STATE = "observation.state"


@dataclass(frozen=True)
class Inputs:
    """What a policy sees, by its own keys.

    Attributes:
        cameras: with the size (height, width) at which the policy expects each picture.
        state: None for a policy that sees none.
    """

    cameras: Mapping[str, tuple[Source, tuple[int, int]]]
    state: Source | None

    def read(self, frames: Sequence[Frame]) -> dict[str, Tensor]:
        """Frames as LeRobot has them: pictures float32 (R, C, H, W) in [0, 1], the state float32 (R, S)."""
        pictures = [frame.images for frame in frames]
        found = {
            key: torch.cat([fitted(source.picture(images), size) for images in pictures])
            for key, (source, size) in self.cameras.items()
        }
        if self.state is not None:
            found[STATE] = torch.from_numpy(np.stack([self.state.numbers(frame) for frame in frames]))
        return found


def fitted(picture_HWC: npt.NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """A picture as LeRobot has it: float32 (1, C, H, W) in [0, 1], of a size (height, width).

    Where the sides are in another proportion, the middle is cut out.
    """
    picture_1CHW = torch.from_numpy(np.ascontiguousarray(picture_HWC)).permute(2, 0, 1)[None].float() / 255
    height, width = picture_1CHW.shape[2:]
    if (height, width) == size:
        return picture_1CHW
    scale = min(height / size[0], width / size[1])
    high, wide = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - high) // 2, (width - wide) // 2
    middle_1CHW = picture_1CHW[:, :, top : top + high, left : left + wide]
    return functional.interpolate(middle_1CHW, size, mode="bilinear", antialias=True)


def inputs_of(config: Any, given: Mapping[str, Source], robot: Robot) -> Inputs:
    """What a policy sees of a robot.

    A feature without a source is taken from the camera of its name, and the state from the robot's whole
    state. Raises InvalidInput, naming the feature, where that does not fit.
    """
    pictures = {key: one for key, one in config.image_features.items() if "empty_camera" not in key}
    known = [*pictures, *([STATE] if config.robot_state_feature else [])]
    strange = [key for key in given if key not in known]
    if strange:
        raise InvalidInput(
            f"--map {strange[0]}=...: the policy has no such input; it has {', '.join(known)}", field="map"
        )
    if config.env_state_feature:
        raise InvalidInput("the policy sees the environment's state, which no robot can tell", field="policy")
    if tuple(config.action_feature.shape) != (robot.actions,):
        raise InvalidInput(
            f"the policy's actions have the shape {tuple(config.action_feature.shape)}, the robot's "
            f"({robot.actions},); use one that was trained for this robot",
            field="policy",
        )
    cameras = {
        key: (_camera(key, given, robot), (int(one.shape[1]), int(one.shape[2])))
        for key, one in pictures.items()
    }
    return Inputs(cameras, _state(config.robot_state_feature, given, robot))


def _camera(key: str, given: Mapping[str, Source], robot: Robot) -> Source:
    source = given.get(key)
    if source is None and key.rpartition(".")[2] in robot.cameras:
        source = Source("camera", key.rpartition(".")[2])
    if source is None or source.kind != "camera":
        raise InvalidInput(
            f"the policy looks at {key!r}; say which camera that is with --map {key}=CAMERA; {robot}",
            field="map",
        )
    return source


def _state(feature: Any, given: Mapping[str, Source], robot: Robot) -> Source | None:
    if not feature:
        return None
    source = given.get(STATE) or Source.parse("state", robot)
    if source.kind != "state" or (len(source.columns),) != tuple(feature.shape):
        raise InvalidInput(
            f"the policy sees a state of {feature.shape[0]} numbers, and {source.name!r} gives "
            f"{len(source.columns)}; name the right ones with --map {STATE}=NAME,NAME,...; {robot}",
            field="map",
        )
    return source
