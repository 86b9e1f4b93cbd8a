"""The device thread and its watchdog."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from sarm2_service.device import EXIT_CODE, DeviceLostError, DeviceThread, is_device_lost


def idle() -> bool:
    return False


def test_calls_run_on_the_device_thread_and_return_or_raise() -> None:
    device = DeviceThread(idle, timeout_s=5)
    device.start()

    def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        assert await device.call(lambda: threading.current_thread().name) == "device"
        with pytest.raises(ValueError, match="no"):
            await device.call(fail)
        assert await device.call(lambda: 1) == 1

    asyncio.run(main())
    device.stop()
    assert not device.alive


def test_work_runs_until_nothing_waits_and_none_is_missed() -> None:
    waiting = list(range(1000))
    done: list[int] = []

    def work() -> bool:
        with device.condition:
            item = waiting.pop(0) if waiting else None
        if item is None:
            return False
        done.append(item)
        return True

    device = DeviceThread(work, timeout_s=5)
    device.start()
    for item in range(1000, 1200):
        with device.condition:
            waiting.append(item)
            device.wake()
    deadline = time.monotonic() + 5
    while len(done) < 1200 and time.monotonic() < deadline:
        time.sleep(0.001)
    device.stop()
    assert done == list(range(1200))


def test_a_hung_batch_is_reported_as_lost() -> None:
    reasons: list[str] = []
    release = threading.Event()
    lost = threading.Event()

    def on_lost(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    def hang() -> bool:
        release.wait(10)
        return False

    device = DeviceThread(hang, timeout_s=0.1, on_lost=on_lost)
    device.start()
    with device.condition:
        device.wake()
    assert lost.wait(5)
    release.set()
    device.stop()
    assert reasons == ["one batch ran for more than 0.1 s"]


def test_a_broken_device_is_reported_once_and_ends_the_thread() -> None:
    reasons: list[str] = []

    def broken() -> bool:
        raise DeviceLostError("gone")

    device = DeviceThread(broken, timeout_s=5, on_lost=reasons.append)
    device.start()
    with device.condition:
        device.wake()
    deadline = time.monotonic() + 5
    while device.alive and time.monotonic() < deadline:
        time.sleep(0.001)
    device.stop()
    assert reasons == ["the device thread failed: DeviceLostError"]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("shapes do not match"), False),
        (MemoryError(), False),
        (DeviceLostError(), True),
    ],
)
def test_only_a_broken_context_counts_as_a_lost_device(error: Exception, lost: bool) -> None:
    assert is_device_lost(error) is lost


@pytest.mark.parametrize(
    "work", ["lambda: time.sleep(60)", "lambda: sys.exit('dead')"], ids=["hung device", "dead thread"]
)
def test_the_watchdog_ends_the_process_so_that_its_supervisor_restarts_it(work: str) -> None:
    code = (
        "import sys, time\n"
        "from sarm2_service.device import DeviceThread\n"
        f"device = DeviceThread({work}, timeout_s=0.1)\n"
        "device.start()\n"
        "with device.condition: device.wake()\n"
        "time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=30, capture_output=True)
    assert ended.returncode == EXIT_CODE
