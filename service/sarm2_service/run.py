"""Build everything from the settings and serve until told to stop; then drain."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket

import torch
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from sarm2_client.errors import InvalidInput
from sarm2_models.checkpoint import default_bundle, load_bundle
from sarm2_models.device import check_device
from sarm2_models.reward_model import RewardModel
from sarm2_service import logs
from sarm2_service.app import create_app
from sarm2_service.cache import EmbeddingCache
from sarm2_service.guard import MAX_HEADER_BYTES
from sarm2_service.metrics import Metrics
from sarm2_service.protocols import HttpProtocol, StreamProtocol
from sarm2_service.scorer import Scorer
from sarm2_service.settings import Settings


class DrainingServer(uvicorn.Server):
    """uvicorn closes websockets at once when it stops; this finishes accepted frames first."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._application = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where: with port 0 nobody knows it before."""
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                logs.log(logging.INFO, "listening", address=list(listener.getsockname()[:2]))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop. New work is refused meanwhile, so that load balancers see it."""
        await self._application.state.service.drain()
        await super().shutdown(sockets)


SMALL_TOWER_DIM = 256


def load_model(settings: Settings) -> RewardModel:
    """The bundle that the settings name. Raises InvalidInput or NotFound, saying what does not match."""
    check_device(settings.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.encoder_dtype]
    model = load_bundle(settings.bundle or default_bundle(), settings.device, encoder_dtype=dtype)
    torch.set_num_threads(settings.torch_threads or fitting_threads(model))
    return model


def fitting_threads(model: RewardModel) -> int:
    """One thread for a small tower, every core for a full-size one.

    A step of the small model is over in 10 ms: two threads save a few of them on an idle machine, and cost
    a hundred on a busy one, where each waits for the other at every layer.
    """
    return 1 if model.encoder.dim <= SMALL_TOWER_DIM else len(os.sched_getaffinity(0))


def build_app(settings: Settings, model: RewardModel) -> FastAPI:
    """The application around a loaded model, with metrics in a registry of its own."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, model.info.tasks)
    cache = EmbeddingCache(settings, model.encoder.dim, metrics)
    return create_app(settings, Scorer(model, settings, cache, metrics), cache, registry)


def make_server(settings: Settings, app: FastAPI) -> DrainingServer:
    """A server that is not started yet; `should_exit = True` stops it as SIGTERM does."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        ws=StreamProtocol,
        ws_per_message_deflate=False,
        # A little above the limit that `hello` states, so that the refusal can say so.
        ws_max_size=settings.max_message_bytes + 1024,
        ws_ping_interval=settings.ping_interval_s,
        ws_ping_timeout=settings.ping_interval_s,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=settings.max_connections + settings.max_subscribers + 64,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    return DrainingServer(config, app)


def bind(settings: Settings) -> socket.socket:
    """The listening address, taken before the model is loaded, so that a taken port is told at once.

    Raises InvalidInput for an address that cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except UnicodeError:  # of the name's encoding, before anything is asked
        raise InvalidInput(f"{settings.host!r} is no host name; choose another one", field="host") from None
    except OSError as error:
        raise not_to_be_had(settings, error) from None
    return listener


def not_to_be_had(settings: Settings, error: OSError) -> InvalidInput:
    """What to say of an address that somebody else has."""
    return InvalidInput(
        f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another one",
        field="port",
    )


def serve(settings: Settings) -> None:
    """Load, warm up, and serve until SIGTERM or Ctrl-C. Raises InvalidInput or NotFound before that."""
    logs.configure(settings.log_level)
    with bind(settings) as listener:
        server = make_server(settings, build_app(settings, load_model(settings)))
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except OSError as error:
            # Two that load at once may both take an address; the first to be ready listens.
            if error.errno != errno.EADDRINUSE:
                raise
            raise not_to_be_had(settings, error) from None
