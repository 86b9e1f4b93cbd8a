"""`sarm2 spiral`: improve a policy from its own rollouts, with rewards from the service."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console

from sarm2_cli.scoring import Bundle, Server, served
from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from sarm2_rollouts.collection import Collector
    from sarm2_spiral.config import SpiralConfig
    from sarm2_spiral.folder import SpiralFolder
    from sarm2_spiral.given_policy import GivenPolicy
    from sarm2_spiral.run import SpiralRun

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
        "`sarm2[ray]` on every node. --workers are then CPUs of the cluster. --out must lie on a disk that "
        "all nodes share, and the service be reachable from all of them: name it with --server, for one "
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
    """The whole figure: clone, update offline, then collect and update in a loop, with nobody in it.

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
def adapt(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Server = None) -> None:
    """Adapt the run's reward model to the rollouts of pi_1, labelled once by the simulator."""
    one_step(out, workers, server, "adapt", ray=ray)


@spiral.command()
def collect(out: Out = RUNS, workers: Workers = 2, ray: Ray = None, server: Server = None) -> None:
    """Collect the next rollouts, streaming them to the service: pi_1's, then the deployed policy's."""
    one_step(out, workers, server, "collect", ray=ray)


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
    """Write the report of a run whose rounds are through: success so far, curves, advantages, films."""
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
    """Every bar and every control in one table: days of one robot, hours of two cores.

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
        table = Table(section.name, *by_preset, title_justify="left")
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


def given_policy(policy: str, inputs: list[str] | None, device: str) -> GivenPolicy | None:
    """The policy that others trained, or None for a built-in one. Raises InvalidInput for other options."""
    from sarm2_spiral.given_policy import GivenPolicy

    given = GivenPolicy.parse(policy, inputs or (), device)
    if given is None and inputs:
        raise InvalidInput(f"--map: the policy {policy!r} is a built-in one, which needs no map", field="map")
    if device != "cpu" and (given is None or given.library != "lerobot"):
        raise InvalidInput(
            f"--policy-device {device}: it says where a policy of LeRobot runs, and {policy!r} is none; "
            "leave it out",
            field="policy_device",
        )
    return given


def configured(
    preset: str, counts: Mapping[str, int | None], settings: Sequence[str] | None, *, adapt: bool
) -> SpiralConfig:
    """A preset and what the options change of it. Raises NotFound or InvalidInput for values that are none.

    Args:
        counts: of `LoopConfig`, by name; where one is None, the preset's stays.
        settings: as `with_settings` takes them, but for those that have an option of their own.
    """
    from sarm2_spiral.config import spiral_config, with_settings

    for setting in settings or ():
        section, _, name = setting.partition("=")[0].partition(".")
        if section == "loop" and name in (*counts, "adapt"):
            raise InvalidInput(f"--set {setting}: this one has an option of its own, --{name}", field="set")
    config = with_settings(spiral_config(preset), settings or ())
    told: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
    return replace(config, loop=replace(config.loop, adapt=adapt, **told))


def planned(
    out: Path,
    task: str,
    policy: str,
    config: SpiralConfig,
    reward: str,
    updater: str,
    seed: int,
    *,
    given: GivenPolicy | None = None,
    own: bool = True,
) -> SpiralFolder:
    """The folder of a run by its options. Raises NotFound or InvalidInput for values that are none."""
    from sarm2_cli.record import one_choice
    from sarm2_rollouts.metaworld_robot import TASKS
    from sarm2_spiral.folder import SpiralFolder
    from sarm2_spiral.progress import REWARDS

    name = one_choice("task", task, sorted(TASKS))
    kind = one_choice("policy", policy, ["image", "state"]) if given is None else "image"
    source = one_choice("reward", reward, list(REWARDS))
    kept = one_choice("updater", updater, ["residual", "rabc"])
    return SpiralFolder(out, name, kind, seed, config, source, kept, given, own)  # type: ignore[arg-type]


def check_asked(folder: SpiralFolder, server: str | None, bundle: Path | None) -> None:
    """Raise InvalidInput for a service or a reward model that a run would never ask."""
    for option, value in (("server", server), ("bundle", bundle)):
        if value is not None and not folder.rendered:
            raise InvalidInput(
                f"--{option} {value}: a state policy with --reward {folder.reward} asks no service; leave it "
                "out",
                field=option,
            )


@contextmanager
def gone_on_with(out: Path, workers: int, server: str | None, ray: str | None = None) -> Iterator[SpiralRun]:
    """The run that was begun at `out`. Raises Conflict where there is none, or one of another recipe."""
    from sarm2_spiral.folder import SpiralFolder

    folder = SpiralFolder.of(out)
    folder.record.check(resume=True)
    if folder.rendered and folder.own_service != (server is None):
        wrong = (
            "with its own service; leave --server out"
            if folder.own_service
            else "through a service; name it with --server"
        )
        raise Conflict(f"the run in {out} was begun {wrong}")
    with reaching(folder, server, None, workers, ray) as loop:
        yield loop


@contextmanager
def reaching(
    folder: SpiralFolder, server: str | None, bundle: Path | None, workers: int, ray: str | None = None
) -> Iterator[SpiralRun]:
    """A run with the service it asks: a given one, or one of its own with its own copy of the bundle.

    Raises Conflict where another process works in the folder.
    """
    import torch

    from sarm2_rollouts.run_record import hold
    from sarm2_spiral.run import SpiralRun

    # Robots and service have the other cores, and a network this small waits for a thread that finds its core
    # busy at every step: in one run beside other work, cloning took 431 s with two threads and 26 s with one.
    torch.set_num_threads(1)
    made_by = collector(workers, ray)
    if folder.rendered and server is None and ray not in (None, "local"):
        raise InvalidInput(
            f"--ray {ray}: robots elsewhere cannot reach a service that is started here; name a running one "
            "with --server",
            field="ray",
        )
    hold(folder.root)  # before its models are touched
    if not folder.rendered:  # a state policy with a control for its reward asks no service
        with RewardClient() as client:
            yield SpiralRun(folder, client, "127.0.0.1", 0, collector=made_by)
        return
    if server is None:
        keep_models(folder, bundle)
    own = bundle if server else folder.reward_model
    with served(server, own, lasting=True) as (host, port), RewardClient(host=host, port=port) as client:
        yield SpiralRun(folder, client, host, port, made_by)


def collector(workers: int, ray: str | None) -> Collector:
    """What makes a run's episodes: processes of this machine, or the Ray at an address."""
    from sarm2_rollouts.collection import iterate_episodes
    from sarm2_rollouts.ray_collection import iterate_episodes_on_ray

    if ray is None:
        return partial(iterate_episodes, workers=workers)
    return partial(iterate_episodes_on_ray, workers=workers, address=ray)


def keep_models(folder: SpiralFolder, bundle: Path | None) -> None:
    """The run's own copies of its reward model: the first one, and the one that is served and may change.
    Before any stage is finished, another bundle takes their place.

    Raises Conflict for a bundle that is not the one that the run was begun with, and NotFound or InvalidInput
    for a folder that is no whole bundle: before anything of it is copied.
    """
    from sarm2_models.checkpoint import default_bundle, read_manifest, verify_files
    from sarm2_rollouts.run_record import finished_stages

    first = folder.first_model
    if bundle is not None and first.exists() and read_manifest(first) != read_manifest(bundle):
        if finished_stages(folder.root):
            raise Conflict(f"the run in {folder.root} was begun with another bundle; leave --bundle out")
        verify_files(bundle, read_manifest(bundle))
        for place in (first, folder.reward_model):
            shutil.rmtree(place, ignore_errors=True)
    for place, source in (
        (first, bundle or default_bundle()),
        (folder.reward_model, first),
    ):
        if not place.exists():
            verify_files(source, read_manifest(source))
            fresh = place.with_name(f".{place.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.copytree(source, fresh)
            fresh.replace(place)
