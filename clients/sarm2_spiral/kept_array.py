"""An array that is worked out once, and found again by a run that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sarm2_rollouts.whole_file import whole_file

AnyArray = TypeVar("AnyArray", bound=npt.NDArray[Any])


def kept_array(path: Path, work: Callable[[], AnyArray]) -> AnyArray:
    """The array of a file, or what `work` returns, which goes there: the file appears when it is whole."""
    if path.exists():
        found: AnyArray = np.load(path, allow_pickle=False)
        return found
    array = work()
    save_array(path, array)
    return array


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array to a file, which appears when it is whole."""
    with whole_file(path) as fresh, fresh.open("wb") as file:
        np.save(file, array, allow_pickle=False)
