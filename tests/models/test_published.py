"""The preset `published`: it builds, trains a step, and has the sizes of the publication."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from sarm2_models.config import preset
from sarm2_models.stage import StageEstimator, stage_loss
from sarm2_models.value import ValueDecoder, value_loss

CONFIG = preset("published")


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_the_stage_estimator_has_14_million_parameters_and_the_value_decoder_25() -> None:
    with torch.device("meta"):
        assert millions(StageEstimator(CONFIG)) == pytest.approx(14, abs=0.5)
        assert millions(ValueDecoder(CONFIG)) == pytest.approx(25, abs=0.5)


def test_the_encoder_has_93_million_parameters() -> None:
    """SigLIP-2 base, patch 16, 224 pixels: the sizes are the defaults of transformers."""
    with torch.device("meta"):
        encoder = SiglipVisionModel(SiglipVisionConfig())
    assert millions(encoder) == pytest.approx(92.9, abs=0.05)
    assert encoder.config.hidden_size == CONFIG.embedding_dim


def test_the_value_decoder_fuses_six_tokens_to_3072_behind_eight_gates_and_ten_experts() -> None:
    with torch.device("meta"):
        value = ValueDecoder(CONFIG)
    assert value.fuse.in_features == 3072
    assert [tuple(weight.shape) for weight in value.gates.weights] == [(8, 512, 256), (8, 256, 10)]
    assert [tuple(weight.shape) for weight in value.experts.weights] == [
        (10, 512, 256),
        (10, 256, 256),
        (10, 256, 1),
    ]


def test_the_stage_estimator_fuses_four_tokens_and_answers_22_ways() -> None:
    with torch.device("meta"):
        stage = StageEstimator(CONFIG)
    assert stage.fuse.in_features == 4 * 512
    assert stage.head.out_features == 22


def test_both_heads_train_a_step_and_every_weight_that_was_used_moves() -> None:
    torch.manual_seed(0)
    stage, value = StageEstimator(CONFIG), ValueDecoder(CONFIG)
    rows, dim = 4, CONFIG.embedding_dim
    windows = (
        torch.randn(rows, 7, 3, dim).half(),
        torch.randn(rows, 7, 14),
        torch.ones(rows, 7, dtype=torch.bool),
    )
    texts = (torch.randn(rows, dim), torch.randn(rows, dim))
    for module in (stage, value):
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4)
        if isinstance(module, StageEstimator):
            loss = stage_loss(module(*windows), torch.tensor([0, 5, 20, 21]))
        else:
            loss = value_loss(module(*windows, *texts, torch.tensor([0, 3, 6, 7])), torch.rand(rows)).total
        before = [parameter.detach().clone() for parameter in module.parameters()]
        torch.autograd.backward(loss)
        optimiser.step()
        assert torch.isfinite(loss)
        for (name, parameter), old in zip(module.named_parameters(), before, strict=True):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert not torch.equal(parameter, old), name
