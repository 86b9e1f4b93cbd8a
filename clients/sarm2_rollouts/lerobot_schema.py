"""What a written dataset's rows look like: the features of `info.json` and the parquet columns they become.

Shapes: T frames, S state dimensions, A action dimensions, K simulator quantities.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sarm2_client.errors import InvalidInput
from sarm2_client.images import read_jpeg_header
from sarm2_rollouts import lerobot_format as layout
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_stats import NAMES
from sarm2_rollouts.video import CODEC, PIXEL_FORMAT

_ARROW: Final = {"float32": pa.float32(), "int64": pa.int64(), "string": pa.string()}
_PICTURE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_LABEL_COLUMNS: Final = {
    "dense_subtask_names": pa.list_(pa.string()),
    "dense_subtask_start_frames": pa.list_(pa.int64()),
    "dense_subtask_end_frames": pa.list_(pa.int64()),
    "sarm2/kind": pa.string(),
    "sarm2/success": pa.bool_(),
    "sarm2/seed": pa.int64(),
    "sarm2/task_name": pa.string(),
    "sarm2/info": pa.string(),
}


@dataclass(frozen=True)
class Schema:
    """The features of a dataset, taken from its first episode.

    Attributes:
        fps: frames a second.
        video: whether pictures are stored as videos.
        features: as in `info.json`.
    """

    fps: float
    video: bool
    features: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, episode: Episode, video: bool, state_names: Sequence[str] | None) -> Schema:
        """Raises InvalidInput where the names do not fit the episode or a picture is no JPEG."""
        features: dict[str, dict[str, Any]] = {}
        state_dim = episode.state_TS.shape[1]
        if state_dim:
            names = list(state_names) if state_names is not None else [f"s{i}" for i in range(state_dim)]
            features[layout.STATE] = _vector("state_names", names, state_dim)
        if episode.action_TA is not None:
            width = episode.action_TA.shape[1]
            names = list(episode.action_names) or [f"a{i}" for i in range(width)]
            features[layout.ACTION] = _vector("action_names", names, width)
        for camera, files in episode.images.items():
            if not files:
                raise InvalidInput("expected at least one frame in an episode, got none")
            features[layout.IMAGE_PREFIX + camera] = _picture(files[0], video, episode.fps)
        features[layout.PROGRESS] = {"dtype": "float32", "shape": [1], "names": None}
        features[layout.PRIMITIVE] = {"dtype": "string", "shape": [1], "names": None}
        if episode.simulator_TK is not None:
            width = episode.simulator_TK.shape[1]
            names = list(episode.simulator_names) or [f"k{i}" for i in range(width)]
            features[layout.SIMULATOR] = _vector("simulator_names", names, width)
        for name in layout.INDEX_COLUMNS:
            dtype = "float32" if name == "timestamp" else "int64"
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return cls(episode.fps, video, features)

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Names of the picture features."""
        return tuple(key for key in self.features if key.startswith(layout.IMAGE_PREFIX))

    @property
    def number_keys(self) -> tuple[str, ...]:
        """Names of the features that are numbers."""
        return tuple(key for key, spec in self.features.items() if spec["dtype"] in ("float32", "int64"))

    def picture_size(self, key: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width, _ = self.features[key]["shape"]
        return height, width

    def is_whole(self, key: str) -> bool:
        """Whether the feature holds integers."""
        return bool(self.features[key]["dtype"] == "int64")

    def check(self, episode: Episode, index: int) -> None:
        """Raise InvalidInput unless the episode fits the first one."""
        simulator, action = episode.simulator_TK, episode.action_TA
        facts: dict[str, tuple[Any, Any]] = {
            "fps": (self.fps, episode.fps),
            "cameras": (
                sorted(self.camera_keys),
                sorted(layout.IMAGE_PREFIX + camera for camera in episode.images),
            ),
            "state dimensions": (self._width(layout.STATE), episode.state_TS.shape[1]),
            "action dimensions": (self._width(layout.ACTION), 0 if action is None else action.shape[1]),
            "simulator quantities": (
                self._width(layout.SIMULATOR),
                0 if simulator is None else simulator.shape[1],
            ),
        }
        for what, (expected, got) in facts.items():
            if expected != got:
                raise InvalidInput(
                    f"episode {index} does not fit the dataset: expected {what} {expected}, got {got}; "
                    "write it to a dataset of its own"
                )
        if not len(episode):
            raise InvalidInput(f"expected at least one frame in episode {index}, got none")
        self._check_rows(episode, index)

    def _check_rows(self, episode: Episode, index: int) -> None:
        vectors = {
            "progress": episode.progress_T,
            "simulator state": episode.simulator_TK,
            "action": episode.action_TA,
        }
        for what, rows in vectors.items():
            if rows is not None and len(rows) != len(episode):
                raise InvalidInput(
                    f"episode {index} has {len(episode)} frames but {len(rows)} rows of {what}"
                )
        if episode.segments is not None and len(episode.primitives_T) != len(episode):
            raise InvalidInput(f"the segments of episode {index} do not cover its {len(episode)} frames")
        for camera, files in episode.images.items():
            expected = self.picture_size(layout.IMAGE_PREFIX + camera)
            for t, data in enumerate(files):
                header = read_jpeg_header(data)
                if (header.height, header.width) != expected:
                    raise InvalidInput(
                        f"frame {t} of episode {index}, camera {camera!r}: expected {expected[1]} x "
                        f"{expected[0]} pixels as in episode 0, got {header.width} x {header.height}"
                    )

    def _width(self, key: str) -> int:
        return int(self.features[key]["shape"][0]) if key in self.features else 0

    def frames_schema(self) -> pa.Schema:
        """Columns of the frames' files, with the description that Hugging Face datasets look for."""
        fields = [
            (key, _PICTURE if spec["dtype"] == "image" else _column_type(spec))
            for key, spec in self.features.items()
            if spec["dtype"] != "video"
        ]
        described = {key: _described(spec) for key, spec in self.features.items() if spec["dtype"] != "video"}
        metadata = {"huggingface": json.dumps({"info": {"features": described}})}
        return pa.schema(fields, metadata=metadata)

    def episodes_schema(self) -> pa.Schema:
        """Columns of meta/episodes."""
        whole, seconds = pa.int64(), pa.float64()
        fields: list[tuple[str, Any]] = [("episode_index", whole), ("tasks", pa.list_(pa.string()))]
        names = ("length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
        fields += [(name, whole) for name in names]
        for key in self.camera_keys if self.video else ():
            fields += [(f"videos/{key}/{name}", whole) for name in ("chunk_index", "file_index")]
            fields += [(f"videos/{key}/{name}", seconds) for name in ("from_timestamp", "to_timestamp")]
        for key, spec in self.features.items():
            if spec["dtype"] != "string":
                fields += [(f"stats/{key}/{name}", self._stats_type(key, name)) for name in NAMES]
        fields += list(_LABEL_COLUMNS.items())
        fields += [(f"meta/episodes/{name}", whole) for name in ("chunk_index", "file_index")]
        return pa.schema(fields)

    def _stats_type(self, key: str, name: str) -> Any:
        if name == "count" or (name in ("min", "max") and self.is_whole(key)):
            return pa.list_(pa.int64())
        numbers = pa.list_(pa.float64())
        return pa.list_(pa.list_(numbers)) if key in self.camera_keys else numbers


def frame_table(schema: Schema, episode: Episode, index: int, first: int, task_index: int) -> pa.Table:
    """One row per frame of an episode.

    Args:
        schema: of the dataset.
        episode: T frames. Unknown progress is written as NaN, an unknown primitive as empty text.
        index: of the episode. first: index of its first frame in the dataset.
        task_index: of its instruction.
    """
    length = len(episode)
    steps = np.arange(length, dtype=np.int64)
    progress = episode.progress_T
    values: dict[str, Any] = {
        layout.STATE: episode.state_TS,
        layout.ACTION: episode.action_TA,
        layout.PROGRESS: np.full(length, np.nan, dtype=np.float32) if progress is None else progress,
        layout.PRIMITIVE: [""] * length if episode.segments is None else episode.primitives_T,
        layout.SIMULATOR: episode.simulator_TK,
        "timestamp": (steps / episode.fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, index, dtype=np.int64),
        "index": first + steps,
        "task_index": np.full(length, task_index, dtype=np.int64),
    }
    for camera, files in episode.images.items():
        values[layout.IMAGE_PREFIX + camera] = files
    target = schema.frames_schema()
    return pa.table([_array(values[field.name], field.type) for field in target], schema=target)


def episode_table(schema: Schema, rows: list[dict[str, Any]], chunk: int, file: int) -> pa.Table:
    """Rows of meta/episodes, which say of themselves in which file they stand."""
    place = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
    return pa.Table.from_pylist([row | place for row in rows], schema=schema.episodes_schema())


def label_columns(episode: Episode) -> dict[str, Any]:
    """What meta/episodes says of an episode beyond LeRobot's own columns."""
    segments = episode.segments
    try:
        info = json.dumps(episode.info, default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"expected an info that JSON can hold, got {error}", field="info") from error
    values = (
        None if segments is None else [segment.primitive for segment in segments],
        None if segments is None else [segment.start for segment in segments],
        None if segments is None else [segment.end for segment in segments],
        episode.kind,
        None if episode.success is None else bool(episode.success),
        None if episode.seed is None else int(episode.seed),
        episode.task_name,
        info,
    )
    return dict(zip(_LABEL_COLUMNS, values, strict=True))


def task_table(tasks: list[str]) -> pa.Table:
    """The instructions, as pandas writes a frame whose nameless index is the text: LeRobot reads it so."""
    text = layout.TASK_TEXT_COLUMNS[1]
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    index = {"name": None, "field_name": text, "pandas_type": "unicode", "numpy_type": "object"}
    described = {
        "index_columns": [text],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [column | {"metadata": None}, index | {"metadata": None}],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    fields = [("task_index", pa.int64()), (text, pa.large_string())]
    schema = pa.schema(fields, metadata={"pandas": json.dumps(described)})
    return pa.table([list(range(len(tasks))), tasks], schema=schema)


def _vector(what: str, names: list[str], width: int) -> dict[str, Any]:
    if len(names) != width:
        raise InvalidInput(f"expected {width} {what}, got {len(names)}: {', '.join(names)}", field=what)
    return {"dtype": "float32", "shape": [width], "names": names}


def _picture(data: bytes, video: bool, fps: float) -> dict[str, Any]:
    header = read_jpeg_header(data)
    height, width = header.height, header.width
    feature: dict[str, Any] = {
        "dtype": "video" if video else "image",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
    }
    if video:
        feature["info"] = {
            "video.height": height,
            "video.width": width,
            "video.codec": CODEC,
            "video.pix_fmt": PIXEL_FORMAT,
            "video.is_depth_map": False,
            "video.fps": layout.whole(fps),
            "video.channels": 3,
            "has_audio": False,
        }
    return feature


def _column_type(spec: dict[str, Any]) -> Any:
    """LeRobot stores a shape of (1,) as a plain number."""
    scalar = _ARROW[spec["dtype"]]
    return scalar if spec["shape"] == [1] else pa.list_(scalar, spec["shape"][0])


def _described(spec: dict[str, Any]) -> dict[str, Any]:
    if spec["dtype"] == "image":
        return {"_type": "Image"}
    value = {"dtype": spec["dtype"], "_type": "Value"}
    return value if spec["shape"] == [1] else {"feature": value, "length": spec["shape"][0], "_type": "List"}


def _array(values: Any, kind: Any) -> Any:
    if pa.types.is_struct(kind):
        paths = [f"frame-{t:06d}.jpg" for t in range(len(values))]
        return pa.StructArray.from_arrays([pa.array(values, pa.binary()), pa.array(paths)], fields=list(kind))
    if pa.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
    return pa.array(values if isinstance(values, list) else np.asarray(values).reshape(-1), kind)


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays as what JSON knows."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-able")
