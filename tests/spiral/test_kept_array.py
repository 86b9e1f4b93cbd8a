"""What was worked out once is found again; what was cut short is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sarm2_spiral.kept_array import kept_array
from sarm2_spiral.targets import Float32Array


def never() -> Float32Array:
    raise AssertionError("worked out twice")


def test_an_array_is_worked_out_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "000000.npy"
    made = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(kept_array(path, lambda: made), made)
    found = kept_array(path, never)
    np.testing.assert_array_equal(found, made)
    assert found.dtype == np.float32
    assert [file.name for file in path.parent.iterdir()] == ["000000.npy"]


def test_what_a_kill_left_half_written_is_worked_out_again(tmp_path: Path) -> None:
    path = tmp_path / "000000.npy"
    path.with_name(f"{path.name}.new").write_bytes(b"\x93NUMPY half")
    np.testing.assert_array_equal(kept_array(path, lambda: np.ones(2, np.float32)), [1, 1])
    assert [file.name for file in tmp_path.iterdir()] == ["000000.npy"]


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="twice"):
        kept_array(tmp_path / "000000.npy", never)
    assert not list(tmp_path.iterdir())
