"""Whole episodes and bare pictures over HTTP: bodies in, the same scoring as live, answers out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sarm2_client import wire
from sarm2_client.checks import check_task
from sarm2_client.codec import decode_embed_request, decode_episode_request, encode
from sarm2_client.errors import (
    BY_CODE,
    InvalidInput,
    InvalidMessage,
    ModelFailed,
    Overloaded,
    Sarm2Error,
    TooLarge,
)
from sarm2_service.session import Session
from sarm2_service.state import Service
from sarm2_service.steps import Step

MSGPACK = "application/msgpack"
_FORM_FIELDS = ("task", "fps", "state", "session_id", "reward", "gamma", "source")


async def score_episode(service: Service, request: Request) -> Response:
    """Score the episode in the body. Answers msgpack, or JSON where `Accept` asks for it.

    Raises a Sarm2Error for a body that is no episode, or for the first frame that cannot be scored, and
    ClientDisconnect once nobody waits for the answer any more.
    """
    if service.uploads.locked():
        count = service.settings.max_uploads
        raise Overloaded(f"{count} whole episodes are being scored, the most allowed; try again later")
    async with service.uploads:
        episode = await _read_episode(service, request)
        response = await _score(service, episode, request.is_disconnected)
    return _answer(request, response)


async def embed(service: Service, request: Request) -> Response:
    """Embed the pictures and texts in the body. Raises a Sarm2Error for the first that cannot be embedded."""
    async with _turn(service):
        body = decode_embed_request(await request.body(), max_bytes=service.settings.max_body_bytes)
        count, most = len(body.images) + len(body.texts), service.settings.max_embed_images
        if not 1 <= count <= most:
            raise TooLarge(f"expected 1 to {most} pictures and texts together, got {count}", field="images")
        for text in body.texts:
            check_task(text, service.settings.max_task_chars)
        rows_ND = np.concatenate(
            [await service.scorer.embed(body.images), await service.scorer.embed_texts(body.texts)]
        )
    encoder = service.scorer.model.encoder
    answer = wire.EmbedResponse(
        dim=encoder.dim, data=np.ascontiguousarray(rows_ND, "<f2").tobytes(), encoder_id=encoder.id
    )
    return Response(encode(answer), media_type=MSGPACK)


@asynccontextmanager
async def _turn(service: Service) -> AsyncIterator[None]:
    """One of the places of /v1/embed, in the order of arrival. The body is read once it is had.

    Robots whose policies see embeddings call at every chunk of actions: a moment's wait costs them less than
    a refusal, for which they would have to begin their rollouts anew.
    """
    limit_s, count = service.settings.embed_wait_s, service.settings.max_embeds
    try:
        async with asyncio.timeout(limit_s):
            await service.embeds.acquire()
    except TimeoutError:
        raise Overloaded(
            f"{count} calls of /v1/embed are being answered, the most allowed, and none was through within "
            f"{limit_s:g} s; try again later"
        ) from None
    try:
        yield
    finally:
        service.embeds.release()


def _answer(request: Request, response: wire.EpisodeResponse) -> Response:
    if "application/json" in request.headers.get("accept", ""):
        return Response(msgspec.json.encode(response), media_type="application/json")
    return Response(encode(response), media_type=MSGPACK)


# --- scoring -----------------------------------------------------------------------------------------


async def _score(
    service: Service, request: wire.EpisodeRequest, is_gone: Callable[[], Awaitable[bool]]
) -> wire.EpisodeResponse:
    start = wire.Start(
        session_id=request.session_id or f"http-{secrets.token_hex(8)}",
        task=request.task,
        fps=request.fps,
        cameras=list(service.scorer.info.cameras),
        qos="batch",
        reward=request.reward,
        gamma=request.gamma,
        source=request.source,
    )
    session, _ = await service.sessions.open(start)
    answers = _Answers()
    session.attach(answers.take, lambda: None)
    session.on_score = answers.scores.append
    try:
        frames, size = _frames(request), service.settings.max_in_flight
        for begin in range(0, len(frames), size):
            await _feed(service, session, frames[begin : begin + size])
            if answers.error is not None:
                raise answers.error
            if await is_gone():  # nobody reads the rest, and others wait for this slot
                raise ClientDisconnect
    finally:
        summary = service.sessions.end(session)
    return wire.EpisodeResponse(scores=answers.scores, summary=summary)


def _frames(request: wire.EpisodeRequest) -> list[wire.Frame]:
    frames: list[wire.Frame] = []
    seq = -1
    for frame in request.frames:
        seq = seq + 1 if frame.seq is None else frame.seq
        frames.append(wire.Frame(seq=seq, t_ns=0, images=frame.images, state=frame.state))
    return frames


async def _feed(service: Service, session: Session, frames: Sequence[wire.Frame]) -> None:
    """Check a chunk of frames, ask Redis for all of it at once, and wait for its scores."""
    steps = [(_prepare(session, frame), frame) for frame in frames]
    await service.scorer.prefetch(step for step, _ in steps if step is not None)
    for step, frame in steps:
        if step is not None:
            session.submit(step, frame)
    await session.settled()
    await asyncio.sleep(0)  # long episodes of cached frames must not hold the loop


def _prepare(session: Session, frame: wire.Frame) -> Step | None:
    try:
        return session.prepare(frame, time.monotonic())
    except Sarm2Error as error:
        error.message = f"frame {frame.seq}: {error.message}"
        raise


class _Answers:
    """Collects what a session answers; remembers the first frame that failed."""

    def __init__(self) -> None:
        self.scores: list[wire.Score] = []
        self.error: Sarm2Error | None = None

    def take(self, data: bytes) -> None:
        """One answer of the session, as msgpack."""
        if self.error is None and msgspec.msgpack.decode(data)["type"] == "error":
            error = msgspec.msgpack.decode(data, type=wire.Error)
            kind = BY_CODE.get(error.code, ModelFailed)
            text = f"frame {error.seq}: {error.message}"
            self.error = kind(text, field=error.field, error_id=error.error_id, seq=error.seq)


# --- bodies ------------------------------------------------------------------------------------------


async def _read_episode(service: Service, request: Request) -> wire.EpisodeRequest:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    cameras = service.scorer.info.cameras
    # Both are read in a thread: a long episode takes a second, in which robots must be answered.
    if kind in (MSGPACK, "application/x-msgpack", "application/vnd.msgpack"):
        return await run_in_threadpool(_from_msgpack, service, await request.body())
    if kind == "multipart/form-data":
        most = min(service.settings.max_episode_frames * len(cameras), 10_000)
        async with request.form(max_files=most, max_fields=16, max_part_size=16 * 2**20) as form:
            images = {camera: await _files(form, camera) for camera in cameras}
            return await run_in_threadpool(_from_form, service, form, images)
    raise InvalidMessage(
        f"expected a body of {MSGPACK} or multipart/form-data, got {kind[:80] or 'no type'!r}"
    )


def _from_msgpack(service: Service, body: bytes) -> wire.EpisodeRequest:
    limit, state_dim = service.settings.max_body_bytes, service.scorer.info.state_dim
    return decode_episode_request(body, service.limits, max_bytes=limit, state_dim=state_dim)


def _from_form(service: Service, form: FormData, images: dict[str, list[bytes]]) -> wire.EpisodeRequest:
    states = _json_field(form, "state")
    if not isinstance(states, list):
        raise InvalidInput("expected `state` as JSON: a list of numbers for every frame", field="state")
    unknown = sorted(set(form) - set(images) - set(_FORM_FIELDS))
    if unknown:
        raise InvalidInput(f"there is no field {unknown[0][:64]!r} in this form", field=unknown[0][:64])
    for camera, files in images.items():
        if len(files) != len(states):
            raise InvalidInput(
                f"camera {camera!r} has {len(files)} files for {len(states)} states", field=camera
            )
    frames = [
        {
            "images": {camera: {"enc": "jpeg", "data": files[t]} for camera, files in images.items()},
            "state": state,
        }
        for t, state in enumerate(states)
    ]
    fields: dict[str, Any] = {"task": form.get("task"), "fps": _json_field(form, "fps"), "frames": frames}
    fields |= {name: form[name] for name in ("session_id", "reward", "source") if name in form}
    if "gamma" in form:
        fields["gamma"] = _json_field(form, "gamma")
    return _from_msgpack(service, encode(fields))  # through the same checks: one set of rules


async def _files(form: FormData, camera: str) -> list[bytes]:
    return [await file.read() for file in form.getlist(camera) if isinstance(file, UploadFile)]


def _json_field(form: FormData, name: str) -> Any:
    text = form.get(name)
    if not isinstance(text, str):
        raise InvalidInput(f"this form needs a text field {name!r}", field=name)
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"the field {name!r} is no JSON", field=name) from None
