"""Measure a bundle on fresh episodes, frame by frame, as a robot would be scored.

Episodes come from seeds of 100000 and up, which no training run ever uses. Each is scored by
`Predictor.step`; the blind heads kept beside the bundle score the same frames for comparison.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from sarm2_client.errors import InvalidInput
from sarm2_client.images import decode_jpeg
from sarm2_models.checkpoint import load_bundle
from sarm2_models.metrics import Scored, evaluate_by_task
from sarm2_models.predictor import Predictor
from sarm2_models.train.heads import Texts
from sarm2_models.train.ladder import CONSTANT, clock
from sarm2_models.train.plan import EVALUATION_SEEDS_FROM, PlannedEpisode
from sarm2_models.train.variants import ABLATIONS, Variant, coded_texts, load_ablations, needs_tower
from sarm2_models.train.windows import Frames
from sarm2_models.window import Float16Array, Float32Array
from sarm2_rollouts.episode import Episode, EpisodeKind

RANDOM_SHARE = 0.25
"""Episodes of random motion for each perturbed one."""


def evaluation_plan(tasks: Sequence[str], seed: int, episodes: int) -> list[PlannedEpisode]:
    """For each task `episodes` uneven demos, clean demos and perturbed rollouts, a quarter as many random.

    Raises InvalidInput for a seed under 100000: those belong to training.
    """
    if seed < EVALUATION_SEEDS_FROM:
        raise InvalidInput(
            f"--seed is {seed}, but seeds below {EVALUATION_SEEDS_FROM} belong to training and calibration; "
            f"choose {EVALUATION_SEEDS_FROM} or more",
            field="seed",
        )
    if episodes < 1:
        raise InvalidInput(f"--episodes is {episodes}; at least 1 is needed", field="episodes")
    counts: dict[EpisodeKind, int] = {
        "demo": episodes,
        "clean_demo": episodes,
        "perturbed": episodes,
        "random": max(1, round(RANDOM_SHARE * episodes)),
    }
    return [
        PlannedEpisode(task, kind, seed + number)
        for number in range(episodes)
        for kind, count in counts.items()
        for task in tasks
        if number < count
    ]


class Evaluator:
    """Scores episodes with a bundle and everything it is compared with.

    Args:
        bundle: a folder with its `ablations`.
        device: where it runs.
    """

    def __init__(self, bundle: Path, device: str = "cpu") -> None:
        self.model = load_bundle(bundle, device)
        self._predictor = Predictor(self.model)
        self._blind, self._mean_frames = load_ablations(bundle, self.model.config)

    def score(self, episode: Episode) -> Scored:
        """Score one labelled episode frame by frame. Raises InvalidInput for one without labels."""
        if episode.progress_T is None or episode.segments is None:
            raise InvalidInput("an evaluation needs episodes with true progress and primitives")
        vocabulary = self.model.vocabulary
        self._predictor.reset(episode.task, episode.fps, episode.source)
        steps = [
            self._predictor.step(self._pictures(episode, t), episode.state_TS[t]) for t in range(len(episode))
        ]
        means = self._mean_frames
        mean = means.get(episode.task, float(np.mean(list(means.values()))))
        return Scored(
            task=episode.task_name or episode.task,
            kind=episode.kind,
            fps=episode.fps,
            truth_T=episode.progress_T,
            progress_T=np.array([step.progress for step in steps]),
            low_T=np.array([step.interval[0] for step in steps]),
            high_T=np.array([step.interval[1] for step in steps]),
            primitive_T=np.array([vocabulary.index(step.primitive) for step in steps]),
            true_primitive_T=np.array([vocabulary.index(name) for name in episode.primitives_T]),
            confidence_T=np.array([step.confidence for step in steps]),
            uncertain_T=np.array([step.uncertain for step in steps]),
            success=bool(episode.success),
            others={
                "clock": clock(len(episode), mean),
                "constant": np.full(len(episode), CONSTANT),
                **{str(name): values_T for name, values_T in self._blind_progress(episode).items()},
            },
        )

    def _pictures(
        self, episode: Episode, t: int
    ) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
        return {camera: decode_jpeg(files[t]) for camera, files in episode.images.items()}

    def _blind_progress(self, episode: Episode) -> dict[Variant, Float32Array]:
        pictures = {camera: [decode_jpeg(file) for file in files] for camera, files in episode.images.items()}
        embeddings_TCD = self._predictor.embed_episode(pictures, len(episode))
        instruction_D = self.model.instruction(episode.task).embedding_D
        found: dict[Variant, Float32Array] = {}
        for variant in ABLATIONS:
            heads = self._blind[variant]
            frames = self._frames(episode, embeddings_TCD)
            texts = Texts(self.model.primitive_texts_PD, instruction_D[None])
            if not needs_tower(variant):
                texts = coded_texts(self.model.vocabulary, [episode.task], self.model.config.embedding_dim)
            primitive_T = heads.logits(frames).argmax(-1)
            found[variant] = heads.progress(frames, texts, primitive_T, self.model.vocabulary)
        return found

    def _frames(self, episode: Episode, embeddings_TCD: Float16Array) -> Frames:
        count, window = len(episode), self.model.config.window
        zeros = np.zeros(count, dtype=np.int64)
        return Frames(
            embeddings_TCD=embeddings_TCD,
            state_TS=self.model.statistics.standardise(episode.state_TS),
            progress_T=np.zeros(count, dtype=np.float32),
            primitive_T=zeros,
            task_T=zeros,
            first_T=zeros,
            last_T=np.full(count, count - 1),
            weight_T=np.full(count, 1.0 / count),
            gap=window.gap_frames(episode.fps),
            length=window.length,
        )


def evaluate_bundle(bundle: Path, episodes: Iterable[Episode], *, seed: int = 0) -> dict[str, object]:
    """Score every episode and measure; JSON-able, `{"overall": {metric: ...}, "tasks": {task: {...}}}`."""
    evaluator = Evaluator(bundle)
    return measure(evaluator, list(score_all(evaluator, episodes)), seed=seed)


def score_all(evaluator: Evaluator, episodes: Iterable[Episode]) -> Iterator[Scored]:
    """Score episodes one by one, as they come."""
    return (evaluator.score(episode) for episode in episodes)


def measure(
    evaluator: Evaluator,
    scored: Sequence[Scored],
    *,
    seed: int = 0,
    apart: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> dict[str, object]:
    """All metrics of scored episodes, ready for JSON; `apart` as `evaluate_by_task` has it."""
    words = evaluator.model.vocabulary
    return evaluate_by_task(scored, words.group_of_primitive, words.null_index, seed=seed, apart=apart)
