"""`sarm2 score`: score episodes of a LeRobot dataset, draw each, and keep the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from sarm2_cli.server_process import ServerProcess
from sarm2_client.client import RewardClient
from sarm2_client.errors import InvalidInput
from sarm2_client.wire import EpisodeSource
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.episode_scorer import scores_of
from sarm2_rollouts.lerobot_reader import open_dataset


def score(
    dataset: Annotated[Path, typer.Argument(help="Root folder of a LeRobotDataset v3.0.")],
    episode: Annotated[
        list[int] | None,
        typer.Option("--episode", "-e", help="Episode index; give it again for more. All by default."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pictures and numbers.")] = Path(
        "scores"
    ),
    bundle: Annotated[
        Path | None, typer.Option(help="Score with this bundle; the shipped one by default.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Score through a running service instead: HOST:PORT.")
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL_CAMERA=DATASET_CAMERA where the names differ, once for every camera that does."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Instruction to score against, instead of the dataset's own.")
    ] = None,
    source: Annotated[
        EpisodeSource | None,
        typer.Option(
            help="Where the episodes come from: narrows the interval to what was calibrated on such ones. "
            "By default what the dataset says of itself, if it does."
        ),
    ] = None,
    video: Annotated[bool, typer.Option(help="Film the episodes too.")] = True,
) -> None:
    """Score whole episodes: `EPISODE.png` with curve, interval and primitives, `EPISODE.mp4`, `EPISODE.json`.

    Example: `sarm2 score ./my_dataset -e 0 -e 7 --camera wrist=observation.images.wrist`
    """
    from sarm2_rollouts.episode_video import draw_video
    from sarm2_rollouts.plots import draw_episode

    if bundle is not None and server is not None:
        raise InvalidInput("--bundle and --server exclude each other: a service scores with its own bundle")
    episodes = open_dataset(dataset)
    chosen = episode if episode else list(range(len(episodes)))
    for index in chosen:
        if not 0 <= index < len(episodes):
            raise InvalidInput(
                f"--episode {index}: the dataset has episodes 0 to {len(episodes) - 1}", field="episode"
            )
    names = camera_names(camera or [])
    out.mkdir(parents=True, exist_ok=True)
    with reached(server, bundle) as client, Progress(console=Console(stderr=True)) as bar:
        for index in bar.track(chosen, description="episodes"):
            loaded = with_names(episodes.episode(index), names, task)
            scores = scores_of(client, loaded, source)
            stem = out / f"episode_{index:06d}"
            stem.with_suffix(".json").write_bytes(msgspec.json.encode(scores))
            draw_episode(stem.with_suffix(".png"), loaded, scores=scores, title=loaded.task)
            if video:
                draw_video(stem.with_suffix(".mp4"), loaded, scores)
            last = scores[-1]
            bar.console.print(
                json.dumps(
                    {"episode": index, "frames": len(scores), "final_progress": round(last.progress, 4)}
                ),
                highlight=False,
            )


def camera_names(pairs: list[str]) -> dict[str, str]:
    """Parse `--camera MODEL=DATASET` into {dataset camera: model camera}."""
    names = {}
    for pair in pairs:
        model_camera, equals, dataset_camera = pair.partition("=")
        if not (model_camera and equals and dataset_camera):
            raise InvalidInput(f"--camera {pair!r}: expected MODEL_CAMERA=DATASET_CAMERA", field="camera")
        names[dataset_camera.removeprefix("observation.images.")] = model_camera
    return names


def with_names(episode: Episode, names: dict[str, str], task: str | None) -> Episode:
    """The episode under the model's camera names, and under another instruction where one is given."""
    unknown = sorted(set(names) - set(episode.images))
    if unknown:
        raise InvalidInput(
            f"--camera: the dataset has no camera {unknown[0]!r}; it has {', '.join(episode.images)}",
            field="camera",
        )
    images = {names.get(camera, camera): files for camera, files in episode.images.items()}
    return replace(episode, images=images, task=task or episode.task)


@contextmanager
def reached(server: str | None, bundle: Path | None) -> Iterator[RewardClient]:
    """A client of the running service at `server` (HOST:PORT), or of one of our own, ended on exit."""
    with served(server, bundle) as (host, port), RewardClient(host=host, port=port) as client:
        yield client


@contextmanager
def served(server: str | None, bundle: Path | None, *, reload: bool = False) -> Iterator[tuple[str, int]]:
    """Host and port of the running service at `server` (HOST:PORT), or of one of our own, ended on exit.

    `reload`: whether our own may take what the bundle's folder holds later.
    """
    if server is None:
        with ServerProcess(port=0, bundle=bundle, reload=reload) as own:
            yield "127.0.0.1", own.port
        return
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput(
            f"--server {server!r}: expected HOST:PORT, for example 127.0.0.1:8765", field="server"
        )
    yield host, int(port)
