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

RETRIES = 3
"""How often an episode is made again because its worker died, or the one beside it, or its node."""

MakeEpisode: TypeAlias = Callable[[EpisodePlan], Episode]
"""Makes one episode, in a worker process and so picklable."""


class Collector(Protocol):
    """Makes the episodes of a plan in its order: `iterate_episodes`, or what does the same elsewhere."""

    def __call__(self, plan: Iterable[EpisodePlan], *, make: MakeEpisode) -> Iterator[Episode]:
        """Make them, each by `make`."""


def make_planned(entry: EpisodePlan, *, render: bool = True) -> Episode:
    """The scripted episode of a plan's entry."""
    return run_episode(entry.task_name, entry.kind, entry.seed, render=render, uneven=entry.uneven)


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
    stops the workers. Where a worker dies, what was under way is made again.

    Raises:
        ModelFailed: workers died while the same episode was waited for, more than `RETRIES` times.
        WaitTimeout: an episode took longer than `EPISODE_TIMEOUT_S`.
        What `make` raises.
    """
    plans = iter(plan)
    if workers <= 0:
        yield from map(make, plans)
        return
    pool = _Workers(workers, make)
    try:
        for entry in plans:
            pool.begin(entry)
            if pool.waiting >= PENDING_PER_WORKER * workers:
                yield pool.take()
        while pool.waiting:
            yield pool.take()
    finally:
        pool.end()


class _Workers:
    """Processes, and the episodes that they are making, in order."""

    def __init__(self, count: int, make: MakeEpisode) -> None:
        self._count, self._make = count, make
        self._pool = self._new()
        self._pending: deque[tuple[EpisodePlan, Future[Episode]]] = deque()

    @property
    def waiting(self) -> int:
        """How many episodes are begun and not taken."""
        return len(self._pending)

    def begin(self, entry: EpisodePlan) -> None:
        """Have an episode made."""
        self._pending.append((entry, self._submit(entry)))

    def take(self) -> Episode:
        """The next episode; a worker that hangs is killed."""
        broken: BrokenProcessPool | None = None
        for _ in range(1 + RETRIES):
            if broken is not None:
                self._begin_again()
            _, future = self._pending[0]
            try:
                episode = future.result(EPISODE_TIMEOUT_S)
                self._pending.popleft()
                return episode
            except BrokenProcessPool as error:
                broken = error
            except TimeoutError as error:
                if future.done():  # the maker's own
                    raise
                for process in list(self._pool._processes.values()):
                    process.kill()
                raise WaitTimeout(
                    f"waited {EPISODE_TIMEOUT_S:.0f} s for an episode: its worker hangs, or its policy is "
                    "too slow here; what is finished is kept, start again",
                    field="episode",
                ) from error
        raise ModelFailed(
            f"simulator processes died {1 + RETRIES} times over one episode (short of memory?); start again, "
            "what was finished is kept"
        ) from broken

    def end(self) -> None:
        """Stop the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin_again(self) -> None:
        """One death breaks a whole pool: a new one makes what the old one has not."""
        self.end()
        self._pool = self._new()
        pending = list(self._pending)
        self._pending.clear()
        for entry, future in pending:
            self._pending.append((entry, future if _is_over(future) else self._submit(entry)))

    def _submit(self, entry: EpisodePlan) -> Future[Episode]:
        try:
            return self._pool.submit(self._make, entry)
        except BrokenProcessPool as error:  # `take` will notice
            lost: Future[Episode] = Future()
            lost.set_exception(error)
            return lost

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            self._count, mp_context=context, initializer=_start_child, initargs=(os.getpid(),)
        )


def _is_over(future: Future[Episode]) -> bool:
    """Whether a maker has returned or raised; one whose pool broke has done neither."""
    if not future.done() or future.cancelled():
        return False
    return not isinstance(future.exception(), BrokenProcessPool)


def _start_child(parent: int) -> None:
    end_with(parent)  # a pool's processes do not notice that the one they work for was killed
    start_worker()


def start_worker() -> None:
    """Set this process's renderer up. Call it in every worker before its first episode."""
    prepare_display()
    # One thread of the software renderer a process: more of them only fight over the cores.
    os.environ["LP_NUM_THREADS"] = "1"
