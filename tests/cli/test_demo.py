"""The demo: two episodes through a service of its own, a table, pictures and a report."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from sarm2_cli.demo import EPISODES, largest_fall
from sarm2_cli.server_process import ServerProcess, free_port
from sarm2_client.errors import ConnectionLost
from sarm2_rollouts.lerobot_reader import open_dataset


def test_the_shipped_episodes_are_a_success_and_a_drop_that_training_never_saw() -> None:
    dataset = open_dataset(EPISODES)
    success, drop = (dataset.episode(index) for index in range(2))
    assert success.success is True
    assert drop.success is False
    assert drop.progress_T is not None
    assert largest_fall(drop.progress_T) >= 0.2
    for episode in (success, drop):
        assert episode.seed is not None
        assert episode.seed >= 100_000


def test_the_demo_ends_by_itself_and_leaves_pictures_and_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sarm2_cli.main", "demo", "--once", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    episodes = json.loads((tmp_path / "report.json").read_text())["episodes"]
    assert len(episodes) == 2
    for row in episodes:
        assert row["failure"] is None
        assert row["scored"] == row["frames"]
        assert (tmp_path / row["picture"]).stat().st_size > 10_000
    success, drop = episodes
    assert success["final_progress"] > drop["final_progress"]
    assert drop["largest_fall"] >= 0.1
    assert "mean squared error" in done.stdout


def test_the_page_stays_up_until_the_user_interrupts(tmp_path: Path) -> None:
    port = free_port(0)
    command = [sys.executable, "-m", "sarm2_cli.main", "demo", "--port", str(port), "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        try:
            deadline = time.monotonic() + 100
            while not (tmp_path / "report.json").exists():
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                assert b"<html" in page.read()
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=30)
            assert running.returncode == 0
        finally:
            running.kill()  # leaving the block waits without a limit
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the service outlived the demo"


def test_a_taken_port_gives_way_to_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ConnectionLost, match="the server ended with code"),
        ServerProcess(0, tmp_path / "none"),
    ):
        pass
