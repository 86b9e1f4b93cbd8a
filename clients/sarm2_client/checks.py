"""What a message must satisfy beyond its form: ranges, names, lengths and finiteness.

Client and service check the same rules with these functions. What needs the model or the session (number of
state values, known cameras, order of frames) is the service's to check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

from sarm2_client import wire
from sarm2_client.errors import (
    InvalidInput,
    InvalidMessage,
    InvalidSequence,
    InvalidSession,
    InvalidState,
    TooLarge,
)

MAX_STATE_MAGNITUDE: Final = 1e9
"""Larger values are no robot's; squared in float32 they would still be finite."""

MAX_DEADLINE_MS: Final = 600_000.0

_SESSION_ID: Final = re.compile(wire.SESSION_ID_PATTERN)
_CAMERA: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}\Z")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_client_message(message: wire.ClientMessage, limits: wire.Limits) -> None:
    """Check ranges, names and finiteness of a decoded message. Raises a subclass of InvalidInput."""
    if isinstance(message, wire.Start):
        _check_start(message, limits)
    elif isinstance(message, wire.Frame):
        _check_cameras(message.images)
        check_state(message.state)
        _check_deadline(message.deadline_ms)


def check_episode_request(request: wire.EpisodeRequest, limits: wire.Limits) -> None:
    """Check all of an episode but what is in its frames. Raises a subclass of InvalidInput."""
    if request.session_id is not None:
        check_session_id(request.session_id)
    check_task(request.task, limits.max_task_chars)
    check_fps(request.fps, limits.max_fps)
    _check_gamma(request.gamma)
    if not request.frames:
        raise InvalidInput("expected an episode of at least one frame, got none", field="frames")
    if len(request.frames) > limits.max_episode_frames:
        raise TooLarge(
            f"expected at most {limits.max_episode_frames} frames, got {len(request.frames)}", field="frames"
        )


def check_episode_frame(frame: wire.EpisodeFrame, last: int, state_dim: int | None = None) -> int:
    """Check order, names and finiteness of one frame of an episode; returns its `seq`.

    Args:
        last: `seq` of the frame before, -1 for the first.
        state_dim: how many state values the model takes, where it is known.

    Raises:
        InvalidInput: or a subclass, with the frame's `seq`.
    """
    seq = last + 1 if frame.seq is None else frame.seq
    try:
        if seq <= last:
            raise InvalidSequence(f"expected a seq above {last}, got {seq}", field="frames")
        if state_dim is not None and len(frame.state) != state_dim:
            raise InvalidState(f"expected {state_dim} state values, got {len(frame.state)}", field="state")
        _check_cameras(frame.images)
        check_state(frame.state)
    except InvalidInput as error:
        error.seq = seq
        raise
    return seq


def check_session_id(session_id: str) -> None:
    """Raise InvalidSession unless it is 1 to 128 letters, digits or `. _ : -`, led by a letter or digit."""
    if not _SESSION_ID.match(session_id):
        raise InvalidSession(
            "expected a session id of 1 to 128 letters, digits or . _ : - starting with a letter or digit, "
            f"got {shown(session_id)}",
            field="session_id",
        )


def check_task(task: str, max_chars: int) -> None:
    """Raise InvalidInput for a task that is blank or has control characters, TooLarge for a long one."""
    if len(task) > max_chars:
        raise TooLarge(f"expected a task of at most {max_chars} characters, got {len(task)}", field="task")
    if not task.strip() or _CONTROL.search(task):
        raise InvalidInput(
            f"expected a task in words, on one line, without control characters, got {shown(task)}",
            field="task",
        )


def check_fps(fps: float, max_fps: float) -> None:
    """Raise InvalidInput unless 0 < fps <= max_fps."""
    if not 0.0 < fps <= max_fps:
        raise InvalidInput(f"expected fps above 0 and at most {max_fps:g}, got {fps}", field="fps")


def check_state(state: Iterable[float]) -> None:
    """Raise InvalidState unless every value is finite and of at most MAX_STATE_MAGNITUDE."""
    for index, value in enumerate(state):
        if not abs(value) <= MAX_STATE_MAGNITUDE:
            raise InvalidState(
                f"expected finite state values up to {MAX_STATE_MAGNITUDE:g}, got {value} at index {index}",
                field="state",
            )


def _check_start(start: wire.Start, limits: wire.Limits) -> None:
    check_session_id(start.session_id)
    check_task(start.task, limits.max_task_chars)
    check_fps(start.fps, limits.max_fps)
    _check_gamma(start.gamma)
    _check_cameras(start.cameras)
    if not start.cameras or len(set(start.cameras)) != len(start.cameras):
        raise InvalidInput(f"expected one or more different cameras, got {start.cameras}", field="cameras")


def _check_cameras(names: Iterable[str]) -> None:
    for name in names:
        if not _CAMERA.match(name):
            raise InvalidInput(
                f"expected a camera name of 1 to 64 letters, digits or . _ -, got {shown(name)}",
                field="cameras",
            )


def _check_gamma(gamma: float) -> None:
    if not 0.0 <= gamma <= 1.0:
        raise InvalidInput(f"expected gamma from 0 to 1, got {gamma}", field="gamma")


def _check_deadline(deadline_ms: float | None) -> None:
    if deadline_ms is not None and not 0.0 < deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidInput(
            f"expected deadline_ms above 0 and at most {MAX_DEADLINE_MS:g}, got {deadline_ms}",
            field="deadline_ms",
        )


def check_score(score: wire.Score) -> None:
    """Raise InvalidMessage unless every number of the score is finite."""
    numbers = (score.progress, score.value, score.confidence, *score.interval, *score.primitive_probs)
    if not all(map(math.isfinite, numbers)) or not math.isfinite(score.reward or 0.0):
        raise InvalidMessage(
            f"expected finite numbers in the score of frame {score.seq}, got some that are not"
        )


def shown(text: str) -> str:
    """A stranger's text, short and without control characters, fit for a log line or an answer."""
    short = text if len(text) <= 120 else f"{text[:120]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in short)
