"""An array that is worked out once, and found again by a run that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

AnyArray = TypeVar("AnyArray", bound=npt.NDArray[Any])


def kept_array(path: Path, work: Callable[[], AnyArray]) -> AnyArray:
    """The array of a file, or what `work` returns, which goes there: the file appears when it is whole."""
    if path.exists():
        found: AnyArray = np.load(path, allow_pickle=False)
        return found
    array = work()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    fresh.replace(path)
    return array
