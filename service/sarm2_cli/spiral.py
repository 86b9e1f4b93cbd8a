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
from sarm2_cli.spiral_reach import gone_on_with, name_of, reaching
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


Task: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Task of the simulated robot: hammer, drawer-open, bin-picking, pick-place, ... (15 of them; a "
        "wrong name lists all)."
    ),
]
Policy: TypeAlias = Annotated[
    str,
    typer.Option(
        help="What the policy sees: `image` (the service's frame embeddings and the robot's state), or "
        "`state` (true positions of object and goal: a fast control). Or a trained one, improved as it is: "
        "`lerobot:FOLDER|HUB_NAME` (ACT, diffusion, SmolVLA, pi0, pi0.5), `openpi:HOST:PORT` (a policy "
        "server)."
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
    int | None, typer.Option(min=0, help="Rounds of collection and update; by default 3 (quick: 1).")
]
Demos: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Demonstrations that pi_1 is cloned from; by default 25 (quick: 10)."),
]
First: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, help="Rollouts of pi_1, which the reward model is adapted to; by default 100 (quick: 10)."
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
Preset: TypeAlias = Annotated[
    str,
    typer.Option(
        help="`metaworld` (tuned on this robot), `published` (the publication's constants, for a "
        "vision-language-action model) or `quick` (minutes, to see that it works)."
    ),
]
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

Begun: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--server",
        help="For a run that was begun with --server: its service again, HOST:PORT. Others start their own.",
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
    `collect`, `adapt`, `relabel`; then `collect`, `relabel` and `update` for every round, and `report`. In
    between, `evaluate bc`, `evaluate offline`, `evaluate round1`, ... give the report its rates of success.
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
def offline(out: Out = RUNS, server: Begun = None) -> None:
    """pi_2, the frozen base of the loop: demonstrations cloned anew, weighted by what the frames gained.

    After `bc`. Example: `sarm2 spiral offline --out runs/hammer`
    """
    one_step(out, server, "offline")


@spiral.command()
def collect(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Begun = None) -> None:
    """Collect the next rollouts, streaming them to the service: pi_1's, then the deployed policy's.

    After `offline` those of pi_1, into OUT/rounds/0 (of a trained policy after `bc`); after the first
    `relabel`, and after each `update`, those of round K into OUT/rounds/K.

    Example: `sarm2 spiral collect --out runs/hammer`
    """
    one_step(out, server, "collect", workers=workers, ray=ray)


@spiral.command()
def adapt(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Begun = None) -> None:
    """Adapt the run's reward model to the rollouts of pi_1, as a person would mark them once (the simulator
    plays that person).

    After the first `collect`; the service takes the result. A run with `--server` has no such stage: its
    service's model stays as it is. Example: `sarm2 spiral adapt --out runs/hammer`
    """
    one_step(out, server, "adapt", workers=workers, ray=ray)


@spiral.command()
def relabel(out: Out = RUNS, server: Begun = None) -> None:
    """Score the rollouts that were collected last.

    After `collect`, or `adapt`. Example: `sarm2 spiral relabel --out runs/hammer`
    """
    one_step(out, server, "relabel")


@spiral.command()
def update(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Begun = None) -> None:
    """Learn from all data so far; deploy the candidate if it holds its own in a trial.

    After `relabel`, once a round. Example: `sarm2 spiral update --out runs/hammer`
    """
    one_step(out, server, "update", "trial", workers=workers, ray=ray)


@spiral.command()
def evaluate(
    policy: Annotated[
        str, typer.Argument(help="`bc`, `offline` or `given`, or `roundK`: what stood after round K.")
    ],
    out: Out = RUNS,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Scenes, by default 100 (quick: 6). Those flown already are not flown again."
        ),
    ] = None,
    workers: Workers = 2,
    ray: Ray = None,
    server: Begun = None,
) -> None:
    """How often a policy of the run succeeds on fresh scenes, with Wilson's interval.

    Example: `sarm2 spiral evaluate round3 --out runs/hammer`
    """
    with gone_on_with(out, server, workers, ray) as loop:
        loop.judge(policy, episodes)


@spiral.command()
def report(out: Out = RUNS, server: Begun = None) -> None:
    """Write the report of what is through so far: success, curves, advantages, films.

    Example: `sarm2 spiral report --out runs/hammer`, then open OUT/report/report.html.
    """
    with gone_on_with(out, server) as loop:
        typer.echo(f"report: {loop.write_report()}")


@spiral.command()
def compare(
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Training seeds, separated by commas; by default each task's own three, such as 13,14,15."
        ),
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
    """Every bar and every control in one table: 63 runs of 4 to 60 minutes, and one `--quick`.

    Example: `sarm2 spiral compare --seeds 0 --only hammer/state --out runs/controls`

    Arms: `spiral` (the loop), `rm1` (without adaptation), `ra-bc` (reward-weighted cloning), `uniform`
    (no reward), `linear`, `success`, `true`. Stop it at any time; the same command goes on. The report,
    `OUT/report/spiral.{json,md}`, is written anew after every run. Copy `OUT/outcomes` to go on with it on
    another machine: what a finished run came to lies there.
    """
    from rich.markdown import Markdown

    from sarm2_cli.benchmark import whole_numbers
    from sarm2_models.checkpoint import default_bundle
    from sarm2_spiral.comparison.cells import cells
    from sarm2_spiral.comparison.run import Comparison
    from sarm2_spiral.config import spiral_config

    chosen = [cell for cell in cells() if not only or any(f"{cell.name}/".startswith(f"{o}/") for o in only)]
    if not chosen:
        known = ", ".join(cell.name for cell in cells())
        raise InvalidInput(f"--only {only}: there is no such run; known: {known}", field="only")
    console, model = Console(), bundle or default_bundle()
    comparison = Comparison(
        out,
        spiral_config(preset),
        None if seeds is None else whole_numbers("seeds", seeds),
        lambda folder: reaching(folder, None, model, workers),
        chosen,
        console,
        name_of(model),
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


def one_step(out: Path, server: str | None, *kinds: str, workers: int = 1, ray: str | None = None) -> None:
    """Do the next stage of each kind in the run at `out`; only those that make episodes need workers."""
    with gone_on_with(out, server, workers, ray) as loop:
        typer.echo(f"done: {', '.join(loop.step(*kinds))}")
