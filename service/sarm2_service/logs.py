"""Logs as JSON: one line an event, to standard error; failures carry the `error_id` a caller saw."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from typing import Any, TextIO

LOGGER_NAME = "sarm2"
logger = logging.getLogger(LOGGER_NAME)


def new_error_id() -> str:
    """Twelve hexadecimal digits: sent to the caller and written to the log."""
    return secrets.token_hex(6)


def log(level: int, event: str, **fields: Any) -> None:
    """Write one event. `fields` must be JSON-able; anything else is written as text."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


def log_failure(event: str, error: BaseException, **fields: Any) -> str:
    """Write an unexpected error with its traceback; returns the error id for the caller."""
    error_id = new_error_id()
    logger.error(event, exc_info=error, extra={"fields": {"error_id": error_id, **fields}})
    return error_id


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, its fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON; newlines inside values are escaped, so that a caller cannot forge a line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.name != LOGGER_NAME:
            line["logger"] = record.name
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send the logs of the service and of uvicorn to `stream` (standard error) as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in (LOGGER_NAME, "uvicorn", "uvicorn.error"):
        named = logging.getLogger(name)
        named.handlers = [handler] if name != "uvicorn.error" else []
        named.propagate = name == "uvicorn.error"
        named.setLevel(level.upper())
    # uvicorn says one line a websocket connection at `info`; ours says the same with the session.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
