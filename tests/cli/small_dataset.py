"""A short recorded dataset of the toy robot, and how it is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fakes
from sarm2_client.images import encode_jpeg
from sarm2_rollouts.episode import Episode, LabelledSegment

LENGTH = 14


def recorded(seed: int) -> Episode:
    """A short labelled episode of the toy robot."""
    rng = np.random.default_rng(seed)
    return Episode(
        task=fakes.TASKS[seed % len(fakes.TASKS)],
        fps=fakes.FPS,
        images={
            camera: [encode_jpeg(fakes.picture(100 * seed + 10 * index + t)) for t in range(LENGTH)]
            for index, camera in enumerate(fakes.CAMERAS)
        },
        state_TS=rng.normal(size=(LENGTH, fakes.STATE_DIM)).astype(np.float32),
        success=True,
        task_name="pick-place",
        progress_T=np.linspace(0, 1, LENGTH, dtype=np.float32),
        segments=(LabelledSegment("reach", 0, 8), LabelledSegment("grasp", 8, LENGTH)),
    )


def damage(root: Path, episode: int, frame: int) -> None:
    """Spoil one picture of a dataset that keeps them in its rows."""
    _replace(root, episode, [frame], b"\xff\xd8 no picture")


def lose(root: Path, episode: int) -> None:
    """Take an episode's pictures of one camera away, in a dataset that keeps them in its rows."""
    _replace(root, episode, range(LENGTH), None)


def _replace(root: Path, episode: int, frames: Sequence[int], content: bytes | None) -> None:
    path, name = root / "data/chunk-000/file-000.parquet", f"observation.images.{fakes.CAMERAS[1]}"
    table = pq.read_table(path, partitioning=None)
    cells = table[name].to_pylist()
    for row, place in enumerate(table.select(["episode_index", "frame_index"]).to_pylist()):
        if place["episode_index"] == episode and place["frame_index"] in frames:
            cells[row] = {"bytes": content, "path": ""}
    column = table.column_names.index(name)
    pq.write_table(table.set_column(column, name, pa.array(cells, table.schema.field(column).type)), path)
