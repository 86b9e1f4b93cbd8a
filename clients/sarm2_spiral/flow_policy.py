"""The built-in base policy: action chunks by flow matching, from features of one frame.

A velocity field v(chunk, time, features) carries noise at time 0 to an action chunk at time 1 along
straight lines (conditional flow matching, Lipman et al. 2023): the target at a_t = (1 - t) z + t a is a - z.
The noise z is the policy's latent: the same latent and features always give the same chunk.

Shapes: B batch, F features, H actions of a chunk, A action, M latents, L = H x A, R = B x M rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sarm2_spiral.base_policy import Float32Array, Moment
from sarm2_spiral.config import PolicyConfig
from sarm2_spiral.standardise import Standardise
from sarm2_spiral.trunk import trunk

TIME_WAVES = 8


class FlowPolicy(nn.Module):
    """Features of one frame and a latent in, a chunk of actions out. A `BasePolicy`."""

    history = 1

    def __init__(self, features: int, actions: int, config: PolicyConfig) -> None:
        super().__init__()
        self.config, self.actions = config, actions
        self.standardise = Standardise(features)
        inputs = features + config.horizon * actions + 2 * TIME_WAVES
        hidden = trunk(inputs, config.width, config.layers)
        self.net = nn.Sequential(*hidden, nn.Linear(config.width, config.horizon * actions))

    @property
    def latent_size(self) -> int:
        """Numbers of a latent."""
        return self.config.horizon * self.actions

    def velocity(self, chunk_BL: Tensor, time_B: Tensor, standard_BF: Tensor) -> Tensor:
        """The field at a point of the way, (B, H x A); features standardised already."""
        waves_W = math.pi * 2.0 ** torch.arange(TIME_WAVES, device=time_B.device)
        angle_BW = time_B[:, None] * waves_W / 2.0
        joined = torch.cat([standard_BF, chunk_BL, angle_BW.sin(), angle_BW.cos()], dim=1)
        velocity_BL: Tensor = self.net(joined)
        return velocity_BL

    def loss(self, features_BF: Tensor, chunk_BHA: Tensor) -> Tensor:
        """Flow-matching loss of demonstrated chunks."""
        standard_BF = self.standardise(features_BF)
        standard_BF = standard_BF + self.config.noise * torch.randn_like(standard_BF)
        goal_BL, start_BL = chunk_BHA.flatten(1), torch.randn(len(chunk_BHA), self.latent_size)
        time_B = torch.rand(len(goal_BL))
        between_BL = torch.lerp(start_BL, goal_BL, time_B[:, None])
        error_BL = self.velocity(between_BL, time_B, standard_BF) - (goal_BL - start_BL)
        return error_BL.square().mean()

    def sample_chunk(self, features_BF: Tensor, latent_BL: Tensor) -> Tensor:
        """Chunks (B, H, A) in [-1, 1]; deterministic."""
        standard_BF, chunk_BL = self.standardise(features_BF), latent_BL
        steps = self.config.flow_steps
        for step in range(steps):
            time_B = torch.full((len(chunk_BL),), step / steps)
            chunk_BL = chunk_BL + self.velocity(chunk_BL, time_B, standard_BF) / steps
        return chunk_BL.view(len(chunk_BL), self.config.horizon, self.actions).clamp(-1.0, 1.0)

    @torch.no_grad()
    def sample_chunks(self, moments: Sequence[Moment], latent_BML: Float32Array) -> Float32Array:
        """Chunks (B, M, H, A) of moments, of which it sees the features alone."""
        features_BF = torch.from_numpy(np.stack([moment.features() for moment in moments]))
        latents = latent_BML.shape[1]
        latent_RL = torch.from_numpy(latent_BML).flatten(0, 1)
        chunk_RHA = self.sample_chunk(features_BF.repeat_interleave(latents, 0), latent_RL)
        chunk_BMHA: Float32Array = chunk_RHA.view(len(moments), latents, *chunk_RHA.shape[1:]).numpy()
        return chunk_BMHA
