"""Moments with small pictures, and a policy that plans from all that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sarm2_spiral.base_policy import Float32Array, Moment

CAMERAS = ("corner", "side", "wrist")


@dataclass(frozen=True)
class SmallFrame:
    """A frame by itself."""

    images: dict[str, npt.NDArray[np.uint8]]
    state_S: Float32Array


def small_frame(seed: int, size: int = 48) -> SmallFrame:
    """Random pictures and a random state, the same for the same seed."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for camera in CAMERAS}
    return SmallFrame(images, rng.normal(size=4).astype(np.float32))


def small_moment(*seeds: int, instruction: str = "open the drawer") -> Moment:
    """A moment that has seen the frames of these seeds; nobody may ask for its features."""

    def no_features() -> Float32Array:
        raise AssertionError("nobody needs the features here")

    return Moment(instruction, tuple(small_frame(seed) for seed in seeds), no_features)


class StandIn:
    """A base policy that plans from brightness, state and latent; it keeps the moments of every question."""

    def __init__(self, *, horizon: int = 6, latent_size: int = 2, history: int = 2) -> None:
        self.horizon, self.latent_size, self.history = horizon, latent_size, history
        self.asked: list[list[Moment]] = []

    def sample_chunks(self, moments: Sequence[Moment], latent_BML: Float32Array) -> Float32Array:
        """Chunks (B, M, H, 4)."""
        self.asked.append(list(moments))
        seen_B = np.array([self.sees(moment) for moment in moments])
        plan_BM1 = (seen_B[:, None] + latent_BML.sum(2))[..., None]
        chunk_BMH = np.sin(plan_BM1 + np.arange(self.horizon))
        return np.repeat(chunk_BMH[..., None], 4, axis=3).astype(np.float32)

    def sees(self, moment: Moment) -> float:
        """One number that every frame, camera and state moves."""
        frames = moment.frames[-self.history :]
        bright = [float(picture.mean()) / 64 for frame in frames for picture in frame.images.values()]
        return float(np.sum(bright) + np.sum([frame.state_S.sum() for frame in frames]))
