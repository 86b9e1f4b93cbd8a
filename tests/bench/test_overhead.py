"""What the server adds to the model's own time for one robot. Run with `pytest -m bench -s`."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest

import fakes
from running_server import RunningServer

FRAMES = 300
WARM_UP = 20


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_overhead_of_the_server_for_one_robot(tmp_path: Path) -> None:
    """Overhead of a step: (arrival to score - encoder - heads) / (encoder + heads); medians over steps."""
    model = fakes.make_model(tmp_path, fakes.SMALL)
    size = fakes.SMALL.image_size
    with RunningServer(model, cache_bytes=0) as server, server.robot() as robot:
        robot.start("bench")
        timings = [robot.score(fakes.frame(seq, size=size)).timing for seq in range(FRAMES)][WARM_UP:]
        pictures = server.metric("sarm2_encoder_images_total") / server.metric("sarm2_scored_steps_total")
    total = np.array([timing.total_ms for timing in timings])
    own = np.array([timing.encode_ms + timing.heads_ms for timing in timings])
    report = {
        "machine": platform.machine(),
        "load_1min": os.getloadavg()[0],
        "model_threads": 1,
        "steps": len(timings),
        "total_ms_p50": float(np.median(total)),
        "model_ms_p50": float(np.median(own)),
        "added_ms_p50": float(np.median(total - own)),
        "overhead_p50": float(np.median(total / own - 1)),
        "encoder_pictures_per_step": pictures,
    }
    print(json.dumps(report, indent=2))
    assert pictures == 3
