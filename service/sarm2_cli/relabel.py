"""`sarm2 relabel`: progress labels and RA-BC weights for every frame of a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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
from sarm2_client.errors import InvalidInput
from sarm2_client.wire import EpisodeSource
from sarm2_rollouts.episode_scorer import EpisodeScorer, ServiceScorer
from sarm2_rollouts.lerobot_reader import open_dataset


def relabel(
    dataset: DatasetFolder,
    chunk: Annotated[
        int,
        typer.Option(min=1, help="Frames over which progress must grow: the chunk size of your trainer."),
    ] = 50,
    kappa: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Gain of progress over a chunk from which on a frame has full weight. By default what a "
            "quarter of the frames reach.",
        ),
    ] = None,
    bundle: Bundle = None,
    server: Server = None,
    camera: Cameras = None,
    task: Instruction = None,
    source: Source = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Score in this process, without starting a service.")
    ] = False,
    skip_failed: Annotated[
        bool,
        typer.Option(
            "--skip-failed",
            help="Give episodes with a frame that cannot be scored weight 0, instead of writing nothing.",
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Score everything again, and forget what was scored of this dataset by another model or "
            "with other options.",
        ),
    ] = False,
) -> None:
    """Write `sarm_progress.parquet` and `rabc_weights.parquet` into a dataset, for trainers to read.

    Example: `sarm2 relabel ./my_dataset --chunk 50 --camera wrist=observation.images.wrist`

    LeRobot's trainer takes the file as it is; in the end the options are printed that `lerobot-train` needs.
    It takes the chunk size from its policy: give the same here as `--chunk`. What is scored is kept episode
    by episode: after a kill, run the same command again. Another --chunk or --kappa needs no new scores.
    """
    from sarm2_rollouts.relabel import relabel as write_labels

    episodes, names, console = open_dataset(dataset), camera_names(camera or []), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        scorer_at(server, bundle, source, in_process=in_process) as scorer,
        Progress(*columns, console=console) as progress,
    ):
        bar = progress.add_task("episodes", total=len(episodes))
        done = write_labels(
            episodes,
            scorer,
            chunk=chunk,
            kappa=kappa,
            skip_failed=skip_failed,
            restart=restart,
            prepare=lambda episode: with_names(episode, names, task),
            asked={"task": task, "cameras": camera, "source": source},
            tick=lambda count, total: progress.update(bar, completed=count, total=total),
        )
    for episode, frame, why in done.failures:
        console.print(f"[yellow]episode {episode} frame {frame}[/yellow]: {why}", highlight=False)
    table = Table("", "")
    table.add_row("progress", str(done.path))
    table.add_row("weights", str(done.weights))
    table.add_row("frames", f"{done.frames} of {done.episodes} episodes")
    table.add_row("kappa", f"{done.kappa:.4f} (suggested: {done.suggested_kappa:.4f})")
    table.add_row("full weight", f"{done.full:.1%} of the frames")
    table.add_row("weight 0", f"{done.none:.1%}")
    Console().print(table)
    new, old = "--sample_weighting", "--rabc"
    typer.echo(
        f"lerobot-train 0.6: {new}.type=rabc {new}.progress_path={done.path} {new}.kappa={done.kappa}\n"
        f"0.4.3 to 0.5: --use_rabc=true {old}_progress_path={done.path} {old}_kappa={done.kappa}"
    )


@contextmanager
def scorer_at(
    server: str | None, bundle: Path | None, source: EpisodeSource | None, *, in_process: bool
) -> Iterator[EpisodeScorer]:
    """What scores: a running service, one of our own, or a model in this process."""
    if not in_process:
        with reached(server, bundle) as client:
            yield ServiceScorer(client, source)
        return
    from sarm2_models.checkpoint import default_bundle, load_bundle
    from sarm2_models.model_scorer import ModelScorer

    if server is not None:
        raise InvalidInput("--in-process and --server exclude each other", field="in_process")
    yield ModelScorer(load_bundle(bundle or default_bundle()), source)
