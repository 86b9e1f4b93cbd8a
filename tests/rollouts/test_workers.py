"""What becomes of simulator processes at their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from rollouts.bad_makers import die, die_once, hang
from sarm2_client.errors import ModelFailed, WaitTimeout
from sarm2_rollouts.collection import iterate_episodes
from sarm2_rollouts.metaworld_robot import EpisodePlan

POOL = """
import multiprocessing, time
from sarm2_rollouts.collection import iterate_episodes
from sarm2_rollouts.metaworld_robot import EpisodePlan

def make(entry):
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(60)

if __name__ == "__main__":
    next(iterate_episodes([EpisodePlan("hammer", "demo", 1)] * 2, 1, make=make))
"""
RENDER = """
from sarm2_rollouts.metaworld_robot import MetaWorldRobot
with MetaWorldRobot("hammer", 1, 16) as robot:
    robot.observe()
"""
END_S = 30.0


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_pools_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + END_S
        while alive(worker):
            assert time.monotonic() < deadline, "the worker outlived its parent"
            time.sleep(0.2)


def test_what_a_dead_worker_was_making_is_made_again(tmp_path: Path) -> None:
    plan = [EpisodePlan("hammer", "demo", number) for number in range(7)]
    made = list(iterate_episodes(plan, 2, make=partial(die_once, 2, tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert [episode.seed for episode in made] == list(range(7))


def test_a_worker_that_dies_again_and_again_is_told_of() -> None:
    with pytest.raises(ModelFailed, match="processes died 4 times"):
        next(iterate_episodes([EpisodePlan("hammer", "demo", 1)], 1, make=die))


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarm2_rollouts.collection.EPISODE_TIMEOUT_S", 1.0)
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match="for an episode"):
        next(iterate_episodes([EpisodePlan("hammer", "demo", 1)], 1, make=hang))
    assert time.monotonic() - began < END_S


@pytest.mark.sim
@pytest.mark.parametrize("display", ["osmesa", "egl"])
def test_a_renderer_is_closed_before_its_library_goes(display: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", RENDER],
        env={**os.environ, "MUJOCO_GL": display, "PYOPENGL_PLATFORM": display},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Exception ignored" not in ended.stderr
