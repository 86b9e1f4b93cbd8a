"""What pages see: the episodes, their scores as server-sent events, and their latest pictures.

Watching never slows a robot: a page that reads too slowly is disconnected and catches up when it reconnects.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import msgspec

from sarm2_client import wire
from sarm2_client.errors import NotFound, Overloaded
from sarm2_client.images import decode_image, encode_jpeg
from sarm2_service.settings import Settings

END_ID = "end"
HEARTBEAT_S = 15.0
_QUEUE_EVENTS = 512
_score_decoder = msgspec.msgpack.Decoder(wire.Score)
_json = msgspec.json.Encoder()


class _Subscriber:
    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE_EVENTS)
        self.lagging = False

    def offer(self, event: bytes | None) -> None:
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.lagging = True


class EpisodeView:
    """One episode as pages see it: bounded history, latest pictures, live subscribers."""

    def __init__(self, start: wire.Start, info: wire.ModelInfo, history_frames: int) -> None:
        self.session_id = start.session_id
        self.task = start.task
        self.fps = start.fps
        self.cameras = list(info.cameras)
        self.started_at = time.time()
        self.state: Literal["live", "ended"] = "live"
        self.frames = 0
        self.latest: wire.Score | None = None
        self.summary: wire.Summary | None = None
        self.subscribers: set[_Subscriber] = set()
        self._info = info
        self._pictures: dict[str, wire.Image] = {}
        self._history: deque[bytes] = deque(maxlen=history_frames)

    def show(self, pictures: Mapping[str, wire.Image]) -> None:
        """Remember the latest picture of each camera."""
        self._pictures = dict(pictures)

    def add_score(self, score: wire.Score, data: bytes) -> None:
        """Tell the subscribers; `data` is the score as msgpack."""
        self.frames += 1
        self.latest = score
        self._history.append(data)
        if self.subscribers:
            self._tell(_score_event(score))

    def end(self, summary: wire.Summary) -> None:
        """The episode is over."""
        self.state = "ended"
        self.summary = summary
        if self.subscribers:
            self._tell(_event("summary", summary, END_ID))
            self._tell(None)

    def _tell(self, event: bytes | None) -> None:
        for subscriber in self.subscribers:
            subscriber.offer(event)

    def disconnect(self) -> None:
        """End the subscriptions of this episode."""
        self._tell(None)

    def jpeg(self, camera: str) -> bytes:
        """The latest picture of a camera as a JPEG file. Raises NotFound."""
        image = self._pictures.get(camera)
        if image is None:
            raise NotFound(
                f"no picture of that camera; this episode has {sorted(self._pictures)}", field="camera"
            )
        if image.enc == "jpeg":
            return image.data
        return encode_jpeg(decode_image(image, max_pixels=2**26))

    def describe(self) -> dict[str, Any]:
        """One row of `GET /v1/episodes`."""
        latest = self.latest
        return {
            "session_id": self.session_id,
            "task": self.task,
            "state": self.state,
            "frames": self.frames,
            "progress": None if latest is None else latest.progress,
            "primitive": None if latest is None else latest.primitive,
            "confidence": None if latest is None else latest.confidence,
            "uncertain": None if latest is None else latest.uncertain,
            "started_at": self.started_at,
            "fps": self.fps,
            "cameras": self.cameras,
        }

    def start_event(self) -> bytes:
        """The first event of every subscription."""
        info = self._info
        return _event(
            "start",
            {
                "session_id": self.session_id,
                "task": self.task,
                "fps": self.fps,
                "cameras": self.cameras,
                "primitives": info.primitives,
                "groups": info.groups,
                "experts": info.experts,
                "started_at": self.started_at,
            },
        )

    async def follow(self, after: int | None) -> AsyncIterator[bytes]:
        """Server-sent events: start, the kept history after `seq` `after`, then live ones until the end."""
        subscriber = _Subscriber()
        history = list(self._history)
        ended = self.summary
        self.subscribers.add(subscriber)
        try:
            yield self.start_event()
            for data in history:
                score = _score_decoder.decode(data)
                if after is None or score.seq > after:
                    yield _score_event(score)
            if ended is not None:
                yield _event("summary", ended, END_ID)
                return
            async for event in _until_end(subscriber):
                yield event
        finally:
            self.subscribers.discard(subscriber)


async def _until_end(subscriber: _Subscriber) -> AsyncIterator[bytes]:
    while not subscriber.lagging:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                event = await subscriber.events.get()
        except TimeoutError:
            event = b": still here\n\n"
        if event is None:
            return
        yield event


class EpisodeFeed:
    """All episodes that pages may see: the open ones and the latest ended ones."""

    def __init__(self, settings: Settings, info: wire.ModelInfo) -> None:
        self._settings = settings
        self._info = info
        self._views: OrderedDict[str, EpisodeView] = OrderedDict()

    def open(self, start: wire.Start) -> EpisodeView:
        """A view of a new episode; an older one of the same id is forgotten."""
        view = EpisodeView(start, self._info, self._settings.history_frames)
        self._views.pop(start.session_id, None)
        self._views[start.session_id] = view
        ended = [name for name, other in self._views.items() if other.state == "ended"]
        for name in ended[: max(0, len(ended) - self._settings.ended_episodes)]:
            del self._views[name]
        return view

    def get(self, session_id: str) -> EpisodeView:
        """The view of an episode. Raises NotFound."""
        view = self._views.get(session_id)
        if view is None:
            raise NotFound("no such episode; GET /v1/episodes lists them", field="session_id")
        return view

    def list(self) -> list[dict[str, Any]]:
        """All episodes, newest first."""
        return [view.describe() for view in reversed(self._views.values())]

    def close(self) -> None:
        """End every subscription: the server is going away."""
        for view in self._views.values():
            view.disconnect()

    def check_room(self) -> None:
        """Raise Overloaded if as many pages watch as are allowed."""
        if sum(len(view.subscribers) for view in self._views.values()) >= self._settings.max_subscribers:
            raise Overloaded(
                f"{self._settings.max_subscribers} pages are watching, the most allowed; close one"
            )


def _score_event(score: wire.Score) -> bytes:
    return _event("score", score, str(score.seq))


def _event(name: str, data: object, event_id: str | None = None) -> bytes:
    line = f"event: {name}\n".encode() + b"data: " + _json.encode(data) + b"\n"
    return line + (f"id: {event_id}\n".encode() if event_id else b"") + b"\n"
