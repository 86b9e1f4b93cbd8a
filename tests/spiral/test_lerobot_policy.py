"""Policies of LeRobot's own classes as base policies: they plan what LeRobot itself would do."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_spiral.base_policy import BasePolicy, Float32Array, Moment
from sarm2_spiral.given_policy import WEIGHTS, GivenPolicy
from sarm2_spiral.lerobot_inputs import fitted
from sarm2_spiral.lerobot_policy import check_weights
from spiral import tiny_lerobot
from spiral.small_moments import small_moment
from spiral.tiny_lerobot import save_policy

KINDS = ("act", "diffusion", "smolvla")
MAP = ("observation.images.top=side",)

needs_lerobot = pytest.mark.skipif(not tiny_lerobot.available(), reason="needs lerobot: make test-adapters")
adapters = [
    pytest.mark.adapters,
    needs_lerobot,
    pytest.mark.filterwarnings("ignore"),  # LeRobot's own and its libraries'
]


def loaded(folder: Path, *maps: str) -> BasePolicy:
    given = GivenPolicy.parse(f"lerobot:{folder}", maps)
    assert given is not None
    return given.load()


def normal(*shape: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("policies")
    return {kind: save_policy(root, kind) for kind in KINDS}


class _Lerobot:
    """A saved policy as LeRobot's own evaluation loads and asks it."""

    def __init__(self, folder: Path) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(folder)
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        self.prepare, self.finish = make_pre_post_processors(config, str(folder))

    def actions(self, moment: Moment, count: int, **noise: torch.Tensor) -> Float32Array:
        """The first `count` actions (count, A), one by one, frame after frame."""
        self.policy.reset()
        for frame in moment.frames:
            pictures = {"corner": frame.images["corner"], "top": frame.images["side"]}
            seen: dict[str, Any] = {
                f"observation.images.{name}": fitted(picture, (64, 64))[0]
                for name, picture in pictures.items()
            }
            seen |= {"observation.state": torch.from_numpy(frame.state_S), "task": moment.instruction}
            batch = self.prepare(seen)
            if frame is moment.frames[-1]:
                found = [self.finish(self.policy.select_action(batch, **noise)) for _ in range(count)]
            else:
                self.policy.select_action(batch, **noise)
                self.policy._queues["action"].clear()
        action_HA: Float32Array = torch.cat(found).clamp(-1, 1).numpy()
        return action_HA


class TestPlans:
    pytestmark = adapters

    @pytest.mark.parametrize(
        ("kind", "latent_size", "history", "horizon"),
        [("act", 0, 1, 6), ("diffusion", 64, 2, 8), ("smolvla", 48, 1, 6)],
    )
    def test_chunks_are_of_the_policys_length(
        self, folders: dict[str, Path], kind: str, latent_size: int, history: int, horizon: int
    ) -> None:
        policy = loaded(folders[kind], *MAP)
        assert (policy.latent_size, policy.history) == (latent_size, history)
        chunk_BMHA = policy.sample_chunks([small_moment(1, 2), small_moment(3)], normal(2, 3, latent_size))
        assert chunk_BMHA.shape == (2, 3, horizon, 4)
        assert chunk_BMHA.dtype == np.float32
        assert np.abs(chunk_BMHA).max() <= 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_latent_gives_the_same_chunk_whatever_is_asked_beside_it(
        self, folders: dict[str, Path], kind: str
    ) -> None:
        policy = loaded(folders[kind], *MAP)
        moments, latent_BML = [small_moment(s, s + 1) for s in range(7)], normal(7, 3, policy.latent_size)
        chunk_BMHA = policy.sample_chunks(moments, latent_BML)
        np.testing.assert_array_equal(policy.sample_chunks(moments, latent_BML), chunk_BMHA)
        alone = policy.sample_chunks(moments[5:6], latent_BML[5:6, 2:])
        np.testing.assert_allclose(alone, chunk_BMHA[5:6, 2:], atol=1e-5)
        again = loaded(folders[kind], *MAP).sample_chunks(moments[:1], latent_BML[:1])
        np.testing.assert_allclose(again, chunk_BMHA[:1], atol=1e-5)

    @pytest.mark.parametrize("kind", ["diffusion", "smolvla"])
    def test_another_latent_gives_another_chunk(self, folders: dict[str, Path], kind: str) -> None:
        policy = loaded(folders[kind], *MAP)
        chunk_MHA = policy.sample_chunks([small_moment(1, 2)], normal(1, 2, policy.latent_size))[0]
        assert np.abs(chunk_MHA[0] - chunk_MHA[1]).max() > 0.05

    def test_act_has_one_plan_for_all_latents(self, folders: dict[str, Path]) -> None:
        chunk_MHA = loaded(folders["act"], *MAP).sample_chunks([small_moment(1)], normal(1, 4, 0))[0]
        assert (chunk_MHA == chunk_MHA[0]).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_it_sees_moves_the_plan(self, folders: dict[str, Path], kind: str) -> None:
        policy = loaded(folders[kind], *MAP)
        latent_BML = np.repeat(normal(1, 1, policy.latent_size), 2, 0)
        one, two = policy.sample_chunks([small_moment(1, 2), small_moment(3, 4)], latent_BML)
        assert np.abs(one - two).max() > 1e-4

    def test_a_diffusion_policy_sees_the_frame_before(self, folders: dict[str, Path]) -> None:
        policy = loaded(folders["diffusion"], *MAP)
        latent_BML = np.repeat(normal(1, 1, 64), 3, 0)
        moments = [small_moment(1, 2), small_moment(2), small_moment(2, 2)]
        moved, first, still = policy.sample_chunks(moments, latent_BML)
        np.testing.assert_array_equal(first, still)
        assert np.abs(moved - still).max() > 1e-4

    def test_ddim_starts_from_the_latent_alone(self, tmp_path: Path) -> None:
        policy = loaded(save_policy(tmp_path, "diffusion", noise_scheduler_type="DDIM"), *MAP)
        latent_BML = normal(2, 2, 64)
        chunk_BMHA = policy.sample_chunks([small_moment(1, 2), small_moment(3, 4)], latent_BML)
        torch.manual_seed(99)
        alone = policy.sample_chunks([small_moment(3, 4)], latent_BML[1:, 1:])
        np.testing.assert_allclose(alone, chunk_BMHA[1:, 1:], atol=1e-5)

    def test_a_frozen_policy_needs_no_gradient_and_leaves_the_random_numbers_alone(
        self, folders: dict[str, Path]
    ) -> None:
        policy = loaded(folders["diffusion"], *MAP)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        policy.sample_chunks([small_moment(1)], normal(1, 2, 64))
        torch.testing.assert_close(torch.rand(3), expected)


class TestAgreesWithLeRobot:
    pytestmark = adapters

    def test_act(self, folders: dict[str, Path]) -> None:
        moment = small_moment(1)
        expected_HA = _Lerobot(folders["act"]).actions(moment, 6)
        found = loaded(folders["act"], *MAP).sample_chunks([moment], normal(1, 1, 0))[0, 0]
        np.testing.assert_allclose(found, expected_HA, atol=1e-5)
        assert np.ptp(found) > 0.05

    def test_diffusion(self, folders: dict[str, Path]) -> None:
        moment, latent_L = small_moment(1, 2), normal(64)
        lerobot = _Lerobot(folders["diffusion"])
        noise = torch.from_numpy(latent_L).view(1, 16, 4)
        queue: Any = lerobot.policy.diffusion
        whole = queue.generate_actions

        def seeded(batch: Any, noise: torch.Tensor) -> Any:  # DDPM's own noise, as the adapter draws it
            torch.manual_seed(zlib.crc32(latent_L.tobytes()))
            return whole(batch, noise=noise)

        queue.generate_actions = seeded
        expected_HA = lerobot.actions(moment, 8, noise=noise)
        found = loaded(folders["diffusion"], *MAP).sample_chunks([moment], latent_L[None, None])[0, 0]
        np.testing.assert_allclose(found, expected_HA, atol=1e-5)

    def test_smolvla(self, folders: dict[str, Path]) -> None:
        moment, latent_L = small_moment(1), normal(48)
        noise = torch.from_numpy(latent_L).view(1, 6, 8)
        expected_HA = _Lerobot(folders["smolvla"]).actions(moment, 6, noise=noise)
        found = loaded(folders["smolvla"], *MAP).sample_chunks([moment], latent_L[None, None])[0, 0]
        np.testing.assert_allclose(found, expected_HA, atol=1e-5)


class TestFits:
    pytestmark = adapters

    def test_a_camera_without_a_source_is_named_with_the_fix(self, folders: dict[str, Path]) -> None:
        with pytest.raises(
            InvalidInput, match=r"looks at 'observation.images.top'; .* --map observation.images"
        ):
            loaded(folders["act"])
        with pytest.raises(InvalidInput, match="the robot has the cameras corner"):
            loaded(folders["act"], "observation.images.top=state")

    def test_a_key_that_the_policy_does_not_have_is_named(self, folders: dict[str, Path]) -> None:
        with pytest.raises(InvalidInput, match=r"no such input; it has observation.images.corner"):
            loaded(folders["act"], *MAP, "observation.images.left=wrist")

    def test_a_state_of_another_size_wants_names(self, tmp_path: Path) -> None:
        folder = save_policy(tmp_path, "act", cameras=("corner",), state=2)
        with pytest.raises(InvalidInput, match=r"sees a state of 2 numbers, and 'state' gives 4"):
            loaded(folder)
        policy = loaded(folder, "observation.state=tool_z,gripper_opening")
        assert policy.sample_chunks([small_moment(1)], normal(1, 1, 0)).shape == (1, 1, 6, 4)

    def test_actions_of_another_robot_are_refused(self, tmp_path: Path) -> None:
        folder = save_policy(tmp_path, "act", cameras=("corner",), actions=7)
        with pytest.raises(InvalidInput, match=r"actions have the shape \(7,\), the robot's \(4,\)"):
            loaded(folder)

    def test_pictures_are_fitted_to_the_size_of_the_training(self, tmp_path: Path) -> None:
        policy = loaded(save_policy(tmp_path, "act", cameras=("corner", "side"), size=96))
        assert policy.sample_chunks([small_moment(1)], normal(1, 1, 0)).shape == (1, 1, 6, 4)

    def test_a_policy_without_its_processors_is_refused(self, tmp_path: Path) -> None:
        folder = save_policy(tmp_path, "act", cameras=("corner",))
        (folder / "policy_preprocessor.json").unlink()
        with pytest.raises(InvalidInput, match=r"LeRobot cannot load .*act: "):
            loaded(folder)

    def test_a_policy_of_another_kind_is_refused(self, folders: dict[str, Path], tmp_path: Path) -> None:
        from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig

        VQBeTConfig(device="cpu", push_to_hub=False).save_pretrained(tmp_path)
        with pytest.raises(InvalidInput, match=r"kind 'vqbet'; expected one of act, diffusion"):
            loaded(tmp_path)

    def test_weights_that_it_began_from_are_not_fetched(self, tmp_path: Path) -> None:
        folder = save_policy(tmp_path, "act", cameras=("corner",))
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_backbone_weights"] = "ResNet18_Weights.IMAGENET1K_V1"  # LeRobot's default
        (folder / "config.json").write_text(json.dumps(config))
        assert loaded(folder).history == 1


def test_a_folder_without_a_policy_is_not_found(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotFound, match="expected a folder that LeRobot's `save_pretrained` wrote"):
            loaded(place)


@pytest.mark.skipif(tiny_lerobot.available(), reason="lerobot is installed here")
def test_without_lerobot_the_package_is_named() -> None:
    with pytest.raises(InvalidInput, match="needs the package lerobot"):
        loaded(Path("somebody/policy"))


def test_a_picture_keeps_its_proportions_and_loses_its_sides() -> None:
    wide_HWC = np.zeros((48, 96, 3), np.uint8)
    wide_HWC[:, 24:72] = 255
    square = fitted(wide_HWC, (24, 24))
    assert square.shape == (1, 3, 24, 24)
    assert (square == 1).all()
    assert fitted(wide_HWC, (48, 96)).shape == (1, 3, 48, 96)
    assert fitted(wide_HWC, (64, 32)).shape == (1, 3, 64, 32)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_policy_that_did_not_take_its_weights_is_refused(tmp_path: Path, prefix: str) -> None:
    last = torch.nn.Linear(4, 2)
    saved = torch.nn.Sequential(torch.nn.Linear(3, 4), last)
    policy = torch.nn.ModuleDict({"model": saved}) if prefix else saved
    path = tmp_path / WEIGHTS
    check_weights(policy, path)  # of a policy of the hub there is no file
    save_file({name: value.clone() for name, value in saved.state_dict().items()}, path)
    check_weights(policy, path)
    check_weights(policy.to(torch.bfloat16), path)
    torch.nn.init.normal_(last.weight)
    for other in (policy, torch.nn.ModuleDict({"other": last})):
        with pytest.raises(InvalidInput, match=r"without the weights of model\.safetensors"):
            check_weights(other, path)
