"""The blocking client for robots and scripts: a thin layer over `aio`, which runs on one background thread.

client = RewardClient(port=8765)
score = client.infer({"images": {"corner": rgb, "wrist": rgb}, "state": state, "task": "open the drawer"})

with client.episode("open the drawer", fps=10, cameras=["corner", "wrist"]) as episode:
    episode.push({"corner": rgb, "wrist": rgb}, state)      # never waits
    print(episode.latest)
print(episode.summary)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.aio import DEFAULT_PORT, AsyncRewardClient
from sarm2_client.errors import InvalidInput, Sarm2Error
from sarm2_client.images import Picture
from sarm2_client.options import EpisodeOptions
from sarm2_client.stream import AsyncEpisode
from sarm2_client.timeouts import Backoff, Timeouts

_T = TypeVar("_T")


class _LoopThread:
    """An event loop on a daemon thread, started by its first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there and wait for it; every coroutine of the client is bounded in itself."""
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="sarm2-client", daemon=True
                )
                self._thread.start()
            return self._loop

    def stop(self) -> None:
        """Stop the loop and its thread; the next use starts another."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        left = asyncio.all_tasks(loop)  # of episodes that are still open
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class Episode:
    """A live episode; see `RewardClient.episode`. Everything it tells is also true while it is open."""

    def __init__(self, episode: AsyncEpisode, loop: _LoopThread) -> None:
        self._episode = episode
        self._loop = loop

    def __enter__(self) -> Episode:
        self._loop.run(self._episode.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._episode.__aexit__(kind, error, trace))

    def push(
        self,
        images: Mapping[str, Picture],
        state: npt.ArrayLike,
        seq: int | None = None,
        t_ns: int | None = None,
        deadline_ms: float | None = None,
    ) -> int:
        """Queue one step for scoring and return its `seq`; arguments and errors as in `AsyncEpisode.push`.

        A realtime episode never waits here: pictures are copied, and resized, encoded and sent on other
        threads. When the queue is full, its oldest frame is dropped and counted in `dropped_unsent`. Push
        from one thread at a time.
        """
        if self._episode.start.qos == "batch":
            return self._loop.run(self._episode.push(images, state, seq, t_ns, deadline_ms))
        frame = self._episode.make_frame(images, state, seq, t_ns, deadline_ms)
        self._episode.offer(frame)
        return frame.seq

    def step(
        self,
        images: Mapping[str, Picture],
        state: npt.ArrayLike,
        seq: int | None = None,
        t_ns: int | None = None,
    ) -> wire.Score:
        """Push one step and wait for its score; arguments and errors as in `AsyncEpisode.step`."""
        return self._loop.run(self._episode.step(images, state, seq, t_ns))

    def close(self) -> wire.Summary:
        """Send what waits, end the episode and return its summary; at most `timeouts.summary` seconds."""
        return self._loop.run(self._episode.close())

    def abort(self) -> None:
        """Leave without a summary."""
        self._loop.run(self._episode.abort())

    @property
    def session_id(self) -> str:
        """Names the episode on the service."""
        return self._episode.start.session_id

    @property
    def task(self) -> str:
        """The instruction."""
        return self._episode.start.task

    @property
    def latest(self) -> wire.Score | None:
        """The answer to the newest frame answered."""
        return self._episode.latest

    @property
    def scores(self) -> list[wire.Score]:
        """Every answer so far; the list grows while frames are scored."""
        return self._episode.scores

    @property
    def summary(self) -> wire.Summary | None:
        """The service's summary, once the episode was closed."""
        return self._episode.summary

    @property
    def errors(self) -> list[Sarm2Error]:
        """What went wrong with single frames; the episode goes on after each."""
        return self._episode.errors

    @property
    def failure(self) -> Sarm2Error | None:
        """What ended the episode early, which `push` and `close` raise."""
        return self._episode.failure

    @property
    def dropped(self) -> int:
        """Realtime frames that the service dropped."""
        return self._episode.dropped

    @property
    def dropped_unsent(self) -> int:
        """Realtime frames that a full queue dropped before they were sent."""
        return self._episode.dropped_unsent

    @property
    def resumes(self) -> int:
        """How often a lost connection was replaced."""
        return self._episode.resumes


class RewardClient:
    """A service that scores robot episodes, seen from the robot.

    Takes the arguments of `AsyncRewardClient`, and `fps`: the rate of the steps given to `infer`, where the
    observation does not tell it. Nothing is opened before the first call. Use it in a `with` block, or
    `close` it. `infer`, `reset` and `get_server_metadata` are called as on a policy's client.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        timeouts: Timeouts | None = None,
        image_size: int | None = None,
        *,
        fps: float = 10.0,
        api_key: str | None = None,
        tls: bool = False,
        replicas: Sequence[tuple[str, int]] = (),
        backoff: Backoff | None = None,
        options: EpisodeOptions | None = None,
    ) -> None:
        self._client = AsyncRewardClient(
            host,
            port,
            timeouts,
            image_size,
            api_key=api_key,
            tls=tls,
            replicas=replicas,
            backoff=backoff,
            options=options,
        )
        self._loop = _LoopThread()
        self._fps = fps
        self._stepped: Episode | None = None

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the episode of `infer`, close what is idle and stop the background thread."""
        stepped, self._stepped = self._stepped, None
        try:
            if stepped is not None:
                stepped.abort()
            self._loop.run(self._client.close())
        finally:
            self._loop.stop()

    # --- step by step ------------------------------------------------------------------------------

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Score one step and wait for the answer, for `timeouts.score` seconds at most.

        Args:
            observation: `images` and `state` as in `Episode.push`; on the first step of an episode `task` or
                `prompt` as well, and `fps` where it is not the client's. Optional: `seq`, `t_ns`.

        Returns: the fields of `wire.Score` as a plain dict.

        Raises InvalidInput for a wrong step, after which the episode goes on; Overloaded for a dropped one;
        ConnectionLost where the episode could not be resumed: `reset` then starts anew.
        """
        episode = self._stepped
        if episode is None:
            episode = self._stepped = self._first_step(observation)
        task = observation.get("task", observation.get("prompt"))
        if task is not None and task != episode.task:
            raise InvalidInput(
                f"the task changed from {episode.task!r} to {task!r} within an episode; call reset() first",
                field="task",
            )
        score = episode.step(
            _required(observation, "images"),
            _required(observation, "state"),
            observation.get("seq"),
            observation.get("t_ns"),
        )
        fields: dict[str, Any] = msgspec.to_builtins(score)
        return fields

    def _first_step(self, observation: Mapping[str, Any]) -> Episode:
        task = observation.get("task", observation.get("prompt"))
        if task is None:
            raise InvalidInput(
                "the first observation of an episode needs a task: the instruction in words", field="task"
            )
        images = _required(observation, "images")
        return self.episode(task, observation.get("fps", self._fps), sorted(images)).__enter__()

    def reset(self) -> wire.Summary | None:
        """End the episode of `infer`; the next step begins another. Returns the summary, if there is one."""
        stepped, self._stepped = self._stepped, None
        if stepped is None:
            return None
        try:
            return stepped.close()
        except Sarm2Error:  # it ended early, which `infer` has already said
            return None

    def get_server_metadata(self) -> dict[str, Any]:
        """The service's `hello` as a plain dict: `model`, `preprocess`, `limits` and versions."""
        hello: dict[str, Any] = msgspec.to_builtins(self._loop.run(self._client.hello()))
        return hello

    # --- whole episodes ----------------------------------------------------------------------------

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
    ) -> Episode:
        """An episode to stream, opened by `with`; arguments as in `AsyncRewardClient.episode`.

        Leaving the block sends what waits and gets the summary; leaving it by an exception drops both.
        """
        episode = self._client.episode(
            task, fps, cameras, session_id, qos, reward=reward, gamma=gamma, source=source
        )
        return Episode(episode, self._loop)

    def score_episode(
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
        """Score a whole episode in one HTTP call; arguments as in `AsyncRewardClient.score_episode`."""
        return self._loop.run(
            self._client.score_episode(
                task, fps, frames, session_id, reward=reward, gamma=gamma, source=source
            )
        )

    def embed(self, images: Sequence[Picture]) -> npt.NDArray[np.float16]:
        """The frozen encoder's embeddings of pictures, float16 (N, D)."""
        return self._loop.run(self._client.embed(images))

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """The frozen encoder's embeddings of instructions, float16 (N, D)."""
        return self._loop.run(self._client.embed_texts(texts))

    def reload(self) -> Any:
        """Let the service take what its bundle's folder holds now; see `AsyncRewardClient.reload`."""
        return self._loop.run(self._client.reload())

    def models(self) -> Any:
        """What `GET /v1/models` says, as plain lists and dicts."""
        return self._loop.run(self._client.models())


def _required(observation: Mapping[str, Any], key: str) -> Any:
    if key not in observation:
        raise InvalidInput(
            f"expected {key!r} in the observation, got {', '.join(map(str, observation))}", field=key
        )
    return observation[key]
