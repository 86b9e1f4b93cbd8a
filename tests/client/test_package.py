"""What the robot's computer has to carry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import sarm2_client

CLIENT = Path(sarm2_client.__file__).parent
HEAVY = {"torch", "transformers", "fastapi", "starlette", "uvicorn", "pydantic", "pyarrow", "av", "redis"}
HEAVY |= {"metaworld", "mujoco", "sarm2_models", "sarm2_service", "sarm2_rollouts", "sarm2_cli"}


def test_importing_the_client_loads_no_torch_no_server_and_no_simulator() -> None:
    names = [f"sarm2_client.{file.stem}" for file in CLIENT.glob("*.py") if file.stem != "__init__"]
    program = (
        "import importlib, json, sys\n"
        f"for name in ['sarm2_client', *{names!r}]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert HEAVY.isdisjoint(json.loads(answer.stdout))


def test_nothing_in_the_client_can_run_code_out_of_data() -> None:
    forbidden = ("pickle", "marshal", "shelve", "eval(", "exec(", "allow_pickle", "object_hook")
    for file in CLIENT.glob("*.py"):
        text = file.read_text()
        assert not [word for word in forbidden if word in text], file.name


def test_every_module_says_what_it_is_for() -> None:
    for file in CLIENT.glob("*.py"):
        assert file.read_text().startswith('"""'), file.name


def test_the_public_names_are_the_ones_that_a_robot_needs() -> None:
    assert {"RewardClient", "AsyncRewardClient", "Timeouts", "Score", "Summary", "Sarm2Error"} <= set(
        sarm2_client.__all__
    )
    assert all(hasattr(sarm2_client, name) for name in sarm2_client.__all__)
