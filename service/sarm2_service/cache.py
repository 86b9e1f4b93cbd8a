"""Embeddings of pictures already seen: a bounded memory tier, and Redis behind it where one is given.

The cache fails open. A lookup that fails in any way is a miss, a write that fails is counted and
forgotten, and no answer ever waits longer than the Redis budget. Live frames go through memory and are
written behind; only whole episodes read Redis, with one MGET a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import struct
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sarm2_client import wire
from sarm2_client.images import image_digest
from sarm2_service.logs import log
from sarm2_service.metrics import Metrics
from sarm2_service.settings import Settings

Embedding: TypeAlias = npt.NDArray[np.float16]
"""(D,) float16."""

KEY_PREFIX = b"sarm2:e1:"
_MAGIC = b"SE"
_SCHEMA = 1
_FLOAT16 = 1
_HEADER = struct.Struct("<2sBBIII")  # magic, schema, dtype, dim, payload bytes, CRC-32
_WRITE_BATCH = 256
_MAX_CONNECTIONS = 8
_ENTRY_OVERHEAD = 200  # bytes of Python objects about one embedding, roughly


class CacheKeys:
    """Makes keys: SHA-256 over everything that decides an embedding, and the picture's own digest."""

    def __init__(self, *, encoder_id: str, weights_sha256: str, preprocess_hash: str, dtype: str) -> None:
        self._base = hashlib.sha256()
        for part in (encoder_id, weights_sha256, preprocess_hash, dtype):
            text = part.encode()
            self._base.update(struct.pack("<I", len(text)) + text)

    def of(self, image: wire.Image) -> bytes:
        """The 32-byte key of a picture. Raises InvalidImage if its header is no picture's."""
        digest = self._base.copy()
        digest.update(image_digest(image))
        return digest.digest()


def pack(key: bytes, embedding: Embedding) -> bytes:
    """The stored value: header (magic, schema, dtype, dim, length, checksum) and little-endian float16."""
    payload = np.ascontiguousarray(embedding, dtype="<f2").tobytes()
    return (
        _HEADER.pack(_MAGIC, _SCHEMA, _FLOAT16, embedding.size, len(payload), _checksum(key, payload))
        + payload
    )


def unpack(key: bytes, value: object, dim: int) -> Embedding | None:
    """The embedding of a stored value, or None unless it is what `pack` wrote under this key."""
    if not isinstance(value, bytes) or len(value) != _HEADER.size + 2 * dim:
        return None
    magic, schema, dtype, stored_dim, length, checksum = _HEADER.unpack_from(value)
    payload = value[_HEADER.size :]
    if (magic, schema, dtype, stored_dim, length) != (_MAGIC, _SCHEMA, _FLOAT16, dim, len(payload)):
        return None
    if checksum != _checksum(key, payload):
        return None
    embedding = np.frombuffer(payload, dtype="<f2").astype(np.float16)
    return embedding if np.isfinite(embedding).all() else None


def _checksum(key: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(key))


class MemoryTier:
    """Least recently used embeddings, bounded by bytes. Safe for several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[bytes, Embedding] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Embedding | None:
        """The embedding, which then counts as just used."""
        with self._lock:
            embedding = self._entries.get(key)
            if embedding is not None:
                self._entries.move_to_end(key)
            return embedding

    def put(self, key: bytes, embedding: Embedding) -> None:
        """Keep a copy; the oldest go until all fit."""
        kept = np.array(embedding, dtype=np.float16)  # a row of a batch would keep the whole batch alive
        kept.setflags(write=False)
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self.size_bytes -= old.nbytes + _ENTRY_OVERHEAD
            self._entries[key] = kept
            self.size_bytes += kept.nbytes + _ENTRY_OVERHEAD
            while self.size_bytes > self.max_bytes and self._entries:
                _, evicted = self._entries.popitem(last=False)
                self.size_bytes -= evicted.nbytes + _ENTRY_OVERHEAD

    def __len__(self) -> int:
        return len(self._entries)


class RedisTier:
    """Redis with a time budget, no retries, and a breaker: after a failure it is left alone for a while."""

    def __init__(self, settings: Settings, dim: int, metrics: Metrics) -> None:
        assert settings.redis_url is not None
        self._budget_s = settings.redis_budget_ms / 1000
        self._breaker_s = settings.redis_breaker_s
        self._ttl_s = settings.redis_ttl_s
        self._dim = dim
        self._metrics = metrics
        self._closed_until = 0.0
        self._waiting: deque[tuple[bytes, Embedding]] = deque()
        self._max_waiting = settings.redis_queue
        self._wake = asyncio.Event()
        # A plain pool raises when all connections are in use, which would look like a Redis that failed.
        pool = redis_asyncio.BlockingConnectionPool.from_url(
            settings.redis_url,
            timeout=None,  # the budget around each call counts the wait for a connection too
            socket_timeout=self._budget_s,
            socket_connect_timeout=self._budget_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=_MAX_CONNECTIONS,
        )
        self._client = redis_asyncio.Redis.from_pool(pool)

    @property
    def available(self) -> bool:
        """Whether the breaker lets calls through."""
        return time.monotonic() >= self._closed_until

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Embedding]:
        """What Redis has of `keys`, by one MGET within the budget; empty on any failure."""
        if not keys or not self.available:
            return {}
        try:
            async with asyncio.timeout(self._budget_s):
                values = await self._client.mget([KEY_PREFIX + key for key in keys])
        except Exception as error:  # whatever the library raises is a miss
            self._fail("read", error, len(keys))
            return {}
        return self._checked(keys, values)

    def _checked(self, keys: Sequence[bytes], values: Sequence[object]) -> dict[bytes, Embedding]:
        found: dict[bytes, Embedding] = {}
        results = {"hit": 0, "miss": 0, "error": 0}
        for key, value in zip(keys, values, strict=True):
            embedding = unpack(key, value, self._dim)
            if embedding is not None:
                found[key] = embedding
            results["hit" if embedding is not None else "miss" if value is None else "error"] += 1
        for result, count in results.items():
            self._metrics.cache_requests.labels("redis", result).inc(count)
        return found

    def write_behind(self, entries: Iterable[tuple[bytes, Embedding]]) -> None:
        """Queue for writing; call on the event loop. What does not fit the bounded queue counts as lost."""
        for entry in entries:
            if len(self._waiting) >= self._max_waiting:
                self._metrics.cache_lost_writes.inc()
            else:
                self._waiting.append(entry)
        self._wake.set()

    async def run(self) -> None:
        """Write what is queued, for ever; cancel to stop."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_WRITE_BATCH, len(self._waiting)))]
                await self._write(batch)

    async def _write(self, batch: Sequence[tuple[bytes, Embedding]]) -> None:
        if not self.available:
            self._metrics.cache_lost_writes.inc(len(batch))
            return
        try:
            async with asyncio.timeout(self._budget_s * 4):  # nobody waits for a write
                pipeline = self._client.pipeline(transaction=False)
                for key, embedding in batch:
                    pipeline.set(KEY_PREFIX + key, pack(key, embedding), ex=self._ttl_s)
                await pipeline.execute()
        except Exception as error:  # the writer must live on
            self._metrics.cache_lost_writes.inc(len(batch))
            self._fail("write", error, 0)

    def _fail(self, what: str, error: Exception, lookups: int) -> None:
        self._closed_until = time.monotonic() + self._breaker_s
        self._metrics.cache_requests.labels("redis", "error").inc(lookups)
        kind = type(error).__name__
        log(logging.WARNING, "redis_failed", operation=what, error=kind, pause_s=self._breaker_s)

    async def close(self) -> None:
        """Write what still waits, within the budget, and close the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._budget_s * 4):
                while self._waiting and self.available:
                    await self._write([self._waiting.popleft() for _ in range(len(self._waiting))])
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._budget_s * 4):
                await self._client.aclose()


class EmbeddingCache:
    """Both tiers. `put_many` is for the device thread, the rest for the event loop."""

    def __init__(self, settings: Settings, dim: int, metrics: Metrics) -> None:
        self.memory = MemoryTier(settings.cache_bytes) if settings.cache_bytes else None
        self.redis: RedisTier | None = None
        self._settings = settings
        self._dim = dim
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: asyncio.Task[None] | None = None
        self._hit = metrics.cache_requests.labels("memory", "hit")
        self._miss = metrics.cache_requests.labels("memory", "miss")

    @property
    def enabled(self) -> bool:
        """Whether keys are worth computing."""
        return self.memory is not None or self._settings.redis_url is not None

    def get(self, key: bytes) -> Embedding | None:
        """From memory only: never waits."""
        if self.memory is None:
            return None
        embedding = self.memory.get(key)
        (self._miss if embedding is None else self._hit).inc()
        return embedding

    def put_many(self, entries: Mapping[bytes, Embedding]) -> None:
        """Keep fresh embeddings in memory, and have them written to Redis behind the answer."""
        if self.memory is not None:
            for key, embedding in entries.items():
                self.memory.put(key, embedding)
            self._metrics.cache_bytes.set(self.memory.size_bytes)
        if self.redis is not None and self._loop is not None and entries:
            copies = [(key, np.array(embedding)) for key, embedding in entries.items()]
            with contextlib.suppress(RuntimeError):  # the loop has closed: the server is going down
                self._loop.call_soon_threadsafe(self.redis.write_behind, copies)

    async def fetch(self, keys: Iterable[bytes]) -> dict[bytes, Embedding]:
        """What Redis knows of `keys` that memory does not: one MGET, within the budget, else nothing."""
        if self.redis is None:
            return {}
        missing = [key for key in dict.fromkeys(keys) if self.memory is None or self.memory.get(key) is None]
        return await self.redis.get_many(missing)

    async def start(self) -> None:
        """Begin writing behind. Does not touch the network: Redis may be down."""
        self._loop = asyncio.get_running_loop()
        if self._settings.redis_url is not None:
            self.redis = RedisTier(self._settings, self._dim, self._metrics)
            self._writer = asyncio.create_task(self.redis.run(), name="redis-writer")

    async def stop(self) -> None:
        """Stop writing and close the connections; bounded in time."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if self.redis is not None:
            await self.redis.close()
