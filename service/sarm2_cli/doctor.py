"""`sarm2 doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Verdict = Literal["ok", "warn", "fail"]
MARKS = {"ok": "[green]ok[/green]", "warn": "[yellow]note[/yellow]", "fail": "[red]fail[/red]"}
REDIS_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    verdict: Verdict
    detail: str


def doctor(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to load; the shipped one by default.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis to reach, if you mean to use one.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that `sarm2 serve` would take.")] = 8765,
) -> None:
    """Check this machine: Python, packages, device, bundle, speed, port, Redis, simulator.

    Ends with exit code 1 when something needed is missing; every failed line says what to do.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "python": python_version,
        "packages": packages,
        "device": device,
        "bundle": lambda: model(bundle),
        "port": lambda: port_free(port),
        "redis": lambda: redis(redis_url),
        "simulator": simulator,
    }
    table = Table("", "check", "finding", title="sarm2 doctor")
    failed = False
    for name, check in checks.items():
        finding = imported(name, check)
        failed |= finding.verdict == "fail"
        table.add_row(MARKS[finding.verdict], finding.check, escape(finding.detail))
    Console().print(table)
    if failed:
        raise typer.Exit(1)


def imported(name: str, check: Callable[[], Finding]) -> Finding:
    """The check's finding, which is a failure where a package that it needs cannot be imported."""
    try:
        return check()
    except ImportError as error:
        return Finding(name, "fail", f"{error}; pip install -e ./clients -e '.[cpu]'")


def python_version() -> Finding:
    """Python 3.11 or newer."""
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "fail", f"{platform.python_version()} (3.11 or newer needed)")


def packages() -> Finding:
    """The packages that every command needs."""
    found, missing = [], []
    for name in ("torch", "transformers", "fastapi", "redis", "onnxruntime", "sarm2-client"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if "onnxruntime" in missing and _installed("onnxruntime-gpu"):
        missing.remove("onnxruntime")
    if missing:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}; pip install -e '.[cpu]'")
    return Finding("packages", "ok", ", ".join(found))


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def device() -> Finding:
    """The device that torch would use, and its threads."""
    import torch

    if torch.cuda.is_available():
        return Finding("device", "ok", f"cuda: {torch.cuda.get_device_name(0)}")
    return Finding("device", "ok", f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads")


def model(bundle: Path | None) -> Finding:
    """The bundle loads, its hashes match, and a step's cost on this machine."""
    import numpy as np
    import torch

    from sarm2_client.errors import Sarm2Error
    from sarm2_models.checkpoint import default_bundle, load_bundle
    from sarm2_models.predictor import Predictor
    from sarm2_service.run import fitting_threads

    folder = bundle or default_bundle()
    try:
        loaded = load_bundle(folder)
    except Sarm2Error as error:
        return Finding("bundle", "fail", error.message)
    torch.set_num_threads(fitting_threads(loaded))
    side = loaded.preprocess.size
    picture = np.zeros((side, side, 3), dtype=np.uint8)
    images = dict.fromkeys(loaded.info.cameras, picture)
    predictor = Predictor(loaded)
    predictor.reset(task="anything", fps=10.0)
    state = np.zeros(loaded.info.state_dim, dtype=np.float32)
    steps = 20
    predictor.step(images, state)
    started = time.perf_counter()
    for _ in range(steps):
        predictor.step(images, state)
    each_ms = 1000 * (time.perf_counter() - started) / steps
    return Finding(
        "bundle",
        "ok",
        f"{loaded.info.id} {loaded.info.version}: {each_ms:.1f} ms a step, {1000 / each_ms:.0f} steps/s",
    )


def port_free(port: int) -> Finding:
    """Nobody listens on the port yet."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding("port", "warn", f"{port}: {error.strerror}; choose another with --port")
    return Finding("port", "ok", f"127.0.0.1:{port} is free")


def redis(url: str | None) -> Finding:
    """Redis answers, where one was named. The service never needs it to answer a robot."""
    if url is None:
        return Finding("redis", "ok", "not used (cache in memory); name one with --redis-url")
    from redis import Redis

    from sarm2_service.settings import check_redis_url

    try:
        check_redis_url(url)
    except ValueError as error:
        return Finding("redis", "fail", f"{error}; the service would refuse this --redis-url")
    try:
        with Redis.from_url(
            url, socket_connect_timeout=REDIS_TIMEOUT_S, socket_timeout=REDIS_TIMEOUT_S
        ) as client:
            version = client.info("server")["redis_version"]
    except Exception as error:  # an option that only the server or the codec refuses is a finding too
        return Finding("redis", "warn", f"{error}; the service would run on its memory cache")
    return Finding("redis", "ok", f"version {version}")


def simulator() -> Finding:
    """Meta-World steps and renders; only recording, training and `demo --robot` need it."""
    if not _installed("metaworld"):
        return Finding("simulator", "warn", "not installed; pip install -e ./clients -e '.[cpu,sim]' for it")
    from sarm2_rollouts.metaworld_robot import MetaWorldRobot

    try:
        with MetaWorldRobot("hammer", seed=0) as robot:
            started = time.perf_counter()
            robot.observe()
            first_ms = 1000 * (time.perf_counter() - started)
    except Exception as error:  # the renderer fails in many ways, and each is only a finding here
        return Finding(
            "simulator", "warn", f"{type(error).__name__}: {error}; Debian: apt-get install libosmesa6"
        )
    return Finding("simulator", "ok", f"renders three views in {first_ms:.0f} ms")
