"""What the HTTP routes say in OpenAPI; messages and msgpack bodies are `sarm2_client.wire`'s."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorBody(BaseModel):
    """Every refusal."""

    code: str = Field(description="stable name, such as `invalid_image`")
    message: str = Field(description="what was expected, what came, what to do")
    field: str | None = Field(description="the field at fault")
    error_id: str = Field(description="to be found in the server's log")


class Model(BaseModel):
    """What the server scores with; see `hello.model` of `sarm.v1`."""

    id: str
    version: str
    weights_sha256: str
    window: int = Field(description="frames in a window, without the anchor")
    gap_s: float = Field(description="seconds between them")
    causal: bool
    cameras: list[str]
    state_dim: int
    primitives: list[str]
    groups: list[str]
    primitive_groups: list[int]
    experts: int
    tasks: list[str] = Field(description="instructions the model was trained on")


class Preprocess(BaseModel):
    """How pictures are prepared; see `hello.preprocess`."""

    size: int
    resize: str
    colour: str
    mean: list[float]
    std: list[float]
    hash: str


class LoadedModel(BaseModel):
    """A model, its preprocessing, and the server's limits."""

    model: Model
    preprocess: Preprocess
    limits: dict[str, float]


class Models(BaseModel):
    """Answer of `GET /v1/models`."""

    models: list[LoadedModel]


class Episode(BaseModel):
    """One row of `GET /v1/episodes`."""

    session_id: str
    task: str
    state: Literal["live", "ended"]
    frames: int = Field(description="scored so far")
    progress: float | None
    primitive: str | None
    confidence: float | None
    uncertain: bool | None
    started_at: float = Field(description="seconds since 1970")
    fps: float
    cameras: list[str]


class Episodes(BaseModel):
    """Answer of `GET /v1/episodes`, newest first."""

    episodes: list[Episode]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 403, 404, 409, 413, 429, 500, 503, 504)
}
"""The refusals that any route may give."""

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

EPISODE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/msgpack": {
                **BINARY,
                "example": "msgpack of {task, fps, frames: [{images: {camera: {enc, data}}, state}]}",
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["task", "fps", "state"],
                    "properties": {
                        "task": {"type": "string"},
                        "fps": {"type": "number"},
                        "state": {"type": "string", "description": "JSON: a list of numbers for every frame"},
                        "session_id": {"type": "string"},
                    },
                    "additionalProperties": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "named by a camera: one JPEG file a frame, in order",
                    },
                }
            },
        },
    }
}
EMBED_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/msgpack": {**BINARY, "example": "msgpack of {images: [{enc, data}]}"}},
    }
}
MSGPACK_ANSWER: dict[str, Any] = {"content": {"application/msgpack": BINARY, "application/json": {}}}
