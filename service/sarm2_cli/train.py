"""`sarm2 train`: from nothing to a bundle, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from sarm2_cli.record import one_of

DeviceOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="cpu|cuda", help="Where everything is embedded and learns; a run that goes on may change it."
    ),
]


def train(
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Task names, separated by commas; the model learns them together. By default all that the "
            "simulated robot has: their episodes take the largest part of the time."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run; the bundle ends up in its `bundle/`.")
    ] = Path("runs/train"),
    preset: Annotated[
        str,
        typer.Option(
            help="How much to record and train: `small` (the shipped bundle), `demos` (the same from "
            "demonstrations alone), `quick`, or `published` (encoder, head sizes and optimiser of the paper)."
        ),
    ] = "small",
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|HUB_NAME",
            help="A frozen SigLIP or SigLIP-2 in the place of the image tower: a folder that transformers "
            "saved, or a name on the hub such as google/siglip2-base-patch16-224 (which needs the network).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes episodes, weights and the order of batches.")] = 0,
    device: DeviceOption = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Processes; one a core is best.")] = 2,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="The same as --preset quick: a minute or two, to see that it works."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
) -> None:
    """Train a reward model on the simulated robot: record, image tower, heads, calibration, report.

    Example: `sarm2 train --tasks hammer --out runs/hammer`, then `sarm2 serve --bundle runs/hammer/bundle`

    Two to three hours for all fifteen tasks on two cores, half an hour for three. The report (`OUT/report/`)
    climbs a ladder: heads on the true simulator state (the ceiling), on the image tower's features, on images
    or state alone, the clock, and a constant. It also checks the labels of a few episodes against the
    scripted expert's steps to go. Stopped runs lose at most a minute or two: add `--resume`.

    With `--encoder` no tower is trained: the given one embeds pictures and texts, and the heads take its
    width. The bundle copies a folder and refers to a name on the hub. A SigLIP-2 base embeds a few pictures
    a second on a core, so start with `--quick --tasks hammer`.

    `--preset published` trains heads of 40 million parameters for 46000 steps, on
    google/siglip2-base-patch16-224 unless `--encoder` says otherwise. It keeps the simulated robot's cameras,
    state and vocabulary. Two cores take about two days for it: a GPU is the place for it (`--device cuda`).
    """
    from sarm2_models.train.layout import make_run
    from sarm2_models.train.run import TrainingRun
    from sarm2_rollouts.metaworld_robot import TASKS

    names = tuple(TASKS) if tasks is None else tuple(one_of("tasks", tasks, sorted(TASKS)))
    run = make_run(out, "quick" if quick else preset, names, seed, encoder, device)
    bundle = TrainingRun(run, workers=workers).start(resume=resume)
    typer.echo(f"serve it:   sarm2 serve --bundle {bundle}")
    typer.echo(f"measure it: sarm2 evaluate --bundle {bundle} --json evaluation.json")
