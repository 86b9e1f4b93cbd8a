"""The work of a run's stages. Each can be killed at any time and started again.

Shapes: T frames, F features, M latents, H actions of a chunk, E executed ones, A action, K = E x A.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from sarm2_client.errors import Conflict, InvalidInput, ModelFailed, WaitTimeout
from sarm2_rollouts.collection import Collector, MakeEpisode, make_planned
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.episode_scorer import EpisodeScorer, EpisodeScores
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.metaworld_robot import ACTION_NAMES, STATE_NAMES, EpisodePlan
from sarm2_rollouts.recorder import kept_episodes, record
from sarm2_rollouts.relabel import WEIGHTS_FILE, forget_parts, relabel, scored_by
from sarm2_rollouts.whole_file import whole_file
from sarm2_rollouts.with_parent import ending_with_me
from sarm2_spiral.advantages import advantages
from sarm2_spiral.checkpoint import save_weights
from sarm2_spiral.cloning import clone
from sarm2_spiral.config import UpdateConfig
from sarm2_spiral.data import Data
from sarm2_spiral.decision import load_decision
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.given_policy import GivenPolicy
from sarm2_spiral.kept_array import kept_array, save_array
from sarm2_spiral.patience import Say, patiently
from sarm2_spiral.pilot import Base, Pilot, load_base
from sarm2_spiral.recorded_chunks import RecordedChunks
from sarm2_spiral.replay import Replay, Trajectory
from sarm2_spiral.residual import Learner
from sarm2_spiral.residual_update import ResidualUpdate, Tick
from sarm2_spiral.rewards import Rule, frame_weights, with_demo_share

Embed: TypeAlias = Callable[[Sequence[npt.NDArray[np.uint8]]], npt.NDArray[np.float16]]
"""Pictures (H, W, 3) to their embeddings (N, D): `RewardClient.embed`."""

CHECKPOINT = "learner.checkpoint.safetensors"
ADAPT_TIMEOUT_S = 6 * 3600.0
"""Enough for an encoder that takes a second a frame. What it has embedded by then is kept."""

DEVICE = "SARM2_DEVICE"
"""Where the run's own service has its model, and the adaptation too."""

PROBE_SIDE = 96
PROBE_COSINE = 0.99
"""Devices, precisions and batches turn an embedding by far less, another encoder by far more."""


def record_scripted(
    plan: Sequence[EpisodePlan],
    root: Path,
    collector: Collector,
    console: Console,
    *,
    rendered: bool = True,
) -> None:
    """Episodes of the scripted expert, as a dataset."""
    _record(plan, root, partial(make_planned, render=rendered), collector, console)


def collect(
    pilot: Pilot, plan: Sequence[EpisodePlan], root: Path, collector: Collector, console: Console
) -> None:
    """Rollouts of a policy as a dataset, streamed to the service while they happen if the pilot does so."""
    _record(plan, root, pilot.fly, collector, console)


def _record(
    plan: Sequence[EpisodePlan], root: Path, make: MakeEpisode, collector: Collector, console: Console
) -> None:
    if _is_dataset(root):
        shutil.rmtree(kept_episodes(root), ignore_errors=True)  # a kill may have come before it went
        return

    def source(missing: Sequence[Any]) -> Iterable[Episode]:
        return collector(missing, make=make)

    record(plan, root, "image", source=source, state_names=STATE_NAMES, console=console)


def score(run: SpiralFolder, root: Path, scorer: EpisodeScorer, tick: Tick, say: Say) -> None:
    """The service's progress beside a dataset; where rewards come from elsewhere, none is asked for."""
    if run.reward != "service":
        return
    patient = PatientScorer(scorer, say)
    if patient.model == scored_by(root) and (root / WEIGHTS_FILE).exists():
        forget_parts(root)  # a kill may have left some of another model's
        return
    again = partial(relabel, open_dataset(root), patient, chunk=run.config.loop.gain_frames, tick=tick)
    try:
        try:
            again()
        except Conflict:  # a kill has left another model's, or the service has taken another model meanwhile
            again(restart=True)
    except InvalidInput as error:
        by = f"--bundle {run.reward_model}" if run.own_service else "--server HOST:PORT"
        raise InvalidInput(
            f"{error.message} (in this run: sarm2 relabel {root} --skip-failed {by}, and then --resume)",
            field=error.field,
        ) from error


class PatientScorer:
    """A scorer that waits for a service that is away, from one episode to the next anew."""

    def __init__(self, scorer: EpisodeScorer, say: Say) -> None:
        self._scorer, self._say = scorer, say

    @property
    def model(self) -> str:
        """The scorer's model."""
        return patiently(lambda: self._scorer.model, tell=self._say)

    def score(self, episode: Episode) -> EpisodeScores:
        """One score a frame."""
        return patiently(lambda: self._scorer.score(episode), tell=self._say)


def adapt_reward_model(run: SpiralFolder, console: Console) -> None:
    """RM1 becomes RM2, in a process of its own: this one never loads a reward model."""
    command = [sys.executable, "-m", "sarm2_cli.main", "adapt", str(run.round(0) / "rollouts")]
    command += ["--training", str(run.remember), "--bundle", str(run.first_model)]
    command += ["--out", str(run.reward_model), "--seed", str(run.seed)]
    command += ["--labels", run.config.loop.labels, "--steps", str(run.config.loop.adapt_steps)]
    command += ["--device", os.environ.get(DEVICE, "cpu")]
    errors = None if console.is_terminal else subprocess.PIPE  # its bar is drawn there
    try:
        done = subprocess.run(  # noqa: S603  # ours
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=ADAPT_TIMEOUT_S,
            env=ending_with_me(),
        )
    except subprocess.TimeoutExpired as error:
        raise WaitTimeout(
            f"waited {ADAPT_TIMEOUT_S:.0f} s for the adaptation; --resume goes on with it, and {DEVICE}=cuda "
            "makes it faster where there is a GPU",
            field="adapt",
        ) from error
    if done.returncode != 0:
        reason = "its reason stands above" if errors is None else done.stderr.strip()[-500:]
        raise ModelFailed(f"the adaptation ended with {done.returncode}: {reason}")
    console.print(done.stdout, highlight=False, markup=False)


def check_encoder(run: SpiralFolder, embed: Embed, say: Say) -> None:
    """Raise Conflict where the service embeds a picture otherwise than when the run was begun.

    Its policies, and the features that are kept, know that encoder's embeddings alone.
    """
    ramp = np.linspace(0, 255, PROBE_SIDE, dtype=np.uint8)
    picture = np.stack([*np.meshgrid(ramp, ramp), np.full((PROBE_SIDE, PROBE_SIDE), 128, np.uint8)], axis=-1)
    now_D = patiently(lambda: embed([picture])[0], tell=say).astype(np.float32)
    kept_D = kept_array(run.features("probe.npy"), lambda: now_D)
    lengths = float(np.linalg.norm(kept_D) * np.linalg.norm(now_D))
    if kept_D.shape != now_D.shape or kept_D @ now_D < PROBE_COSINE * lengths:
        raise Conflict(
            f"the run in {run.root} was begun with another image encoder than this service has: name a "
            "service that has the same one with --server, or begin anew in another folder"
        )


def check_given(run: SpiralFolder) -> None:
    """Raise Conflict where a given policy has other weights than when the run was begun: its chunks are kept,
    and corrections were learned for it alone."""
    now = run.given.weights_sha256() if run.given is not None else None
    if now is None:
        return
    if not run.given_weights.exists():
        with whole_file(run.given_weights) as fresh:
            fresh.write_text(now)
    if run.given_weights.read_text() != now:
        raise Conflict(
            f"the run in {run.root} was begun with other weights of {run.given}: put those back, or begin "
            "anew in another folder"
        )


def clone_policy(run: SpiralFolder, name: str, data: Sequence[Data], rule: Rule, tick: Tick) -> Path:
    """A base policy cloned from datasets, its frames weighted by a rule."""
    path = run.policy(name)
    if path.exists():
        return path
    episodes = [pair for one in data for pair in zip(one.features, one.actions, strict=True)]
    curves = [curve_T for one in data for curve_T in one.progress]
    weights = frame_weights(run, curves, rule)
    demo_E = np.array([one.demo for one in data for _ in one.progress])
    weights = with_demo_share(weights, demo_E, run.config.update.demo_share)
    checkpoint = path.with_suffix(".checkpoint")
    policy = clone(episodes, weights, run.config.policy, run.seed, checkpoint, tick)
    save_weights(path, policy)
    checkpoint.unlink(missing_ok=True)
    return path


def update(run: SpiralFolder, number: int, base: Base, data: Sequence[Data], tick: Tick) -> None:
    """Round `number` of the residual update, on all data so far."""
    if run.learner(number).exists():
        return
    config = run.config.update
    deployed = [past for past in range(1, number) if load_decision(run, past).deployed]
    checkpoint = begin_checkpoint(run, number, deployed)
    torch.manual_seed(run.seed)
    learner = Learner(data[0].features[0].shape[1], len(ACTION_NAMES), config)
    learner.standardise.fit(torch.from_numpy(np.concatenate(data[0].features)))
    training = ResidualUpdate(learner, config, run.seed, checkpoint, run.losses(number))
    replay = make_replay(run, base, learner, data)
    training.run(replay, *steps_until(number, deployed, config), tick)
    collected_T = frames_of(data, f"round{number}")
    save_array(run.advantages(number), advantages(learner, replay, collected_T))
    save_weights(run.learner(number), learner)


def begin_checkpoint(run: SpiralFolder, number: int, deployed: Sequence[int]) -> Path:
    """Where a round's update keeps its learner: at first that of the last candidate that was deployed.

    A candidate that was not deployed leaves nothing behind. Without any the update begins afresh.
    """
    checkpoint = run.round(number) / CHECKPOINT
    if deployed and not checkpoint.exists():
        with whole_file(checkpoint) as fresh:
            shutil.copyfile(run.round(deployed[-1]) / CHECKPOINT, fresh)
    return checkpoint


def steps_until(number: int, deployed: Sequence[int], config: UpdateConfig) -> tuple[int, int]:
    """The steps at which a round's update ends, and up to which its critics learn alone.

    It goes on from the last candidate that was deployed, and makes up for the updates of those that were not:
    after round K there were K rounds of updates.
    """
    begin = max(deployed, default=0) * config.updates
    return number * config.updates, begin + config.critic_only


def make_replay(run: SpiralFolder, base: Base, learner: Learner, data: Sequence[Data]) -> Replay:
    """All data as transitions, with the frozen base policy's chunks for a few latents a frame."""
    config = run.config.update
    chunks = RecordedChunks(load_base(base, run.config), config.latents, config.executed, run.seed)
    found = []
    for one in data:
        kept = run.chunks(one.name) if isinstance(base, GivenPolicy) else None
        base_chunks = chunks.of(one.name, one.root, one.numbers, one.tasks, one.features, kept)
        rows = zip(one.features, one.actions, one.progress, base_chunks, strict=True)
        for features_TF, action_TA, progress_T, base_TMK in rows:
            standard_TF = learner.standardise(torch.from_numpy(features_TF)).numpy()
            found.append(Trajectory(standard_TF, action_TA, progress_T, base_TMK, one.demo))
    return Replay(found, config)


def frames_of(data: Sequence[Data], name: str) -> npt.NDArray[np.int64]:
    """Where a replay of all data has the frames of one dataset."""
    place = [one.name for one in data].index(name)
    ends = np.cumsum([0, *(sum(map(len, one.progress)) for one in data)])
    return np.arange(ends[place], ends[place + 1])


def _is_dataset(root: Path) -> bool:
    return (root / "meta" / "info.json").exists()
