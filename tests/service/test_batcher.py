"""Order, fairness, bounds, and the one item that fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sarm2_client import wire
from sarm2_client.errors import Overloaded
from sarm2_service.batcher import BoundedQueue, Entry, run_isolated


def queue(**limits: float) -> BoundedQueue[str]:
    settings = {
        "max_items": 1000,
        "max_bytes": 10**6,
        "max_cost": 24,
        "max_background_cost": 6,
        "background_share": 0.125,
    }
    return BoundedQueue("frames", **{**settings, **limits})  # type: ignore[arg-type]


def put(
    waiting: BoundedQueue[str], item: str, qos: wire.Qos = "realtime", deadline: float = 0, size: int = 1
) -> None:
    waiting.put(Entry(item, qos, deadline, 3, size, 0))


def names(entries: Sequence[Entry[str]]) -> list[str]:
    return [entry.item for entry in entries]


def test_the_earliest_deadline_goes_first_and_equal_ones_in_order_of_arrival() -> None:
    waiting = queue()
    for item, deadline in [("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)]:
        put(waiting, item, deadline=deadline)
    assert names(waiting.take()) == ["a", "b1", "b2", "c"]


def test_a_batch_holds_at_most_its_cost_and_the_rest_waits() -> None:
    waiting = queue()
    for index in range(10):
        put(waiting, str(index))
    assert (len(waiting.take()), len(waiting.take()), len(waiting.take())) == (8, 2, 0)


def test_realtime_goes_before_background_whatever_the_deadlines() -> None:
    waiting = queue()
    put(waiting, "trainer", "batch", deadline=0)
    put(waiting, "robot", "realtime", deadline=100)
    assert names(waiting.take())[0] == "robot"


def test_background_keeps_its_share_while_robots_fill_every_batch() -> None:
    waiting = queue()
    for index in range(200):
        put(waiting, "trainer", "batch", deadline=index)
    taken: list[str] = []
    robots = 0  # waiting
    for _ in range(16):
        for _ in range(8 - robots):
            put(waiting, "robot")
        batch = names(waiting.take())
        robots = 8 - batch.count("robot")
        taken += batch
    assert taken.count("trainer") / len(taken) == pytest.approx(0.125, abs=0.01)


def test_robots_keep_most_of_every_batch_against_a_million_background_frames() -> None:
    waiting = queue(max_items=10_000)
    for index in range(5000):
        put(waiting, "trainer", "batch", deadline=index)
    for _ in range(50):
        for _ in range(20):
            put(waiting, "robot")
        left = 20
        while left:
            batch = names(waiting.take())
            robots = batch.count("robot")
            assert robots >= min(left, 6)
            left -= robots


def test_without_robots_a_background_batch_stays_small_so_that_the_next_robot_waits_little() -> None:
    waiting = queue()
    for index in range(10):
        put(waiting, str(index), "batch")
    assert names(waiting.take()) == ["0", "1"]


@pytest.mark.parametrize("cost", [7, 24, 100])
def test_background_work_dearer_than_its_limit_still_runs_beside_robots(cost: int) -> None:
    waiting = queue()
    for item in ("first", "second"):
        waiting.put(Entry(item, "batch", 0.0, cost, 1, 0.0))
    batches = []
    for _ in range(400):
        put(waiting, "robot")
        batches.append(names(waiting.take()))
    assert all(batches)
    assert sum(map(len, batches)) + len(waiting) == 402
    assert [item for batch in batches for item in batch if item != "robot"] == ["first", "second"]
    assert len(waiting) <= 2


def test_a_full_queue_refuses_by_count_and_keeps_what_it_has() -> None:
    waiting = queue(max_items=2)
    put(waiting, "a")
    put(waiting, "b")
    with pytest.raises(Overloaded):
        put(waiting, "c")
    assert names(waiting.take()) == ["a", "b"]
    put(waiting, "c")


def test_a_full_queue_refuses_by_bytes_exactly_at_the_limit() -> None:
    waiting = queue(max_bytes=100)
    put(waiting, "a", size=60)
    put(waiting, "b", size=40)
    with pytest.raises(Overloaded):
        put(waiting, "c", size=1)
    waiting.take()
    assert waiting.size_bytes == 0
    put(waiting, "c", size=100)


def test_an_item_larger_than_a_batch_goes_alone() -> None:
    waiting = queue(max_cost=4)
    waiting.put(Entry("large", "realtime", 0.0, 30, 1, 0.0))
    put(waiting, "small", deadline=1)
    assert names(waiting.take()) == ["large"]


@pytest.mark.parametrize("poison", [{0}, {7}, {3, 4}, set(range(8))])
def test_only_the_items_at_fault_fail_and_the_others_keep_their_order(poison: set[int]) -> None:
    runs: list[int] = []

    def double(items: Sequence[int]) -> list[int]:
        runs.append(len(items))
        if poison & set(items):
            raise ValueError("poison")
        return [2 * item for item in items]

    results = run_isolated(range(8), double, fatal=lambda error: False)
    for item, result in enumerate(results):
        assert isinstance(result, ValueError) if item in poison else result == 2 * item
    assert len(runs) <= 15


def test_a_lost_device_is_not_retried() -> None:
    runs: list[int] = []

    def broken(items: Sequence[int]) -> list[int]:
        runs.append(len(items))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError):
        run_isolated(range(8), broken, fatal=lambda error: True)
    assert runs == [8]


def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def limited(items: Sequence[int]) -> list[int]:
        if len(items) > 3:
            raise OutOfMemoryError
        return list(items)

    assert run_isolated(range(16), limited, fatal=lambda error: False) == list(range(16))
