"""What runs on a GPU gives the CPU's answers, survives too little memory and dies of a broken context.

`pytest -m gpu` on a machine with a CUDA device.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fakes
from running_server import RunningServer
from sarm2_client import wire
from sarm2_models.checkpoint import default_bundle, load_bundle
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.reward_model import RewardModel
from sarm2_models.window import WindowBatch
from sarm2_service.batcher import run_isolated
from sarm2_service.device import EXIT_CODE, is_device_lost
from sarm2_service.run import load_model
from sarm2_service.settings import Settings

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

FRAMES = 60


@pytest.fixture(scope="module", autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")


@pytest.fixture(scope="module")
def on_cpu() -> RewardModel:
    return load_bundle(default_bundle())


@pytest.fixture(scope="module")
def on_gpu() -> RewardModel:
    return load_model(Settings(device="cuda"))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tower of the published size, random weights."""
    return fakes.save_encoder(tmp_path_factory.mktemp("full"), fakes.FULL)


@pytest.fixture
def whole_memory() -> Iterator[None]:
    """Gives the test's process all of the GPU's memory back."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def cosines(a_ND: npt.NDArray[np.float16], b_ND: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    a, b = a_ND.astype(np.float64), b_ND.astype(np.float64)
    return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


def pictures(count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.stack([fakes.picture(seed, size) for seed in range(count)])


def windows(model: RewardModel, count: int) -> WindowBatch:
    """Windows of real embeddings, with masks of every length and every kind of source."""
    random = np.random.default_rng(0)
    slots, cameras = model.config.window.slots, len(model.config.cameras)
    seen_ND = model.encoder.encode_images(pictures(50, model.encoder.image_size))
    texts = [model.instruction(text) for text in (*model.instructions[:3], "juggle two oranges")]
    chosen = random.integers(0, len(texts), count)
    mean, std = (
        np.asarray(row, np.float32) for row in (model.statistics.state_mean, model.statistics.state_std)
    )
    mask_BW = np.arange(slots) >= random.integers(0, slots, count)[:, None]
    return WindowBatch(
        embeddings_BWCD=seen_ND[random.integers(0, len(seen_ND), (count, slots, cameras))],
        state_BWS=(mean + std * random.normal(size=(count, slots, len(mean)))).astype(np.float32),
        mask_BW=mask_BW,
        instruction_BD=np.stack([texts[one].embedding_D for one in chosen]),
        task_known_B=np.array([texts[one].known for one in chosen]),
        quantile_B=np.array([random.choice(texts[one].quantile_S) for one in chosen]),
    )


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.999)])
def test_pictures_and_texts_get_the_embeddings_of_the_cpu(
    on_cpu: RewardModel, dtype: torch.dtype, least: float
) -> None:
    encoder = ImageTextEncoder.load(default_bundle() / "encoder", "cuda", dtype=dtype)
    images, texts = pictures(70, encoder.image_size), list(on_cpu.instructions)
    assert encoder.id == on_cpu.encoder.id
    assert cosines(encoder.encode_images(images), on_cpu.encoder.encode_images(images)).min() > least
    assert cosines(encoder.encode_texts(texts), on_cpu.encoder.encode_texts(texts)).min() > least


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tower_of_the_published_size_gives_the_embeddings_of_the_cpu(
    full_size: Path, dtype: torch.dtype
) -> None:
    images = pictures(6, fakes.FULL.image_size)
    expected = ImageTextEncoder.load(full_size).encode_images(images)
    got = ImageTextEncoder.load(full_size, "cuda", dtype=dtype).encode_images(images)
    assert cosines(got, expected).min() > 0.999


@pytest.mark.parametrize("count", [1, 3, 64, 300])
def test_windows_get_the_scores_of_the_cpu_however_many_there_are(
    on_cpu: RewardModel, on_gpu: RewardModel, count: int
) -> None:
    batch = windows(on_cpu, count)
    expected, got = on_cpu.score(batch), on_gpu.score(batch)
    np.testing.assert_allclose(got.progress_B, expected.progress_B, atol=1e-3)
    np.testing.assert_allclose(got.probs_BP, expected.probs_BP, atol=1e-3)
    sure = np.sort(expected.probs_BP, axis=1)[:, -1] - np.sort(expected.probs_BP, axis=1)[:, -2] > 2e-3
    np.testing.assert_array_equal(got.primitive_index_B[sure], expected.primitive_index_B[sure])


def test_a_streamed_episode_gets_the_scores_of_a_server_on_the_cpu(
    on_cpu: RewardModel, on_gpu: RewardModel
) -> None:
    size = on_cpu.encoder.image_size
    answers: list[list[wire.Score]] = []
    for model in (on_cpu, on_gpu):
        with RunningServer(model) as server, server.robot() as robot:
            robot.start("episode", task=model.instructions[0], cameras=model.config.cameras)
            answers.append([robot.score(fakes.frame(seq, size=size)) for seq in range(FRAMES)])
            assert robot.end(FRAMES - 1).frames == FRAMES
    for expected, got in zip(*answers, strict=True):
        assert got.progress == pytest.approx(expected.progress, abs=2e-3)
        assert got.primitive == expected.primitive or expected.confidence < 0.6


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does(
    full_size: Path, whole_memory: None
) -> None:
    encoder = ImageTextEncoder.load(full_size, "cuda")
    images = pictures(64, fakes.FULL.image_size)
    expected = np.concatenate([encoder.encode_images(images[start : start + 4]) for start in range(0, 64, 4)])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    encoder.encode_images(images[:16])
    enough = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(enough / torch.cuda.get_device_properties(0).total_memory)
    sizes: list[int] = []

    def encode(batch: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float16]]:
        sizes.append(len(batch))
        return list(encoder.encode_images(np.stack(batch)))

    with pytest.raises(torch.cuda.OutOfMemoryError) as error:
        encoder.encode_images(images)
    assert not is_device_lost(error.value)
    got = run_isolated(list(images), encode, fatal=is_device_lost)
    assert sizes[0] == 64
    assert min(sizes) < 64
    assert not any(isinstance(one, Exception) for one in got)
    assert cosines(np.stack([np.asarray(one) for one in got]), expected).min() > 0.9999


def test_a_broken_context_ends_the_process() -> None:
    program = """
        import time
        import torch
        from sarm2_service.batcher import run_isolated
        from sarm2_service.device import DeviceThread, is_device_lost

        def read_beyond_the_end(places):
            rows = torch.zeros(4, device="cuda")[torch.tensor(places, device="cuda")]
            return rows.cpu().tolist()

        def work():
            run_isolated([1, 7], read_beyond_the_end, fatal=is_device_lost)
            print("went on")
            return False

        device = DeviceThread(work, timeout_s=60)
        device.start()
        with device.condition:
            device.wake()
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == EXIT_CODE, ended.stderr
    assert "device_lost" in ended.stderr
    assert "went on" not in ended.stdout
