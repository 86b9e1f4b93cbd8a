"""`sarm2 spiral`: improve a policy from its own rollouts, with rewards from the service."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sarm2_cli.scoring import Bundle, Server, served
from sarm2_client.client import RewardClient

if TYPE_CHECKING:
    from sarm2_spiral.folder import SpiralFolder

spiral = typer.Typer(
    help="A policy that improves itself: clone demonstrations, collect rollouts, score them with the "
    "service, update, again.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@spiral.callback()
def about() -> None:
    """SPIRAL: a policy that improves itself with the service's rewards."""


@spiral.command()
def run(
    task: Annotated[str, typer.Option(help="Task of the simulated robot.")] = "hammer",
    policy: Annotated[
        str,
        typer.Option(
            help="What the policy sees: `image` (the service's frame embeddings and the robot's state), or "
            "`state` (true positions of object and goal: a fast control)."
        ),
    ] = "image",
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds of collection and update; by default the preset's.")
    ] = None,
    reward: Annotated[
        str,
        typer.Option(
            help="`service`, or a control: `true` (simulator), `linear` (clock), `success`, `uniform` (none)."
        ),
    ] = "service",
    updater: Annotated[
        str,
        typer.Option(help="`residual` (critics and a correction), or `rabc` (reward-weighted cloning)."),
    ] = "residual",
    preset: Annotated[str, typer.Option(help="`metaworld`, `published` or `quick`.")] = "metaworld",
    seed: Annotated[int, typer.Option(min=0, help="Of scenes, networks and batches.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/spiral"),
    workers: Annotated[int, typer.Option(min=1, help="Robots at a time; one a core is best.")] = 2,
    bundle: Bundle = None,
    server: Server = None,
    adapt: Annotated[
        bool, typer.Option(help="Adapt the reward model to rollouts of the first policy before the loop.")
    ] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="The same as --preset quick: minutes, to see that it works.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
) -> None:
    """The whole figure: clone, update offline, then collect and update in a loop, with nobody in it.

    Example: `sarm2 spiral run --task hammer --out runs/hammer`
    """
    from sarm2_cli.record import one_of
    from sarm2_models.checkpoint import default_bundle
    from sarm2_rollouts.metaworld_robot import TASKS
    from sarm2_spiral.config import spiral_config
    from sarm2_spiral.folder import SpiralFolder
    from sarm2_spiral.progress import REWARDS
    from sarm2_spiral.run import SpiralRun

    config = spiral_config("quick" if quick else preset)
    if rounds is not None:
        config = replace(config, loop=replace(config.loop, rounds=rounds))
    if not adapt:
        config = replace(config, loop=replace(config.loop, adapt=0))
    (name,) = one_of("task", task, sorted(TASKS))
    (kind,) = one_of("policy", policy, ["image", "state"])
    (source,) = one_of("reward", reward, list(REWARDS))
    (kept,) = one_of("updater", updater, ["residual", "rabc"])
    folder = SpiralFolder(out, name, kind, seed, config, source, kept)  # type: ignore[arg-type]
    if server is None:
        keep_models(folder, bundle or default_bundle())
    own = bundle if server else folder.reward_model
    with served(server, own, reload=True) as (host, port), RewardClient(host=host, port=port) as client:
        report = SpiralRun(folder, client, host, port, server is None, workers).start(resume=resume)
    typer.echo(f"report: {report}")


def keep_models(folder: SpiralFolder, bundle: Path) -> None:
    """The run's own copies of its reward model: the first one, and the one that is served and may change."""
    for place in (folder.first_model, folder.reward_model):
        if not place.exists():
            fresh = place.with_name(f".{place.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.copytree(bundle, fresh)
            fresh.replace(place)
