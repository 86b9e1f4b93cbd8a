"""The asynchronous client: one service, its live episodes, its HTTP routes.

    async with AsyncRewardClient(port=8765) as client:
        async with client.episode("put the peg in the hole", fps=10, cameras=["corner", "wrist"]) as episode:
            await episode.push({"corner": rgb, "wrist": rgb}, state)
        print(episode.summary)

Several episodes may be open at once, each on a connection of its own; one after the other they share one.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import httpx2
import msgspec
import numpy as np
import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.codec import decode_embed_response, decode_episode_response, encode
from sarm2_client.connection import Address, Connection, open_connection
from sarm2_client.errors import (
    BY_CODE,
    BY_STATUS,
    ConnectionLost,
    InvalidInput,
    InvalidMessage,
    Sarm2Error,
    WaitTimeout,
)
from sarm2_client.images import Picture, prepare_image
from sarm2_client.options import EpisodeOptions
from sarm2_client.outbox import own_images, own_state
from sarm2_client.replicas import Replicas
from sarm2_client.stream import AsyncEpisode
from sarm2_client.timeouts import Backoff, Timeouts, bounded

DEFAULT_PORT = 8765
KEY_VARIABLE = "SARM2_CLIENT_KEY"
MEDIA_TYPE = "application/msgpack"


class AsyncRewardClient:
    """A service that scores robot episodes, seen from the robot.

    Nothing is opened before the first call. Every wait is bounded by `timeouts`. Proxies set in the
    environment are not used.

    Args:
        host: name or number of the service. port: 1 to 65535.
        timeouts: every wait by name, in seconds.
        image_size: side in pixels to which pictures are resized; None takes what the service says.
        api_key: sent as a bearer token; by default what the environment holds as `SARM2_CLIENT_KEY`, if it
            does.
        tls: whether to encrypt.
        replicas: further services as (host, port): where the one in use is lost, draining or too slow, the
            next one is turned to, for a lost episode, a new one and every call but `reload`.
        backoff: pauses between attempts to resume.
        options: sizes of the buffers; timeouts, backoff and image size come from the arguments above.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        timeouts: Timeouts | None = None,
        image_size: int | None = None,
        *,
        api_key: str | None = None,
        tls: bool = False,
        replicas: Sequence[tuple[str, int]] = (),
        backoff: Backoff | None = None,
        options: EpisodeOptions | None = None,
    ) -> None:
        self._replicas = Replicas(
            [_address(host, port, tls, api_key) for host, port in [(host, port), *replicas]]
        )
        if image_size is not None and not 1 <= image_size <= 4096:
            raise InvalidInput(f"expected image_size from 1 to 4096, got {image_size}", field="image_size")
        self.timeouts = timeouts or Timeouts()
        self._options = replace(
            options or EpisodeOptions(),
            timeouts=self.timeouts,
            backoff=backoff or Backoff(),
            image_size=image_size,
        )
        self._idle: Connection | None = None
        self._hello: wire.Hello | None = None
        self._http: httpx2.AsyncClient | None = None

    # --- its life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> AsyncRewardClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is idle. Open episodes are closed by their own blocks."""
        idle, self._idle = self._idle, None
        if idle is not None:
            await idle.close()
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    # --- episodes ----------------------------------------------------------------------------------

    def episode(
        self,
        task: str,
        fps: float,
        cameras: Sequence[str],
        session_id: str | None = None,
        qos: wire.Qos = "realtime",
        *,
        reward: wire.RewardFormula = "delta.v1",
        gamma: float = 0.99,
        source: wire.EpisodeSource | None = None,
    ) -> AsyncEpisode:
        """An episode to stream, opened by `async with`.

        Args:
            task: the instruction, in words.
            fps: frames a second, by which the service finds the window's frames.
            cameras: names of the pictures that every frame will bring, as in `hello.model.cameras`.
            session_id: 1 to 128 letters, digits or `. _ : -`; a random one by default.
            qos: `realtime` drops frames rather than lag; `batch` scores every one and waits for room.
            reward: formula of the reward; `gamma` is used by `shaped.v1` alone.
            source: `demonstration` or `rollout`, for the interval that was calibrated on such episodes; by
                default the wider one, which holds for both.
        """
        start = wire.Start(
            session_id=session_id or uuid.uuid4().hex,
            task=task,
            fps=float(fps),
            cameras=list(cameras),
            qos=qos,
            reward=reward,
            gamma=gamma,
            source=source,
        )
        return AsyncEpisode(
            start, self._replicas, self._take_idle, self._connect, self._return_connection, self._options
        )

    async def hello(self) -> wire.Hello:
        """What the service said of itself: model, preprocessing, limits."""
        if self._hello is None:
            await self._return_connection(await self._replicas.ask(self._connect))
        assert self._hello is not None
        return self._hello

    def _take_idle(self) -> Connection | None:
        idle, self._idle = self._idle, None
        return idle if idle is not None and idle.usable else None

    async def _connect(self, address: Address) -> Connection:
        connection = await open_connection(address, self.timeouts)
        self._hello = connection.hello
        return connection

    async def _return_connection(self, connection: Connection) -> None:
        if self._idle is None and connection.usable:
            self._idle = connection
        else:
            await connection.close()

    # --- HTTP --------------------------------------------------------------------------------------

    async def score_episode(
        self,
        task: str,
        fps: float,
        frames: Iterable[Mapping[str, Any]],
        session_id: str | None = None,
        *,
        reward: wire.RewardFormula = "delta.v1",
        gamma: float = 0.99,
        source: wire.EpisodeSource | None = None,
    ) -> wire.EpisodeResponse:
        """Score a whole episode in one call: one score a frame, in order, and the summary.

        Args:
            task, fps, session_id, reward, gamma, source: as in `episode`.
            frames: each a mapping with `images` and `state` as in `AsyncEpisode.push` and, where frames are
                missing, `seq`.

        Raises InvalidInput and its kin, Overloaded, ConnectionLost, WaitTimeout.
        """
        hello = await self.hello()
        body = await asyncio.get_running_loop().run_in_executor(
            None, self._episode_body, hello, task, float(fps), list(frames), session_id, reward, gamma, source
        )
        return decode_episode_response(await self._request("POST", "/v1/episodes:score", body))

    def _episode_body(
        self,
        hello: wire.Hello,
        task: str,
        fps: float,
        frames: list[Mapping[str, Any]],
        session_id: str | None,
        reward: wire.RewardFormula,
        gamma: float,
        source: wire.EpisodeSource | None,
    ) -> bytes:
        size = self._options.image_size or hello.preprocess.size
        request = wire.EpisodeRequest(
            task=task,
            fps=fps,
            frames=[_episode_frame(frame, hello.model, size) for frame in frames],
            session_id=session_id,
            reward=reward,
            gamma=gamma,
            source=source,
        )
        return encode(request)

    async def embed(self, images: Sequence[Picture]) -> npt.NDArray[np.float16]:
        """The frozen encoder's embeddings of pictures, float16 (N, D)."""
        size = self._options.image_size or (await self.hello()).preprocess.size

        def body() -> bytes:
            return encode(wire.EmbedRequest(images=[prepare_image(image, size) for image in images]))

        return await self._embed(await asyncio.get_running_loop().run_in_executor(None, body))

    async def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """The frozen encoder's embeddings of instructions, float16 (N, D)."""
        return await self._embed(encode(wire.EmbedRequest(texts=list(texts))))

    async def _embed(self, body: bytes) -> npt.NDArray[np.float16]:
        response = decode_embed_response(await self._request("POST", "/v1/embed", body))
        return np.frombuffer(response.data, dtype="<f2").astype(np.float16).reshape(-1, response.dim)

    async def models(self) -> Any:
        """What `GET /v1/models` says, as plain lists and dicts."""
        data = await self._request("GET", "/v1/models", None, accept="application/json")
        try:
            return msgspec.json.decode(data)
        except ValueError as error:
            raise InvalidMessage("expected JSON from /v1/models, got something else") from error

    async def reload(self) -> Any:
        """Let the service take what its bundle's folder holds now; what `models` says then.

        Raises NotAllowed where the service does not allow it, Conflict for a bundle that does not fit.
        """
        data = await self._request_at(
            self._replicas.current, "POST", "/v1/model:reload", None, "application/json"
        )
        self._hello = None
        return msgspec.json.decode(data)

    async def _request(self, method: str, path: str, body: bytes | None, accept: str = MEDIA_TYPE) -> bytes:
        """For what does no harm when a second service is asked too, after a first that may have done it."""
        return await self._replicas.ask(lambda address: self._request_at(address, method, path, body, accept))

    async def _request_at(
        self, address: Address, method: str, path: str, body: bytes | None, accept: str
    ) -> bytes:
        headers = {"Accept": accept, "Accept-Encoding": "identity", **address.headers}
        if body is not None:
            headers["Content-Type"] = MEDIA_TYPE
        url = address.http_url + path
        try:
            response = await bounded(
                self._http_client().request(method, url, content=body, headers=headers),
                self.timeouts.request,
                "request",
            )
        except httpx2.TimeoutException as error:
            raise WaitTimeout(
                f"waited too long for {url} ({type(error).__name__})", field="request"
            ) from error
        except httpx2.HTTPError as error:
            raise ConnectionLost(f"no answer from {url} ({error}); is the service running there?") from error
        if response.status_code != 200:
            raise _http_error(response)
        content: bytes = response.content
        return content

    def _http_client(self) -> httpx2.AsyncClient:
        if self._http is None:
            waits = self.timeouts
            self._http = httpx2.AsyncClient(
                timeout=httpx2.Timeout(waits.request, connect=waits.connect, write=waits.request),
                trust_env=False,
            )
        return self._http


def _address(host: str, port: int, tls: bool, api_key: str | None) -> Address:
    if not host or any(sign in host for sign in "/@?# \r\n"):
        raise InvalidInput(
            f"expected a host name or number, got {host!r}; give tls and port apart", field="host"
        )
    if not 1 <= port <= 65535:
        raise InvalidInput(f"expected a port from 1 to 65535, got {port}", field="port")
    return Address(host, port, tls, api_key if api_key is not None else os.environ.get(KEY_VARIABLE) or None)


def _episode_frame(frame: Mapping[str, Any], model: wire.ModelInfo, size: int) -> wire.EpisodeFrame:
    images = own_images(frame["images"], model.cameras)
    return wire.EpisodeFrame(
        images={camera: prepare_image(image, size) for camera, image in images.items()},
        state=own_state(frame["state"], model.state_dim),
        seq=frame.get("seq"),
    )


def _http_error(response: httpx2.Response) -> Sarm2Error:
    """The error of an answer that is no 200: the service's own words where there are some."""
    fallback = BY_STATUS.get(response.status_code, InvalidInput if response.status_code < 500 else Sarm2Error)
    try:
        said = msgspec.json.decode(response.content)
        said = said.get("error", said)
        kind = BY_CODE.get(said["code"], fallback)
        return kind(str(said["message"]), field=said.get("field"), error_id=said.get("error_id"))
    except (ValueError, LookupError, AttributeError, TypeError):
        return fallback(f"{response.request.url.path} answered with status {response.status_code}")
