"""`sarm2 adapt` refuses what cannot work in plain words, and never writes over the model it starts from."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from sarm2_cli.main import app
from sarm2_client.errors import InvalidInput, Sarm2Error


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
