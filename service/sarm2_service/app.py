"""The application: everything it needs is an argument, nothing is built at import."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import WebSocketRoute

from sarm2_client.errors import InvalidInput, Sarm2Error
from sarm2_client.wire import PROTOCOL
from sarm2_service import __version__
from sarm2_service.cache import EmbeddingCache
from sarm2_service.endpoint import StreamEndpoint
from sarm2_service.guard import Guard, error_response, http_error
from sarm2_service.health import health_router
from sarm2_service.logs import log
from sarm2_service.openpi import OpenPiCodec
from sarm2_service.routes import api_router, page_router
from sarm2_service.scorer import Scorer
from sarm2_service.settings import Settings
from sarm2_service.state import Service
from sarm2_service.stream_codec import SarmCodec

STREAM_PATH = "/v1/stream"
OPENPI_PATH = "/"
"""Where openpi's clients connect; pages lie there, too."""

CLIENT_CLOSED_REQUEST = 499
"""What proxies call it; nobody reads this answer."""


def create_app(
    settings: Settings, scorer: Scorer, cache: EmbeddingCache, registry: CollectorRegistry
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: checked settings.
        scorer: not yet started; the application starts and stops it.
        cache: the same one that the scorer uses.
        registry: where the scorer's metrics are registered; shown at `/metrics`.

    Returns:
        The application; `app.state.service` is the running `Service`, whose `drain` must be called before
        the server stops.
    """
    if scorer.metrics.registry is not registry:
        raise InvalidInput("the scorer's metrics are in another registry; pass that one", field="registry")
    service = Service(settings, scorer, cache)
    service.metrics.build_info.labels(__version__, scorer.info.version).set(1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="sarm2",
        version=__version__,
        description="Dense, calibrated progress rewards for robots. Live episodes: websocket `/v1/stream`.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Guard, service=service)
    app.include_router(health_router(service))
    app.include_router(api_router(service))
    app.include_router(page_router())
    streams = StreamEndpoint(service, lambda: SarmCodec(service.limits), PROTOCOL)
    app.router.routes.append(WebSocketRoute(STREAM_PATH, streams))
    observations = StreamEndpoint(
        service, lambda: OpenPiCodec(service.limits, service.scorer.info.cameras), subprotocol=None
    )
    app.router.routes.append(WebSocketRoute(OPENPI_PATH, observations))
    _add_error_answers(app, service)
    return app


def _add_error_answers(app: FastAPI, service: Service) -> None:
    def count(code: str) -> None:
        service.metrics.errors.labels(code).inc()

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Sarm2Error)
        count(error.code)
        return error_response(error)

    async def http_refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        content = http_error(error.status_code, error.detail)
        count(content["code"])
        return JSONResponse(content, error.status_code, error.headers)

    async def unreadable(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        count(InvalidInput.code)
        return error_response(InvalidInput(str(first["msg"]), field=".".join(map(str, first["loc"]))))

    async def gone(request: Request, _: Exception) -> Response:
        log(logging.INFO, "client_gone", path=request.url.path)
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(Sarm2Error, refused)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(HTTPException, http_refused)
    app.add_exception_handler(RequestValidationError, unreadable)
