"""Parquet tables that others wrote, read with errors that say what is wrong. Nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sarm2_client.errors import InvalidInput, NotFound


def parquet_schema(path: Path) -> pa.Schema:
    """A file's columns. Raises InvalidInput where it is no parquet file."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as parquet: {error}; fetch it again") from error


def read_parquet(path: Path, columns: tuple[str, ...] | None = None, filters: Any = None) -> pa.Table:
    """The wanted columns, as far as the file has them. `filters` skip row groups that cannot match."""
    if not path.is_file():
        raise NotFound(f"expected {path}, found none; the dataset is incomplete")
    present = parquet_schema(path).names
    if filters and (missing := [name for name, *_ in filters if name not in present]):
        raise InvalidInput(f"expected a column {missing[0]!r} in {path}, got {', '.join(present)}")
    wanted = None if columns is None else [name for name in columns if name in present]
    try:
        return pq.read_table(path, columns=wanted, filters=filters, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as parquet: {error}; fetch it again") from error


def column_of(table: pa.Table, name: str) -> Any:
    """A column that must be there; InvalidInput names it otherwise."""
    if name not in table.column_names:
        raise InvalidInput(f"expected a column {name!r}, got {', '.join(table.column_names)}", field=name)
    return table[name]


def float_matrix(frames: pa.Table, name: str, length: int) -> npt.NDArray[np.float32]:
    """A column of numbers, lists or fixed-size lists as float32 (T, N); (T, 0) where there is none.

    Raises InvalidInput for anything else, for empty cells in vectors and for vectors of different lengths.
    """
    if name not in frames.column_names:
        return np.zeros((length, 0), dtype=np.float32)
    column = frames[name].combine_chunks()
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    try:
        if not lists and not pa.types.is_fixed_size_list(column.type):
            return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(length, 1)
        if column.null_count:
            raise ValueError("empty cells")
        flat = column.flatten().to_numpy(zero_copy_only=False)
        if lists and len({len(cell) for cell in column}) > 1:
            raise ValueError("vectors of different lengths")
        return np.asarray(flat, dtype=np.float32).reshape(length, -1)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise InvalidInput(f"expected numbers in the column {name!r}, got {error}", field=name) from error
