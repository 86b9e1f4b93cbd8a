"""What commands that score a dataset's episodes have in common: their options, and the service they reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from sarm2_cli.server_process import ServerProcess
from sarm2_client.client import RewardClient
from sarm2_client.errors import InvalidInput
from sarm2_client.wire import EpisodeSource
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_format import camera_name as short_name

DatasetFolder: TypeAlias = Annotated[Path, typer.Argument(help="Root folder of a LeRobotDataset v3.0.")]
Bundle: TypeAlias = Annotated[
    Path | None, typer.Option(help="Start a service with this bundle; the shipped one by default.")
]
Server: TypeAlias = Annotated[
    str | None, typer.Option(help="Use a running service instead, with its own bundle: HOST:PORT.")
]
Cameras: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="MODEL_CAMERA=DATASET_CAMERA where the names differ, once for every camera that does."),
]
Instruction: TypeAlias = Annotated[
    str | None, typer.Option(help="Instruction to score against, instead of the dataset's own.")
]
Source: TypeAlias = Annotated[
    EpisodeSource | None,
    typer.Option(
        help="Where the episodes come from: narrows the interval to what was calibrated on such ones. "
        "By default what the dataset says of itself, if it does."
    ),
]


def camera_names(pairs: list[str]) -> dict[str, str]:
    """Parse `--camera MODEL=DATASET` into {dataset camera: model camera}. Raises InvalidInput for a pair that
    is none, or a camera that is named twice."""
    names: dict[str, str] = {}
    for pair in pairs:
        model_camera, equals, dataset_camera = pair.partition("=")
        if not (model_camera and equals and dataset_camera):
            raise InvalidInput(f"--camera {pair!r}: expected MODEL_CAMERA=DATASET_CAMERA", field="camera")
        name = short_name(dataset_camera)
        if name in names or model_camera in names.values():
            twice = dataset_camera if name in names else model_camera
            raise InvalidInput(
                f"--camera {pair!r}: {twice!r} is named twice; a camera of the dataset is one of the model's",
                field="camera",
            )
        names[name] = model_camera
    return names


def with_names(episode: Episode, names: dict[str, str], task: str | None) -> Episode:
    """The episode under the model's camera names, and under another instruction where one is given."""
    unknown = sorted(set(names) - set(episode.images))
    if unknown:
        raise InvalidInput(
            f"--camera: the dataset has no camera {unknown[0]!r}; it has {', '.join(episode.images)}",
            field="camera",
        )
    taken = set(names.values())  # by a camera that was asked for: another one of that name steps back
    images = {
        names.get(camera, camera): files
        for camera, files in episode.images.items()
        if camera in names or camera not in taken
    }
    return replace(episode, images=images, task=task or episode.task)


@contextmanager
def reached(server: str | None, bundle: Path | None) -> Iterator[RewardClient]:
    """A client of the running service at `server` (HOST:PORT), or of one of our own, ended on exit."""
    with served(server, bundle) as (host, port), RewardClient(host=host, port=port) as client:
        yield client


@contextmanager
def served(server: str | None, bundle: Path | None, *, lasting: bool = False) -> Iterator[tuple[str, int]]:
    """Host and port of the running service at `server` (HOST:PORT), or of one of our own, ended on exit.

    `lasting`: our own is for a run of hours: it may take what the bundle's folder holds later, and is started
    again where it ends. Raises InvalidInput where both are given, or where `server` is no address.
    """
    if bundle is not None and server is not None:
        raise InvalidInput("--bundle and --server exclude each other: a service scores with its own bundle")
    if server is None:
        with ServerProcess(port=0, bundle=bundle, reload=lasting, restart=lasting) as own:
            yield "127.0.0.1", own.port
        return
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput(
            f"--server {server!r}: expected HOST:PORT, for example 127.0.0.1:8765", field="server"
        )
    yield host, int(port)
