"""`sarm2 relabel` labels a dataset through its own service, a running one, or in process, all alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cli.small_dataset import LENGTH, damage
from running_server import RunningServer
from sarm2_cli.main import app
from sarm2_client.errors import InvalidInput
from sarm2_models.checkpoint import load_bundle
from sarm2_rollouts.rabc import gains, rabc_weights
from sarm2_rollouts.relabel import PARTS, PROGRESS_FILE, WEIGHTS_FILE, curves


@pytest.fixture
def mine(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset to write into."""
    return Path(shutil.copytree(dataset, tmp_path / "mine"))


def relabel(dataset: Path, *options: object) -> Result:
    """The command as it is typed."""
    return CliRunner().invoke(app, ["relabel", str(dataset), *map(str, options)], env={"COLUMNS": "200"})


def said(result: Result) -> str:
    """Its error."""
    assert isinstance(result.exception, InvalidInput)
    return result.exception.message


def test_every_frame_is_labelled_alike_by_a_service_and_in_process(
    mine: Path, bundle: Path, tmp_path: Path
) -> None:
    with RunningServer(load_bundle(bundle, "cpu")) as server:
        result = relabel(mine, "--server", server.address, "--chunk", 5)
    assert result.exit_code == 0, result.output
    assert f"{2 * LENGTH} of 2 episodes" in result.stdout
    table = pq.read_table(mine / PROGRESS_FILE)
    assert table["index"].to_pylist() == list(range(2 * LENGTH))
    first = np.concatenate(list(curves(mine / PROGRESS_FILE)))
    assert relabel(mine, "--in-process", "--bundle", bundle, "--chunk", 5, "--restart").exit_code == 0
    np.testing.assert_allclose(np.concatenate(list(curves(mine / PROGRESS_FILE))), first, atol=1e-5)


def test_weights_are_those_of_the_kappa_that_was_asked_for(mine: Path, bundle: Path) -> None:
    result = relabel(mine, "--in-process", "--bundle", bundle, "--chunk", 3, "--kappa", 0.02)
    assert result.exit_code == 0, result.output
    assert "0.0200" in result.stdout
    gain_N = np.concatenate([gains(curve_T, 3) for curve_T in curves(mine / PROGRESS_FILE)])
    weights = pq.read_table(mine / WEIGHTS_FILE)
    np.testing.assert_allclose(weights["weight"].to_numpy(), rabc_weights(gain_N, 0.02))
    assert weights.schema.metadata == {b"kappa": b"0.02", b"chunk": b"3"}
    for option in ("--sample_weighting.kappa=0.02", "--rabc_kappa=0.02"):
        assert f"{option}\n" in result.stdout, "the trainer has to be told too"


def test_a_frame_that_cannot_be_scored_is_named_and_nothing_is_written(mine: Path, bundle: Path) -> None:
    damage(mine, episode=1, frame=6)
    result = relabel(mine, "--in-process", "--bundle", bundle)
    assert result.exit_code != 0
    assert "episode 1 frame 6" in said(result)
    assert not (mine / PROGRESS_FILE).exists()
    assert not (mine / WEIGHTS_FILE).exists()
    result = relabel(mine, "--in-process", "--bundle", bundle, "--skip-failed")
    assert result.exit_code == 0, result.output
    assert "episode 1 frame 6" in result.output
    weight_N = pq.read_table(mine / WEIGHTS_FILE)["weight"].to_numpy()
    assert weight_N[LENGTH:-1].max() == 0
    assert not (mine / PARTS).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--in-process", "--server", "127.0.0.1:8765"), "exclude each other"),
        (("--camera", "wrist"), "MODEL_CAMERA=DATASET_CAMERA"),
        (("--camera", "wrist=nothing", "--in-process"), "no camera 'nothing'"),
    ],
)
def test_wrong_options_name_what_was_expected(
    mine: Path, bundle: Path, options: tuple[str, ...], message: str
) -> None:
    more = () if "--server" in options else ("--bundle", bundle)
    assert message in said(relabel(mine, *options, *more))
    assert not (mine / PROGRESS_FILE).exists()
