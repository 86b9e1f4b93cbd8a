"""The demo: two episodes through a service of its own, a table, pictures and a report."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

from sarm2_cli.demo import EPISODES, largest_fall
from sarm2_cli.server_process import ServerProcess, free_port
from sarm2_client.client import RewardClient
from sarm2_client.errors import ConnectionLost, InvalidInput
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


class _Ready(BaseHTTPRequestHandler):
    """Answers everything with 200, as a service that is ready does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@contextmanager
def another_server(port: int) -> Iterator[int]:
    """One that answers `/readyz` at this port, 0 takes any; yields the port."""
    with ThreadingHTTPServer(("127.0.0.1", port), _Ready) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_named_port_where_another_server_is_ready_is_refused_by_its_number() -> None:
    with another_server(0) as port, pytest.raises(InvalidInput, match=f"port {port} .* --port"):
        ServerProcess(port)


def test_a_named_port_that_another_server_takes_meanwhile_is_refused_by_its_number(bundle: Path) -> None:
    own = ServerProcess(free_port(0), bundle)
    with another_server(own.port), pytest.raises(InvalidInput, match=f"port {own.port} .* --port"), own:
        pass


def test_any_port_that_another_server_takes_meanwhile_gives_way_to_a_free_one(bundle: Path) -> None:
    own = ServerProcess(0, bundle)
    with another_server(own.port) as port, own, RewardClient(port=own.port) as client:
        assert own.port != port
        assert client.get_server_metadata()["protocol"] == "sarm.v1"


def test_a_service_of_our_own_is_reached_whatever_proxy_the_environment_names(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port(0)}")
    with ServerProcess(0, bundle) as own, RewardClient(port=own.port) as client:
        assert client.get_server_metadata()["protocol"] == "sarm.v1"
