"""Small episodes with pictures that tell their frame, for tests of what stores them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sarm2_client.images import encode_jpeg
from sarm2_rollouts.episode import Episode, LabelledSegment

STATE_NAMES = ("tool_x", "tool_y", "tool_z", "gripper_opening")


def picture(frame: int, camera: int = 0, size: int = 32) -> npt.NDArray[np.uint8]:
    """Uint8 (size, size, 3): a smooth ramp whose brightness names the frame."""
    ramp = np.linspace(0, 60, size)
    base = np.add.outer(ramp, ramp)[..., None] + np.array([10 * camera, 0.0, 30.0])
    pixels: npt.NDArray[np.uint8] = np.clip(base + 4 * (frame % 25), 0, 255).astype(np.uint8)
    return pixels


def small_episode(
    seed: int,
    length: int = 12,
    *,
    task: str = "pick up the puck",
    size: int = 32,
    fps: float = 10.0,
    cameras: tuple[str, ...] = ("corner", "wrist"),
    state_dim: int = 4,
    labelled: bool = True,
    simulator: bool = True,
) -> Episode:
    """An episode that depends on its seed alone."""
    rng = np.random.default_rng(seed)
    half = length // 2
    return Episode(
        task=task,
        fps=fps,
        images={
            camera: [encode_jpeg(picture(seed + t, number, size)) for t in range(length)]
            for number, camera in enumerate(cameras)
        },
        state_TS=rng.normal(size=(length, state_dim)).astype(np.float32),
        kind="perturbed" if labelled else "unknown",
        success=bool(seed % 2) if labelled else None,
        seed=seed if labelled else None,
        task_name="pick-place" if labelled else None,
        progress_T=np.linspace(0, 1, length, dtype=np.float32) if labelled else None,
        # Two attempts at the same primitive, one after the other: a row per frame could not tell them apart.
        segments=(
            LabelledSegment("reach", 0, half),
            LabelledSegment("grasp", half, half + 2),
            LabelledSegment("grasp", half + 2, length),
        )
        if labelled
        else None,
        action_TA=rng.normal(size=(length, 2)).astype(np.float32),
        action_names=("forward", "grip"),
        simulator_TK=rng.normal(size=(length, 3)).astype(np.float32) if simulator else None,
        simulator_names=("object_x", "object_y", "joint") if simulator else (),
        info={"mishaps": [["drop", 3, 5]], "tries": 2} if labelled else {},
    )


def assert_same(episode: Episode, original: Episode, *, pictures: bool = True) -> None:
    """Every field is equal; with `pictures`, the JPEG files byte for byte."""
    assert episode.task == original.task
    assert episode.fps == original.fps
    assert (episode.kind, episode.success, episode.seed) == (original.kind, original.success, original.seed)
    assert episode.task_name == original.task_name
    assert episode.segments == original.segments
    assert episode.info == original.info
    assert episode.simulator_names == original.simulator_names
    assert episode.action_names == original.action_names
    np.testing.assert_array_equal(episode.state_TS, original.state_TS)
    for values, expected in (
        (episode.progress_T, original.progress_T),
        (episode.action_TA, original.action_TA),
        (episode.simulator_TK, original.simulator_TK),
    ):
        assert (values is None) == (expected is None)
        if values is not None and expected is not None:
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected)
    assert list(episode.images) == list(original.images)
    if pictures:
        assert episode.images == original.images
