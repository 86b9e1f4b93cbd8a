"""Every setting of the service, with its bounds. The environment (`SARM2_...`) is read here alone."""

from __future__ import annotations

import difflib
import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sarm2_client.errors import InvalidInput
from sarm2_client.wire import Limits

ENV_PREFIX = "SARM2_"
MEBIBYTE = 2**20
LEAST_KEY = 16
"""Characters of a key: shorter ones can be guessed."""
SECRETS = ("redis_url", "api_keys")
"""Settings whose values no message shows; a URL may hold a password."""


class Settings(BaseSettings):
    """Frozen. Units are in the names: `_s` seconds, `_ms` milliseconds, `_bytes` bytes; others are counts."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    # Where to listen
    host: str = Field(default="127.0.0.1", min_length=1, max_length=253, description="address to listen on")
    port: int = Field(default=8765, ge=0, le=65535, description="TCP port; 0 takes a free one and logs it")
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins of other web pages that may talk to the service, comma-separated"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Host headers to answer; empty: loopback names on loopback, else any"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="keys of those who may use the service, comma-separated; empty: everyone"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level logged"
    )

    # The model and its device
    bundle: Path | None = Field(
        default=None, description="model bundle folder; empty: the one that ships with sarm2"
    )
    allow_reload: bool = Field(
        default=False,
        description="whether POST /v1/model:reload may take what the bundle's folder holds by then",
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where the model runs")
    encoder_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="arithmetic of the encoder; bfloat16: for a full-size tower on a GPU",
    )
    torch_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="CPU threads of the model; empty: one for a small tower, else all cores",
    )
    decode_threads: int = Field(
        default=0,
        ge=0,
        le=64,
        description="threads that decode pictures while the device is busy; 0: the device's own",
    )
    max_batch_images: int = Field(default=48, ge=4, le=4096, description="pictures in one encoder batch")
    max_background_images: int = Field(
        default=12,
        ge=3,
        le=4096,
        description="pictures in one encoder batch without realtime work: bounds its wait",
    )
    max_batch_windows: int = Field(default=64, ge=4, le=4096, description="windows in one batch of the heads")
    background_share: float = Field(
        default=0.125,
        gt=0,
        le=0.5,
        description="share of a full batch kept for `batch` work while robots stream",
    )
    device_timeout_s: float = Field(
        default=30, ge=0.1, le=3600, description="one batch longer than this ends the process"
    )

    # The cache of embeddings
    cache_bytes: int = Field(
        default=256 * MEBIBYTE, ge=0, le=2**40, description="memory cache of embeddings; 0: off"
    )
    redis_url: str | None = Field(
        default=None, max_length=1024, description="redis://, rediss:// or unix://; empty: off"
    )
    redis_budget_ms: float = Field(
        default=50, ge=1, le=1000, description="longest that one answer waits for Redis"
    )
    redis_breaker_s: float = Field(default=5, ge=0.05, le=600, description="pause after Redis failed")
    redis_ttl_s: int = Field(
        default=7 * 86400, ge=1, le=365 * 86400, description="how long Redis keeps an embedding"
    )
    redis_queue: int = Field(
        default=8192, ge=1, le=2**20, description="embeddings waiting to be written to Redis"
    )

    # What a caller may send
    max_message_bytes: int = Field(
        default=16 * MEBIBYTE, ge=1024, le=2**30, description="one websocket message"
    )
    max_body_bytes: int = Field(default=256 * MEBIBYTE, ge=1024, le=2**32, description="one HTTP body")
    max_image_pixels: int = Field(default=4_194_304, ge=64, le=2**26, description="pixels of one picture")
    max_embed_images: int = Field(
        default=1024, ge=1, le=65536, description="pictures and texts in one call of /v1/embed"
    )
    max_episode_frames: int = Field(default=36_000, ge=1, le=2**22, description="frames of one episode")
    max_task_chars: int = Field(default=512, ge=1, le=65536, description="characters of an instruction")
    max_fps: float = Field(default=240, gt=0, le=10_000, description="frames a second of an episode")
    max_in_flight: int = Field(default=16, ge=1, le=4096, description="unanswered frames of one connection")

    # How many
    max_sessions: int = Field(default=64, ge=1, le=65536, description="episodes open at once")
    max_connections: int = Field(default=256, ge=1, le=65536, description="websocket connections at once")
    accepts_per_s: float = Field(default=200, gt=0, le=1e6, description="new websocket connections a second")
    max_uploads: int = Field(default=4, ge=1, le=1024, description="whole episodes being scored at once")
    max_embeds: int = Field(default=8, ge=1, le=1024, description="calls of /v1/embed being answered at once")
    max_subscribers: int = Field(default=64, ge=1, le=65536, description="pages watching episodes at once")
    max_queue_frames: int = Field(default=2048, ge=1, le=2**20, description="frames waiting for the encoder")
    max_queue_bytes: int = Field(
        default=512 * MEBIBYTE, ge=1024, le=2**40, description="their pictures, together"
    )
    history_frames: int = Field(
        default=4096, ge=16, le=2**20, description="answers kept an episode, to resend and replay"
    )
    ended_episodes: int = Field(default=32, ge=0, le=4096, description="ended episodes kept for the page")

    # How long
    idle_timeout_s: float = Field(
        default=60, ge=0.05, le=86400, description="silence after which a connection is closed"
    )
    send_timeout_s: float = Field(
        default=10, ge=0.05, le=600, description="how long a reader may leave an answer unread"
    )
    resume_window_s: float = Field(
        default=120, ge=0, le=86400, description="how long a lost episode can be resumed"
    )
    takeover_after_s: float = Field(
        default=2,
        ge=0,
        le=600,
        description="silence after which a resume may take over a half-open connection's episode",
    )
    ping_interval_s: float = Field(
        default=10, ge=0.1, le=600, description="websocket keep-alive, and its timeout"
    )
    body_timeout_s: float = Field(default=60, ge=0.05, le=3600, description="time to send one HTTP body")
    embed_wait_s: float = Field(
        default=10,
        ge=0,
        le=600,
        description="how long a call of /v1/embed may wait for others to be answered",
    )
    request_timeout_s: float = Field(
        default=600, ge=0.05, le=86400, description="time to answer one HTTP request"
    )
    drain_timeout_s: float = Field(
        default=10, ge=0, le=600, description="time to finish accepted frames on SIGTERM"
    )

    @field_validator("allowed_origins", "allowed_hosts", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path:
                raise ValueError(f"{origin!r} is no origin; write scheme://host[:port] without a path")
        return origins

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if len(text) < LEAST_KEY or not (text.isascii() and text.isprintable()) or " " in text:
                raise ValueError(
                    f"a key needs at least {LEAST_KEY} printable ASCII characters without spaces; "
                    "`openssl rand -hex 16` makes one"
                )
        return keys

    @field_validator("redis_url")
    @classmethod
    def _check_redis(cls, url: str | None) -> str | None:
        if not url:
            return None
        check_redis_url(url)
        return url

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys as plain text, for comparing; nowhere else."""
        return tuple(key.get_secret_value() for key in self.api_keys)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def limits(self) -> Limits:
        """The bounds that `hello` states."""
        return Limits(
            max_message_bytes=self.max_message_bytes,
            max_image_pixels=self.max_image_pixels,
            max_episode_frames=self.max_episode_frames,
            max_in_flight=self.max_in_flight,
            max_sessions=self.max_sessions,
            max_task_chars=self.max_task_chars,
            max_fps=self.max_fps,
            idle_timeout_s=self.idle_timeout_s,
        )


def check_redis_url(url: str) -> None:
    """Raise ValueError unless connections can be made from this URL. Touches no network."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.netloc or parts.path):
        raise ValueError("must look like redis://host:port/0, rediss://... or unix:///path/to/socket")
    if parts.scheme != "unix" and parts.port is not None and parts.port == 0:
        raise ValueError("the port must lie in 1 to 65535")
    from redis import asyncio as redis_asyncio  # here: it slows a command's start by a fifth of a second

    try:
        redis_asyncio.ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except Exception as error:  # an unknown option is a TypeError, a wrong value may be anything
        raise ValueError(
            f"no connection can be made from it, look at what follows the `?`: {error}"
        ) from None


def load_settings(**values: Any) -> Settings:
    """Read the environment, let `values` that are not None override it, and check every bound.

    Raises:
        InvalidInput: naming the setting, the value and the rule; for a misspelt name, the nearest right one.
    """
    _check_names(os.environ)
    try:
        return Settings(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        raise InvalidInput("; ".join(text for _, text in problems), field=problems[0][0]) from None


def _explain(problem: Any) -> tuple[str, str]:
    name = str(problem["loc"][0]) if problem["loc"] else "settings"
    rule = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return name, f"there is no setting {name!r}{_suggestion(name)}"
    shown = "***" if name in SECRETS else repr(problem["input"])
    return name, f"setting {name} ({ENV_PREFIX}{name.upper()}) = {shown} is refused: {rule}"


def _check_names(environment: os._Environ[str]) -> None:
    """Refuse a variable that is nearly a setting; leave other programs' `SARM2_` variables alone."""
    for variable in environment:
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or name in Settings.model_fields:
            continue
        if hint := _suggestion(name):
            raise InvalidInput(f"there is no setting {variable}{hint}", field=variable)


def _suggestion(name: str) -> str:
    nearest = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.7)
    return f"; did you mean {nearest[0]} ({ENV_PREFIX}{nearest[0].upper()})?" if nearest else ""
