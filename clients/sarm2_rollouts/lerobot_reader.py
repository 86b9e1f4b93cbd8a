"""Read LeRobot datasets (v3.0), whoever wrote them.

One episode is in memory at a time. Nothing is unpickled: the files are JSON, parquet and mp4. Pictures come
out as JPEG files; where the dataset keeps JPEGs in its rows, they are those very bytes.

Shapes: T frames, S state dimensions, A action dimensions, K simulator quantities.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image as PillowImage

from sarm2_client.errors import InvalidImage, InvalidInput, NotFound
from sarm2_client.images import MAX_PIXELS, ImageHWC, decode_jpeg, encode_jpeg, resize_with_pad
from sarm2_rollouts import lerobot_format as layout
from sarm2_rollouts.episode import Episode, EpisodeKind, LabelledSegment
from sarm2_rollouts.lerobot_format import Camera
from sarm2_rollouts.parquet import column_of, float_matrix, parquet_schema, read_parquet
from sarm2_rollouts.video import read_frames

_EPISODE_COLUMNS = ("episode_index", "length", "data/chunk_index", "data/file_index")
_FRAME_COLUMNS = (
    layout.STATE,
    layout.ACTION,
    layout.PROGRESS,
    layout.PRIMITIVE,
    layout.SIMULATOR,
    *layout.INDEX_COLUMNS,
)


def open_dataset(root: Path | str, *, image_size: int | None = None, pictures: bool = True) -> Dataset:
    """Open a LeRobot dataset.

    Args:
        root: the folder that holds `meta/`, `data/` and `videos/`.
        image_size: fit every picture into a square of this side in pixels (as the service does), which keeps
            large cameras out of memory. None leaves pictures as they are.
        pictures: without, episodes come with no cameras: a hundred times faster where only numbers count.

    Raises:
        NotFound: a file is missing. InvalidInput: a file is damaged or of another version.
    """
    return Dataset(Path(root), image_size=image_size, pictures=pictures)


class Dataset:
    """A LeRobot dataset: a sequence of episodes, read when asked for.

    Attributes:
        root: its folder.
        fps: frames a second.
        cameras: short names of the cameras that are read, in the dataset's order.
        tasks: every instruction, by task index.
        state_names: names of the S state dimensions.
        frames: number of frames, all episodes together.
    """

    def __init__(self, root: Path, *, image_size: int | None = None, pictures: bool = True) -> None:
        self.root = root
        self._info = layout.read_info(root)
        self._image_size = image_size
        self._cameras = {camera.name: camera for camera in self._info.cameras if pictures}
        self._task_texts = _read_tasks(root)
        self._rows = _read_episode_rows(root)
        self.fps = self._info.fps
        self.cameras = tuple(self._cameras)
        self.tasks = tuple(self._task_texts.values())
        self.state_names = _names(self._info.features.get(layout.STATE))
        self.frames = sum(int(row["length"]) for row in self._rows)
        if len(self._rows) != self._info.total_episodes:
            raise InvalidInput(
                f"{layout.INFO_PATH} of {root} promises {self._info.total_episodes} episodes, "
                f"meta/episodes holds {len(self._rows)}; fetch the dataset again"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def episode_length(self, index: int) -> int:
        """Frames of an episode, without reading it."""
        return int(self._row(index)["length"])

    def episode_frames(self, index: int) -> range:
        """The global indices of an episode's frames. Raises InvalidInput where the dataset does not say."""
        row = self._row(index)
        first = row.get("dataset_from_index")
        if not isinstance(first, int):
            raise InvalidInput(
                f"expected whole numbers in the column 'dataset_from_index' of meta/episodes in {self.root}"
            )
        return range(first, first + int(row["length"]))

    def episode(self, index: int) -> Episode:
        """Read one episode, with its pictures if they are asked for. Labels that are not there are None."""
        row = self._row(index)
        frames = self._frame_table(row)
        length = frames.num_rows
        return Episode(
            task=self._task(row, frames),
            fps=self.fps,
            images={name: list(self._jpegs(row, camera)) for name, camera in self._cameras.items()},
            state_TS=float_matrix(frames, layout.STATE, length),
            kind=_kind(row.get("sarm2/kind")),
            success=_optional(row, "sarm2/success", bool),
            seed=_optional(row, "sarm2/seed", int),
            task_name=_optional(row, "sarm2/task_name", str),
            progress_T=_progress(frames),
            segments=_segments(row, frames, length),
            action_TA=_known(float_matrix(frames, layout.ACTION, length)),
            action_names=_names(self._info.features.get(layout.ACTION)),
            simulator_TK=_known(float_matrix(frames, layout.SIMULATOR, length)),
            simulator_names=_names(self._info.features.get(layout.SIMULATOR)),
            info=_info_object(row.get("sarm2/info")),
        )

    def images(self, index: int, camera: str) -> Iterator[ImageHWC]:
        """The pictures of one camera as uint8 RGB (H, W, 3), one by one, without JPEG in between."""
        if camera not in self._cameras:
            raise NotFound(f"no camera {camera!r}; this dataset has {', '.join(self.cameras) or 'none'}")
        return self._pictures(self._row(index), self._cameras[camera])

    # --- one episode's files -------------------------------------------------------------------------

    def _row(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self._rows):
            raise NotFound(f"no episode {index}; this dataset has {len(self._rows)}, counted from 0")
        return self._rows[index]

    def _frame_table(self, row: dict[str, Any], columns: tuple[str, ...] = _FRAME_COLUMNS) -> pa.Table:
        path = layout.fill_path(
            self.root, self._info.data_path, int(row["data/chunk_index"]), int(row["data/file_index"])
        )
        episode = int(row["episode_index"])
        table = read_parquet(path, columns, filters=[("episode_index", "==", episode)])
        if "frame_index" in table.column_names:
            table = table.sort_by("frame_index")
        if table.num_rows != int(row["length"]):
            raise InvalidInput(
                f"episode {episode} should have {row['length']} frames, {path} holds {table.num_rows}; "
                "the dataset is cut short"
            )
        return table

    def _jpegs(self, row: dict[str, Any], camera: Camera) -> Iterator[bytes]:
        if camera.video or self._image_size is not None:
            return (encode_jpeg(picture) for picture in self._pictures(row, camera))
        return (_as_jpeg(data) for data in self._stored(row, camera))

    def _pictures(self, row: dict[str, Any], camera: Camera) -> Iterator[ImageHWC]:
        size = self._image_size
        pictures = (
            self._video(row, camera) if camera.video else map(_decode_stored, self._stored(row, camera))
        )
        return pictures if size is None else (resize_with_pad(picture, size) for picture in pictures)

    def _video(self, row: dict[str, Any], camera: Camera) -> Iterator[ImageHWC]:
        place = f"videos/{camera.key}"
        try:
            chunk, file = int(row[f"{place}/chunk_index"]), int(row[f"{place}/file_index"])
            start_s = float(row[f"{place}/from_timestamp"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"meta/episodes does not say where the video of {camera.key!r} stands ({error}); "
                f"expected the columns {place}/chunk_index, file_index and from_timestamp"
            ) from error
        path = layout.fill_path(
            self.root, self._info.video_path or layout.VIDEO_PATH, chunk, file, camera.key
        )
        return read_frames(path, start_s, int(row["length"]), self.fps)

    def _stored(self, row: dict[str, Any], camera: Camera) -> Iterator[bytes]:
        table = self._frame_table(row, (camera.key, "episode_index", "frame_index"))
        for value in column_of(table, camera.key):
            data = value.as_py()
            content = data.get("bytes") if isinstance(data, dict) else data
            if not isinstance(content, bytes):
                raise InvalidInput(f"expected the picture's bytes in the column {camera.key!r}, got none")
            yield content

    def _task(self, row: dict[str, Any], frames: pa.Table) -> str:
        tasks = row.get("tasks")
        if tasks:
            return str(tasks if isinstance(tasks, str) else tasks[0])
        index = int(column_of(frames, "task_index")[0].as_py())
        if index not in self._task_texts:
            raise InvalidInput(f"task_index {index} is not in {layout.TASKS_PATH}; the dataset is incomplete")
        return self._task_texts[index]


# --- the metadata ------------------------------------------------------------------------------------


def _read_tasks(root: Path) -> dict[int, str]:
    table = read_parquet(root / layout.TASKS_PATH)
    text = next((name for name in layout.TASK_TEXT_COLUMNS if name in table.column_names), None)
    if text is None:
        raise InvalidInput(
            f"expected a column {' or '.join(layout.TASK_TEXT_COLUMNS)} in {layout.TASKS_PATH}, "
            f"got {', '.join(table.column_names)}"
        )
    pairs = zip(column_of(table, "task_index").to_pylist(), table[text].to_pylist(), strict=True)
    return dict(sorted((int(index), str(task)) for index, task in pairs))


def _read_episode_rows(root: Path) -> list[dict[str, Any]]:
    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise NotFound(f"expected meta/episodes/chunk-000/file-000.parquet in {root}, found none")
    rows: list[dict[str, Any]] = []
    for path in paths:
        names = [name for name in parquet_schema(path).names if not name.startswith("stats/")]
        rows.extend(read_parquet(path, tuple(names)).to_pylist())
    for column in _EPISODE_COLUMNS:
        if any(not isinstance(row.get(column), int) for row in rows):
            raise InvalidInput(f"expected whole numbers in the column {column!r} of meta/episodes in {root}")
    return sorted(rows, key=lambda row: int(row["episode_index"]))


def _names(feature: dict[str, Any] | None) -> tuple[str, ...]:
    """Names of a vector feature: a list, or a mapping with one list ({"motors": [...]}), or none."""
    names = (feature or {}).get("names")
    if isinstance(names, dict):
        names = next((value for value in names.values() if isinstance(value, list)), None)
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


# --- labels ------------------------------------------------------------------------------------------


def _progress(frames: pa.Table) -> npt.NDArray[np.float32] | None:
    if layout.PROGRESS not in frames.column_names:
        return None
    return _known(float_matrix(frames, layout.PROGRESS, frames.num_rows)[:, 0])


def _known(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
    """None where there is nothing, or where a number is missing (written as NaN)."""
    return values if values.size and np.isfinite(values).all() else None


def _segments(row: dict[str, Any], frames: pa.Table, length: int) -> tuple[LabelledSegment, ...] | None:
    """Primitives from the columns of SARM, else from the frames' own."""
    for prefix in ("dense", "sparse"):
        names, starts = row.get(f"{prefix}_subtask_names"), row.get(f"{prefix}_subtask_start_frames")
        if names and starts:
            return _from_boundaries([str(name) for name in names], [int(start) for start in starts], length)
    if layout.PRIMITIVE not in frames.column_names:
        return None
    primitives = [str(value or "") for value in frames[layout.PRIMITIVE].to_pylist()]
    if "" in primitives:
        return None
    starts = [0, *(t for t in range(1, length) if primitives[t] != primitives[t - 1])]
    return _from_boundaries([primitives[start] for start in starts], starts, length)


def _from_boundaries(names: list[str], starts: list[int], length: int) -> tuple[LabelledSegment, ...] | None:
    """Each segment lasts until the next begins: writers disagree whether their ends are inclusive."""
    ends = [*starts[1:], length]
    whole = len(names) == len(starts) and starts[0] == 0
    if not whole or any(start >= end for start, end in zip(starts, ends, strict=True)):
        return None
    return tuple(LabelledSegment(*segment) for segment in zip(names, starts, ends, strict=True))


def _kind(value: Any) -> EpisodeKind:
    kinds: tuple[EpisodeKind, ...] = get_args(EpisodeKind)
    return next((kind for kind in kinds if kind == value), "unknown")


def _optional(row: dict[str, Any], key: str, kind: type[Any]) -> Any:
    value = row.get(key)
    return value if isinstance(value, kind) else None


def _info_object(text: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"expected JSON in the column sarm2/info, got {text[:80]!r}") from error
    return value if isinstance(value, dict) else {}


# --- pictures in rows --------------------------------------------------------------------------------


def _as_jpeg(data: bytes) -> bytes:
    """A stored picture as a JPEG file: itself, if it is one, or is damaged. Whoever looks at it can then say
    which frame that is, and the others of its episode are not lost with it."""
    if data[:2] == b"\xff\xd8":
        return data
    try:
        return encode_jpeg(_decode_stored(data))
    except InvalidImage:
        return data


def _decode_stored(data: bytes) -> ImageHWC:
    """JPEG, or PNG as LeRobot writes it."""
    if data[:2] == b"\xff\xd8":
        return decode_jpeg(data)
    try:
        with PillowImage.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InvalidImage(f"expected at most {MAX_PIXELS} pixels, got {picture.size}")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise InvalidImage(f"expected a JPEG or PNG picture, got a damaged one ({error})") from error
