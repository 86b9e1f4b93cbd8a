"""A policy from elsewhere is named on the command line, kept with the run, and improved as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import fakes
from running_server import RunningServer
from sarm2_cli.spiral_options import given_policy, planned
from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict, ConnectionLost, InvalidInput, NotFound
from sarm2_rollouts.run_record import RunRecord, finished_stages
from sarm2_spiral.config import QUICK
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.given_policy import ROBOT, GivenPolicy
from sarm2_spiral.input_map import parse_map
from sarm2_spiral.openpi_policy import OpenPiPolicy
from sarm2_spiral.pilot import load_base
from sarm2_spiral.run import SpiralRun
from sarm2_spiral.stages import check_given
from spiral.policy_server import PolicyServer
from spiral.small_run import SMALL, quiet_run


def folder_of(
    root: Path, policy: str, maps: list[str] | None = None, updater: str = "residual"
) -> SpiralFolder:
    given = given_policy(policy, maps, "cpu")
    return planned(root, "hammer", policy, QUICK, "true", updater, 0, given=given)


# --- its address and its map -------------------------------------------------------------------------


def test_a_map_names_cameras_state_and_instruction() -> None:
    found = parse_map(["a=side", "b=state", "c=gripper_opening,tool_x", "d=instruction"], ROBOT)
    assert [one.kind for one in found.values()] == ["camera", "state", "state", "instruction"]
    assert [one.columns for one in found.values()] == [(), (0, 1, 2, 3), (3, 0), ()]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["front"], "expected KEY=SOURCE"),
        (["front="], "expected KEY=SOURCE"),
        (["=corner"], "expected KEY=SOURCE"),
        (
            ["front=top"],
            "there is no input 'top'.*the robot has the cameras corner, side, wrist and the state",
        ),
        (["hand=tool_x,tool_q"], "there is no input 'tool_x,tool_q'"),
        (["front=corner", "front=side"], "'front' has a source already"),
    ],
)
def test_a_map_that_cannot_be_right_is_refused(lines: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        GivenPolicy.parse("lerobot:runs/act", lines)
    assert caught.value.field == "map"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("lerobt:runs/act", "expected lerobot:FOLDER, openpi:HOST:PORT, image or state"),
        ("openpi:somewhere", "expected openpi:HOST:PORT"),
        ("openpi:host:0", "expected openpi:HOST:PORT"),
        ("openpi:host:70000", "expected openpi:HOST:PORT"),
        ("imag", "'imag' is not one of image, state; did you mean 'image'"),
    ],
)
def test_an_address_that_is_none_is_refused(policy: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=said):
        folder_of(tmp_path, policy)


def test_a_built_in_policy_takes_no_map(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="needs no map"):
        folder_of(tmp_path, "image", ["front=corner"])


def test_a_given_policy_is_never_cloned_anew(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="goes with the updater residual"):
        folder_of(tmp_path, "openpi:127.0.0.1:8000", updater="rabc")


def test_a_run_remembers_its_policy(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "openpi:127.0.0.1:8000", ["cam=corner", "text=instruction"])
    assert (folder.kind, str(folder.given)) == ("image", "openpi:127.0.0.1:8000")
    RunRecord(folder.root, folder.settings()).open(resume=False)
    assert SpiralFolder.of(tmp_path) == folder
    other = folder_of(tmp_path, "openpi:127.0.0.1:8001", ["cam=corner", "text=instruction"])
    with pytest.raises(Conflict, match=r"other settings \(given.place: 127.0.0.1:8000, now 127.0.0.1:8001\)"):
        RunRecord(other.root, other.settings()).open(resume=True)
    assert "given" not in folder_of(tmp_path, "image").settings(), "runs of before go on"


def test_a_folder_is_the_same_policy_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "act").mkdir()
    monkeypatch.chdir(tmp_path)
    given = GivenPolicy.parse("lerobot:act")
    assert given is not None
    assert given.place == str(tmp_path / "act")


def test_a_run_keeps_to_the_weights_that_it_was_begun_with(tmp_path: Path) -> None:
    (tmp_path / "act").mkdir()
    weights = tmp_path / "act" / "model.safetensors"
    run = folder_of(tmp_path / "run", f"lerobot:{tmp_path / 'act'}")
    check_given(run)  # none here: a policy of the hub
    weights.write_bytes(b"first")
    for _ in range(2):
        check_given(run)
    weights.write_bytes(b"trained on")
    with pytest.raises(Conflict, match="other weights of lerobot:"):
        check_given(run)


# --- a run with one ----------------------------------------------------------------------------------


def ahead(question: dict[str, Any]) -> dict[str, Any]:
    """A plan that depends on all that the server is told."""
    bright = float(question["observation/image"].mean()) / 255
    plan_HA = np.tile([0.3 * bright, 0.2, -0.4, float(question["observation/state"][3])], (8, 1))
    return {"actions": plan_HA.astype(np.float32)}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SpiralRun, PolicyServer]]:
    """A run of a policy server's policy, with the real service for the critics' features."""
    root = tmp_path_factory.mktemp("given")
    model = fakes.make_model(root / "model")
    with (
        PolicyServer(ahead) as policy,
        RunningServer(model) as service,
        RewardClient(port=service.port) as client,
    ):
        given = GivenPolicy("openpi", f"127.0.0.1:{policy.port}")
        folder = SpiralFolder(root / "run", "drawer-open", "image", 7, SMALL, "true", given=given)
        run = quiet_run(folder, client)
        run.port = service.port
        yield run, policy
        base = load_base(given, SMALL)
        assert isinstance(base, OpenPiPolicy)
        base.close()
        load_base.cache_clear()


@pytest.mark.sim
def test_a_given_policy_goes_through_the_whole_loop(loop: tuple[SpiralRun, PolicyServer]) -> None:
    run, server = loop
    run.start(resume=False)
    stages = finished_stages(run.run.root)
    assert [name for name in stages if name.startswith(("bc", "offline", "evaluate"))] == [
        "evaluate given",
        "evaluate round1",
        "evaluate round2",
    ]
    assert not (run.run.root / "policies").exists()
    assert run.run.learner(2).exists()
    report = json.loads((run.run.report / "report.json").read_text())
    assert list(report["success"]) == ["given", "round1", "round2"]
    assert f"openpi:127.0.0.1:{server.port}" in (run.run.report / "report.html").read_text()
    chunks = np.load(run.run.chunks("demos") / "000000.npy")
    assert chunks.shape[1:] == (SMALL.update.latents, SMALL.update.executed * 4)


@pytest.mark.sim
def test_its_chunks_are_asked_for_once_a_frame_and_latent(loop: tuple[SpiralRun, PolicyServer]) -> None:
    run, server = loop
    asked = len(server.asked)
    (run.run.learner(2)).unlink()
    (run.run.round(2) / "learner.checkpoint.safetensors").unlink()
    run._update(2)
    assert run.run.learner(2).exists()
    assert len(server.asked) == asked, "what was kept is not asked for again"


def frames_scored(run: SpiralRun) -> float:
    text = httpx.get(f"http://127.0.0.1:{run.port}/metrics", trust_env=False).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return families["sarm2_scored_steps"].samples[0].value


@pytest.mark.sim
def test_a_rollout_is_scored_by_the_service_frame_by_frame_while_it_is_flown(
    loop: tuple[SpiralRun, PolicyServer],
) -> None:
    run, _ = loop
    scene, before = run.run.rollout_plan(1)[0], frames_scored(run)
    replace(run.policy("given"), stream=False).fly(scene)
    assert frames_scored(run) == before
    episode = replace(run.policy("given"), stream=True).fly(scene)
    assert frames_scored(run) == before + len(episode)


@pytest.mark.sim
def test_names_of_policies_that_are_not_there(loop: tuple[SpiralRun, PolicyServer]) -> None:
    run, _ = loop
    with pytest.raises(NotFound, match="expected given, round1"):
        run.policy("bc")
    with pytest.raises(Conflict, match=r"offline: the run in .* has no such stage"):
        run.step("offline")


def test_a_policy_that_is_not_there_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    with PolicyServer(ahead) as server:
        port = server.port
    folder = folder_of(tmp_path / "run", f"openpi:127.0.0.1:{port}")
    with RewardClient() as client, pytest.raises(ConnectionLost, match="no policy server"):
        quiet_run(folder, client).start(resume=False)
    assert not folder.root.exists()
