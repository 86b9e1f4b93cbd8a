"""Episodes made by Ray's workers, on this machine or on a cluster, in the order of their plan."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sarm2_client.errors import ConnectionLost, InvalidInput, WaitTimeout

from .collection import PENDING_PER_WORKER, RETRIES, MakeEpisode, make_planned, start_worker
from .episode import Episode
from .metaworld_robot import EpisodePlan

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.placement_group import PlacementGroup

CONNECT_S = 10.0
"""How long the head of a cluster may take to accept a connection."""

START_S = 600.0
"""How long a cluster may take to have a CPU free for every worker: one that grows on demand needs minutes."""

EPISODE_S = 3600.0
"""How long the next episode may take, its retries included. Longer than a robot waits for its service."""


def iterate_episodes_on_ray(
    plan: Iterable[EpisodePlan],
    workers: int = 2,
    *,
    address: str,
    make: MakeEpisode = make_planned,
    start_s: float = START_S,
    episode_s: float = EPISODE_S,
) -> Iterator[Episode]:
    """Make the episodes of a plan in its order, in `workers` processes of Ray, each on a CPU of its own.

    At most 3 episodes a worker are waiting at any time, so memory stays bounded. Leaving the loop early ends
    what is under way. An episode whose worker died is made again, at most `RETRIES` times. Where the head of
    a cluster is lost, Ray itself ends this process, after a minute and with exit code 1.

    Every node needs this package with its simulator, at the same versions of Python and Ray. What `make`
    reads must be there too: the weights of a policy have to lie on a disk that all nodes share, under the
    same absolute path, and a service that it asks has to be reachable from all of them.

    Args:
        workers: the CPUs that are reserved for the whole loop, so the robots at a time; from 1 up.
        address: `local` starts a Ray on this machine and ends it after the loop; anything else is where
            `ray.init` finds a cluster: HOST:PORT of its head, or `auto`. A Ray that this process is
            connected to already is used instead, and stays.
        make: what makes one, in a worker process and so picklable; `run_episode` by default.
        start_s: seconds that the cluster may take to have the CPUs free.
        episode_s: seconds that the next episode may take, its retries included.

    Raises:
        InvalidInput: Ray is not installed, `workers` is below 1, or `address` is none.
        ConnectionLost: there is no Ray at `address`, or an episode's workers died too often.
        WaitTimeout: a named wait ran out.
        What `make` raises.
    """
    if workers < 1:
        raise InvalidInput(f"expected at least one worker for Ray, got {workers}", field="workers")
    with _connected(address, workers), _reserved(workers, start_s) as group:
        start = _starter(group, make)
        pending: deque[ObjectRef[Episode]] = deque()
        for entry in plan:
            pending.append(start(entry))
            if len(pending) >= PENDING_PER_WORKER * workers:
                yield _finished(pending.popleft(), episode_s)
        while pending:
            yield _finished(pending.popleft(), episode_s)


@contextmanager
def _connected(address: str, workers: int) -> Iterator[None]:
    """A connection to Ray, ended on exit unless it was there before."""
    try:
        import ray
    except ImportError as error:
        raise InvalidInput('Ray is not installed; install it with: pip install -e ".[ray]"') from error
    if ray.is_initialized():
        yield
        return
    _connect(address, workers)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str, workers: int) -> None:
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    local = address == "local"
    try:
        if not local:
            _knock(address)
        ray.init(
            address=address,
            num_cpus=workers if local else None,  # refused where a cluster has its own
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as error:
        raise ConnectionLost(f"there is no Ray at {address}: {error}") from error
    except RuntimeError as error:  # another version of Ray or of Python, say
        raise InvalidInput(f"the Ray at {address} does not take us: {error}", field="ray") from error
    except ValueError as error:
        raise InvalidInput(
            f"expected local, auto or HOST:PORT as Ray's address, got {address!r}: {error}", field="ray"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError at once where nobody listens: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), CONNECT_S).close()


@contextmanager
def _reserved(workers: int, seconds: float) -> Iterator[PlacementGroup]:
    """CPUs for the workers. Giving them back ends what is still under way on them, and nothing is retried."""
    from ray.util import placement_group, remove_placement_group

    group = placement_group([{"CPU": 1.0}] * workers)
    try:
        if not group.wait(seconds):
            raise WaitTimeout(
                f"waited {seconds:g} s for Ray to have {workers} CPUs free; add nodes, or take fewer workers",
                field="start_s",
            )
        yield group
    finally:
        remove_placement_group(group)


def _starter(group: PlacementGroup, make: MakeEpisode) -> Callable[[EpisodePlan], ObjectRef[Episode]]:
    """What hands an entry of the plan to the workers."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    task = ray.remote(
        num_cpus=1, max_retries=RETRIES, scheduling_strategy=PlacementGroupSchedulingStrategy(group)
    )(_make_in_worker)
    return lambda entry: task.remote(make, entry)


def _make_in_worker(make: MakeEpisode, entry: EpisodePlan) -> Episode:
    start_worker()
    return make(entry)


def _finished(reference: ObjectRef[Episode], seconds: float) -> Episode:
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    try:
        return ray.get(reference, timeout=seconds)
    except RayTaskError as error:
        raise error.cause from error  # what `make` raised, as processes on this machine have it
    except GetTimeoutError as error:
        raise WaitTimeout(
            f"waited {seconds:g} s for the next episode from Ray; see the logs of its workers",
            field="episode_s",
        ) from error
    except RayError as error:
        raise ConnectionLost(f"Ray gave an episode up, after {RETRIES} retries at most: {error}") from error
