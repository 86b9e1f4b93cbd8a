"""`sarm2 spiral`: improve a policy from its own rollouts, with rewards from the service."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from sarm2_cli.scoring import Bundle, Server
from sarm2_cli.spiral_options import check_asked, configured, given_policy, planned
from sarm2_cli.spiral_reach import gone_on_with, reaching
from sarm2_client.errors import InvalidInput

spiral = typer.Typer(
    help="A policy that improves itself: clone demonstrations, collect rollouts, score them with the "
    "service, update, again.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@spiral.callback()
def about() -> None:
    """SPIRAL: a policy that improves itself with the service's rewards."""


Task: TypeAlias = Annotated[str, typer.Option(help="Task of the simulated robot.")]
Policy: TypeAlias = Annotated[
    str,
    typer.Option(
        help="What the policy sees: `image` (the service's frame embeddings and the robot's state), or "
        "`state` (true positions of object and goal: a fast control). Or a trained one, improved as it is: "
        "`lerobot:FOLDER` (ACT, diffusion, SmolVLA, pi0, pi0.5), `openpi:HOST:PORT` (a policy server)."
    ),
]
Map: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Of a trained policy: KEY=SOURCE, what it is given under a key of its own; again for more. A "
        "source is a camera, `state`, names of the state separated by commas, or `instruction`.",
    ),
]
Device: TypeAlias = Annotated[str, typer.Option(help="Where a LeRobot policy runs: `cpu` or `cuda`.")]
Rounds: TypeAlias = Annotated[
    int | None, typer.Option(min=0, help="Rounds of collection and update; by default the preset's.")
]
Demos: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Demonstrations that pi_1 is cloned from; by default the preset's.")
]
First: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, help="Rollouts of pi_1, which the reward model is adapted to; by default the preset's."
    ),
]
Reward: TypeAlias = Annotated[
    str,
    typer.Option(
        help="`service`, or a control: `true` (simulator), `linear` (clock), `success`, `uniform` (none)."
    ),
]
Updater: TypeAlias = Annotated[
    str, typer.Option(help="`residual` (critics and a correction), or `rabc` (reward-weighted cloning).")
]
Preset: TypeAlias = Annotated[str, typer.Option(help="`metaworld`, `published` or `quick`.")]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.NAME=VALUE",
        help="Change any other setting of the preset, such as `update.beta=1`; again for more. "
        "`sarm2 spiral settings` lists them.",
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Of scenes, networks and batches.")]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
Workers: TypeAlias = Annotated[int, typer.Option(min=1, help="Robots at a time; one a core is best.")]
Ray: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Make episodes on Ray: `local` (this machine), `auto`, or HOST:PORT of a cluster's head; needs "
        "the extra `ray` on every node. --workers are then CPUs of the cluster. --out must lie on a disk "
        "that all nodes share, and the service be reachable from all of them: name it with --server, for one "
        "that is started here answers this machine alone.",
    ),
]
Adapt: TypeAlias = Annotated[
    bool,
    typer.Option(
        help="Adapt the reward model to rollouts of the first policy before the loop; the model of a "
        "service named by --server stays as it is."
    ),
]

RUNS = Path("runs/spiral")


@spiral.command()
def run(
    task: Task = "hammer",
    policy: Policy = "image",
    demos: Demos = None,
    first: First = None,
    rounds: Rounds = None,
    reward: Reward = "service",
    updater: Updater = "residual",
    preset: Preset = "metaworld",
    set_: Set = None,
    seed: Seed = 0,
    out: Out = RUNS,
    workers: Workers = 2,
    ray: Ray = None,
    bundle: Bundle = None,
    server: Server = None,
    adapt: Adapt = True,
    map_: Map = None,
    policy_device: Device = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="The same as --preset quick: minutes, to see that it works.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Answer Prometheus here: success, reward hacking.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Where --metrics-port listens; 0.0.0.0 for a Prometheus elsewhere.")
    ] = "127.0.0.1",
) -> None:
    """The whole loop: clone, update offline, then collect, score and update, again and again by itself.

    Example: `sarm2 spiral run --task hammer --out runs/hammer`

    With a policy that others trained: `sarm2 spiral run --task hammer --policy lerobot:runs/act_hammer --map
    observation.images.top=corner`. It stays as it is; the loop learns what to add to its actions.
    """
    from sarm2_spiral.metrics import LoopMetrics

    if quick and preset not in ("metaworld", "quick"):
        raise InvalidInput(
            f"--quick and --preset {preset} exclude each other: it is a preset", field="preset"
        )
    preset = "quick" if quick else preset
    given = given_policy(policy, map_, policy_device)
    counts = {"demos": demos, "first": first, "rounds": rounds}
    config = configured(preset, counts, set_, adapt=adapt)
    folder = planned(out, task, policy, config, reward, updater, seed, given=given, own=server is None)
    metrics = None
    if metrics_port is not None:  # before anything starts, so that a taken port is told at once
        metrics = LoopMetrics(folder.task)
        metrics.serve(metrics_port, metrics_host)
    check_asked(folder, server, bundle)
    folder.record.check(resume=resume)
    with reaching(folder, server, bundle, workers, ray) as loop:
        loop.metrics = metrics
        typer.echo(f"report: {loop.start(resume=resume)}")


@spiral.command()
def bc(
    task: Task = "hammer",
    policy: Policy = "image",
    demos: Demos = None,
    first: First = None,
    rounds: Rounds = None,
    reward: Reward = "service",
    updater: Updater = "residual",
    preset: Preset = "metaworld",
    set_: Set = None,
    seed: Seed = 0,
    out: Out = RUNS,
    workers: Workers = 2,
    ray: Ray = None,
    bundle: Bundle = None,
    server: Server = None,
    adapt: Adapt = True,
    map_: Map = None,
    policy_device: Device = "cpu",
) -> None:
    """Begin a run: record and score demonstrations, clone pi_1 from them. The other commands go on from here.

    Example: `sarm2 spiral bc --task hammer --out runs/hammer`, then, with the same `--out`: `offline`,
    `collect`, `adapt`, `relabel`; then `collect`, `relabel` and `update` for every round, and `report`.
    `sarm2 spiral run --resume` with the options of `bc` does all that is left. A trained policy (`--policy
    lerobot:...`, `openpi:...`) is not cloned: only the demonstrations are made, and `offline` falls away.
    """
    given = given_policy(policy, map_, policy_device)
    counts = {"demos": demos, "first": first, "rounds": rounds}
    config = configured(preset, counts, set_, adapt=adapt)
    folder = planned(out, task, policy, config, reward, updater, seed, given=given, own=server is None)
    check_asked(folder, server, bundle)
    folder.record.check(resume=True)
    with reaching(folder, server, bundle, workers, ray) as loop:
        loop.begin(resume=True)
        loop.step("demos", *(["bc"] if given is None else []))


@spiral.command()
def offline(out: Out = RUNS, workers: Workers = 2, server: Server = None) -> None:
    """pi_2, the frozen base of the loop: demonstrations cloned anew, weighted by what the frames gained."""
    one_step(out, workers, server, "offline")


@spiral.command()
def collect(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Server = None) -> None:
    """Collect the next rollouts, streaming them to the service: pi_1's, then the deployed policy's."""
    one_step(out, workers, server, "collect", ray=ray)


@spiral.command()
def adapt(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Server = None) -> None:
    """Adapt the run's reward model to the rollouts of pi_1, labelled once by the simulator."""
    one_step(out, workers, server, "adapt", ray=ray)


@spiral.command()
def relabel(out: Out = RUNS, workers: Workers = 2, server: Server = None) -> None:
    """Score the rollouts that were collected last."""
    one_step(out, workers, server, "relabel")


@spiral.command()
def update(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Server = None) -> None:
    """Learn from all data so far; deploy the candidate if it holds its own in a trial."""
    one_step(out, workers, server, "update", "trial", ray=ray)


@spiral.command()
def evaluate(
    policy: Annotated[
        str, typer.Argument(help="`bc`, `offline` or `given`, or `roundK`: what stood after round K.")
    ],
    out: Out = RUNS,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Scenes; by default the preset's. Flown ones are kept.")
    ] = None,
    workers: Workers = 2,
    ray: Ray = None,
    server: Server = None,
) -> None:
    """How often a policy of the run succeeds on fresh scenes, with Wilson's interval."""
    with gone_on_with(out, workers, server, ray) as loop:
        loop.judge(policy, episodes)


@spiral.command()
def report(out: Out = RUNS, workers: Workers = 2, server: Server = None) -> None:
    """Write the report of what is through so far: success, curves, advantages, films."""
    with gone_on_with(out, workers, server) as loop:
        typer.echo(f"report: {loop.write_report()}")


@spiral.command()
def compare(
    seeds: Annotated[
        str | None, typer.Option(help="Training seeds, separated by commas; by default each run's own three.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="TASK, TASK/POLICY or TASK/POLICY/ARM to run; again for more. All by default."),
    ] = None,
    preset: Preset = "metaworld",
    out: Out = Path("runs/spiral_comparison"),
    workers: Workers = 2,
    bundle: Bundle = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing: write the report of what is finished.")
    ] = False,
) -> None:
    """Every bar and every control in one table: 63 runs of 10 to 60 minutes.

    Example: `sarm2 spiral compare --seeds 0 --only hammer/state --out runs/controls`

    Arms: `spiral` (the loop), `rm1` (without adaptation), `ra-bc` (reward-weighted cloning), `uniform`
    (no reward), `linear`, `success`, `true`. Stop it at any time; the same command goes on. The report,
    `OUT/report/spiral.{json,md}`, is written anew after every run. Copy `OUT/outcomes` to go on with it on
    another machine: what a finished run came to lies there.
    """
    from rich.markdown import Markdown

    from sarm2_cli.benchmark import whole_numbers
    from sarm2_spiral.comparison.cells import cells
    from sarm2_spiral.comparison.run import Comparison
    from sarm2_spiral.config import spiral_config

    chosen = [cell for cell in cells() if not only or any(f"{cell.name}/".startswith(f"{o}/") for o in only)]
    if not chosen:
        known = ", ".join(cell.name for cell in cells())
        raise InvalidInput(f"--only {only}: there is no such run; known: {known}", field="only")
    console = Console()
    comparison = Comparison(
        out,
        spiral_config(preset),
        None if seeds is None else whole_numbers("seeds", seeds),
        lambda folder: reaching(folder, None, bundle, workers),
        chosen,
        console,
    )
    report = comparison.write() if report_only else comparison.start()
    console.print(Markdown((report / "spiral.md").read_text()))
    typer.echo(f"numbers and tables in {report}")


@spiral.command()
def settings() -> None:
    """Every setting with what it means, and its value in each preset; `--set` of `run` and `bc` changes it.

    Example: `sarm2 spiral run --task hammer --set update.beta=1 --set loop.exploration="[0, 0.1]"`
    """
    from rich.table import Table

    from sarm2_spiral.config import PRESETS, SpiralConfig

    console = Console()
    for section in fields(SpiralConfig):
        by_preset = {name: asdict(getattr(config, section.name)) for name, config in PRESETS.items()}
        table = Table(section.name, *by_preset)
        for name in next(iter(by_preset.values())):
            values = [json.dumps(one[name]) for one in by_preset.values()]
            table.add_row(f"{section.name}.{name}", *values)
        meaning = inspect.getdoc(type(getattr(PRESETS["metaworld"], section.name))) or ""
        console.print(table)
        console.print(meaning, end="\n\n", highlight=False, markup=False, soft_wrap=True)


def one_step(out: Path, workers: int, server: str | None, *kinds: str, ray: str | None = None) -> None:
    """Do the next stage of each kind in the run at `out`."""
    with gone_on_with(out, workers, server, ray) as loop:
        typer.echo(f"done: {', '.join(loop.step(*kinds))}")
