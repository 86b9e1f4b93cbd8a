"""Long work in child processes: the right memory and thread settings, progress in files, errors in logs.

Two processes of one thread each do more than one of two threads. The C library's allocator reads its settings
when a process starts, which is why even a single job runs in a child: keeping freed memory instead of giving
it back to the kernel saves a third of a training step. Attention is done as plain matrix products: on windows
this short the backward pass of the fused kernel for CPUs costs more than all the rest of a step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sarm2_client.errors import BY_CODE, ModelFailed, Sarm2Error
from sarm2_rollouts.whole_file import whole_file
from sarm2_rollouts.with_parent import end_with_parent, ending_with_me

MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
POLL_S = 0.2
STOP_WAIT_S = 5.0

PROGRESS, ERROR, LOG = "progress.json", "error.json", "log"
"""Endings of a job's files."""

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Job:
    """A function to call in a child process.

    Attributes:
        name: shown at its bar.
        call: a module-level function taking a `Ticker` first.
        arguments: picklable.
        folder: where its progress and log go.
        threads: of torch.
    """

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    folder: Path
    threads: int = 1


def dealt(things: Sequence[Thing], workers: int) -> list[Sequence[Thing]]:
    """The things dealt out to the workers, one share each; fewer shares where there are fewer things."""
    return [things[start::workers] for start in range(min(workers, len(things)))]


class Ticker:
    """How a job tells how far it is: at most five times a second, one small file, written atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def tick(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are behind; `note` stands at the bar."""
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + POLL_S
        with whole_file(self._path) as fresh:
            fresh.write_text(json.dumps({"done": done, "total": total, "note": note}))


def run_jobs(jobs: Sequence[Job], *, at_once: int, console: Console) -> None:
    """Run the jobs in order, `at_once` at a time, with a bar each. Children end with the parent,
    even with one that is killed.

    The first job that fails stops the others. Raises what it raised, where that is a Sarm2Error; otherwise
    ModelFailed with the tail of its log.
    """
    waiting = list(jobs)
    running: dict[str, tuple[BaseProcess, Job, TaskID]] = {}
    with bars(console) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    running[job.name] = (_start(job), job, progress.add_task(job.name, total=None, note=""))
                time.sleep(POLL_S)
                for name, (process, job, bar) in list(running.items()):
                    _show(progress, bar, job)
                    if not process.is_alive():
                        del running[name]
                        _check(process, job)
        finally:
            for process, _, _ in running.values():
                process.terminate()
                process.join(STOP_WAIT_S)


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """Rich progress bars in the style of all stages."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def _start(job: Job) -> BaseProcess:
    job.folder.mkdir(parents=True, exist_ok=True)
    for ending in (PROGRESS, ERROR, LOG):
        _path(job, ending).unlink(missing_ok=True)
    before = dict(os.environ)
    os.environ.update(
        ending_with_me(), **MALLOC, OMP_NUM_THREADS=str(job.threads), TOKENIZERS_PARALLELISM="false"
    )
    try:
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(job,), daemon=True)
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def _run(job: Job) -> None:
    end_with_parent()
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        torch.set_num_threads(job.threads)
        with sdpa_kernel(SDPBackend.MATH):
            job.call(Ticker(_path(job, PROGRESS)), *job.arguments)
    except BaseException as error:
        with suppress(OSError):  # a full disk may be why it failed
            if isinstance(error, Sarm2Error):
                _keep_error(job, error)
            _path(job, LOG).write_text(traceback.format_exc())
        raise SystemExit(1) from None


def _keep_error(job: Job, error: Sarm2Error) -> None:
    kept = {"code": error.code, "message": error.message, "field": error.field}
    with whole_file(_path(job, ERROR)) as fresh:
        fresh.write_text(json.dumps(kept))


def _check(process: BaseProcess, job: Job) -> None:
    process.join()
    if process.exitcode != 0:
        if _path(job, ERROR).exists():
            kept = json.loads(_path(job, ERROR).read_text())
            raise BY_CODE.get(kept["code"], Sarm2Error)(kept["message"], field=kept["field"])
        raise ModelFailed(
            f"{job.name} ended with exit code {process.exitcode}: {_reason(job)}. What was finished is kept: "
            "run the same command again, with --resume if it has that"
        )


def _reason(job: Job) -> str:
    log = _path(job, LOG)
    if not log.exists():
        return "it left no message, as after a kill, or where memory ran out"
    last = " ".join(log.read_text().strip().splitlines()[-1:])
    return f"{last}; the whole message is in {log}"


def _show(progress: Progress, bar: TaskID, job: Job) -> None:
    try:
        state = json.loads(_path(job, PROGRESS).read_text())
    except FileNotFoundError:
        return
    progress.update(bar, completed=state["done"], total=state["total"], note=state["note"])


def _path(job: Job, ending: str) -> Path:
    return job.folder / f"{job.name.replace(' ', '_')}.{ending}"
