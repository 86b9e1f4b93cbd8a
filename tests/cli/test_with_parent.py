"""A service that a command started ends with it, even where the command was killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import httpx2

from sarm2_cli.server_process import ServerProcess

PARENT = """
from sarm2_cli.server_process import ServerProcess
import time
with ServerProcess(port=0) as own:
    print(own.port, flush=True)
    time.sleep(60)
"""
END_S = 30.0


def answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/livez", timeout=2.0).status_code == 200
    except httpx2.HTTPError:
        return False


def test_a_service_ends_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        port = int(parent.stdout.readline())
    assert answers(port)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + END_S
    while answers(port):
        assert time.monotonic() < deadline, "the service outlived its parent"
        time.sleep(0.2)


def test_a_lasting_service_is_started_again_at_the_same_port() -> None:
    with ServerProcess(0, restart=True) as own:
        first = own._process
        assert first is not None
        first.kill()
        first.wait()
        deadline = time.monotonic() + END_S
        while not answers(own.port):
            assert time.monotonic() < deadline, "the service was not started again"
            time.sleep(0.2)
    assert not answers(own.port)


def test_a_lasting_service_that_is_killed_while_it_starts_is_started_again() -> None:
    service = ServerProcess(0, restart=True)
    killed: list[int] = []

    def kill() -> None:
        first = service._process
        assert first is not None
        assert not answers(service.port)
        first.kill()
        killed.append(first.pid)

    killer = threading.Timer(0.3, kill)
    killer.start()
    with service as own:
        killer.join()
        assert answers(own.port)
        assert own._process is not None
        assert killed[0] != own._process.pid
