"""Micro-batching: a bounded queue in deadline order, and a run that isolates the one item that fails.

There is no timer: the device takes whatever waits the moment it is free. Realtime work goes before background
work, which keeps a share of every full batch, so that neither starves.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sarm2_client.errors import Overloaded
from sarm2_client.wire import Qos

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One waiting item.

    Attributes:
        item: the work.
        qos: `realtime` or `batch`.
        deadline: seconds on the monotonic clock; the smallest goes first among its kind.
        cost: pictures or windows it adds to a batch, at least 1; a large picture counts as several.
        size_bytes: memory it holds while it waits.
        enqueued: seconds on the monotonic clock.
    """

    item: T
    qos: Qos
    deadline: float
    cost: int
    size_bytes: int
    enqueued: float


class BoundedQueue(Generic[T]):
    """Waiting work, bounded by count and bytes, earliest deadline first. Not locked: its owner locks."""

    def __init__(
        self,
        name: str,
        *,
        max_items: int,
        max_bytes: int,
        max_cost: int,
        max_background_cost: int,
        background_share: float,
    ) -> None:
        self.name = name
        self.size_bytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_cost = max_cost
        self._max_background_cost = min(max_background_cost, max_cost)
        self._background_share = background_share
        self._credit = 0.0  # background cost owed from batches that realtime work filled
        self._order = itertools.count()
        self._heaps: dict[Qos, list[tuple[float, int, Entry[T]]]] = {"realtime": [], "batch": []}

    def __len__(self) -> int:
        return sum(len(heap) for heap in self._heaps.values())

    def put(self, entry: Entry[T]) -> None:
        """Queue an entry. Raises Overloaded, and keeps nothing, if the queue is full."""
        if len(self) >= self._max_items:
            raise Overloaded(f"the queue of {self.name} is full ({self._max_items} items); try again later")
        if self.size_bytes + entry.size_bytes > self._max_bytes:
            raise Overloaded(f"the queue of {self.name} is full ({self._max_bytes} bytes); try again later")
        self.size_bytes += entry.size_bytes
        heapq.heappush(self._heaps[entry.qos], (entry.deadline, next(self._order), entry))

    def take(self) -> list[Entry[T]]:
        """The next batch, possibly empty.

        Without realtime work a batch holds at most `max_background_cost`, for a robot's frame that arrives
        meanwhile waits for all of it. A single item over the limit goes alone.
        """
        realtime, background = self._heaps["realtime"], self._heaps["batch"]
        if not realtime:
            self._credit = 0.0
            return self._pop(background, self._max_background_cost, at_least_one=True)
        reserved = self._reserve() if background else 0
        batch = self._pop(realtime, self._max_cost - reserved, at_least_one=not reserved)
        left = self._max_cost - sum(entry.cost for entry in batch)
        extra = self._pop(background, min(left, reserved), at_least_one=not batch)
        self._credit = max(0.0, self._credit - sum(entry.cost for entry in extra))
        return batch + extra

    def _reserve(self) -> int:
        """Cost kept for background work in this batch: its share, saved up until one item fits."""
        share = self._background_share * min(self._max_cost, self._waiting_cost("realtime") + 1)
        first = self._heaps["batch"][0][2].cost
        self._credit = min(self._credit + share, float(max(self._max_background_cost, first)))
        return int(self._credit) if self._credit >= first else 0

    def _waiting_cost(self, qos: Qos) -> int:
        total = 0
        for _, _, entry in self._heaps[qos]:
            total += entry.cost
            if total >= self._max_cost:
                break
        return total

    def _pop(
        self, heap: list[tuple[float, int, Entry[T]]], room: int, *, at_least_one: bool
    ) -> list[Entry[T]]:
        taken: list[Entry[T]] = []
        while heap:
            entry = heap[0][2]
            if entry.cost > room and (taken or not at_least_one):
                break
            heapq.heappop(heap)
            taken.append(entry)
            room -= entry.cost
            self.size_bytes -= entry.size_bytes
        return taken


def run_isolated(
    items: Sequence[T],
    run: Callable[[Sequence[T]], Sequence[R]],
    *,
    fatal: Callable[[Exception], bool],
) -> list[R | Exception]:
    """Run a batch; if it raises, halve it until the items at fault stand alone.

    Returns one result an item, in order: what `run` gave, or the exception of the item that fails by itself.
    Halving also serves a device that is out of memory: the halves need less.

    Args:
        items: the batch.
        run: gives as many results as it gets items, or raises.
        fatal: says of an exception whether the device is lost; then it is raised and nothing is retried.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except Exception as error:
        if fatal(error):
            raise
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    first = run_isolated(items[:middle], run, fatal=fatal)
    return first + run_isolated(items[middle:], run, fatal=fatal)
