"""A tower of the published size on a GPU, alone and behind the server. `pytest -m "gpu and bench" -s`."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fakes
from bench.robots import drive
from running_server import RunningServer
from sarm2_models.checkpoint import save_bundle
from sarm2_models.encoder import ImageTextEncoder
from sarm2_service.run import load_model
from sarm2_service.settings import Settings

BATCHES = (3, 12, 48)
ROBOTS = (1, 8, 32)
STEPS = 60
REPEATS = 20


def median_ms(encoder: ImageTextEncoder, images_BHWC: npt.NDArray[np.uint8], repeats: int) -> float:
    """Milliseconds from pictures in memory to embeddings in memory; median after three that warm up."""
    took = []
    for _ in range(3 + repeats):
        started = time.perf_counter()
        encoder.encode_images(images_BHWC)
        took.append(1000 * (time.perf_counter() - started))
    return float(np.median(took[3:]))


def measure_tower(folder: Path) -> dict[str, Any]:
    """Pictures a second by arithmetic and batch, and the CPU of the same machine on one step's pictures."""
    pictures = np.stack([fakes.picture(seed, fakes.FULL.image_size) for seed in range(max(BATCHES))])
    result: dict[str, Any] = {}
    on_cpu = ImageTextEncoder.load(folder)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cpu_ms = median_ms(on_cpu, pictures[:3], 5)
    result["cpu float32"] = {"3": {"ms": cpu_ms, "pictures_per_s": 3000 / cpu_ms}}
    for dtype in (torch.float32, torch.bfloat16):
        encoder = ImageTextEncoder.load(folder, "cuda", dtype=dtype)
        times = {batch: median_ms(encoder, pictures[:batch], REPEATS) for batch in BATCHES}
        name = f"cuda {str(dtype).removeprefix('torch.')}"
        result[name] = {str(b): {"ms": ms, "pictures_per_s": 1000 * b / ms} for b, ms in times.items()}
        result[name]["times_the_cpu"] = cpu_ms / times[3]
    return result


def measure_server(bundle: Path, **settings: Any) -> dict[str, Any]:
    """Steps a second and latency by the number of robots that stream at once."""
    model = load_model(Settings(bundle=bundle, device="cuda", **settings))
    rows: dict[str, Any] = {}
    process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with RunningServer(model, cache_bytes=0, **settings) as server, process:
        for robots in ROBOTS:
            before = server.metric("sarm2_encoder_images_total")
            work = process.submit(
                drive, server.stream_url, robots, STEPS, fakes.FULL.image_size, model.config.cameras
            )
            rate, took = work.result(timeout=240)
            took_ms = 1000 * np.array(took)
            rows[str(robots)] = {
                "steps_per_s": rate,
                "p50_ms": float(np.median(took_ms)),
                "p99_ms": float(np.quantile(took_ms, 0.99)),
                "pictures": server.metric("sarm2_encoder_images_total") - before,
            }
    rows["gain_of_sharing_batches"] = rows[str(ROBOTS[-1])]["steps_per_s"] / rows["1"]["steps_per_s"]
    return rows


@pytest.mark.gpu
@pytest.mark.bench
@pytest.mark.timeout(600)
def test_a_tower_of_the_published_size_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    model = fakes.make_model(tmp_path / "encoder", fakes.FULL)
    save_bundle(tmp_path / "bundle", model, model_id="full", version="0.0.1")
    served = {
        f"{dtype}, {threads} decoding threads": measure_server(
            tmp_path / "bundle", encoder_dtype=dtype, decode_threads=threads
        )
        for dtype, threads in (("float32", 0), ("bfloat16", 0), ("bfloat16", 8))
    }
    report = {
        "gpu": torch.cuda.get_device_name(0),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tower": "SigLIP-2 base, 224 px, random weights",
        "encoder": measure_tower(tmp_path / "encoder"),
        "server": served,
    }
    print(json.dumps(report, indent=2))
    for rows in served.values():
        assert rows["1"]["pictures"] == 3 * (STEPS + 10)
