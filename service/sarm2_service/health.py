"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from sarm2_service.state import Service


class Health(BaseModel):
    """`status` is "ok", or why not."""

    status: str


def health_router(service: Service) -> APIRouter:
    """`/livez`, `/readyz`, `/metrics`."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", response_model=Health)
    async def livez() -> Health:
        """The process answers. A lost device ends the process, so there is nothing more to ask."""
        return Health(status="ok")

    @router.get("/readyz", response_model=Health, responses={503: {"model": Health}})
    async def readyz() -> JSONResponse:
        """The model is loaded and warm, and the server takes new work. Redis is no part of it."""
        status = "draining" if service.draining else "ok" if service.scorer.healthy else "loading"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
