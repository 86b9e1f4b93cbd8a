"""Write episodes as a LeRobot dataset (v3.0) that LeRobot itself reads.

Memory holds one episode. The dataset grows in a hidden folder beside its final place and is renamed when it
is whole, so an interrupted write leaves nothing under the final name.

Shapes: T frames, S state dimensions, A action dimensions, K simulator quantities.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from sarm2_client.errors import Conflict, InvalidInput
from sarm2_client.images import ImageHWC, decode_jpeg
from sarm2_rollouts import lerobot_format as layout
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_schema import Schema, episode_table, frame_table, label_columns, task_table
from sarm2_rollouts.lerobot_shards import FileSizes, ShardedTables, ShardedVideo
from sarm2_rollouts.lerobot_stats import NumberStats, PictureStats, sampled

Storage: TypeAlias = Literal["image", "video"]
_Stats: TypeAlias = NumberStats | PictureStats

EPISODES_PER_ROW_GROUP: Final = 64


@dataclass(frozen=True)
class DatasetSummary:
    """What was written.

    Attributes:
        root: the dataset's folder.
        episodes: their number. frames: of all episodes together.
        tasks: the instructions, by task index.
        size_bytes: on disk.
    """

    root: Path
    episodes: int
    frames: int
    tasks: tuple[str, ...]
    size_bytes: int


def write_dataset(
    episodes: Iterable[Episode],
    root: Path | str,
    *,
    storage: Storage = "video",
    robot_type: str = "unknown",
    state_names: Sequence[str] | None = None,
    progress: Callable[[Episode], None] | None = None,
    sizes: FileSizes | None = None,
) -> DatasetSummary:
    """Write episodes, one after another, as a LeRobot dataset.

    All must agree in fps, cameras, picture sizes, state and simulator dimensions; labels may be missing.

    Args:
        episodes: read once, one at a time.
        root: the folder to make; it must not exist, or be empty.
        storage: "image" keeps the JPEG files byte for byte in the frames' rows; "video" makes H.264 files,
            which are several times smaller and whose pixels differ a little.
        robot_type: written to `info.json`.
        state_names: names of the S state dimensions; numbered if left out.
        progress: called with each episode once it is on its way to disk.
        sizes: when a new file begins.

    Raises:
        Conflict: `root` exists. InvalidInput: no episodes, or episodes that do not fit together.
    """
    root = Path(root)
    check_free(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    for left in root.parent.glob(glob.escape(f".{root.name}.") + "????????.partial"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".partial", dir=root.parent))
    writer: _Writer | None = None
    try:
        for episode in episodes:
            if writer is None:
                schema = Schema.of(episode, storage == "video", state_names)
                writer = _Writer(partial, schema, robot_type, sizes or FileSizes())
            writer.add(episode)
            if progress is not None:
                progress(episode)
        if writer is None:
            raise InvalidInput("expected at least one episode, got none; a dataset cannot be empty")
        writer.finish()
        summary = writer.summary(root)
        _publish(partial, root)
    except BaseException:
        if writer is not None:
            writer.abandon()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return summary


class _Writer:
    """A dataset in the making, in the folder `root`."""

    def __init__(self, root: Path, schema: Schema, robot_type: str, sizes: FileSizes) -> None:
        self._root = root
        self._schema = schema
        self._robot_type = robot_type
        self._sizes = sizes
        self._frames = 0
        self._tasks: dict[str, int] = {}
        self._stats: dict[str, _Stats] = {}
        self._rows: list[dict[str, Any]] = []
        self._episodes = 0
        self._data = ShardedTables(root, layout.DATA_PATH, sizes)
        self._meta = ShardedTables(root, layout.EPISODES_PATH, sizes)
        self._videos = {
            key: ShardedVideo(root, key, schema.fps, sizes) for key in schema.camera_keys if schema.video
        }

    def add(self, episode: Episode) -> None:
        self._schema.check(episode, self._episodes)
        stats: dict[str, _Stats] = dict(self._write_pictures(episode))
        task_index = self._tasks.setdefault(episode.task, len(self._tasks))
        frames = frame_table(self._schema, episode, self._episodes, self._frames, task_index)
        chunk, file = self._data.write(frames)
        stats |= _number_stats(frames, self._schema)
        self._stats |= {key: _merged(self._stats.get(key), stat) for key, stat in stats.items()}
        self._rows.append(self._row(episode, chunk, file, stats))
        self._frames += len(episode)
        self._episodes += 1
        if len(self._rows) >= EPISODES_PER_ROW_GROUP:
            self._flush_rows()

    def finish(self) -> None:
        self._flush_rows()
        self._close()
        pq.write_table(task_table(list(self._tasks)), self._root / layout.TASKS_PATH)
        stats = {key: _stats_json(stat, self._schema.is_whole(key)) for key, stat in self._stats.items()}
        _write_json(self._root / layout.STATS_PATH, stats)
        _write_json(self._root / layout.INFO_PATH, self._info())

    def abandon(self) -> None:
        """Let go of the files; what went wrong before matters more than what goes wrong now."""
        with contextlib.suppress(Exception):
            self._close()

    def _close(self) -> None:
        for video in self._videos.values():
            video.close()
        self._data.close()
        self._meta.close()

    def summary(self, root: Path) -> DatasetSummary:
        size = sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())
        return DatasetSummary(root, self._episodes, self._frames, tuple(self._tasks), size)

    def _write_pictures(self, episode: Episode) -> dict[str, PictureStats]:
        """Store the pictures, where that means videos, and count a sample of them."""
        return {
            layout.IMAGE_PREFIX + camera: self._write_camera(layout.IMAGE_PREFIX + camera, files)
            for camera, files in episode.images.items()
        }

    def _write_camera(self, key: str, files: list[bytes]) -> PictureStats:
        chosen = sampled(len(files))
        if not self._schema.video:
            return PictureStats.of(decode_jpeg(files[t]) for t in chosen)
        return PictureStats.of(self._encoded(key, files, set(chosen.tolist())))

    def _encoded(self, key: str, files: list[bytes], chosen: set[int]) -> Iterator[ImageHWC]:
        """Append an episode to its camera's video, passing on the chosen frames as they go by."""
        video = self._videos[key]
        video.begin_episode(*self._schema.picture_size(key))
        for t, data in enumerate(files):
            picture = decode_jpeg(data)
            video.write(picture)
            if t in chosen:
                yield picture

    def _row(self, episode: Episode, chunk: int, file: int, stats: dict[str, Any]) -> dict[str, Any]:
        length = len(episode)
        row: dict[str, Any] = {
            "episode_index": self._episodes,
            "tasks": [episode.task],
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
        }
        for video in self._videos.values():
            row |= video.columns()
        for key, stat in stats.items():
            values = _stats_json(stat, self._schema.is_whole(key))
            row |= {f"stats/{key}/{name}": value for name, value in values.items()}
        return row | label_columns(episode)

    def _flush_rows(self) -> None:
        if not self._rows:
            return
        chunk, file = self._meta.next_place()
        self._meta.write(episode_table(self._schema, self._rows, chunk, file))
        self._rows = []

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self._robot_type,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": self._sizes.files_per_chunk,
            "data_files_size_in_mb": layout.whole(self._sizes.data_mb),
            "video_files_size_in_mb": layout.whole(self._sizes.video_mb),
            "fps": layout.whole(self._schema.fps),
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH if self._videos else None,
            "features": self._schema.features,
        }


def _number_stats(frames: pa.Table, schema: Schema) -> dict[str, NumberStats]:
    found: dict[str, NumberStats] = {}
    for key in schema.number_keys:
        column = frames[key].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        stats = NumberStats.of(flat.to_numpy(zero_copy_only=False).reshape(frames.num_rows, -1))
        if stats is not None:
            found[key] = stats
    return found


def _merged(known: _Stats | None, new: _Stats) -> _Stats:
    if isinstance(known, NumberStats) and isinstance(new, NumberStats):
        return known.merged(new)
    if isinstance(known, PictureStats) and isinstance(new, PictureStats):
        return known.merged(new)
    return new


def _stats_json(stats: _Stats, whole: bool) -> dict[str, list[Any]]:
    return stats.to_json() if isinstance(stats, PictureStats) else stats.to_json(whole=whole)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def check_free(root: Path) -> None:
    """Raise Conflict unless a dataset can be made at `root`: nothing there, or an empty folder."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise Conflict(f"{root} exists already; choose another folder, or remove it first")


def _publish(partial: Path, root: Path) -> None:
    """Give the whole dataset its name, in one step."""
    partial.chmod(0o755)  # temporary folders are private
    check_free(root)
    os.replace(partial, root)  # replaces an empty folder, and nothing else
