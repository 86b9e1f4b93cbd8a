"""`kill -9`, twenty times: of the trainer and of the service in turn, in the middle of whatever they do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from safetensors.numpy import load_file

from sarm2_rollouts.run_record import finished_stages

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(1200)]

KILLS = 20
TOLERANCE = 1e-6
"""Largest difference of any weight. Scores are rounded to four places before anything learns from them, and a
step number alone decides what a step draws: what is left is nothing."""
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 600.0
TRAINER = Path(__file__).with_name("small_trainer.py")
TESTS = Path(__file__).resolve().parents[1]


class Killable:
    """A process that is started, killed and started again."""

    def __init__(self, *command: str) -> None:
        self._command = [sys.executable, *command]
        self._environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def serving() -> Iterator[tuple[Killable, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    service = Killable("-m", "sarm2_cli.main", "serve", "--port", str(port))
    try:
        await_health(port)
        yield service, port
    finally:
        service.kill()


def await_health(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("the service did not start")


def kill_service_of(trainer: int) -> bool:
    """Kill the service that a trainer has started for itself. Returns whether there was one."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rsplit(") ", 1)[1].split()[1])
            command = (status.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if parent == trainer and b"serve" in command:
            os.kill(int(status.parent.name), signal.SIGKILL)
            return True
    return False


def await_kill_of_service(trainer: Killable) -> None:
    """Kill a trainer's own service; one that has just begun is given time to start it."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and trainer.process.poll() is None:
        if kill_service_of(trainer.process.pid):
            return
        time.sleep(0.1)
    raise AssertionError("the trainer has no service")


def kill_often(trainer: Killable, kill: Callable[[int], None]) -> None:
    """Kill twenty times what `kill` chooses, while the trainer is at work, and wait for its end."""
    rng = np.random.default_rng(5)
    for number in range(KILLS):
        time.sleep(float(rng.uniform(3.0, 9.0)))
        assert trainer.process.poll() is None, f"the run ended before it had been killed {KILLS} times"
        kill(number)
    assert trainer.process.wait(END_TIMEOUT_S) == 0


def result(root: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Weights and decisions of a finished run."""
    assert "report" in finished_stages(root)
    paths = [
        *root.glob("policies/*.safetensors"),
        *root.glob("rounds/*/learner.safetensors"),
        *root.glob("reward_model/heads.safetensors"),
    ]
    weights = {str(path.relative_to(root)): load_file(path) for path in paths}
    told = [*root.glob("rounds/*/decision.json"), *root.glob("evaluations/*.jsonl")]
    return weights, {str(path.relative_to(root)): path.read_text() for path in told}


def assert_same(calm: Path, killed: Path, parts: int) -> None:
    """Two runs have the same decisions and evaluations, and the same weights in so many parts."""
    (weights, told), (others, retold) = result(calm), result(killed)
    assert told == retold
    assert weights.keys() == others.keys()
    assert len(weights) == parts
    for name, tensors in weights.items():
        for key, value in tensors.items():
            assert np.abs(value - others[name][key]).max(initial=0.0) <= TOLERANCE, (name, key)


def test_a_run_whose_trainer_and_service_are_killed_twenty_times_ends_the_same(tmp_path: Path) -> None:
    with serving() as (service, port):
        calm = Killable(str(TRAINER), str(tmp_path / "calm"), str(port))
        assert calm.process.wait(END_TIMEOUT_S) == 0
        trainer = Killable(str(TRAINER), str(tmp_path / "killed"), str(port))

        def kill(number: int) -> None:
            victim = (trainer, service)[number % 2]
            victim.kill()
            victim.start()

        kill_often(trainer, kill)
    assert_same(tmp_path / "calm", tmp_path / "killed", parts=4)  # pi_1, pi_2, the correction of both rounds


def test_an_image_policy_whose_reward_model_is_adapted_survives_the_same(tmp_path: Path) -> None:
    calm = Killable(str(TRAINER), str(tmp_path / "calm"))
    assert calm.process.wait(END_TIMEOUT_S) == 0
    trainer = Killable(str(TRAINER), str(tmp_path / "killed"))

    def kill(number: int) -> None:
        if number % 2:  # the trainer starts another one
            await_kill_of_service(trainer)
            return
        trainer.kill()
        trainer.start()

    kill_often(trainer, kill)
    assert_same(tmp_path / "calm", tmp_path / "killed", parts=4)  # pi_1, pi_2, the correction, RM2's heads
