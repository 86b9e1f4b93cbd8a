"""The messages of openpi's policy servers: msgpack, in which an array is a map with four keys of bytes.

The format is `openpi_client.msgpack_numpy`'s. It is spoken here anew because that package wants numpy below
2, and decodes whatever dtype its peer names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidMessage

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_DATA, _DTYPE, _SHAPE = b"data", b"dtype", b"shape"

DTYPES = frozenset("?bBhHiIlLqQefd")
"""Characters of numpy's plain numbers; nothing else is decoded."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Bytes of a message; its values are arrays of numbers, texts, plain numbers, lists and maps of these."""
    return msgspec.msgpack.encode(_packed(message))


def unpack(data: bytes) -> dict[str, Any]:
    """The message in some bytes. Raises InvalidMessage for anything else."""
    try:
        message = _unpacked(msgspec.msgpack.decode(data))
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidMessage(f"expected a msgpack message of openpi, got something else: {error}") from error
    if not isinstance(message, dict):
        raise InvalidMessage(f"expected a map, got {type(message).__name__}")
    return message


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value)
        return {_ARRAY: True, _DATA: content.tobytes(), _DTYPE: content.dtype.str, _SHAPE: content.shape}
    if isinstance(value, Mapping):
        return {key: _packed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(one) for one in value]
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            return _array(value)
        if _SCALAR in value:
            return value.get(_DATA)
        return {key: _unpacked(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_unpacked(one) for one in value]
    return value


def _array(fields: Mapping[Any, Any]) -> npt.NDArray[Any]:
    data, shape = fields.get(_DATA), fields.get(_SHAPE)
    try:
        dtype = np.dtype(fields[_DTYPE])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidMessage(f"an array has no dtype that is known: {error}") from error
    if dtype.char not in DTYPES:
        raise InvalidMessage(f"expected an array of numbers, got dtype {dtype}")
    if not isinstance(shape, list) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise InvalidMessage(f"expected the shape of an array, got {shape!r}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise InvalidMessage(f"an array has other bytes than its shape {shape} says")
    try:
        return np.frombuffer(data, dtype=dtype).reshape(shape)
    except ValueError as error:  # an empty array with sides that no array has
        raise InvalidMessage(f"an array cannot have the shape {shape}: {error}") from error
