"""Frames that wait to be sent, and frames that may have to be sent again, bounded by count and bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.checks import check_state
from sarm2_client.codec import encode
from sarm2_client.errors import InvalidImage, InvalidState
from sarm2_client.images import Picture, check_image, prepare_image


@dataclass(frozen=True)
class PendingFrame:
    """One step as it was pushed: pictures not yet resized, state checked. The pictures are our own copies."""

    seq: int
    t_ns: int
    images: Mapping[str, Picture]
    state: list[float]
    deadline_ms: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures as they wait."""
        return sum(len(image) if isinstance(image, bytes) else image.nbytes for image in self.images.values())

    def to_message(self, size: int) -> bytes:
        """The encoded `frame` message, pictures resized to `size` x `size`. Raises InvalidImage."""
        images = {camera: prepare_image(image, size) for camera, image in self.images.items()}
        return encode(
            wire.Frame(
                seq=self.seq,
                t_ns=self.t_ns,
                images=images,
                state=self.state,
                deadline_ms=self.deadline_ms,
            )
        )


def own_images(images: Mapping[str, Any], cameras: list[str]) -> dict[str, Picture]:
    """Checked copies of the pictures, so that a camera driver may reuse its buffers at once.

    Raises InvalidImage for a missing or unknown camera and for what is neither uint8 (H, W, 3) nor bytes.
    """
    if set(images) != set(cameras):
        raise InvalidImage(
            f"expected pictures of {', '.join(cameras)}, got {', '.join(map(str, images)) or 'none'}",
            field="images",
        )
    copies: dict[str, Picture] = {}
    for camera in cameras:
        image = images[camera]
        if isinstance(image, (bytes, bytearray, memoryview)):
            copies[camera] = bytes(image)
        else:
            check_image(image)
            copies[camera] = np.array(image, order="C")
    return copies


def own_state(state: npt.ArrayLike, state_dim: int) -> list[float]:
    """The state as a list of floats. Raises InvalidState unless it is `state_dim` finite numbers."""
    try:
        values_S = np.asarray(state, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidState(f"expected {state_dim} numbers, got {state!r}", field="state") from error
    if values_S.shape != (state_dim,):
        raise InvalidState(f"expected a state of shape ({state_dim},), got {values_S.shape}", field="state")
    values: list[float] = values_S.tolist()
    check_state(values)
    return values


class Outbox:
    """Frames not yet sent, in order. Any thread may put; one takes.

    A full outbox makes room by dropping its oldest frame, which `dropped` counts: late frames of a live robot
    are worth less than fresh ones. Who must not lose one waits until `full` is False.
    """

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: deque[PendingFrame] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def full(self) -> bool:
        """Whether the next frame would push another one out."""
        return len(self._frames) >= self._max_frames or self._bytes >= self._max_bytes

    def put(self, frame: PendingFrame) -> None:
        """Add a frame; drop the oldest ones where there is no room. The newest always stays."""
        with self._lock:
            self._frames.append(frame)
            self._bytes += frame.nbytes
            while len(self._frames) > 1 and (
                len(self._frames) > self._max_frames or self._bytes > self._max_bytes
            ):
                self._bytes -= self._frames.popleft().nbytes
                self.dropped += 1

    def take(self) -> PendingFrame | None:
        """The oldest frame, or None."""
        with self._lock:
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._bytes -= frame.nbytes
            return frame

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._frames.clear()
            self._bytes = 0


class ResendBuffer:
    """Encoded frames that a resumed episode may need again: the first one, and as many of the last as fit.

    The first frame is the anchor of every window, so it is kept to the end. Of the others, answered ones are
    forgotten first when the buffer is full; a server then fills the gap by the last earlier frame.
    """

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._messages: dict[int, bytes] = {}
        self._bytes = 0
        self._first: int | None = None

    def __len__(self) -> int:
        return len(self._messages)

    def keep(self, seq: int, message: bytes) -> None:
        """Keep a frame that is about to be sent."""
        if self._first is None:
            self._first = seq
        self._messages[seq] = message
        self._bytes += len(message)

    def forget(self, seq: int) -> None:
        """Drop one frame: it will never be wanted again."""
        message = self._messages.pop(seq, None)
        if message is not None:
            self._bytes -= len(message)
        if seq == self._first:
            self._first = min(self._messages, default=None)

    def shrink(self, unanswered: Collection[int]) -> None:
        """Make room, oldest answered frames first; the anchor and the unanswered stay."""
        for seq in list(self._messages):
            if len(self._messages) <= self._max_frames and self._bytes <= self._max_bytes:
                return
            if seq != self._first and seq not in unanswered:
                self.forget(seq)

    def wanted(self, next_seq: int, unanswered: Collection[int]) -> list[tuple[int, bytes]]:
        """What to send again, in order, to a server that asks for `next_seq`."""
        return [
            (seq, message)
            for seq, message in sorted(self._messages.items())
            if seq >= next_seq or seq in unanswered
        ]
