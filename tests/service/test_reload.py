"""A running service takes another model's heads without losing a session, or serves on with the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import fakes
from running_server import RunningServer, Serve
from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict, InvalidInput, NotAllowed
from sarm2_client.images import decode_image
from sarm2_models.checkpoint import load_bundle, save_bundle
from sarm2_models.predictor import Predictor
from sarm2_models.reward_model import RewardModel, Statistics


@pytest.fixture
def bundle(model: RewardModel, tmp_path: Path) -> Path:
    save_bundle(tmp_path / "served", model, model_id="tiny", version="1")
    return tmp_path / "served"


@pytest.fixture
def server(serve: Serve, bundle: Path) -> RunningServer:
    return serve(load_bundle(bundle), bundle=bundle, allow_reload=True)


def other_heads(model: RewardModel, seed: int = 9, instructions: Sequence[str] = fakes.TASKS) -> RewardModel:
    statistics = Statistics(state_mean=(0.0,) * fakes.STATE_DIM, state_std=(1.0,) * fakes.STATE_DIM)
    return RewardModel.build(model.config, model.encoder, statistics, instructions=instructions, seed=seed)


def test_an_open_episode_goes_on_with_the_new_model(
    server: RunningServer, model: RewardModel, bundle: Path
) -> None:
    with server.robot() as robot, RewardClient(port=server.port) as client:
        robot.start("through")
        before = [robot.score(fakes.frame(seq)) for seq in range(4)]
        save_bundle(bundle, other_heads(model), version="2")
        said = client.reload()
        after = [robot.score(fakes.frame(seq)) for seq in range(4, 8)]
        summary = robot.end(7)
    assert said["models"][0]["model"]["version"] == "2"
    assert {score.model_version for score in before} == {"1"}
    assert {score.model_version for score in after} == {"2"}
    assert (summary.scored, summary.model_version) == (8, "2")
    predictor = Predictor(other_heads(model))
    predictor.reset(fakes.TASKS[0], fakes.FPS)
    steps = []
    for seq in range(8):
        frame = fakes.frame(seq)
        pictures = {camera: decode_image(image, max_pixels=10**6) for camera, image in frame.images.items()}
        steps.append(predictor.step(pictures, np.asarray(frame.state, np.float32)).progress)
    np.testing.assert_allclose([score.progress for score in after], steps[4:], atol=1e-4)


def test_a_task_that_the_new_model_learned_is_known_in_open_episodes_and_counted_by_its_name(
    server: RunningServer, model: RewardModel, bundle: Path
) -> None:
    task = "Juggle three eggs"
    with server.robot() as robot, server.robot() as later, RewardClient(port=server.port) as client:
        robot.start("learned", task=task)
        assert not robot.score(fakes.frame(0)).task_known
        save_bundle(bundle, other_heads(model, instructions=(*fakes.TASKS, task)), version="2")
        client.reload()
        assert robot.score(fakes.frame(1)).task_known
        assert robot.end(1).task_known
        assert later.start("later", task=task.upper()).task_known
        later.score(fakes.frame(0))
        later.end(0)
    assert server.metric("sarm2_progress_count", task=task) == 1
    assert server.metric("sarm2_progress_count", task="unknown") == 2
    assert server.metric("sarm2_final_progress_count", task=task) == 1


def test_a_client_that_had_the_model_reloaded_asks_for_its_metadata_again(
    server: RunningServer, model: RewardModel, bundle: Path
) -> None:
    with RewardClient(port=server.port) as client:
        assert client.get_server_metadata()["model"]["version"] == "1"
        save_bundle(bundle, other_heads(model), version="2")
        client.reload()
        assert client.get_server_metadata()["model"]["version"] == "2"


def test_a_damaged_bundle_is_refused_and_the_old_model_serves_on(server: RunningServer, bundle: Path) -> None:
    (bundle / "heads.safetensors").write_bytes(b"damaged")
    with server.robot() as robot, RewardClient(port=server.port) as client:
        robot.start("on")
        before = robot.score(fakes.frame(0))
        with pytest.raises(InvalidInput, match="changed or damaged"):
            client.reload()
        assert robot.score(fakes.frame(1)).model_version == before.model_version


@pytest.mark.parametrize(
    ("part", "number"),
    [("stage.head.bias", np.nan), ("value.fuse.bias", np.inf), ("stage.image_in.weight", 3e38)],
    ids=["stage", "value", "overflow"],
)
def test_a_model_that_diverged_is_refused_and_the_old_one_serves_on(
    server: RunningServer, model: RewardModel, bundle: Path, part: str, number: float
) -> None:
    diverged = other_heads(model)
    head, _, name = part.partition(".")
    getattr(diverged, head).get_parameter(name).data.fill_(number)
    save_bundle(bundle, diverged, version="2")
    with server.robot() as robot, RewardClient(port=server.port) as client:
        robot.start("undisturbed")
        with pytest.raises(InvalidInput, match="not finite"):
            client.reload()
        assert robot.score(fakes.frame(0)).model_version == "1"


def test_another_encoder_or_other_sizes_are_refused(
    server: RunningServer, model: RewardModel, bundle: Path, tmp_path: Path
) -> None:
    with RewardClient(port=server.port) as client:
        save_bundle(bundle, fakes.make_model(tmp_path / "other", seed=5))
        with pytest.raises((InvalidInput, Conflict)):
            client.reload()
        assert client.models()["models"][0]["model"]["version"] == "1"


def test_reloading_is_off_unless_allowed(serve: Serve, bundle: Path) -> None:
    server = serve(load_bundle(bundle), bundle=bundle)
    with RewardClient(port=server.port) as client, pytest.raises(NotAllowed, match="--allow-reload"):
        client.reload()
