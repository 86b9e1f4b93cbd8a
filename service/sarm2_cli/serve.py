"""`sarm2 serve`: the service in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sarm2_service.settings import load_settings


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default 127.0.0.1: this machine only.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="TCP port. Default 8765; 0 takes a free one and logs it.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of a trained model. Default: the one that ships with sarm2.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs: cpu or cuda. Default cpu.")
    ] = None,
    allow_reload: Annotated[
        bool | None,
        typer.Option(
            "--allow-reload",
            help="Let POST /v1/model:reload take what the bundle's folder holds by then, such as an adapted "
            "model. Default: off.",
        ),
    ] = None,
    torch_threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of the model. Default: one for a small tower, else every core."),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            help="Embedding cache shared between replicas, such as redis://127.0.0.1:6379/0. Default: none."
        ),
    ] = None,
    cache_bytes: Annotated[
        int | None,
        typer.Option(help="Memory for embeddings. Default 268435456 (256 MiB); 0 switches it off."),
    ] = None,
    max_sessions: Annotated[int | None, typer.Option(help="Episodes open at once. Default 64.")] = None,
    max_in_flight: Annotated[
        int | None, typer.Option(help="Unanswered frames of one robot. Default 16.")
    ] = None,
    idle_timeout_s: Annotated[
        float | None, typer.Option(help="Seconds of silence after which a connection is closed. Default 60.")
    ] = None,
    resume_window_s: Annotated[
        float | None, typer.Option(help="Seconds for which a lost episode can be resumed. Default 120.")
    ] = None,
    drain_timeout_s: Annotated[
        float | None, typer.Option(help="Seconds to finish accepted frames after SIGTERM. Default 10.")
    ] = None,
    allowed_origins: Annotated[
        str | None,
        typer.Option(help="Other web pages that may talk to the service: origins, comma-separated."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. Default info.")
    ] = None,
) -> None:
    """Score robots live: websocket at `/v1/stream`, HTTP under `/v1`, the page at `/`, metrics at `/metrics`.

    Every flag is also an environment variable (`--port` is `SARM2_PORT`); a flag wins over the environment,
    and there are more variables than flags: see `sarm2_service/settings.py`. A wrong value is refused at
    start with the setting, the value and the rule.

    Everyone who reaches the port may use it, unless `SARM2_API_KEYS` names keys: then programs send one
    (`RewardClient(api_key=...)`), and a browser asks for one as the password.

    Ctrl-C or SIGTERM drains: accepted frames are finished, robots are told to resume elsewhere.

    Examples:

        sarm2 serve

        sarm2 serve --bundle runs/mine/bundle --port 9000 --redis-url redis://127.0.0.1:6379/0

        SARM2_DEVICE=cuda sarm2 serve --host 0.0.0.0
    """
    settings = load_settings(
        host=host,
        port=port,
        bundle=bundle,
        device=device,
        allow_reload=allow_reload,
        torch_threads=torch_threads,
        redis_url=redis_url,
        cache_bytes=cache_bytes,
        max_sessions=max_sessions,
        max_in_flight=max_in_flight,
        idle_timeout_s=idle_timeout_s,
        resume_window_s=resume_window_s,
        drain_timeout_s=drain_timeout_s,
        allowed_origins=allowed_origins,
        log_level=log_level,
    )
    from sarm2_service.run import serve as run  # torch and transformers: seconds that --help need not wait

    run(settings)
