"""Tower and heads learn on a GPU what they learn on the CPU, and a run may change from one to the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.synthetic import FRAMES, HAMMER_EPISODES, synthetic_corpus
from models.tiny import tiny_config
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.heads import Texts, predict_logits, predict_progress, train_stage, train_value
from sarm2_models.train.plan import HeadPlan, TowerPlan
from sarm2_models.train.tower import train_tower
from sarm2_models.train.variants import text_codes
from sarm2_models.train.windows import Frames
from sarm2_models.vocabulary import load_vocabulary
from sarm2_models.window import Float32Array

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

VOCABULARY = load_vocabulary("metaworld")
_TINY = tiny_config()
# Without dropout and noise, which a GPU draws otherwise.
CONFIG = replace(_TINY, stage=replace(_TINY.stage, dropout=0.0), value=replace(_TINY.value, dropout=0.0))
PLAN = HeadPlan(stage_steps=12, value_steps=12, batch=8, noise=0.0)


@pytest.fixture(scope="module", autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return synthetic_corpus(HAMMER_EPISODES, tmp_path_factory.mktemp("synthetic"), ["hammer"])


@pytest.fixture(scope="module")
def on_cpu(corpus: Corpus) -> Frames:
    random = np.random.default_rng(0)
    codes_TCD = random.normal(size=(len(corpus), len(CONFIG.cameras), CONFIG.embedding_dim))
    return Frames.of(corpus, codes_TCD.astype(np.float16), corpus.state_TS, CONFIG.window)


@pytest.fixture(scope="module")
def on_gpu(on_cpu: Frames) -> Frames:
    return replace(on_cpu, device="cuda")


@pytest.fixture(scope="module")
def texts(corpus: Corpus) -> Texts:
    return Texts(
        text_codes(VOCABULARY.texts, CONFIG.embedding_dim),
        text_codes(corpus.instructions, CONFIG.embedding_dim),
    )


@pytest.fixture(autouse=True)
def no_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with bfloat16 tiles would learn in less than the GPU's float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


def assert_alike(got: Float32Array, expected: Float32Array, untrained: Float32Array) -> None:
    """Both say the same, beside what one that was not trained says."""
    assert np.abs(got - expected).mean() < 0.1 * np.abs(untrained - expected).mean()


def test_the_stage_estimator_learns_the_same(on_cpu: Frames, on_gpu: Frames, tmp_path: Path) -> None:
    none = replace(PLAN, stage_steps=0)
    said = [
        predict_logits(train_stage(CONFIG, frames, plan, tmp_path / name, seed=3), on_cpu)
        for frames, plan, name in ((on_gpu, PLAN, "gpu"), (on_cpu, PLAN, "cpu"), (on_cpu, none, "none"))
    ]
    assert_alike(*said)


def test_the_value_decoder_learns_the_same_also_where_it_goes_on_elsewhere(
    on_cpu: Frames, on_gpu: Frames, texts: Texts, tmp_path: Path
) -> None:
    primitive_T = on_cpu.primitive_T

    def learned(frames: Frames, name: str, **options: Any) -> Float32Array:
        plan = options.pop("plan", PLAN)
        model = train_value(CONFIG, frames, texts, primitive_T, plan, tmp_path / name, seed=3, **options)
        return predict_progress(model, on_cpu, texts, primitive_T, VOCABULARY)

    untrained = learned(on_cpu, "none", plan=replace(PLAN, value_steps=0))
    expected = learned(on_cpu, "cpu")
    assert_alike(learned(on_gpu, "gpu"), expected, untrained)
    for first, then, name in ((on_cpu, on_gpu, "to the GPU"), (on_gpu, on_cpu, "to the CPU")):
        learned(first, name, stop_after=7)
        assert_alike(learned(then, name), expected, untrained)


def test_a_head_says_the_same_on_both(on_cpu: Frames, on_gpu: Frames, texts: Texts, tmp_path: Path) -> None:
    primitive_T = on_cpu.primitive_T
    stage = train_stage(CONFIG, on_cpu, PLAN, tmp_path / "stage", seed=3)
    np.testing.assert_allclose(predict_logits(stage, on_gpu), predict_logits(stage, on_cpu), atol=1e-3)
    value = train_value(CONFIG, on_cpu, texts, primitive_T, PLAN, tmp_path / "value", seed=3)
    here, there = (predict_progress(value, f, texts, primitive_T, VOCABULARY) for f in (on_cpu, on_gpu))
    np.testing.assert_allclose(there, here, atol=1e-3)


def test_the_tower_learns_the_same(corpus: Corpus, tmp_path: Path) -> None:
    plan = TowerPlan(steps=6, batch=8, dim=16, layers=1, attention_heads=2)
    expected = train_tower(corpus, VOCABULARY, plan, tmp_path / "cpu", seed=1)
    got = train_tower(corpus, VOCABULARY, plan, tmp_path / "gpu", seed=1, device="cuda")
    pictures = np.stack([corpus.picture(frame, 0) for frame in (0, FRAMES - 1)])
    np.testing.assert_allclose(got.encode_images(pictures), expected.encode_images(pictures), atol=0.05)
