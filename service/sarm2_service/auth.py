"""Who may use the service: everyone, or whoever names one of its keys.

A program sends `Authorization: Bearer KEY` (openpi's clients `Api-Key KEY`). A browser asks its user once,
under any name, for a key as the password (HTTP Basic), and then sends it with the page's requests, event
streams and websockets as well.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers

from sarm2_client.errors import NotAllowed

OPEN = ("/livez", "/readyz")
"""Paths that need no key: orchestrators have none, and these tell nothing but whether it runs."""

UNAUTHORISED = 401
CHALLENGE = {"WWW-Authenticate": 'Basic realm="sarm2", charset="UTF-8"'}


class KeyNeeded(NotAllowed):
    """No key, or a wrong one: the one refusal that a browser answers by asking its user."""

    http_status = UNAUTHORISED


def check_key(headers: Headers, keys: Sequence[str], path: str) -> None:
    """Raise KeyNeeded unless a request names one of the keys. Without keys everyone may."""
    if not keys or path in OPEN:
        return
    named = _named(headers.get("authorization", "")).encode()
    # All are compared, and in constant time: how long it takes tells nothing of any of them.
    found = [hmac.compare_digest(named, key.encode()) for key in keys]
    if not any(found):
        raise KeyNeeded(
            "this service needs a key: send `Authorization: Bearer KEY` (RewardClient(api_key=...)), or, in "
            "a browser, a key as the password",
            field="authorization",
        )


def _named(authorization: str) -> str:
    """The key in an `Authorization` header; empty where there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() in ("bearer", "api-key"):
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        pair = base64.b64decode(value.strip(), validate=True).decode()
    except ValueError:  # no base64, or no text in it
        return ""
    return pair.partition(":")[2]
