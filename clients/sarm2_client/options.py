"""How an episode waits, resumes and buffers."""

from __future__ import annotations

from dataclasses import dataclass, field

from sarm2_client.timeouts import Backoff, Timeouts


@dataclass(frozen=True)
class EpisodeOptions:
    """How an episode waits, resumes and buffers.

    Attributes:
        image_size: side in pixels to which pictures are resized; None takes the service's own.
        queue_frames, queue_bytes: room for frames that wait to be sent.
        resend_frames, resend_bytes: room for sent frames, in case the episode has to be resumed.
    """

    timeouts: Timeouts = field(default_factory=Timeouts)
    backoff: Backoff = field(default_factory=Backoff)
    image_size: int | None = None
    queue_frames: int = 64
    queue_bytes: int = 128 * 2**20
    resend_frames: int = 512
    resend_bytes: int = 64 * 2**20
