"""`sarm2 adapt` refuses what cannot work in plain words, and never writes over the model it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.synthetic import write_synthetic
from sarm2_cli.adapt import is_worse
from sarm2_cli.main import app
from sarm2_client.errors import InvalidInput, Sarm2Error
from sarm2_models.train.plan import PlannedEpisode


def refused(*arguments: object) -> Sarm2Error:
    """What the command raises; `main` makes one line of it."""
    answer = CliRunner().invoke(app, ["adapt", *map(str, arguments)])
    assert isinstance(answer.exception, Sarm2Error), answer.output
    return answer.exception


def test_the_model_that_is_adapted_is_not_written_over(bundle: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in bundle.parent.rglob("*") if path.is_file()}
    for more in ([], ["--curve", "1,2"]):
        error = refused("r", "--training", "t", "--bundle", bundle, "--out", f"{bundle}/../bundle", *more)
        assert isinstance(error, InvalidInput)
        assert error.field == "out"
    assert {path: path.read_bytes() for path in bundle.parent.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled episodes: too few."""
    root = tmp_path_factory.mktemp("adapt") / "three"
    write_synthetic([PlannedEpisode("hammer", "perturbed", seed) for seed in range(3)], root)
    return root


def test_too_few_episodes_are_told_as_such(three: Path, bundle: Path, tmp_path: Path) -> None:
    error = refused(three, "--training", three, "--bundle", bundle, "--out", tmp_path / "rm2")
    assert isinstance(error, InvalidInput)
    assert error.field == "rollouts"
    assert "at least 8 rollouts" in error.message
    assert "got 3" in error.message
    assert not (tmp_path / "rm2").exists()


def test_a_dataset_without_the_labels_is_told_as_such(
    dataset: Path, three: Path, bundle: Path, tmp_path: Path
) -> None:
    error = refused(dataset, "--training", three, "--bundle", bundle, "--out", tmp_path / "rm2")
    assert isinstance(error, InvalidInput)
    assert error.field == "simulator state"
    assert f"episode 0 of {dataset} has no simulator state" in error.message


def test_a_folder_that_is_no_bundle_is_refused_before_anything_is_learned(
    three: Path, bundle: Path, tmp_path: Path
) -> None:
    curve = tmp_path / "curve"
    curve.mkdir()
    (curve / "curve.json").write_text("{}")
    error = refused(three, "--training", three, "--bundle", bundle, "--out", curve)
    assert error.message == f"--out {curve} exists and is no bundle; choose another folder"
    assert (curve / "curve.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--count", 5, "--curve", "1,2"), "--count 5 and --curve 1,2 exclude each other"),
        (("--labels", "exact,marks"), "--labels: expected one of exact, marks, got 'exact,marks'"),
        (("--labels", "mark"), "did you mean 'marks'?"),
        (("--device", "tpu"), "device = 'tpu'; expected cpu or cuda"),
    ],
)
def test_wrong_options_name_what_was_expected(
    tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    error = refused("r", "--training", "t", "--out", tmp_path / "rm2", *options)
    assert message in error.message


@pytest.mark.parametrize(("low", "worse"), [(1.8, True), (0.9, False), (None, False)])
def test_a_model_that_is_surely_worse_is_told_of(low: float | None, worse: bool) -> None:
    estimate = {"value": 2.0, "low": low, "high": 3.0, "n": 2}
    assert is_worse({"after_over_before": {"rollout_mse": estimate}}) is worse
