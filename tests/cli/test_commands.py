"""Every command teaches with --help, and wrong input ends in one readable line."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from sarm2_cli import doctor
from sarm2_cli.evaluate import known_tasks
from sarm2_cli.main import app, main
from sarm2_cli.record import one_of
from sarm2_cli.spiral_options import configured, planned
from sarm2_cli.spiral_reach import keep_models
from sarm2_client.errors import Conflict, InvalidInput, NotFound
from sarm2_models.checkpoint import default_bundle, read_manifest
from sarm2_rollouts.run_record import settings_of
from sarm2_rollouts.tasks import TASKS
from sarm2_spiral.config import QUICK, SpiralConfig

ALONE = replace(QUICK, loop=replace(QUICK.loop, adapt=False))


def every_command() -> dict[str, click.Command]:
    """By its name on the command line: `serve`, `spiral run`, ..."""
    found: dict[str, click.Command] = {}
    waiting: list[tuple[str, Any]] = list(typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]
    while waiting:
        name, command = waiting.pop()
        found[name] = command
        waiting += [(f"{name} {below}", one) for below, one in getattr(command, "commands", {}).items()]
    return found


COMMANDS = every_command()


def test_all_commands_are_known() -> None:
    assert {"serve", "demo", "relabel", "adapt", "spiral run", "spiral compare"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name: str) -> None:
    answer = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0
    silent = [option.name for option in COMMANDS[name].params if not getattr(option, "help", None)]
    assert silent == [], "options without help"
    assert COMMANDS[name].help, "a command without an explanation"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "sarm2_cli.main", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_wrong_input_ends_with_code_2_and_one_line_without_a_traceback(tmp_path: Path) -> None:
    answer = run("score", str(tmp_path / "nothing-here"))
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "nothing-here" in answer.stderr.replace("\n", "")


def test_an_unknown_task_suggests_the_nearest_one(tmp_path: Path) -> None:
    answer = run("record", "--tasks", "hamer", "--out", str(tmp_path / "out"))
    assert answer.returncode == 2
    assert "did you mean 'hammer'?" in answer.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["policy", "unknown"])
def test_a_kind_that_a_seed_alone_does_not_make_cannot_be_recorded(kind: str, tmp_path: Path) -> None:
    answer = run("record", "--kinds", f"demo,{kind}", "--out", str(tmp_path / "out"))
    assert answer.returncode == 2
    said = " ".join(answer.stderr.split())
    assert f"--kinds: '{kind}' is not one of demo, clean_demo, perturbed, random" in said
    assert "random, policy" not in said
    assert not (tmp_path / "out").exists()


def test_training_refuses_what_is_no_encoder_before_it_writes_anything(tmp_path: Path) -> None:
    answer = run("train", "--quick", "--encoder", str(tmp_path), "--out", str(tmp_path / "out"))
    assert answer.returncode == 2
    assert "or a name on the hub; there is no config.json" in " ".join(answer.stderr.split())
    assert not (tmp_path / "out").exists()


def test_an_evaluation_asks_for_the_tasks_that_the_bundle_was_trained_on() -> None:
    texts = ("fold a towel", TASKS["hammer"].instruction, TASKS["pick-place"].instruction)
    assert known_tasks(texts) == ["pick-place", "hammer"]
    with pytest.raises(InvalidInput, match="--tasks"):
        known_tasks(("fold a towel",))


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--tasks is empty"):
        one_of("tasks", " , ", ["hammer"])


def test_doctor_reports_a_taken_port_and_a_broken_bundle(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = run("doctor", "--bundle", str(tmp_path), "--port", str(port))
    assert answer.returncode == 1
    assert str(port) in answer.stdout
    assert "choose another" in answer.stdout
    assert "fail" in answer.stdout


def test_doctor_is_content_with_a_good_bundle(bundle: Path) -> None:
    answer = run("doctor", "--bundle", str(bundle))
    assert answer.returncode == 0, answer.stdout
    assert "steps/s" in answer.stdout


def test_doctor_fails_a_redis_url_that_the_service_would_refuse() -> None:
    finding = doctor.redis("redis://localhost/0?sockettimeout=1")
    assert (finding.check, finding.verdict) == ("redis", "fail")
    assert "sockettimeout" in finding.detail


@pytest.mark.parametrize(
    ("package", "check"),
    [("torch", "device"), ("transformers", "bundle"), ("fastapi", "bundle"), ("redis", "redis")],
)
def test_doctor_reports_a_package_that_cannot_be_imported_beside_all_else(
    package: str, check: str, tmp_path: Path
) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from sarm2_cli.main import main; main()"
    options = ["--bundle", str(tmp_path), "--redis-url", "redis://127.0.0.1:1"]
    answer = subprocess.run(
        [sys.executable, "-c", program, "doctor", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "250"},
        timeout=110,
    )
    assert answer.returncode == 1
    rows = {row[2].strip(): row for line in answer.stdout.splitlines() if len(row := line.split("│")) > 4}
    assert set(rows) == {"python", "packages", "device", "bundle", "port", "redis", "simulator"}
    assert rows[check][1].strip() == "fail"
    assert package in rows[check][3]
    assert "pip install -e ./clients -e '.[cpu]'" in rows[check][3]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--task", "hamer"), "did you mean 'hammer'?"),
        (("run", "--preset", "mettaworld"), "there is no preset 'mettaworld'"),
        (("bc", "--policy", "sound"), "'sound' is not one of image, state"),
        (("collect",), "holds no run yet"),
        (("compare", "--only", "juggling"), "there is no such run"),
        (("run", "--quick", "--preset", "published"), "--quick and --preset published exclude each other"),
        (("bc", "--policy-device", "cuda"), "'image' is none; leave it out"),
        (
            ("run", "--policy", "state", "--reward", "true", "--server", "h:1"),
            "--server h:1: a state policy with --reward true asks no service",
        ),
    ],
)
def test_spiral_says_what_is_wrong_and_leaves_nothing_behind(
    arguments: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    answer = run("spiral", *arguments, "--out", str(tmp_path / "out"))
    assert answer.returncode == 2, answer.stderr
    assert told in " ".join(answer.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_metrics_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ["--quick", "--metrics-port", str(port), "--out", str(tmp_path / "out")]
        error = CliRunner().invoke(app, ["spiral", "run", *options]).exception
    assert isinstance(error, InvalidInput)
    assert error.field == "metrics_port"
    assert f"127.0.0.1:{port}: Address already in use; choose another port" in error.message
    assert not (tmp_path / "out").exists()


def test_a_run_copies_no_folder_that_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    folder = planned(tmp_path / "out", "hammer", "state", ALONE, "true", "residual", 0)
    torn = tmp_path / "torn"
    shutil.copytree(bundle, torn)
    (torn / "heads.safetensors").write_bytes(b"torn")
    (tmp_path / "empty").mkdir()
    wrong = ((tmp_path / "no", NotFound), (tmp_path / "empty", NotFound), (torn, InvalidInput))
    for source, kind in wrong:
        with pytest.raises(kind) as refused:
            keep_models(folder, source)
        assert refused.value.field == "bundle"
        assert str(source) in refused.value.message
    assert not folder.root.exists()
    keep_models(folder, bundle)
    assert read_manifest(folder.first_model) == read_manifest(folder.reward_model) == read_manifest(bundle)
    keep_models(folder, default_bundle())  # nothing has been done yet: the first one was a mistake
    assert read_manifest(folder.first_model) == read_manifest(default_bundle())
    (folder.reward_model / "adapted").touch()
    for same in (None, default_bundle()):  # it was killed in its first stage; or its models were inherited
        keep_models(folder, same)
        assert (folder.reward_model / "adapted").exists()
    keep_models(folder, bundle)
    folder.record.do("demos", lambda: None, Console(quiet=True))
    keep_models(folder, bundle)
    keep_models(folder, None)
    assert read_manifest(folder.reward_model) == read_manifest(bundle)
    with pytest.raises(NotFound, match="no bundle at"):
        keep_models(folder, tmp_path / "no")
    with pytest.raises(Conflict, match="begun with another bundle"):
        keep_models(folder, default_bundle())


def test_no_command_goes_on_with_a_run_of_another_recipe(tmp_path: Path) -> None:
    folder = planned(tmp_path / "out", "hammer", "state", ALONE, "true", "residual", 0)
    record = replace(folder.record, settings={**folder.settings(), "recipe": 1})
    record.do("demos", lambda: None, Console(quiet=True))
    for command in (["collect"], ["report"], ["evaluate", "bc"], ["bc"]):
        error = CliRunner().invoke(app, ["spiral", *command, "--out", str(folder.root)]).exception
        assert isinstance(error, Conflict)
        assert "recipe: 1, now" in error.message
    assert settings_of(folder.root)["recipe"] == 1


def test_a_run_that_another_process_works_in_keeps_its_models(bundle: Path, tmp_path: Path) -> None:
    folder = planned(tmp_path / "out", "hammer", "image", QUICK, "service", "residual", 0)
    keep_models(folder, bundle)
    folder.record.open(resume=False)
    answer = run("spiral", "report", "--out", str(folder.root))  # this process holds the folder
    assert answer.returncode == 2
    assert "another process works in" in " ".join(answer.stderr.split())
    assert read_manifest(folder.first_model) == read_manifest(bundle)


def test_an_error_of_the_machine_is_one_line_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = run("adapt", "r", "--training", "t", "--out", str(tmp_path / "file" / "rm2"))
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    said = "".join(answer.stderr.split())  # a long path is broken anywhere
    assert f"error(system):{tmp_path}/file/.rm2.adapting:Notadirectory;mendthat" in said


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; mend"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/[b]"), "/a/[b]: Permission denied; mend"),
        (OSError(errno.EXDEV, "Not here", "/a", None, "/b"), "/a -> /b: Not here; mend"),
        (OSError("no model of that name"), "no model of that name; mend"),
    ],
)
def test_errors_of_the_machine_end_with_code_2(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise error

    monkeypatch.setattr("sarm2_cli.main.app", full)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"error (system): {told}" in capsys.readouterr().err


def test_episodes_on_ray_ask_for_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ["--quick", "--policy", "state", "--reward", "true", "--rounds", "0", "--ray", "local"]
    answer = CliRunner().invoke(app, ["spiral", "run", *options, "--out", str(tmp_path / "out")])
    assert isinstance(answer.exception, InvalidInput)
    assert ".[ray]" in answer.exception.message


def test_counts_that_are_not_told_are_the_presets(tmp_path: Path) -> None:
    config = configured("quick", {"demos": 7, "first": None, "rounds": 0}, None, adapt=False)
    assert config == replace(QUICK, loop=replace(QUICK.loop, demos=7, rounds=0, adapt=False))


def test_settings_change_a_preset_but_for_those_with_an_option_of_their_own(tmp_path: Path) -> None:
    config = configured("quick", {"rounds": 2}, ["update.beta=3", "loop.trial=1"], adapt=True)
    loop = replace(QUICK.loop, rounds=2, trial=1)
    assert config == replace(QUICK, update=replace(QUICK.update, beta=3.0), loop=loop)
    for command, setting in (("run", "loop.rounds=2"), ("bc", "loop.adapt=false")):
        options = ["--set", setting, "--out", str(tmp_path / "out")]
        error = CliRunner().invoke(app, ["spiral", command, *options]).exception
        assert isinstance(error, InvalidInput)
        assert "has an option of its own" in error.message
    assert not (tmp_path / "out").exists()


def test_every_setting_is_listed_with_its_meaning() -> None:
    told = CliRunner().invoke(app, ["spiral", "settings"]).stdout
    for section in fields(SpiralConfig):
        for setting in fields(getattr(QUICK, section.name)):
            assert f"{section.name}.{setting.name} " in told
            assert re.search(rf"\b{setting.name}\b[a-z_, ]*: ", told), f"what does {setting.name} mean?"
