"""Every error a caller can meet, as one small tree.

    Sarm2Error
    ├── InvalidInput        the caller's message is wrong; the same call fails again        (400)
    │   ├── InvalidMessage      not a message of the protocol
    │   ├── InvalidImage        an image that cannot be decoded or has a wrong shape
    │   ├── InvalidState        a proprioceptive state of wrong length or not finite
    │   ├── InvalidSequence     frame before start, seq repeated with other content, ...
    │   ├── InvalidSession      a session id that is malformed
    │   └── TooLarge            over a limit that `hello` states                             (413)
    ├── NotAllowed          origin or key refused                                           (403)
    ├── NotFound            no such model, episode or camera                                (404)
    ├── Conflict            the session is in use by another connection                     (409)
    ├── Overloaded          a queue is full; try again a little later                       (429)
    ├── Draining            the server is going away; resume elsewhere                      (503)
    ├── ModelFailed         the model raised on this input                                  (500)
    ├── ConnectionLost      the transport broke (raised by clients only)
    └── WaitTimeout         a named wait ran out, here or at the server                     (504)

Each has a stable `code`, an HTTP status and a websocket close code. Texts give what was expected, what
was got, and what to do.
"""
# ruff: noqa: N818 - these names are read in `except` lines, where "Error" would say nothing

from __future__ import annotations

from typing import ClassVar


class Sarm2Error(Exception):
    """Root of the tree.

    Args:
        message: expected, got and the fix, in one or two sentences.
        field: the name of the field or setting at fault, if one is.
        error_id: the server's id of this failure, to find it in its logs.
        seq: the frame at fault, where one is; the episode then lives on.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    close_code: ClassVar[int] = 1011
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        error_id: str | None = None,
        seq: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.error_id = error_id
        self.seq = seq


class InvalidInput(Sarm2Error):
    """The caller's input is wrong; the same call would fail again."""

    code = "invalid_input"
    http_status = 400
    close_code = 1008


class InvalidMessage(InvalidInput):
    """Bytes that are no message of the protocol."""

    code = "invalid_message"
    close_code = 1002


class InvalidImage(InvalidInput):
    """An image that cannot be decoded, or of a wrong shape, dtype or byte count."""

    code = "invalid_image"


class InvalidState(InvalidInput):
    """A proprioceptive state of wrong length, wrong type, or not finite."""

    code = "invalid_state"


class InvalidSequence(InvalidInput):
    """Messages in an order the protocol does not allow."""

    code = "invalid_sequence"


class InvalidSession(InvalidInput):
    """A session id that is malformed."""

    code = "invalid_session"


class TooLarge(InvalidInput):
    """Over a limit that `hello.limits` states."""

    code = "too_large"
    http_status = 413
    close_code = 1009


class NotAllowed(Sarm2Error):
    """The origin or the key was refused."""

    code = "not_allowed"
    http_status = 403
    close_code = 1008


class NotFound(Sarm2Error):
    """No such model, episode or camera."""

    code = "not_found"
    http_status = 404
    close_code = 1008


class Conflict(Sarm2Error):
    """The session is in use by another connection."""

    code = "conflict"
    http_status = 409
    close_code = 1008


class Overloaded(Sarm2Error):
    """A bounded queue is full."""

    code = "overloaded"
    http_status = 429
    close_code = 1013
    retryable = True


class Draining(Sarm2Error):
    """The server is going away; resume on another replica."""

    code = "draining"
    http_status = 503
    close_code = 1012
    retryable = True


class ModelFailed(Sarm2Error):
    """The model raised on this input; other sessions are not affected."""

    code = "model_failed"
    http_status = 500
    close_code = 1011


class ConnectionLost(Sarm2Error):
    """The connection broke and could not be resumed in time."""

    code = "connection_lost"
    http_status = 503
    retryable = True


class WaitTimeout(Sarm2Error):
    """A named wait ran out."""

    code = "wait_timeout"
    http_status = 504
    retryable = True


def _tree(root: type[Sarm2Error]) -> list[type[Sarm2Error]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[Sarm2Error]] = {error.code: error for error in _tree(Sarm2Error)}
"""The error class of a code, to raise on the client what the server reported."""

BY_STATUS: dict[int, type[Sarm2Error]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    413: TooLarge,
    429: Overloaded,
    502: ConnectionLost,
    503: Draining,
    504: WaitTimeout,
}
"""The error class of an HTTP status that comes without a code, as from a proxy."""
