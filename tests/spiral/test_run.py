"""A whole run on the real simulator, small; rewards are the simulator's own, so no service is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.torch import load_file

from sarm2_client.client import RewardClient
from sarm2_client.errors import Conflict, NotFound
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.ray_collection import iterate_episodes_on_ray
from sarm2_rollouts.run_record import finished_stages
from sarm2_spiral import stages
from sarm2_spiral.config import SpiralConfig
from sarm2_spiral.decision import decide, load_decision
from sarm2_spiral.features import Float32Array, StateFeatures
from sarm2_spiral.folder import SpiralFolder, Updater
from sarm2_spiral.progress import Reward
from sarm2_spiral.residual_update import FIGURES
from sarm2_spiral.run import SpiralRun
from spiral.small_run import SMALL, quiet_run

pytestmark = pytest.mark.sim


def a_run(
    root: Path, reward: Reward = "true", config: SpiralConfig = SMALL, updater: Updater = "residual"
) -> SpiralRun:
    folder = SpiralFolder(root, "drawer-open", "state", 7, config, reward, updater)
    return quiet_run(folder, RewardClient())


def steps_behind(run: SpiralRun, number: int) -> int:
    """Update steps that led to a round's candidate."""
    return int(load_file(run.run.round(number) / stages.CHECKPOINT)["step"])


def weights(root: Path) -> dict[str, bytes]:
    paths = [*root.glob("policies/*.safetensors"), *root.glob("rounds/*/learner.safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SpiralRun:
    run = a_run(tmp_path_factory.mktemp("spiral") / "run")
    run.start(resume=False)
    return run


def test_a_run_ends_with_a_report_of_every_policy_and_round(finished: SpiralRun) -> None:
    report = json.loads((finished.run.report / "report.json").read_text())
    assert list(report["success"]) == ["bc", "offline", "round1", "round2"]
    assert report["success"]["round2"]["n"] == SMALL.loop.evaluation
    assert [row["rollouts"] for row in report["rounds"]] == [3, 3]
    assert [row["deployed"] for row in report["rounds"]] == [
        load_decision(finished.run, number).deployed for number in (1, 2)
    ]
    page = (finished.run.report / "report.html").read_text()
    for picture in ("success.png", "curves.png", "gains.png", "advantages.png"):
        assert picture in page
        assert (finished.run.report / picture).stat().st_size > 5000


def test_a_policy_that_looks_at_nothing_has_no_pictures_made(finished: SpiralRun) -> None:
    assert open_dataset(finished.run.demos).cameras == ()
    assert open_dataset(finished.run.round(1) / "rollouts").cameras == ()


def test_the_stages_one_by_one_come_to_the_same_weights(finished: SpiralRun, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run.begin(resume=False)
    for kind in (
        "demos",
        "bc",
        "offline",
        "collect",
        "relabel",
        *("collect", "relabel", "update", "trial") * 2,
    ):
        run.step(kind)
    assert weights(tmp_path / "run") == weights(finished.run.root)


def test_a_run_that_stops_in_any_stage_goes_on_to_the_same_weights(
    finished: SpiralRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    broken: set[tuple[str, int]] = set()

    def breaking(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def once(*arguments: object, **named: object) -> object:
            place = (name, len(finished_stages(tmp_path / "run")))
            if place not in broken:  # breaks once in every stage, and does its work the next time
                broken.add(place)
                raise StoppedError
            return work(*arguments, **named)

        return once

    for name in ("record_scripted", "collect", "clone_policy", "update"):
        monkeypatch.setattr(stages, name, breaking(name, getattr(stages, name)))
    monkeypatch.setattr("sarm2_spiral.run.decide", breaking("decide", decide))
    while "report" not in finished_stages(tmp_path / "run"):
        with suppress(StoppedError):
            a_run(tmp_path / "run").start(resume=True)
    assert len(broken) == 12
    assert weights(tmp_path / "run") == weights(finished.run.root)


def test_features_that_are_kept_are_not_asked_for_again(
    finished: SpiralRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished._load("demos").features
    asked: list[Episode] = []
    real = StateFeatures.recorded

    def counted(self: StateFeatures, episode: Episode) -> Float32Array:
        asked.append(episode)
        return real(self, episode)

    monkeypatch.setattr(StateFeatures, "recorded", counted)
    (finished.run.features("demos") / "000001.npy").unlink()
    again = finished._load("demos").features
    assert [episode.seed for episode in asked] == [finished.run.demo_plan()[1].seed]
    for one, two in zip(again, whole, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_run_on_ray_comes_to_the_same_weights(
    finished: SpiralRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        monkeypatch.chdir(tmp_path)  # the workers stay where Ray was begun, as those of a cluster do
        on_ray = partial(iterate_episodes_on_ray, workers=1, address="local")
        replace(a_run(Path("run")), collector=on_ray).start(resume=False)
    finally:
        ray.shutdown()
    assert weights(tmp_path / "run") == weights(finished.run.root)


def test_every_update_leaves_a_trace_of_how_it_went(finished: SpiralRun) -> None:
    folder, updates = finished.run, SMALL.update.updates
    for number in (1, 2):
        (told,) = [json.loads(line) for line in folder.losses(number).read_text().splitlines()]
        assert told.keys() == {"step", *FIGURES}
        assert told["step"] == number * updates
        assert told["critic_loss"] > 0
        assert 0 < told["residual"] <= SMALL.update.scale
    assert (folder.report / "updates.png").exists()


def test_the_advantages_of_a_round_are_of_the_frames_that_it_collected(finished: SpiralRun) -> None:
    folder = finished.run
    for number in (1, 2):
        frames = sum(len(episode) for episode in open_dataset(folder.round(number) / "rollouts"))
        assert np.load(folder.advantages(number)).shape == (frames,)
    data = [finished._load(name) for name in ("demos", "round0", "round1")]
    counts = [sum(map(len, one.progress)) for one in data]
    frames_T = stages.frames_of(data, "round1")
    assert (frames_T[0], len(frames_T)) == (counts[0] + counts[1], counts[2])


def test_the_base_policy_stays_as_it_is_through_every_round(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run.begin(resume=False)
    run.step("demos", "bc", "offline")
    before = {path.name: path.read_bytes() for path in run.run.policy("bc").parent.iterdir()}
    run.start(resume=True)
    assert run.run.learner(2).exists()
    assert {path.name: path.read_bytes() for path in run.run.policy("bc").parent.iterdir()} == before


def test_a_run_that_is_not_through_has_a_report_of_what_there_is(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run.begin(resume=False)
    with pytest.raises(Conflict, match="'demos'"):
        run.write_report()
    run.step("demos", "bc")
    run.judge("bc", 1)
    page = run.write_report().read_text()
    assert "So far: round 0 of 2 is through." in page
    report = json.loads((run.run.report / "report.json").read_text())
    assert list(report["success"]) == ["bc"]
    assert report["rounds"] == []


def test_a_stage_out_of_turn_says_what_comes_first(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    run.begin(resume=False)
    with pytest.raises(Conflict, match="'demos'"):
        run.step("collect")
    with pytest.raises(NotFound, match="not there yet"):
        run.judge("bc")
    with pytest.raises(NotFound, match="expected bc, offline, round1"):
        run.judge("best")


def test_other_settings_are_refused(finished: SpiralRun) -> None:
    with pytest.raises(Conflict, match=r"other settings \(reward: true, now linear\)"):
        a_run(finished.run.root, reward="linear").start(resume=True)
    with pytest.raises(Conflict, match="--resume"):
        a_run(finished.run.root).start(resume=False)
    assert SpiralFolder.of(finished.run.root) == finished.run


def test_a_candidate_that_does_worse_is_kept_and_not_deployed(finished: SpiralRun, tmp_path: Path) -> None:
    strict = replace(SMALL, loop=replace(SMALL.loop, margin=-1.0))  # nothing rises by 1
    run = a_run(tmp_path / "run", config=strict)
    run.start(resume=False)
    assert not load_decision(run.run, 1).deployed
    assert run.deployed(2).learner is None
    assert run.run.learner(1).exists()
    assert "report" in finished_stages(run.run.root)
    # Its weights are left behind: the next one begins afresh, and makes up for its updates.
    assert steps_behind(run, 2) == steps_behind(finished, 2) == 2 * SMALL.update.updates
    second = run.run.learner(2).read_bytes()
    for folder in (run.run.round(1), run.run.round(2)):
        for path in folder.glob("learner*"):
            path.unlink()
    run._update(2)
    assert run.run.learner(2).read_bytes() == second


@pytest.mark.parametrize(
    ("number", "deployed", "until", "alone"),
    [
        (1, [], 100, 10),
        (2, [1], 200, 110),
        (2, [], 200, 10),
        (3, [1], 300, 110),
        (3, [2], 300, 210),
        (3, [], 300, 10),
    ],
)
def test_an_update_goes_on_from_the_last_that_was_deployed_and_makes_up_for_the_others(
    number: int, deployed: list[int], until: int, alone: int
) -> None:
    config = replace(SMALL.update, updates=100, critic_only=10)
    assert stages.steps_until(number, deployed, config) == (until, alone)


@pytest.mark.parametrize("reward", ["true", "uniform"])
def test_cloning_takes_the_place_of_the_residual_update(reward: Reward, tmp_path: Path) -> None:
    once = replace(SMALL, loop=replace(SMALL.loop, rounds=1))
    run = a_run(tmp_path / "run", reward, once, "rabc")
    run.start(resume=False)
    assert {path.stem for path in run.run.policy("bc").parent.iterdir()} == {"bc", "offline", "round1"}
    assert run.deployed(1).learner is None
    assert "report" in finished_stages(run.run.root)
