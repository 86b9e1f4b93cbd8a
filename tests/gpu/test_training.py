"""Tower and heads learn on a GPU what they learn on the CPU, and a run may change from one to the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.synthetic import FRAMES, HAMMER_EPISODES, synthetic_corpus
from models.tiny import tiny_config
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.heads import Texts, predict_logits, predict_progress, train_stage, train_value
from sarm2_models.train.plan import HeadPlan, TowerPlan
from sarm2_models.train.tower import train_tower
from sarm2_models.train.variants import text_codes
from sarm2_models.train.windows import Frames
from sarm2_models.vocabulary import load_vocabulary

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

VOCABULARY = load_vocabulary("metaworld")
CONFIG = tiny_config()
# Without noise, which a GPU draws otherwise.
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


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    for name, expected in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], expected, rtol=0, atol=2e-3, msg=name)


def test_the_stage_estimator_learns_the_same(on_cpu: Frames, on_gpu: Frames, tmp_path: Path) -> None:
    expected = train_stage(CONFIG, on_cpu, PLAN, tmp_path / "cpu", seed=3)
    got = train_stage(CONFIG, on_gpu, PLAN, tmp_path / "gpu", seed=3)
    assert_alike(expected, got)
    np.testing.assert_allclose(predict_logits(got, on_gpu), predict_logits(got, on_cpu), atol=1e-3)


def test_the_value_decoder_learns_the_same_also_where_it_goes_on_elsewhere(
    on_cpu: Frames, on_gpu: Frames, texts: Texts, tmp_path: Path
) -> None:
    primitive_T = on_cpu.primitive_T
    expected = train_value(CONFIG, on_cpu, texts, primitive_T, PLAN, tmp_path / "cpu", seed=3)
    got = train_value(CONFIG, on_gpu, texts, primitive_T, PLAN, tmp_path / "gpu", seed=3)
    assert_alike(expected, got)
    for first, then, name in ((on_cpu, on_gpu, "to the GPU"), (on_gpu, on_cpu, "to the CPU")):
        train_value(CONFIG, first, texts, primitive_T, PLAN, tmp_path / name, seed=3, stop_after=7)
        assert_alike(expected, train_value(CONFIG, then, texts, primitive_T, PLAN, tmp_path / name, seed=3))
    np.testing.assert_allclose(
        predict_progress(got, on_gpu, texts, primitive_T, VOCABULARY),
        predict_progress(got, on_cpu, texts, primitive_T, VOCABULARY),
        atol=1e-3,
    )


def test_the_tower_learns_the_same(corpus: Corpus, tmp_path: Path) -> None:
    plan = TowerPlan(steps=6, batch=8, dim=16, layers=1, attention_heads=2)
    expected = train_tower(corpus, VOCABULARY, plan, tmp_path / "cpu", seed=1)
    got = train_tower(corpus, VOCABULARY, plan, tmp_path / "gpu", seed=1, device="cuda")
    pictures = np.stack([corpus.picture(frame, 0) for frame in (0, FRAMES - 1)])
    np.testing.assert_allclose(got.encode_images(pictures), expected.encode_images(pictures), atol=0.05)
