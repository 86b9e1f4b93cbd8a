"""LeRobotDataset v3.0 on disk: names, paths and `meta/info.json`, shared by the reader and the writer.

    meta/info.json                                  what the dataset holds
    meta/stats.json                                 minimum, maximum, mean, std, count, quantiles per feature
    meta/tasks.parquet                              task_index and the instruction
    meta/episodes/chunk-000/file-000.parquet        a row per episode: where its rows and pictures stand
    data/chunk-000/file-000.parquet                 a row per frame
    videos/<feature>/chunk-000/file-000.mp4         episodes one after another

Our own additions, which other readers ignore: per frame `annotation.progress`, `annotation.primitive` and
`simulator.state`; per episode `dense_subtask_*` (the columns of SARM) and `sarm2/*`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from sarm2_client.errors import InvalidInput, NotFound

VERSION: Final = "v3.0"
DATA_PATH: Final = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH: Final = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH: Final = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO_PATH: Final = "meta/info.json"
STATS_PATH: Final = "meta/stats.json"
TASKS_PATH: Final = "meta/tasks.parquet"

STATE: Final = "observation.state"
ACTION: Final = "action"
IMAGE_PREFIX: Final = "observation.images."
PROGRESS: Final = "annotation.progress"
PRIMITIVE: Final = "annotation.primitive"
SIMULATOR: Final = "simulator.state"
INDEX_COLUMNS: Final = ("timestamp", "frame_index", "episode_index", "index", "task_index")

TASK_TEXT_COLUMNS: Final = ("task", "__index_level_0__")
"""Where `meta/tasks.parquet` keeps the instruction; the second is a nameless pandas index."""


@dataclass(frozen=True)
class Camera:
    """One picture feature of a dataset.

    Attributes:
        name: short name, "top".
        key: feature name, "observation.images.top".
        video: whether the pictures stand in an mp4 rather than in the frames' rows.
    """

    name: str
    key: str
    video: bool


@dataclass(frozen=True)
class Info:
    """`meta/info.json`, checked.

    Attributes:
        fps: frames a second.
        total_episodes: as stated.
        features: per feature its dtype, shape and names, as in the file.
        data_path: template of the frames' files. video_path: template of the videos, where there are any.
    """

    fps: float
    total_episodes: int
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: str | None

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """Every picture feature, in the file's order; depth maps are no pictures."""
        return tuple(
            Camera(camera_name(key), key, feature["dtype"] == "video")
            for key, feature in self.features.items()
            if feature["dtype"] in ("video", "image") and not _is_depth(feature)
        )


def camera_name(key: str) -> str:
    """`observation.images.top` and `observation.top` are both "top"."""
    return key.removeprefix(IMAGE_PREFIX).removeprefix("observation.")


def read_info(root: Path) -> Info:
    """Read and check `meta/info.json`.

    Raises NotFound where there is none, InvalidInput for another version or a field of a wrong kind.
    """
    path = root / INFO_PATH
    if not path.is_file():
        raise NotFound(
            f"expected a LeRobot dataset with {INFO_PATH} in {root}, found none; give the dataset's root"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"expected an object in {path}, got {type(content).__name__}")
    version = content.get("codebase_version")
    if version != VERSION:
        raise InvalidInput(
            f"expected codebase_version {VERSION!r} in {path}, got {version!r}; "
            "convert the dataset with LeRobot's own converter first"
        )
    features = _features(content.get("features"), path)
    return Info(
        fps=_fps(content.get("fps"), path),
        total_episodes=_count(content, "total_episodes", path),
        features=features,
        data_path=_template(content.get("data_path") or DATA_PATH, path),
        video_path=_template(content.get("video_path") or VIDEO_PATH, path),
    )


def fill_path(root: Path, template: str, chunk: int, file: int, video_key: str = "") -> Path:
    """The file that a path template of `info.json` means.

    Raises InvalidInput for a template with unknown fields or one that leads out of the dataset.
    """
    try:
        filled = template.format(chunk_index=chunk, file_index=file, video_key=video_key)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise InvalidInput(
            f"the path template {template!r} in {INFO_PATH} cannot be filled: {error!r}"
        ) from error
    relative = PurePosixPath(filled)
    if relative.is_absolute() or ".." in relative.parts or "\0" in filled:
        raise InvalidInput(f"the path {filled!r} in {INFO_PATH} leads out of the dataset")
    return root / relative


def next_file(chunk: int, file: int, chunks_size: int) -> tuple[int, int]:
    """The place after (chunk, file): a chunk holds `chunks_size` files."""
    return (chunk, file + 1) if file + 1 < chunks_size else (chunk + 1, 0)


def whole(number: float) -> int | float:
    """LeRobot wants whole numbers as integers."""
    return int(number) if float(number).is_integer() else float(number)


def _features(value: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise InvalidInput(f"expected an object of features in {path}, got {type(value).__name__}")
    for key, feature in value.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise InvalidInput(f"expected a dtype for the feature {key!r} in {path}, got {feature!r}")
    return value


def _fps(value: Any, path: Path) -> float:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or value <= 0:
        raise InvalidInput(f"expected a positive fps in {path}, got {value!r}", field="fps")
    return float(value)


def _count(content: dict[str, Any], key: str, path: Path) -> int:
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput(f"expected a count for {key} in {path}, got {value!r}", field=key)
    return value


def _template(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"expected a path template in {path}, got {value!r}")
    return value


def _is_depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(isinstance(info, dict) and info.get("video.is_depth_map"))
