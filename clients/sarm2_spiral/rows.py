"""A file of JSON lines that grows row by row, and outlives a kill in the middle of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def growing(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What adds a row to a file, and flushes it; the file is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if file.tell() and not path.read_text().endswith("\n"):
            file.write("\n")  # after a torn line, which would take the next one with it

        def add(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield add


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; none where there is no file. A row that a kill tore is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
