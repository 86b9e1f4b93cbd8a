"""The messages of `sarm.v1`: the one schema, shared by every client and the service.

Each message is one msgpack map in one binary websocket message; the field `type` names the struct.
What a client sends is decoded strictly (unknown fields are an error, so that a typo is found); what a
server sends is decoded leniently (unknown fields are ignored, so that an older client survives a newer
server).

Numbers: `seq` counts frames of an episode from 0; `t_ns` is the sender's clock in nanoseconds and is only
echoed; `progress`, probabilities and confidence lie in [0, 1]; durations end in `_ms` or `_s`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

PROTOCOL = "sarm.v1"
"""Name of the websocket subprotocol and of this schema."""

SESSION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}\Z"
"""A session id: 1 to 128 characters, no path separators, no control characters."""

MAX_SEQ = 2**53 - 1
MAX_CAMERAS = 16
MAX_STATE_DIM = 1024
MAX_EPISODE_FRAMES = 100_000
MAX_EMBED_IMAGES = 4096
"""No service accepts more; `hello.limits` may say less."""

Seq: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SEQ)]
Qos: TypeAlias = Literal["realtime", "batch"]
RewardFormula: TypeAlias = Literal["delta.v1", "shaped.v1"]
EpisodeSource: TypeAlias = Literal["demonstration", "rollout"]
"""Where an episode comes from: a person who shows the task, or a policy that tries it."""
# Lengths are checked against the array's header, before its items take memory.
Images: TypeAlias = Annotated[dict[str, "Image"], Meta(max_length=MAX_CAMERAS)]
State: TypeAlias = Annotated[list[float], Meta(max_length=MAX_STATE_DIM)]


class _FromClient(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True, frozen=True):
    pass


class _FromServer(Struct, tag_field="type", kw_only=True, frozen=True):
    pass


# --- client to server -------------------------------------------------------------------------------


class Image(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One camera picture.

    `jpeg`: `data` is a baseline or progressive JPEG file, colour or grey.
    `raw`: `data` is a C-contiguous array in RGB order, `shape` is (height, width, 3) and `dtype` "uint8".
    """

    enc: Literal["jpeg", "raw"]
    data: bytes
    shape: tuple[int, int, int] | None = None
    dtype: str | None = None


class Start(_FromClient, tag="start", frozen=True):
    """Open an episode, or go on with one after a lost connection.

    `resume_from` is the first `seq` that the client would send next; the server answers with the `next_seq`
    it wants. `gamma` is used by the reward formula `shaped.v1` alone. `source` picks the interval that was
    calibrated on such episodes; untold, the wider one is given, which holds for both.
    """

    session_id: str
    task: str
    fps: float
    cameras: Annotated[list[str], Meta(max_length=MAX_CAMERAS)]
    qos: Qos = "realtime"
    resume_from: Seq | None = None
    reward: RewardFormula = "delta.v1"
    gamma: float = 0.99
    source: EpisodeSource | None = None


class Frame(_FromClient, tag="frame", frozen=True):
    """One step: all cameras and the proprioceptive state (float, unstandardised, in the robot's units)."""

    seq: Seq
    t_ns: int
    images: Images
    state: State
    deadline_ms: float | None = None


class End(_FromClient, tag="end", frozen=True):
    """No more frames; `seq` is the last one sent (or None for an empty episode). Answered by `summary`."""

    seq: Seq | None = None


class Ping(_FromClient, tag="ping", frozen=True):
    """Ask for a `pong` with both clocks."""

    t_ns: int


ClientMessage: TypeAlias = Start | Frame | End | Ping


# --- server to client -------------------------------------------------------------------------------


class ModelInfo(Struct, kw_only=True, frozen=True):
    """What the server scores with.

    `window` counts the frames in a window without the anchor; `gap_s` is the time between them in seconds.
    `primitives[i]` belongs to `groups[primitive_groups[i]]`.
    """

    id: str
    version: str
    weights_sha256: str
    window: int
    gap_s: float
    causal: bool
    cameras: list[str]
    state_dim: int
    primitives: list[str]
    groups: list[str]
    primitive_groups: list[int]
    experts: int
    tasks: list[str]


class Preprocess(Struct, kw_only=True, frozen=True):
    """How a picture becomes the encoder's input. `size` is the side of the square in pixels."""

    size: int
    resize: str
    colour: str
    mean: list[float]
    std: list[float]
    hash: str


class Limits(Struct, kw_only=True, frozen=True):
    """What the server refuses to exceed. Bytes, pixels, counts and seconds."""

    max_message_bytes: int
    max_image_pixels: int
    max_episode_frames: int
    max_in_flight: int
    max_sessions: int
    max_task_chars: int
    max_fps: float
    idle_timeout_s: float


class Hello(_FromServer, tag="hello", frozen=True):
    """The server's first message."""

    protocol: str
    server_version: str
    model: ModelInfo
    preprocess: Preprocess
    limits: Limits
    server_time_ns: int


class Started(_FromServer, tag="started", frozen=True):
    """The episode is open; send `next_seq` next. `resumed` says whether earlier frames are known."""

    session_id: str
    next_seq: int
    resumed: bool
    task_known: bool


class Timing(Struct, kw_only=True, frozen=True):
    """Where a step's time went, in milliseconds; `encode_ms` and `heads_ms` are of its whole batch."""

    total_ms: float
    queue_ms: float
    encode_ms: float
    heads_ms: float


class Score(_FromServer, tag="score", frozen=True):
    """The answer to one frame.

    progress: raw, unsmoothed, in [0, 1]; it may fall. value: progress - 1 (negative normalised steps to go).
    reward: of the move from the last scored frame to this one, by the formula of `start`; None on the first.
    primitive_probs: calibrated, in the order of `hello.model.primitives`, summing to 1. confidence: of
    `primitive`. group: the gate that was used; `other` when `uncertain`. interval: (low, high) of progress at
    the coverage the bundle states. experts: weight of each shared expert, zero where unused.
    durable_seq: every frame up to it has been scored; a client need not keep them for a resume.
    filled: how many frames before this one were missing (gaps in `seq`).
    """

    seq: int
    t_ns: int
    progress: float
    value: float
    reward: float | None
    primitive: str
    group: str
    primitive_probs: list[float]
    confidence: float
    uncertain: bool
    task_known: bool
    interval: tuple[float, float]
    experts: list[float]
    durable_seq: int
    filled: int
    model_version: str
    timing: Timing


class Dropped(_FromServer, tag="dropped", frozen=True):
    """A realtime frame that was not scored, and why: `deadline`, so far the only reason."""

    seq: int
    reason: str


class Segment(Struct, kw_only=True, frozen=True):
    """A run of frames under one primitive, `start_seq` to `end_seq` inclusive."""

    primitive: str
    start_seq: int
    end_seq: int


class Summary(_FromServer, tag="summary", frozen=True):
    """The whole episode in one message."""

    session_id: str
    task: str
    task_known: bool
    frames: int
    scored: int
    dropped: int
    duration_s: float
    final_progress: float | None
    max_progress: float | None
    largest_fall: float
    mean_confidence: float | None
    uncertain_share: float | None
    segments: list[Segment]
    model_version: str


class Error(_FromServer, tag="error", frozen=True):
    """Something failed. With `seq`, only that frame; the session lives on."""

    code: str
    message: str
    retryable: bool
    error_id: str
    seq: int | None = None
    field: str | None = None


class DrainingNotice(_FromServer, tag="draining", frozen=True):
    """The server is going away: finish, or resume elsewhere within `deadline_s`."""

    deadline_s: float


class Pong(_FromServer, tag="pong", frozen=True):
    """The answer to a `ping`, with the server's clock."""

    t_ns: int
    server_time_ns: int


ServerMessage: TypeAlias = Hello | Started | Score | Dropped | Summary | Error | DrainingNotice | Pong


# --- HTTP bodies (msgpack) --------------------------------------------------------------------------


class EpisodeFrame(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One step of a whole episode sent by HTTP."""

    images: Images
    state: State
    seq: Seq | None = None


class EpisodeRequest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/episodes:score`."""

    task: str
    fps: float
    frames: Annotated[list[EpisodeFrame], Meta(max_length=MAX_EPISODE_FRAMES)]
    session_id: str | None = None
    reward: RewardFormula = "delta.v1"
    gamma: float = 0.99
    source: EpisodeSource | None = None


class EpisodeResponse(Struct, kw_only=True, frozen=True):
    """Answer of `POST /v1/episodes:score`: one score a frame, in order, and the summary."""

    scores: list[Score]
    summary: Summary


class EmbedRequest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/embed`: any number of pictures and of instructions (up to the server's limit)."""

    images: Annotated[list[Image], Meta(max_length=MAX_EMBED_IMAGES)] = []
    texts: Annotated[list[str], Meta(max_length=MAX_EMBED_IMAGES)] = []


class EmbedResponse(Struct, kw_only=True, frozen=True):
    """`data` is a C-contiguous little-endian float16 array of shape (images + texts, dim), pictures first."""

    dim: int
    data: bytes
    encoder_id: str
