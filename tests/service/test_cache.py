"""The cache fails open: whatever happens to it, frames are scored, and a wrong value is a miss."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
import redis
from prometheus_client import CollectorRegistry
from redis.backoff import NoBackoff
from redis.retry import Retry as SyncRetry

import fakes
from running_server import WAIT_S, RunningServer, Serve, wait_until
from sarm2_client import wire
from sarm2_client.codec import encode
from sarm2_service.cache import KEY_PREFIX, CacheKeys, EmbeddingCache, MemoryTier, RedisTier, pack, unpack
from sarm2_service.metrics import Metrics
from sarm2_service.run import load_model
from sarm2_service.settings import Settings

R = TypeVar("R")
KEY = bytes(range(32))
DIM = 8
VALUE = np.arange(DIM, dtype=np.float16)


def keys(**changes: str) -> CacheKeys:
    parts = {"encoder_id": "e", "weights_sha256": "w", "preprocess_hash": "p", "dtype": "float32"}
    return CacheKeys(**{**parts, **changes})


# --- keys and values ---------------------------------------------------------------------------------


def test_everything_that_decides_an_embedding_is_in_its_key() -> None:
    image = fakes.jpeg(1)
    raw = wire.Image(enc="raw", data=bytes(24), shape=(2, 4, 3), dtype="uint8")
    turned = wire.Image(enc="raw", data=bytes(24), shape=(4, 2, 3), dtype="uint8")
    variants = [
        keys().of(image),
        keys(encoder_id="x").of(image),
        keys(weights_sha256="x").of(image),
        keys(preprocess_hash="x").of(image),
        keys(dtype="bfloat16").of(image),
        keys(encoder_id="ew", weights_sha256="").of(image),  # parts cannot slide into each other
        keys().of(fakes.jpeg(2)),
        keys().of(raw),
        keys().of(turned),
    ]
    assert len(set(variants)) == len(variants)
    assert {len(key) for key in variants} == {32}


def test_bytes_after_the_end_of_a_jpeg_change_neither_picture_nor_key() -> None:
    image = fakes.jpeg(1)
    longer = wire.Image(enc="jpeg", data=image.data + b"trailing")
    assert keys().of(longer) == keys().of(image)


def test_a_value_comes_back_as_it_was() -> None:
    restored = unpack(KEY, pack(KEY, VALUE), DIM)
    assert restored is not None
    assert restored.dtype == np.float16
    assert np.array_equal(restored, VALUE)


def corrupted() -> dict[str, object]:
    good = pack(KEY, VALUE)
    not_finite = VALUE.copy()
    not_finite[0] = np.nan
    return {
        "nothing": None,
        "text": "hello",
        "empty": b"",
        "short": good[:-1],
        "long": good + b"x",
        "old schema": good[:2] + b"\x00" + good[3:],
        "other dtype": good[:3] + b"\x02" + good[4:],
        "other dim": pack(KEY, VALUE[:4]),
        "another key's": pack(bytes(32), VALUE),
        "not finite": pack(KEY, not_finite),
        **{f"bit {bit} flipped": _flip(good, bit) for bit in range(0, 8 * len(good), 7)},
    }


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("case", corrupted())
def test_anything_but_a_whole_value_of_this_key_is_a_miss(case: str) -> None:
    assert unpack(KEY, corrupted()[case], DIM) is None


def test_memory_is_bounded_and_forgets_the_least_recently_used() -> None:
    tier = MemoryTier(max_bytes=3 * (16 + 200))
    for index in range(3):
        tier.put(bytes([index]), VALUE)
    tier.get(b"\x00")
    tier.put(b"\x03", VALUE)
    assert [tier.get(bytes([index])) is not None for index in range(4)] == [True, False, True, True]
    assert tier.size_bytes == 3 * (16 + 200)


def test_an_embedding_in_memory_does_not_keep_its_whole_batch_alive() -> None:
    tier = MemoryTier(max_bytes=10**6)
    tier.put(KEY, np.zeros((100, DIM), np.float16)[3])
    kept = tier.get(KEY)
    assert kept is not None
    assert kept.base is None
    assert not kept.flags.writeable


# --- Redis -------------------------------------------------------------------------------------------


class RedisServer:
    """A real redis-server on a free port, without persistence."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        binary = shutil.which("redis-server")
        assert binary is not None, "these tests need redis-server"
        command = [binary, "--port", str(self.port), "--save", "", "--dir", str(folder), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with self.client() as client:
            self._wait(client)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, retry=SyncRetry(NoBackoff(), 0))

    def _wait(self, client: redis.Redis) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def with_tier(url: str, use: Callable[[RedisTier], Awaitable[R]], **settings: object) -> tuple[R, Metrics]:
    """Run `use` on a tier in an event loop of its own."""
    metrics = Metrics(CollectorRegistry())

    async def main() -> R:
        # A second where the budget is not the subject: the machine that runs this may be busy.
        chosen: dict[str, Any] = {"redis_budget_ms": 1000, **settings}
        tier = RedisTier(Settings(redis_url=url, **chosen), DIM, metrics)
        try:
            return await use(tier)
        finally:
            await tier.close()

    return asyncio.run(main()), metrics


def failed_lookups(metrics: Metrics) -> float | None:
    labels = {"tier": "redis", "result": "error"}
    return metrics.registry.get_sample_value("sarm2_cache_requests_total", labels)


@pytest.mark.redis
def test_what_one_replica_wrote_another_reads_with_one_call(redis_server: RedisServer) -> None:
    async def write(tier: RedisTier) -> None:
        tier.write_behind([(bytes([index]), VALUE + index) for index in range(5)])

    async def read(tier: RedisTier) -> dict[bytes, object]:
        return dict(await tier.get_many([bytes([index]) for index in range(7)]))

    with_tier(redis_server.url, write)
    found, metrics = with_tier(redis_server.url, read)
    assert sorted(found) == [bytes([index]) for index in range(5)]
    value = metrics.registry.get_sample_value
    assert value("sarm2_cache_requests_total", {"tier": "redis", "result": "hit"}) == 5
    assert value("sarm2_cache_requests_total", {"tier": "redis", "result": "miss"}) == 2


@pytest.mark.redis
def test_many_lookups_at_once_wait_for_a_connection_and_leave_the_breaker_closed(
    redis_server: RedisServer,
) -> None:
    async def read(tier: RedisTier) -> bool:
        await asyncio.gather(*(tier.get_many([KEY]) for _ in range(100)))
        return tier.available

    available, metrics = with_tier(redis_server.url, read)
    assert available
    assert not failed_lookups(metrics)


@pytest.mark.redis
def test_a_corrupt_value_in_redis_is_a_miss_and_counted(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.set(KEY_PREFIX + KEY, b"rubbish")

    async def read(tier: RedisTier) -> dict[bytes, object]:
        return dict(await tier.get_many([KEY]))

    found, metrics = with_tier(redis_server.url, read)
    assert found == {}
    assert failed_lookups(metrics) == 1


async def read_twice(tier: RedisTier) -> float:
    """Seconds of the first of two lookups."""
    before = time.monotonic()
    assert await tier.get_many([KEY]) == {}
    first_s = time.monotonic() - before
    assert await tier.get_many([KEY]) == {}
    return first_s


@pytest.mark.redis
def test_a_frozen_redis_costs_its_budget_once_and_then_nothing(redis_server: RedisServer) -> None:
    redis_server.process.send_signal(signal.SIGSTOP)
    first_s, metrics = with_tier(redis_server.url, read_twice, redis_budget_ms=50, redis_breaker_s=60)
    assert first_s < 1  # the budget is 50 ms; the rest is for a busy machine (the library's default: 59 s)
    assert failed_lookups(metrics) == 1  # the second was not asked


@pytest.mark.redis
def test_a_dead_redis_costs_nothing_once_the_breaker_is_open(redis_server: RedisServer) -> None:
    redis_server.stop()
    first_s, metrics = with_tier(redis_server.url, read_twice, redis_budget_ms=50, redis_breaker_s=60)
    assert first_s < 1
    assert failed_lookups(metrics) == 1


@pytest.mark.redis
def test_the_breaker_closes_again_when_redis_is_back(redis_server: RedisServer) -> None:
    redis_server.process.send_signal(signal.SIGSTOP)

    async def use(tier: RedisTier) -> bool:
        await tier.get_many([KEY])
        redis_server.process.send_signal(signal.SIGCONT)
        assert not tier.available
        await asyncio.sleep(1.0)
        tier.write_behind([(KEY, VALUE)])
        writer = asyncio.create_task(tier.run())
        for _ in range(100):
            await asyncio.sleep(0.02)
            if found := await tier.get_many([KEY]):
                break
        writer.cancel()
        return KEY in found

    back, _ = with_tier(redis_server.url, use, redis_breaker_s=1.0, redis_budget_ms=200)
    assert back


@pytest.mark.redis
@pytest.mark.parametrize(
    "options", [("--requirepass", "secret"), ("--maxmemory", "1", "--maxmemory-policy", "noeviction")]
)
def test_a_redis_that_wants_a_password_or_is_full_loses_writes_and_nothing_else(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    server = RedisServer(tmp_path, *options)

    async def write(tier: RedisTier) -> None:
        tier.write_behind([(KEY, VALUE)])

    try:
        _, metrics = with_tier(server.url, write)
    finally:
        server.stop()
    assert metrics.registry.get_sample_value("sarm2_cache_lost_writes_total") == 1


@pytest.mark.redis
def test_what_no_client_library_should_raise_is_a_miss_and_a_lost_write_too(
    redis_server: RedisServer,
) -> None:
    async def use(tier: RedisTier) -> bool:
        writer = asyncio.create_task(tier.run())
        assert await tier.get_many([KEY]) == {}
        await asyncio.sleep(0.1)  # longer than the breaker's pause
        tier.write_behind([(KEY, VALUE)])
        await asyncio.wait({writer}, timeout=0.1)
        alive = not writer.done()
        writer.cancel()
        return alive

    # An encoding that Python does not know: a LookupError at the first command.
    alive, metrics = with_tier(f"{redis_server.url}?encoding=none", use, redis_breaker_s=0.05)
    assert alive
    assert failed_lookups(metrics) == 1
    assert metrics.registry.get_sample_value("sarm2_cache_lost_writes_total") == 1


def test_writes_beyond_the_bounded_queue_are_counted_as_lost() -> None:
    async def flood(tier: RedisTier) -> None:
        tier.write_behind([(KEY, VALUE)] * 30)

    _, metrics = with_tier("redis://127.0.0.1:1/0", flood, redis_queue=10)
    assert metrics.registry.get_sample_value("sarm2_cache_lost_writes_total") == 30


def score_over_http(server: RunningServer) -> wire.EpisodeResponse:
    frames = [wire.EpisodeFrame(images=f.images, state=f.state) for f in map(fakes.frame, range(8))]
    body = encode(wire.EpisodeRequest(task=fakes.TASKS[0], fps=10, frames=frames))
    with server.http() as http:
        headers = {"content-type": "application/msgpack"}
        answer = http.post("/v1/episodes:score", content=body, headers=headers)
    assert answer.status_code == 200, answer.text

    return msgspec.msgpack.decode(answer.content, type=wire.EpisodeResponse)


@pytest.mark.redis
def test_a_second_replica_relabels_from_redis_without_encoding_and_gives_the_same_curve(
    serve: Serve, redis_server: RedisServer
) -> None:
    first = serve(redis_url=redis_server.url, redis_budget_ms=1000)
    fresh = score_over_http(first)
    with redis_server.client() as client:
        wait_until(lambda: client.dbsize() == 24)  # written behind the answer
    second = serve(redis_url=redis_server.url, redis_budget_ms=1000)
    cached = score_over_http(second)
    assert second.metric("sarm2_encoder_images_total") == 0
    assert [score.progress for score in cached.scores] == [score.progress for score in fresh.scores]


@pytest.mark.redis
def test_a_replica_of_another_arithmetic_does_not_read_these_embeddings(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    bundle = fakes.make_bundle(tmp_path)
    for dtype in ("float32", "bfloat16"):
        settings = Settings(bundle=bundle, encoder_dtype=dtype, torch_threads=1)
        server = serve(load_model(settings), redis_url=redis_server.url, redis_budget_ms=1000)
        score_over_http(server)
        assert server.metric("sarm2_encoder_images_total") == 24
        with redis_server.client() as client:
            wait_until(lambda: client.dbsize() >= 24)  # written behind the answer


@pytest.mark.redis
def test_an_episode_resumes_on_another_replica_from_redis_with_the_same_curve(
    serve: Serve, redis_server: RedisServer
) -> None:
    first = serve(redis_url=redis_server.url, redis_budget_ms=1000)
    with first.robot() as robot:
        robot.start("moves")
        curve = [robot.score(fakes.frame(seq)).progress for seq in range(30)]
    with redis_server.client() as client:
        wait_until(lambda: client.dbsize() == 90)
    second = serve(redis_url=redis_server.url, redis_budget_ms=1000)
    with second.robot() as robot:
        started = robot.start("moves", resume_from=30)
        assert (started.next_seq, started.resumed) == (0, False)
        again = [robot.score(fakes.frame(seq)).progress for seq in range(30)]
        assert second.metric("sarm2_encoder_images_total") == 0
        robot.score(fakes.frame(30))
        assert second.metric("sarm2_encoder_images_total") == 3
    assert again == curve


@pytest.mark.redis
def test_redis_down_at_the_start_and_dying_under_load_is_never_seen_by_a_robot(
    serve: Serve, redis_server: RedisServer
) -> None:
    down = serve(redis_url="redis://127.0.0.1:1/0")
    dying = serve(redis_url=redis_server.url)
    for server in (down, dying):
        with server.http() as http:
            assert http.get("/readyz").status_code == 200
        with server.robot() as robot:
            robot.start("robot")
            for seq in range(10):
                if seq == 5 and redis_server.process.poll() is None:
                    os.kill(redis_server.process.pid, signal.SIGKILL)
                robot.score(fakes.frame(seq))
        assert len(score_over_http(server).scores) == 8


def test_without_memory_and_redis_no_key_is_computed() -> None:
    settings = Settings(cache_bytes=0)
    assert not EmbeddingCache(settings, DIM, Metrics(CollectorRegistry())).enabled
