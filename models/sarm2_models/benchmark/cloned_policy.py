"""Half-good policies, learned by behaviour cloning: what a reward model meets once robots learn.

One for each task: a small network from the frozen embeddings of all views and the proprioceptive state to
the next `CHUNK` actions, fitted to few uneven demonstrations by squared error. It succeeds sometimes, and
fails in its own way, not in a scripted one.

Shapes: T frames, B batch, C cameras, D embedding, S state, A action, H actions of a chunk.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sarm2_client.errors import InvalidInput
from sarm2_client.images import resize_with_pad
from sarm2_models.benchmark.layout import BenchmarkFolder
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.layers import Standardise
from sarm2_models.reward_model import Statistics
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.loop import Rate, Steps, Tick, fit, silent
from sarm2_models.train.plan import KINDS
from sarm2_models.train.variants import load_module, save_module
from sarm2_models.train.windows import Frames
from sarm2_models.window import Float32Array, IntArray
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import ACTION_NAMES, EpisodePlan, Observation
from sarm2_rollouts.policy_rollout import run_policy

DEMOS = 25
"""Uneven demonstrations that a policy is cloned from, at most."""
CHUNK, EXECUTED = 8, 4
"""Actions that are predicted at once, and how many of them are carried out before it looks again."""
WIDTH = 256
BATCH = 128
NOISE = 0.05
"""Noise on inputs in training, in their standard deviations: a robot never stands quite where it stood."""
RATE = Rate(learning_rate=1e-3, warm_up=0.05, weight_decay=0.01)


class ClonedPolicy(nn.Module):
    """Embeddings and state of one frame in, a chunk of actions out."""

    def __init__(self, cameras: int, embedding_dim: int, state_dim: int) -> None:
        super().__init__()
        self.embedding_statistics = Standardise(cameras, embedding_dim)
        self.net = nn.Sequential(
            nn.Linear(cameras * embedding_dim + state_dim, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, CHUNK * len(ACTION_NAMES)),
        )

    def forward(self, embeddings_BCD: Tensor, state_BS: Tensor) -> Tensor:
        """Actions (B, H, A) in [-1, 1]; the state standardised."""
        joined = torch.cat([self.embedding_statistics(embeddings_BCD).flatten(1), state_BS], dim=1)
        actions_BHA: Tensor = self.net(joined).view(-1, CHUNK, len(ACTION_NAMES)).tanh()
        return actions_BHA


def clone(bench: BenchmarkFolder, task: str, tick: Tick) -> ClonedPolicy:
    """The policy of a task, from its file where it is there.

    Raises InvalidInput where the training episodes carry no actions.
    """
    run, path = bench.run, policy_path(bench, task)
    config = run.config
    model = ClonedPolicy(len(config.cameras), config.embedding_dim, config.state_dim)
    if path.exists():
        return load_module(path, model)
    corpus, frames = run.corpus("train"), run.frames("full", "train")
    if corpus.action_TA.shape[1] != len(ACTION_NAMES):
        raise InvalidInput("the training episodes carry no actions; record them again", field="data/train")
    torch.manual_seed(run.seed)
    model.embedding_statistics.fit(torch.from_numpy(frames.embeddings_TCD))
    chosen_T = demo_frames(corpus, run.tasks.index(task))
    deviation_CD = frames.deviation_CD()

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([run.seed, 6, step])
        drawn_B = rng.choice(chosen_T, size=BATCH)
        seen_BCD = torch.from_numpy(frames.embeddings_TCD[drawn_B]).float()
        state_BS = torch.from_numpy(frames.state_TS[drawn_B])
        said_BHA = model(
            seen_BCD + NOISE * deviation_CD * torch.randn_like(seen_BCD),
            state_BS + NOISE * torch.randn_like(state_BS),
        )
        done_BHA = torch.from_numpy(chunks_of(corpus.action_TA, frames, drawn_B))
        return nn.functional.mse_loss(said_BHA, done_BHA)

    steps = Steps("policy", bench.extras.policy_steps, RATE, run.plan.heads.ema, path.parent, run.seed)
    model = fit(model, loss_of, steps, tick)
    save_module(path, model)
    return model


def policy_path(bench: BenchmarkFolder, task: str) -> Path:
    """Where a task's policy is kept."""
    return bench.run.root / "policies" / task / "policy.safetensors"


def demo_frames(corpus: Corpus, task: int) -> IntArray:
    """Frames of the first `DEMOS` uneven demonstrations of a task."""
    demos_N = np.flatnonzero((corpus.task_N == task) & (corpus.kind_N == KINDS.index("demo")))[:DEMOS]
    chosen: IntArray = np.concatenate([np.arange(len(corpus))[corpus.frames(int(demo))] for demo in demos_N])
    return chosen


def chunks_of(action_TA: Float32Array, frames: Frames, frames_B: IntArray) -> Float32Array:
    """The next `CHUNK` actions (B, H, A) from each frame on; the last one of an episode goes on."""
    ahead_BH = np.minimum(frames_B[:, None] + np.arange(CHUNK), frames.last_T[frames_B][:, None])
    chunks_BHA: Float32Array = np.clip(action_TA[ahead_BH], -1.0, 1.0)
    return chunks_BHA


class ChunkedPolicy:
    """A cloned policy that drives a robot (see `sarm2_rollouts.policy_rollout.Policy`)."""

    def __init__(
        self, model: ClonedPolicy, encoder: ImageTextEncoder, statistics: Statistics, cameras: tuple[str, ...]
    ) -> None:
        self._model, self._encoder, self._statistics, self._cameras = model, encoder, statistics, cameras
        self._waiting: deque[Float32Array] = deque()

    @property
    def looks(self) -> bool:
        """Whether the next action needs pictures."""
        return not self._waiting

    def reset(self, instruction: str) -> None:
        """Begin an episode. A policy of one task needs no instruction."""
        self._waiting.clear()

    def act(self, now: Observation) -> Float32Array:
        """The next action (4,)."""
        if not self._waiting:
            fitted = [
                resize_with_pad(now.images[camera], self._encoder.image_size) for camera in self._cameras
            ]
            seen_CD = torch.from_numpy(self._encoder.encode_images(np.stack(fitted))).float()
            state_BS = torch.from_numpy(self._statistics.standardise(now.state_S[None]))
            with torch.inference_mode():
                self._waiting.extend(self._model(seen_CD[None], state_BS)[0, :EXECUTED].numpy())
        return self._waiting.popleft()


def policy_episode(bench: BenchmarkFolder, entry: EpisodePlan) -> Episode:
    """A rollout of a task's policy; called in worker processes."""
    torch.set_num_threads(1)  # the other cores have workers of their own
    return run_policy(entry.task_name, _driver(bench, entry.task_name), entry.seed)


_DRIVERS: dict[Path, ChunkedPolicy] = {}
"""What this process has loaded so far, by the policy's file."""


def _driver(bench: BenchmarkFolder, task: str) -> ChunkedPolicy:
    path, run = policy_path(bench, task), bench.run
    if path not in _DRIVERS:
        policy = clone(bench, task, silent).eval()
        _DRIVERS[path] = ChunkedPolicy(policy, run.load_encoder(), run.statistics(), run.config.cameras)
    return _DRIVERS[path]
