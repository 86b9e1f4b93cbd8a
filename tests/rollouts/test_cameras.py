"""Pictures of the simulated robot: what is left out of a scene is what cannot be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sarm2_rollouts.cameras import _MeshBoxes
from sarm2_rollouts.metaworld_robot import MetaWorldRobot
from sarm2_rollouts.tasks import TASKS


@pytest.mark.sim
@pytest.mark.parametrize("task", TASKS)
def test_parts_that_cannot_be_seen_are_left_out_and_pictures_stay_the_same(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, shown = np.random.default_rng(0), _MeshBoxes.leave_out
    left_out: list[int] = []

    def count(boxes: _MeshBoxes, data: Any, scene: Any) -> None:
        shown(boxes, data, scene)
        left_out.append(sum(scene.geoms[place].type == boxes._nothing for place in range(scene.ngeom)))

    with MetaWorldRobot(task, 5) as robot:
        for way in (-0.8, 0.8, 0.0):
            for _ in range(8):
                move = np.append(rng.uniform(-1, 1, 3) + way, 1.0)
                robot.step(np.clip(move, -1, 1).astype(np.float32))
            with monkeypatch.context() as patch:
                patch.setattr(_MeshBoxes, "leave_out", lambda *_: None)
                whole = robot.observe().images
            with monkeypatch.context() as patch:
                patch.setattr(_MeshBoxes, "leave_out", count)
                rest = robot.observe().images
            for camera, picture in whole.items():
                assert np.array_equal(picture, rest[camera]), camera
    assert max(left_out) > 5, "the camera at the wrist sees little of the arm"
