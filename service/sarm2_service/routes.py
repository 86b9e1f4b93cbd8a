"""The HTTP routes under `/v1`, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from sarm2_client.errors import InvalidInput, NotAllowed, NotFound
from sarm2_client.wire import MAX_SEQ
from sarm2_models.checkpoint import default_bundle
from sarm2_service import episodes, schemas
from sarm2_service.events import END_ID
from sarm2_service.state import Service

WEB = Path(__file__).parent / "web"


def api_router(service: Service) -> APIRouter:
    """Scoring, models and episodes."""
    router = APIRouter(prefix="/v1", responses=schemas.ERRORS)

    @router.post(
        "/episodes:score",
        tags=["score"],
        openapi_extra=schemas.EPISODE_BODY,
        responses={200: schemas.MSGPACK_ANSWER},
        response_class=Response,
    )
    async def score_episode(request: Request) -> Response:
        """Score a whole episode: the same scores that a robot would get live, and the summary."""
        return await episodes.score_episode(service, request)

    @router.post(
        "/embed",
        tags=["score"],
        openapi_extra=schemas.EMBED_BODY,
        responses={200: schemas.MSGPACK_ANSWER},
        response_class=Response,
    )
    async def embed(request: Request) -> Response:
        """Embeddings: float16, little-endian, one row a picture, then one a text."""
        return await episodes.embed(service, request)

    @router.post("/model:reload", tags=["model"], response_model=schemas.Models)
    async def reload() -> JSONResponse:
        """Take what the bundle's folder holds now; open episodes go on with it. Off unless allowed."""
        if not service.settings.allow_reload:
            raise NotAllowed("reloading is off; start the server with --allow-reload", field="allow_reload")
        await service.scorer.reload(service.settings.bundle or default_bundle())
        await service.sessions.renew()
        return await models()

    @router.get("/models", tags=["model"], response_model=schemas.Models)
    async def models() -> JSONResponse:
        """What the server scores with."""
        model: dict[str, Any] = {
            "model": msgspec.to_builtins(service.scorer.info),
            "preprocess": msgspec.to_builtins(service.scorer.preprocess),
            "limits": msgspec.to_builtins(service.limits),
        }
        return JSONResponse({"models": [model]})

    @router.get("/episodes", tags=["episodes"], response_model=schemas.Episodes)
    async def list_episodes() -> JSONResponse:
        """The open episodes and the latest ended ones."""
        return JSONResponse({"episodes": service.feed.list()})

    @router.get(
        "/episodes/{session_id}/events",
        tags=["episodes"],
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def follow(session_id: str, last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """Server-sent events: `start`, every kept `score`, then live ones, and `summary` at the end."""
        view = service.feed.get(session_id)
        if last_event_id == END_ID:
            return Response(status_code=204)  # tells a browser not to come back
        service.feed.check_room()
        after = _seq(last_event_id or "")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(view.follow(after), media_type="text/event-stream", headers=headers)

    @router.get(
        "/episodes/{session_id}/frames/{camera}",
        tags=["episodes"],
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
    )
    async def latest_frame(session_id: str, camera: str) -> Response:
        """The latest picture of a camera, as a JPEG file."""
        view = service.feed.get(session_id)
        data = await run_in_threadpool(view.jpeg, camera)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    return router


def _seq(event_id: str) -> int | None:
    """The `seq` that an event's id says. Raises InvalidInput for a number that no event had."""
    if not event_id.isdecimal():
        return None
    if len(event_id) > len(str(MAX_SEQ)):
        raise InvalidInput(f"expected the id of an event, at most {MAX_SEQ}", field="last-event-id")
    return int(event_id)


def page_router() -> APIRouter:
    """`/` and `/static/...`: files that ship with the service, looked up by name, never joined to a path."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path for path in sorted(WEB.iterdir()) if path.is_file()} if WEB.is_dir() else {}

    @router.get("/")
    async def page() -> FileResponse:
        return FileResponse(_file("index.html"), headers={"Cache-Control": "no-cache"})

    @router.get("/static/{name}")
    async def static(name: str) -> FileResponse:
        return FileResponse(_file(name), headers={"Cache-Control": "no-cache"})

    def _file(name: str) -> Path:
        if name not in files:
            raise NotFound("no such file; the page is at /")
        return files[name]

    return router
