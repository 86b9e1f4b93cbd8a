"""Policies trained with LeRobot as base policies: ACT, diffusion, SmolVLA, pi0 and pi0.5.

LeRobot is imported when a policy is loaded; it is no dependency of this package. A policy runs with the
processors that were saved beside it: they scale its inputs and outputs by the statistics of its training
data, and turn the instruction into tokens.

Shapes: B moments, M latents, R = B x M rows, N frames that the policy sees, H actions of a chunk, A action,
S state, C H W picture.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from sarm2_client.errors import InvalidInput, ModelFailed, NotFound
from sarm2_spiral.base_policy import Float32Array, Frame, Moment
from sarm2_spiral.given_policy import WEIGHTS
from sarm2_spiral.input_map import Robot, Source
from sarm2_spiral.lerobot_inputs import Inputs, inputs_of

IMAGES = "observation.images"

KINDS = ("act", "diffusion", "pi0", "pi05", "smolvla")

CHECKED = 16
"""Tensors of its file that a loaded policy is compared with."""

ROWS_AT_ONCE = 16
"""Rows in one batch: bounded, since a vision-language-action model caches every row's tokens."""


class LeRobotPolicy:
    """A policy of LeRobot. A `BasePolicy`: its latent is the noise that it starts from; ACT has none.

    Args:
        policy: one of `KINDS`, frozen here.
        prepare, finish: its processors.
        inputs: what it sees.
        robot: whose actions it gives.
    """

    def __init__(
        self,
        policy: Any,
        prepare: Callable[[dict[str, Any]], dict[str, Any]],
        finish: Callable[[Tensor], Tensor],
        inputs: Inputs,
        robot: Robot,
    ) -> None:
        self._policy, self._config = policy.eval().requires_grad_(False), policy.config
        self._prepare, self._finish, self._inputs = prepare, finish, inputs
        self._noise = noise_shape(self._config, robot.actions)
        self._device = next(policy.parameters()).device

    @classmethod
    def load(cls, place: str, inputs: Mapping[str, Source], robot: Robot, device: str) -> LeRobotPolicy:
        """A policy that LeRobot saved.

        Args:
            place: a folder with config.json, model.safetensors and both processors, or a hub name.
            inputs: sources by the policy's keys; those that explain themselves may be left out.
            device: where it runs.

        Raises:
            NotFound: there is no such folder.
            InvalidInput: LeRobot is not installed, the policy is of another kind, without processors, or
                with other weights than its file's, or it does not fit the robot.
        """
        check_place(place)
        lerobot = _library()
        config = _read(place, lambda: lerobot.read_config(place))
        if config.type not in KINDS:
            raise InvalidInput(
                f"{place} is a policy of the kind {config.type!r}; expected one of {', '.join(KINDS)}",
                field="policy",
            )
        config.device = device
        seen = inputs_of(config, inputs, robot)
        prepare, finish = _read(place, lambda: lerobot.read_processors(config, place))
        policy = _read(place, lambda: lerobot.read_policy(config, place))
        check_weights(policy, Path(place) / WEIGHTS)
        return cls(policy, prepare, finish, seen, robot)

    @property
    def latent_size(self) -> int:
        """Numbers of the noise that it starts from; 0 for ACT."""
        return self._noise[0] * self._noise[1]

    @property
    def history(self) -> int:
        """Frames that it sees at a time."""
        return int(self._config.n_obs_steps)

    @torch.no_grad()
    def sample_chunks(self, moments: Sequence[Moment], latent_BML: Float32Array) -> Float32Array:
        """Chunks (B, M, H, A), clipped to [-1, 1]."""
        latents = latent_BML.shape[1]
        rows = latents if self.latent_size else 1  # ACT would only say the same again
        at_once = max(1, ROWS_AT_ONCE // rows)
        parts = []
        for begin in range(0, len(moments), at_once):
            batch = self._batch(moments[begin : begin + at_once], rows)
            latent_RL = torch.from_numpy(latent_BML[begin : begin + at_once, :rows]).flatten(0, 1)
            parts.append(self._chunks(batch, latent_RL))
        chunk_RHA = torch.cat(parts)
        if not chunk_RHA.isfinite().all():
            raise ModelFailed("the base policy plans actions that are not finite")
        chunk_BMHA = chunk_RHA.clamp(-1.0, 1.0).view(len(moments), rows, *chunk_RHA.shape[1:]).numpy()
        return np.repeat(chunk_BMHA, latents // rows, axis=1)

    # --- asking --------------------------------------------------------------------------------------

    def _chunks(self, batch: dict[str, Tensor], latent_RL: Tensor) -> Tensor:
        """Chunks (R, H, A) in the robot's units, on the CPU."""
        noise_RHA = latent_RL.view(len(latent_RL), *self._noise).to(self._device)
        if self._config.type == "act":
            chunk_RHA = self._policy.predict_action_chunk(batch)
        elif self._config.type == "diffusion":
            chunk_RHA = self._diffused(batch, noise_RHA)
        else:
            self._policy.reset()  # SmolVLA keeps what it saw last
            chunk_RHA = self._policy.predict_action_chunk(batch, noise=noise_RHA)
        finished_RHA: Tensor = self._finish(chunk_RHA).float().cpu()
        return finished_RHA

    def _diffused(self, batch: dict[str, Tensor], noise_RHA: Tensor) -> Tensor:
        if self._config.image_features:
            views = [batch[key] for key in self._config.image_features]
            batch = {**batch, IMAGES: torch.stack(views, dim=2)}  # (R, N, views, C, H, W)
        if self._config.noise_scheduler_type == "DDIM":
            return self._generate(batch, noise_RHA)
        # DDPM draws more noise on its way, for all rows together: each row is alone, with noise of its own.
        return torch.cat([self._alone(batch, noise_RHA, row) for row in range(len(noise_RHA))])

    def _alone(self, batch: dict[str, Tensor], noise_RHA: Tensor, row: int) -> Tensor:
        one = slice(row, row + 1)
        mine = {key: value[one] for key, value in batch.items()}
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(zlib.crc32(noise_RHA[row].cpu().numpy().tobytes()))
            return self._generate(mine, noise_RHA[one])

    def _generate(self, batch: dict[str, Tensor], noise_RHA: Tensor) -> Tensor:
        chunk_RHA: Tensor = self._policy.diffusion.generate_actions(batch, noise=noise_RHA)
        return chunk_RHA

    # --- what it sees --------------------------------------------------------------------------------

    def _batch(self, moments: Sequence[Moment], rows: int) -> dict[str, Tensor]:
        """What the policy is asked: every moment `rows` times."""
        frames = [frame for moment in moments for frame in padded(moment.frames, self.history)]
        texts = [moment.instruction for moment in moments for _ in range(self.history)]
        prepared = self._prepare({**self._inputs.read(frames), "task": texts})
        tensors = {key: value for key, value in prepared.items() if key.startswith("observation.")}
        if self._config.type == "diffusion":
            tensors = {key: value.view(-1, self.history, *value.shape[1:]) for key, value in tensors.items()}
        return {key: value.repeat_interleave(rows, 0) for key, value in tensors.items()}


def padded(frames: Sequence[Frame], history: int) -> list[Frame]:
    """As many frames as a policy sees: the first of an episode stands for those before it."""
    return [frames[0]] * (history - len(frames)) + list(frames[-history:])


def noise_shape(config: Any, actions: int) -> tuple[int, int]:
    """The noise of one chunk, (rows, columns); (0, 0) for ACT, which starts from none."""
    if config.type == "act":
        return 0, 0
    if config.type == "diffusion":
        return int(config.horizon), actions
    return int(config.chunk_size), int(config.max_action_dim)


def check_place(place: str) -> None:
    """Raises NotFound for a folder that holds no policy; a text that may be a hub name is left to LeRobot."""
    folder = Path(place)
    looks_local = folder.is_absolute() or place.startswith(".") or place.count("/") != 1
    if (folder.exists() or looks_local) and not (folder / "config.json").exists():
        raise NotFound(
            f"there is no policy in {place}: expected a folder that LeRobot's `save_pretrained` wrote, or "
            "OWNER/NAME of the hub",
            field="policy",
        )


def check_weights(policy: nn.Module, path: Path) -> None:
    """Raise InvalidInput where a policy does not have the weights of its file.

    LeRobot's pi0 prints what went wrong with its weights, and goes on with random ones. A policy of the hub
    has no file here, and is not checked.

    Args:
        path: of the file; its tensors may lack the prefix `model.`, as the published ones of pi0 do.
    """
    if not path.exists():
        return
    weights = policy.state_dict()
    with safe_open(path, framework="pt") as file:
        pairs = [(name, key) for name in sorted(file.keys()) for key in (name, f"model.{name}")]
        known = [(name, key) for name, key in pairs if key in weights]
        some = known[:: max(1, len(known) // CHECKED)]
        same = [torch.equal(file.get_tensor(name).to(weights[key]), weights[key]) for name, key in some]
    if not same or not all(same):
        raise InvalidInput(
            f"LeRobot loaded {path.parent} without the weights of {path.name}: they do not fit the policy of "
            "this version; save it again with it",
            field="policy",
        )


# --- LeRobot itself ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LeRobot:
    """The three calls of LeRobot (0.4 to 0.6) that load a policy."""

    config_class: Any
    factory: Any

    def read_config(self, place: str) -> Any:
        config = self.config_class.from_pretrained(place)
        # Everything is in the policy's own file: without this, LeRobot would fetch the weights it began from.
        for name, value in (("pretrained_backbone_weights", None), ("load_vlm_weights", False)):
            if hasattr(config, name):
                setattr(config, name, value)
        return config

    def read_policy(self, config: Any, place: str) -> Any:
        return self.factory.get_policy_class(config.type).from_pretrained(place, config=config)

    def read_processors(self, config: Any, place: str) -> tuple[Any, Any]:
        found: tuple[Any, Any] = self.factory.make_pre_post_processors(
            config, place, preprocessor_overrides={"device_processor": {"device": config.device}}
        )
        return found


def _read(place: str, read: Callable[[], Any]) -> Any:
    """What LeRobot reads; whatever it raises becomes one line that says where."""
    try:
        return read()
    except Exception as error:  # a foreign library's errors have no common root
        raise InvalidInput(
            f"LeRobot cannot load {place}: {type(error).__name__}: {error}", field="policy"
        ) from error


def _library() -> _LeRobot:
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies import factory
    except ImportError as error:
        raise InvalidInput(
            f"a LeRobot policy needs the package lerobot here: pip install lerobot (beside sarm2 from Python "
            f"3.12 on): {error}",
            field="policy",
        ) from error
    return _LeRobot(PreTrainedConfig, factory)
