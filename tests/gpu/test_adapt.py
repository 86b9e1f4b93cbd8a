"""A reward model is adapted on a GPU as on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.synthetic import write_synthetic
from sarm2_models.checkpoint import default_bundle, load_bundle
from sarm2_models.train.adapt import PLAN, adapt
from sarm2_models.train.plan import PlannedEpisode

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

DEVICE = "cuda"
SHORT = replace(PLAN, stage_steps=20, value_steps=60, batch=32, noise=0.0)  # a GPU draws noise otherwise


@pytest.fixture(scope="module", autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")


def test_an_adapted_model_is_as_good(tmp_path: Path) -> None:
    roots = tmp_path / "rollouts", tmp_path / "training"
    write_synthetic([PlannedEpisode("hammer", "perturbed", seed) for seed in range(8)], roots[0])
    write_synthetic([PlannedEpisode("hammer", "demo", seed) for seed in range(8)], roots[1])
    on_cpu, on_gpu = (
        adapt(default_bundle(), *roots, tmp_path / device, plan=SHORT, device=device)
        for device in ("cpu", DEVICE)
    )
    for metric in ("demo_mse", "rollout_mse", "ece", "primitive_accuracy"):
        expected = on_cpu["after"][metric]["value"]
        assert on_gpu["after"][metric]["value"] == pytest.approx(expected, abs=0.02), metric
    assert {str(p.device) for p in load_bundle(tmp_path / DEVICE).value.parameters()} == {"cpu"}
