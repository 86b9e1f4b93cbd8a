"""`sarm2 score`: score episodes of a LeRobot dataset, draw each, and keep the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from sarm2_cli.scoring import (
    Bundle,
    Cameras,
    DatasetFolder,
    Instruction,
    Server,
    Source,
    camera_names,
    reached,
    with_names,
)
from sarm2_client.errors import InvalidInput, NotFound
from sarm2_rollouts.episode_scorer import stream_episode
from sarm2_rollouts.lerobot_reader import open_dataset


def score(
    dataset: DatasetFolder,
    episode: Annotated[
        list[int] | None,
        typer.Option("--episode", "-e", help="Episode index; give it again for more. All by default."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pictures and numbers.")] = Path(
        "scores"
    ),
    bundle: Bundle = None,
    server: Server = None,
    camera: Cameras = None,
    task: Instruction = None,
    source: Source = None,
    video: Annotated[bool, typer.Option(help="Film the episodes too.")] = True,
) -> None:
    """Score whole episodes: `EPISODE.png` with curve, interval and primitives, `EPISODE.mp4`, `EPISODE.json`.

    Example: `sarm2 score ./my_dataset -e 0 -e 7 --camera wrist=observation.images.wrist`
    """
    from sarm2_rollouts.episode_video import draw_video
    from sarm2_rollouts.plots import draw_episode

    episodes = open_dataset(dataset)
    chosen = episode if episode else list(range(len(episodes)))
    for index in chosen:
        if not 0 <= index < len(episodes):
            raise InvalidInput(
                f"--episode {index}: the dataset has episodes 0 to {len(episodes) - 1}", field="episode"
            )
    names, failed, unread = camera_names(camera or []), 0, 0
    out.mkdir(parents=True, exist_ok=True)
    with reached(server, bundle) as client, Progress(console=Console(stderr=True)) as bar:
        for index in bar.track(chosen, description="episodes"):
            try:
                recorded = episodes.episode(index)
            except (InvalidInput, NotFound) as damage:
                unread += 1
                bar.console.print(f"[yellow]episode {index}[/yellow]: {damage.message}", highlight=False)
                continue
            loaded = with_names(recorded, names, task)
            live = stream_episode(client, loaded, source)
            scores, failed = live.scores, failed + len(live.errors)
            for error in live.errors:
                bar.console.print(
                    f"[yellow]episode {index} frame {error.seq}[/yellow]: {error.message}", highlight=False
                )
            if not scores:
                continue
            stem = out / f"episode_{index:06d}"
            stem.with_suffix(".json").write_bytes(msgspec.json.encode(scores))
            draw_episode(stem.with_suffix(".png"), loaded, scores=scores, title=loaded.task)
            if video:
                draw_video(stem.with_suffix(".mp4"), loaded, scores)
            told = {"episode": index, "frames": len(scores), "final_progress": round(scores[-1].progress, 4)}
            bar.console.print(json.dumps(told), highlight=False)
    if unread:
        raise InvalidInput(f"{unread} episodes could not be read (they are named above)", field="episode")
    if failed:
        raise InvalidInput(
            f"{failed} frames could not be scored (they are named above, and missing in what was drawn)",
            field="frames",
        )
