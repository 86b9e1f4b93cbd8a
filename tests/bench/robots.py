"""Robots that stream as fast as they are answered, in a process of their own beside the measured server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
from websockets.asyncio.client import connect

import fakes
from sarm2_client import wire
from sarm2_client.codec import decode_server_message, encode

DISTINCT = 12
"""Frames that each robot has; it sends them over and over, and the measured server caches nothing."""

WARM_UP = 10


def drive(url: str, robots: int, steps: int, size: int, cameras: Sequence[str]) -> tuple[float, list[float]]:
    """Stream `steps` frames from each of `robots` robots, every one sent when the last was answered.

    Returns:
        answered steps a second of all robots together, and the seconds that each step took.
    """
    return asyncio.run(_drive(url, robots, steps, size, cameras))


async def _drive(
    url: str, robots: int, steps: int, size: int, cameras: Sequence[str]
) -> tuple[float, list[float]]:
    ready = asyncio.Barrier(robots + 1)
    work = [asyncio.create_task(_robot(ready, url, n, steps, size, cameras)) for n in range(robots)]
    await ready.wait()
    started = time.perf_counter()
    took = await asyncio.gather(*work)
    return robots * steps / (time.perf_counter() - started), [one for row in took for one in row]


async def _robot(
    ready: asyncio.Barrier, url: str, number: int, steps: int, size: int, cameras: Sequence[str]
) -> list[float]:
    frames = [fakes.frame(seq, seed=number, size=size) for seq in range(DISTINCT)]
    took: list[float] = []
    async with connect(url, subprotocols=[wire.PROTOCOL], compression=None) as connection:  # type: ignore[list-item]
        await connection.recv()
        await connection.send(encode(fakes.start(f"bench-{number}-{steps}", cameras=cameras)))
        await connection.recv()
        for seq in range(WARM_UP + steps):
            if seq == WARM_UP:
                await ready.wait()
            message = encode(msgspec.structs.replace(frames[seq % DISTINCT], seq=seq, t_ns=seq))
            sent = time.perf_counter()
            await connection.send(message)
            answer = decode_server_message(bytes(await connection.recv()))  # type: ignore[arg-type]
            assert isinstance(answer, wire.Score), answer
            took.append(time.perf_counter() - sent)
    return took[WARM_UP:]
