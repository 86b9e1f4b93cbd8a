"""`sarm2 train --quick` and `sarm2 evaluate` as a user runs them, with the simulator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "sarm2_cli.main"]


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_a_quick_run_trains_a_bundle_that_can_be_measured(tmp_path: Path) -> None:
    run, numbers = tmp_path / "run", tmp_path / "evaluation.json"
    train = [*COMMAND, "train", "--quick", "--tasks", "hammer", "--out", str(run)]
    done = subprocess.run(train, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / "bundle" / "manifest.json").exists()
    again = subprocess.run(train, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    resumed = subprocess.run([*train, "--resume"], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    evaluate = [*COMMAND, "evaluate", "--bundle", str(run / "bundle"), "--tasks", "hammer", "--episodes", "1"]
    measured = subprocess.run(
        [*evaluate, "--json", str(numbers)], capture_output=True, text=True, timeout=600
    )
    assert measured.returncode == 0, measured.stderr[-2000:]
    assert json.loads(numbers.read_text())["overall"]["demo_mse"]["value"] < 0.5
    refused = subprocess.run(
        [*evaluate, "--seed", "5", "--json", str(numbers)], capture_output=True, text=True, timeout=300
    )
    assert refused.returncode == 2
    assert "belong to training" in refused.stderr
