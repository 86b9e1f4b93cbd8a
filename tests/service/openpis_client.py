"""openpi's own client against a service on PORT, run by `test_openpi.py` in the adapters' venv; what came
back is printed as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

CAMERAS = ("corner", "side", "wrist")


def main(port: int) -> dict[str, Any]:
    policy = WebsocketClientPolicy("127.0.0.1", port)
    rng = np.random.default_rng(0)
    seen: dict[str, Any] = {
        f"observation/{camera}": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for camera in CAMERAS
    }
    seen |= {"observation/state": np.zeros(4, np.float32), "prompt": "hammer the nail", "fps": 10.0}
    scores = [policy.infer(seen) for _ in range(3)]
    try:
        policy.infer(seen | {"observation/state": np.zeros(9, np.float32)})
    except RuntimeError as error:
        refused = str(error)
    else:
        refused = ""
    again = policy.infer(seen | {"reset": np.bool_(True)})
    return {
        "metadata": sorted(policy.get_server_metadata()),
        "seq": [score["seq"] for score in scores],
        "progress": [float(score["progress"]) for score in scores],
        "refused": refused,
        "again": again["seq"],
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
