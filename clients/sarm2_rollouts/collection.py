"""Episodes made by processes of this machine, in the order of their plan."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeAlias

from sarm2_client.errors import ModelFailed, WaitTimeout

from .cameras import prepare_display
from .episode import Episode
from .metaworld_robot import EpisodePlan, run_episode
from .with_parent import end_with

PENDING_PER_WORKER = 3
"""Episodes under way or waiting to be taken, for every worker: enough that none idles, few enough to hold."""

EPISODE_TIMEOUT_S = 1800.0
"""How long an episode may take before its worker counts as hanging: many times what the slowest takes, the
longest outage of a service that a policy waits for included."""

MakeEpisode: TypeAlias = Callable[[EpisodePlan], Episode]
"""Makes one episode, in a worker process and so picklable."""


class Collector(Protocol):
    """Makes the episodes of a plan in its order: `iterate_episodes`, or what does the same elsewhere."""

    def __call__(self, plan: Iterable[EpisodePlan], *, make: MakeEpisode) -> Iterator[Episode]:
        """Make them, each by `make`."""


def make_planned(entry: EpisodePlan, *, render: bool = True) -> Episode:
    """The scripted episode of a plan's entry."""
    return run_episode(entry.task_name, entry.kind, entry.seed, render=render)


def iterate_episodes(
    plan: Iterable[EpisodePlan],
    workers: int = 2,
    *,
    make: MakeEpisode = make_planned,
) -> Iterator[Episode]:
    """Make the episodes of a plan in its order, in `workers` processes (0: in this one).

    Args:
        make: what makes one, in a worker process and so picklable; `run_episode` by default.

    At most 3 episodes a worker are waiting at any time, so memory stays bounded. Leaving the loop early
    stops the workers.
    """
    plans = iter(plan)
    if workers <= 0:
        yield from map(make, plans)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_child, initargs=(os.getpid(),))
    pending: deque[Future[Episode]] = deque()
    try:
        for entry in plans:
            pending.append(pool.submit(make, entry))
            if len(pending) >= PENDING_PER_WORKER * workers:
                yield _made(pool, pending.popleft())
        while pending:
            yield _made(pool, pending.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _made(pool: ProcessPoolExecutor, future: Future[Episode]) -> Episode:
    """The episode, or why there is none: a worker that hangs is killed, and one that died is told of."""
    try:
        return future.result(EPISODE_TIMEOUT_S)
    except BrokenProcessPool as error:
        raise ModelFailed(
            "a simulator process died (short of memory?); start again, what was finished is kept"
        ) from error
    except TimeoutError as error:
        if future.done():
            raise
        for process in list(pool._processes.values()):
            process.kill()
        raise WaitTimeout(
            f"waited {EPISODE_TIMEOUT_S:.0f} s for an episode; start again, what was finished is kept",
            field="episode",
        ) from error


def _start_child(parent: int) -> None:
    end_with(parent)  # a pool's processes do not notice that the one they work for was killed
    start_worker()


def start_worker() -> None:
    """Set this process's renderer up. Call it in every worker before its first episode."""
    prepare_display()
    # One thread of the software renderer a process: more of them only fight over the cores.
    os.environ["LP_NUM_THREADS"] = "1"
