"""Whatever is a `BasePolicy` can be driven, recorded and improved: nothing else of it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rollouts.small_episodes import small_episode
from sarm2_client.errors import ConnectionLost, InvalidInput
from sarm2_client.images import decode_jpeg
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_writer import write_dataset
from sarm2_rollouts.metaworld_robot import Observation
from sarm2_spiral.base_policy import Float32Array, Moment, executed_part
from sarm2_spiral.driver import Driver
from sarm2_spiral.flow_policy import FlowPolicy
from sarm2_spiral.recorded_chunks import RecordedChunks
from sarm2_spiral.recorded_moments import recorded_moments
from sarm2_spiral.residual import Learner
from spiral.small_data import SMALL
from spiral.small_moments import SmallFrame, StandIn, small_frame


class CountedFeatures:
    """Features that say how often they were asked for."""

    def __init__(self) -> None:
        self.live_asked = 0

    def live(self, now: Observation, instruction: str) -> Float32Array:
        self.live_asked += 1
        return now.state_S

    def recorded(self, episode: Episode) -> Float32Array:
        return episode.state_TS


def observation(frame: SmallFrame) -> Observation:
    return Observation(frame.images, frame.state_S, np.zeros(0, np.float32), np.zeros(39), success=False)


def driver(
    policy: StandIn, learner: Learner | None = None, *, executed: int = 4
) -> tuple[Driver, CountedFeatures]:
    features = CountedFeatures()
    driver = Driver(policy, features, learner, executed=executed, latents=3, seed=0)
    driver.reset("open the drawer")
    return driver, features


def test_a_policy_with_a_history_looks_at_the_frames_before_its_chunks() -> None:
    policy = StandIn(history=2)
    robot, features = driver(policy)
    frames = [observation(small_frame(seed)) for seed in range(9)]
    number = {id(frame): place for place, frame in enumerate(frames)}
    looked = []
    for frame in frames:
        looked.append(robot.looks)
        robot.act(frame)
    assert looked == [True, False, False, True, True, False, False, True, True]
    seen = [[number[id(frame)] for frame in one.frames] for (one,) in policy.asked]
    assert seen == [[0], [3, 4], [7, 8]]
    assert features.live_asked == 0, "a policy of its own eyes alone needs no features"


def test_a_new_episode_forgets_the_frames_of_the_last_one() -> None:
    policy = StandIn(history=3)
    robot, _ = driver(policy, executed=1)
    for seed in range(3):
        robot.act(observation(small_frame(seed)))
    robot.reset("hammer the nail")
    robot.act(observation(small_frame(7)))
    (moment,) = policy.asked[-1]
    assert len(moment.frames) == 1
    assert moment.instruction == "hammer the nail"


def test_the_critics_choose_among_the_chunks_of_several_latents() -> None:
    config = SMALL.update
    learner = Learner(4, 4, config).eval()
    policy = StandIn(history=1)
    robot, features = driver(policy, learner, executed=config.executed)
    frame = observation(small_frame(1))
    action_A = robot.act(frame)
    (moment,) = policy.asked[0]
    latent_ML = np.random.default_rng([0, 11]).normal(size=(3, 2)).astype(np.float32)
    chunk_MK = executed_part(policy.sample_chunks([moment], latent_ML[None]), config.executed)[0]
    best_K = learner.best(torch.from_numpy(frame.state_S), torch.from_numpy(chunk_MK))
    np.testing.assert_allclose(action_A, best_K.numpy(), atol=1e-6)
    assert features.live_asked == 1


def test_a_policy_without_a_latent_can_be_driven() -> None:
    robot, _ = driver(StandIn(latent_size=0, history=1), Learner(4, 4, SMALL.update), executed=1)
    assert robot.act(observation(small_frame(2))).shape == (4,)


def test_a_chunk_that_is_shorter_than_what_is_carried_out_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"plans 3 actions at a time, and 4 .* take one that plans 4"):
        executed_part(np.zeros((1, 1, 3, 4), np.float32), 4)
    assert executed_part(np.zeros((2, 5, 3, 4), np.float32), 3).shape == (2, 5, 12)


# --- recorded ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    episodes = [small_episode(seed, length, task="hammer the nail") for seed, length in ((0, 12), (1, 9))]
    write_dataset(episodes, root, storage="image")
    return root


def chunks_of(
    policy: StandIn, root: Path, kept: Path | None = None, name: str = "round1"
) -> list[Float32Array]:
    features = [np.zeros((12, 3), np.float32), np.zeros((9, 3), np.float32)]
    source = RecordedChunks(policy, latents=3, executed=4, seed=7)
    return list(source.of(name, root, [0, 1], ["hammer the nail"] * 2, features, kept))


def test_a_recorded_frame_is_planned_from_like_a_live_one() -> None:
    episode = small_episode(3, 5)
    moments = recorded_moments("hammer the nail", lambda: episode, np.zeros((5, 3), np.float32), history=2)
    policy = StandIn(history=2)
    robot, _ = driver(policy, executed=1)
    for place in range(5):
        images = {camera: decode_jpeg(files[place]) for camera, files in episode.images.items()}
        robot.act(observation(SmallFrame(images, episode.state_TS[place])))
    live = [moment for (moment,) in policy.asked]
    latent_BML = np.zeros((5, 1, 2), np.float32)
    np.testing.assert_array_equal(
        policy.sample_chunks(moments, latent_BML), policy.sample_chunks(live, latent_BML)
    )


def test_chunks_of_a_dataset_are_drawn_by_its_name_and_the_seed_alone(recorded: Path) -> None:
    first, again = chunks_of(StandIn(), recorded), chunks_of(StandIn(), recorded)
    assert [one.shape for one in first] == [(12, 3, 16), (9, 3, 16)]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (chunks_of(StandIn(), recorded, name="round2")[0] != first[0]).any()
    assert (first[0][:, 0] != first[0][:, 1]).any(), "each latent has a chunk of its own"


def test_kept_chunks_are_found_again_and_a_killed_run_goes_on(recorded: Path, tmp_path: Path) -> None:
    whole = chunks_of(StandIn(), recorded, tmp_path)
    (tmp_path / "000001.npy").unlink()
    policy = StandIn()
    again = chunks_of(policy, recorded, tmp_path)
    assert [len(moments) for moments in policy.asked] == [9], "only the episode that was not kept"
    for one, two in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_policy_server_that_was_away_is_asked_again(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sarm2_spiral.patience.time.sleep", lambda seconds: None)

    class Away(StandIn):
        def sample_chunks(self, moments: object, latent_BML: Float32Array) -> Float32Array:
            if len(self.asked) == 0:
                self.asked.append([])
                raise ConnectionLost("gone")
            return super().sample_chunks(moments, latent_BML)  # type: ignore[arg-type]

    for one, two in zip(chunks_of(Away(), recorded), chunks_of(StandIn(), recorded), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_built_in_policy_reads_no_picture(recorded: Path, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    shutil.copytree(recorded, root)
    shutil.rmtree(root / "data")
    torch.manual_seed(0)
    policy = FlowPolicy(3, 4, SMALL.policy)
    features = [np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32) for seed in range(2)]
    source = RecordedChunks(policy, latents=3, executed=2, seed=7)
    found = list(source.of("demos", root, [0, 1], ["hammer the nail"] * 2, features))
    latent_TML = np.random.default_rng([7, 13, *b"demos"]).normal(size=(5, 3, policy.latent_size))
    row_F, latent_L = torch.from_numpy(features[0][4]), torch.from_numpy(latent_TML[4, 2].astype(np.float32))
    expected_HA = policy.sample_chunk(row_F[None], latent_L[None])[0]
    np.testing.assert_allclose(found[0][4, 2], expected_HA[:2].flatten().detach().numpy(), atol=1e-6)


def test_a_moment_holds_no_more_frames_than_were_seen() -> None:
    def never() -> Episode:
        raise AssertionError("nobody looked")

    moments: list[Moment] = recorded_moments("hammer the nail", never, np.eye(4, dtype=np.float32), history=3)
    assert [len(moment.frames) for moment in moments] == [1, 2, 3, 3]
    np.testing.assert_array_equal(moments[2].features(), [0, 0, 1, 0])
