"""Calibration on held-out episodes: demonstrations and rollouts together, the interval on each apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sarm2_models.calibration import (
    Calibration,
    ConformalInterval,
    UncertainRule,
    fit_temperature,
    fit_uncertain_threshold,
)
from sarm2_models.reward_model import softmax
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.heads import Texts
from sarm2_models.train.variants import Heads
from sarm2_models.train.windows import Frames
from sarm2_models.vocabulary import Vocabulary
from sarm2_models.window import BoolArray, Float32Array, IntArray

STATED_ERROR = 0.05
"""At most this share of the primitives that are not marked uncertain is wrong. The value decoder believes
the primitive it is given: with .1, single frames of a doubtful one made progress jump."""
COVERAGE = 0.9


@dataclass(frozen=True)
class Predictions:
    """What a variant says of every frame, by the rules of scoring.

    `primitive_T` is the most probable one; uncertain and null frames went through the `other` gate.
    """

    primitive_T: IntArray
    confidence_T: Float32Array
    uncertain_T: BoolArray
    progress_T: Float32Array
    low_T: Float32Array
    high_T: Float32Array


def predict(
    heads: Heads,
    frames: Frames,
    texts: Texts,
    vocabulary: Vocabulary,
    calibration: Calibration,
    corpus: Corpus,
) -> Predictions:
    """Score every frame; `corpus` says where its episodes come from and how their instructions are worded."""
    probs_TP = softmax(heads.logits(frames) / calibration.temperature)
    primitive_T = probs_TP.argmax(-1)
    confidence_T = probs_TP.max(-1)
    uncertain_T = _uncertain(confidence_T, primitive_T, calibration.rule, vocabulary)
    route_T = np.where(uncertain_T, vocabulary.null_index, primitive_T)
    progress_T = heads.progress(frames, texts, route_T, vocabulary)
    quantile_IS = np.stack([calibration.interval.quantiles_of(text) for text in corpus.instructions])
    quantile_T = quantile_IS[frames.task_T, corpus.source_T]
    low_T, high_T = calibration.interval.apply(progress_T, uncertain_T, quantile_T)
    return Predictions(primitive_T, confidence_T, uncertain_T, progress_T, low_T, high_T)


def calibrate(
    heads: Heads,
    frames: Frames,
    corpus: Corpus,
    texts: Texts,
    vocabulary: Vocabulary,
    kept: Calibration | None = None,
) -> Calibration:
    """Temperature first, then the `uncertain` rule on its confidences, then the interval on both.

    Args:
        kept: whose temperature and rule are kept, where the stage estimator is; by default they are fitted.
    """
    logits_TP = heads.logits(frames)
    temperature = fit_temperature(logits_TP, corpus.primitive_T) if kept is None else kept.temperature
    probs_TP = softmax(logits_TP / temperature)
    primitive_T, confidence_T = probs_TP.argmax(-1), probs_TP.max(-1)
    named_T = primitive_T != vocabulary.null_index  # null is marked uncertain however sure it is
    named_T |= not named_T.any()  # a model of a few steps may name nothing at all
    right_T = primitive_T == corpus.primitive_T
    rule = (
        fit_uncertain_threshold(confidence_T[named_T], right_T[named_T], STATED_ERROR)
        if kept is None
        else kept.rule
    )
    uncertain_T = _uncertain(confidence_T, primitive_T, rule, vocabulary)
    route_T = np.where(uncertain_T, vocabulary.null_index, primitive_T)
    progress_T = heads.progress(frames, texts, route_T, vocabulary)
    interval = ConformalInterval.fit(
        progress_T,
        corpus.progress_T,
        uncertain_T,
        coverage=COVERAGE,
        episode_N=corpus.episode_T,
        source_N=corpus.source_T,
        task_N=np.array(corpus.instructions)[frames.task_T],
    )
    return Calibration(temperature, rule, interval)


def _uncertain(
    confidence_T: Float32Array, primitive_T: IntArray, rule: UncertainRule, vocabulary: Vocabulary
) -> npt.NDArray[np.bool_]:
    return np.asarray((confidence_T < rule.threshold) | (primitive_T == vocabulary.null_index))
