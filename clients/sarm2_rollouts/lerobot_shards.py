"""Files that roll over by size: `file-000`, `file-001`, ... in chunks of so many. Used by the writer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from sarm2_client.images import ImageHWC
from sarm2_rollouts import lerobot_format as layout
from sarm2_rollouts.video import VideoWriter

MIB: Final = 2**20


@dataclass(frozen=True)
class FileSizes:
    """When a new file begins. Sizes in MiB, as LeRobot counts them."""

    data_mb: float = 100.0
    video_mb: float = 200.0
    files_per_chunk: int = 1000


class ShardedTables:
    """Parquet files of one schema. Each table written becomes one row group, and never spans two files."""

    def __init__(self, root: Path, template: str, sizes: FileSizes) -> None:
        self._root, self._template, self._sizes = root, template, sizes
        self._place = (0, 0)
        self._writer: Any = None
        self._path = layout.fill_path(root, template, 0, 0)

    def next_place(self) -> tuple[int, int]:
        """(chunk, file) of the next table; begins a new file where the last one is full."""
        if self._writer is not None and self._path.stat().st_size >= self._sizes.data_mb * MIB:
            self.close()
            self._place = layout.next_file(*self._place, self._sizes.files_per_chunk)
        return self._place

    def write(self, table: pa.Table) -> tuple[int, int]:
        """Append a table; returns (chunk, file) of where it went."""
        place = self.next_place()
        if self._writer is None:
            self._path = layout.fill_path(self._root, self._template, *place)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Dictionaries pay for repeated text alone; on pictures and floats they cost time.
            text = [field.name for field in table.schema if pa.types.is_string(field.type)]
            self._writer = pq.ParquetWriter(
                self._path, table.schema, compression="snappy", use_dictionary=text or False
            )
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        return place

    def close(self) -> None:
        """Write the footer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class ShardedVideo:
    """The mp4 files of one camera. An episode never spans two of them and begins with a key frame."""

    def __init__(self, root: Path, key: str, fps: float, sizes: FileSizes) -> None:
        self._root, self._key, self._fps, self._sizes = root, key, fps, sizes
        self._place = (0, 0)
        self._file: VideoWriter | None = None
        self._from_s = 0.0
        self._key_frame = True

    def begin_episode(self, height: int, width: int) -> None:
        """What follows belongs to a new episode."""
        if self._file is not None and self._file.size_bytes >= self._sizes.video_mb * MIB:
            self.close()
            self._place = layout.next_file(*self._place, self._sizes.files_per_chunk)
        if self._file is None:
            path = layout.fill_path(self._root, layout.VIDEO_PATH, *self._place, self._key)
            self._file = VideoWriter(path, self._fps, height, width)
        self._from_s = self._file.seconds
        self._key_frame = True

    def write(self, picture_HWC: ImageHWC) -> None:
        """Append one frame to the episode."""
        assert self._file is not None
        self._file.write(picture_HWC, key_frame=self._key_frame)
        self._key_frame = False

    def columns(self) -> dict[str, Any]:
        """Where the latest episode stands, as columns of meta/episodes."""
        assert self._file is not None
        values = (*self._place, self._from_s, self._file.seconds)
        names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        return {f"videos/{self._key}/{name}": value for name, value in zip(names, values, strict=True)}

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
