"""What a SPIRAL run works with: its reward models, the service that it asks, and what makes its episodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sarm2_cli.scoring import served
from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from sarm2_rollouts.collection import Collector
    from sarm2_spiral.folder import SpiralFolder
    from sarm2_spiral.run import SpiralRun


@contextmanager
def gone_on_with(
    out: Path, server: str | None, workers: int = 1, ray: str | None = None
) -> Iterator[SpiralRun]:
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


def name_of(bundle: Path) -> str:
    """The name of a bundle's model in files. Raises NotFound or InvalidInput."""
    from sarm2_models.checkpoint import read_manifest
    from sarm2_rollouts.episode_scorer import model_name

    manifest = read_manifest(bundle)
    return model_name(manifest.id, manifest.version, manifest.weights_sha256)


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
