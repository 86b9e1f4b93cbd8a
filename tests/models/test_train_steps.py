"""Training steps: losses by hand, exact resumption, embedding, calibration, jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console

from models.errands import fail, find, give_up, leave_a_note
from models.synthetic import FRAMES, HAMMER_EPISODES, synthetic_corpus
from models.tiny import tiny_config, tiny_encoder
from sarm2_client.errors import InvalidInput, ModelFailed, NotFound
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.train.calibrate import calibrate, predict
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.embed import embed_shard, load_embeddings, shard_bounds
from sarm2_models.train.heads import Texts, predict_logits, route, train_stage, train_value
from sarm2_models.train.jobs import Job, run_jobs
from sarm2_models.train.ladder import clock
from sarm2_models.train.loop import mixed_precision
from sarm2_models.train.plan import HeadPlan, TowerPlan
from sarm2_models.train.tower import dense_loss, sigmoid_loss, train_tower
from sarm2_models.train.variants import Heads, load_heads, save_module, text_codes
from sarm2_models.train.windows import Frames, hints_of
from sarm2_models.value import ProgressError
from sarm2_models.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary("metaworld")
CONFIG = tiny_config()
PLAN = HeadPlan(stage_steps=6, value_steps=6, batch=8)
ERRORS: tuple[ProgressError, ...] = get_args(ProgressError)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return synthetic_corpus(HAMMER_EPISODES, tmp_path_factory.mktemp("corpus"), ["hammer"])


@pytest.fixture(scope="module")
def frames(corpus: Corpus) -> Frames:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(len(corpus), 3, CONFIG.embedding_dim)).astype(np.float16)
    embeddings[:, 0, 0] = corpus.progress_T
    return Frames.of(corpus, embeddings, corpus.state_TS, CONFIG.window)


@pytest.fixture(scope="module")
def texts() -> Texts:
    dim = CONFIG.embedding_dim
    return Texts(text_codes(VOCABULARY.texts, dim), text_codes(["drive the nail"], dim))


# --- losses ----------------------------------------------------------------------------------------


def test_the_dense_loss_is_the_patch_entropy_plus_the_offset_error_of_visible_points() -> None:
    patches = torch.zeros(1, 4, 2, 3)
    patches[0, 1, 0, 1:] = torch.tensor([0.5, 0.0])  # the predicted offset in the true patch
    loss = dense_loss(patches, torch.tensor([[1, 2]]), torch.zeros(1, 2, 2), torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(np.log(4) + 4 * 0.25)
    nothing = dense_loss(patches, torch.tensor([[1, 2]]), torch.zeros(1, 2, 2), torch.zeros(1, 2).bool())
    assert nothing.item() == 0.0


def test_the_sigmoid_loss_asks_for_true_texts_and_against_false_ones() -> None:
    class Scales(torch.nn.Module):
        logit_scale = torch.zeros(1)
        logit_bias = torch.zeros(1)

    images, texts_ND = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    loss = sigmoid_loss(Scales(), images, texts_ND, torch.tensor([[1.0, -1.0]]))
    assert loss.item() == pytest.approx(np.log(1 + np.exp(-1)) + np.log(2))


# --- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [True, False])
def test_bfloat16_is_taken_where_the_cpu_multiplies_it_in_tiles(
    tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": tiles})
    with mixed_precision():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if tiles else torch.float32)


def test_a_resumed_stage_estimator_ends_with_the_same_weights(
    frames: Frames, corpus: Corpus, tmp_path: Path
) -> None:
    hints_TH = hints_of(corpus)
    whole = train_stage(CONFIG, frames, PLAN, tmp_path / "a", seed=3, hints_TH=hints_TH)
    train_stage(CONFIG, frames, PLAN, tmp_path / "b", seed=3, hints_TH=hints_TH, stop_after=4)
    assert (tmp_path / "b" / "stage.checkpoint.safetensors").exists()
    resumed = train_stage(CONFIG, frames, PLAN, tmp_path / "b", seed=3, hints_TH=hints_TH)
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], expected, rtol=0, atol=0, msg=name)
    assert not list((tmp_path / "b").iterdir()), "a finished training leaves no checkpoint"


def test_a_resumed_value_decoder_ends_with_the_same_weights(
    frames: Frames, texts: Texts, tmp_path: Path
) -> None:
    predicted_T = frames.primitive_T
    whole = train_value(CONFIG, frames, texts, predicted_T, PLAN, tmp_path / "a", seed=3)
    train_value(CONFIG, frames, texts, predicted_T, PLAN, tmp_path / "b", seed=3, stop_after=3)
    resumed = train_value(CONFIG, frames, texts, predicted_T, PLAN, tmp_path / "b", seed=3)
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], expected, rtol=0, atol=0, msg=name)


def test_the_heads_learn_what_the_embeddings_say(frames: Frames, tmp_path: Path) -> None:
    plan = replace(PLAN, stage_steps=120, batch=32, stage_learning_rate=5e-3, noise=0.0)
    model = train_stage(CONFIG, frames, plan, tmp_path, seed=0)
    assert (predict_logits(model, frames).argmax(-1) == frames.primitive_T).mean() > 0.8


def test_the_value_decoder_makes_the_error_small_that_the_plan_names(
    frames: Frames, texts: Texts, tmp_path: Path
) -> None:
    first: dict[ProgressError, float] = {}
    for kind in ERRORS:
        told: list[str] = []

        def tick(done: int, total: int, note: str, told: list[str] = told) -> None:
            told.append(note)

        plan, place = replace(PLAN, error=kind), tmp_path / kind
        train_value(CONFIG, frames, texts, frames.primitive_T, plan, place, seed=0, tick=tick, stop_after=1)
        first[kind] = float(told[0].split()[-1])
    assert first["cross_entropy"] > first["squared"], "of the same untrained weights, on the same windows"


def test_windows_are_given_true_predicted_and_null_primitives_in_the_planned_shares() -> None:
    true_B, predicted_B = np.zeros(20_000, np.int64), np.ones(20_000, np.int64)
    given_B = route(np.random.default_rng(0), true_B, predicted_B, VOCABULARY, HeadPlan())
    assert (given_B == VOCABULARY.null_index).mean() == pytest.approx(0.1, abs=0.01)
    assert (given_B == 1).mean() == pytest.approx(0.45, abs=0.01)
    assert (given_B == 0).mean() == pytest.approx(0.45, abs=0.01)


def test_saved_heads_load_as_they_were_and_halved_ones_nearly(
    frames: Frames, texts: Texts, tmp_path: Path
) -> None:
    stage = train_stage(CONFIG, frames, PLAN, tmp_path, seed=0)
    value = train_value(CONFIG, frames, texts, frames.primitive_T, PLAN, tmp_path, seed=0)
    save_module(tmp_path / "stage.safetensors", stage)
    save_module(tmp_path / "value.safetensors", value, half=True)
    again = load_heads(tmp_path, CONFIG)
    np.testing.assert_array_equal(again.logits(frames), predict_logits(stage, frames))
    before = Heads(CONFIG, stage, value).progress(frames, texts, frames.primitive_T, VOCABULARY)
    after = again.progress(frames, texts, frames.primitive_T, VOCABULARY)
    np.testing.assert_allclose(after, before, atol=2e-3)
    with pytest.raises(InvalidInput, match="does not fit"):
        load_heads(tmp_path, tiny_config(state_dim=5))


def test_calibration_promises_what_it_was_asked_for(
    frames: Frames, corpus: Corpus, texts: Texts, tmp_path: Path
) -> None:
    stage = train_stage(CONFIG, frames, PLAN, tmp_path, seed=0)
    value = train_value(CONFIG, frames, texts, frames.primitive_T, PLAN, tmp_path, seed=0)
    heads = Heads(CONFIG, stage, value)
    fitted = calibrate(heads, frames, corpus, texts, VOCABULARY)
    said = predict(heads, frames, texts, VOCABULARY, fitted, corpus)
    inside = (said.low_T <= corpus.progress_T) & (corpus.progress_T <= said.high_T)
    assert fitted.interval.coverage == 0.9
    assert inside.mean() >= 0.8
    certain = ~said.uncertain_T
    if certain.any():
        assert (said.primitive_T != corpus.primitive_T)[certain].mean() <= fitted.rule.stated_error


# --- tower and embedding ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tower_plan() -> TowerPlan:
    return TowerPlan(steps=4, batch=8, dim=48, layers=1)


def test_a_resumed_tower_ends_with_the_same_weights_and_float16_holds_them(
    corpus: Corpus, tower_plan: TowerPlan, tmp_path: Path
) -> None:
    whole = train_tower(corpus, VOCABULARY, tower_plan, tmp_path / "a", seed=1)
    train_tower(corpus, VOCABULARY, tower_plan, tmp_path / "b", seed=1, stop_after=2)
    resumed = train_tower(corpus, VOCABULARY, tower_plan, tmp_path / "b", seed=1)
    assert resumed.weights_sha256 == whole.weights_sha256
    whole.save(tmp_path / "bundle" / "encoder")
    weights = (tmp_path / "bundle" / "encoder" / "model.safetensors").stat().st_size
    count = sum(value.numel() for value in whole._original.parameters())
    assert weights < 2.2 * count + 20_000, "two bytes a weight"
    again = ImageTextEncoder.load(tmp_path / "bundle" / "encoder")
    assert again.id == whole.id
    pictures = np.stack([corpus.picture(0, 0), corpus.picture(9, 0)])
    np.testing.assert_array_equal(again.encode_images(pictures), whole.encode_images(pictures))


def test_shards_cover_every_frame_once_and_hold_what_the_encoder_says(tmp_path: Path, corpus: Corpus) -> None:
    encoder = ImageTextEncoder(_square_encoder(), tiny_encoder()._tokenizer)
    bounds = shard_bounds(len(corpus), 3)
    assert [b[0] for b in bounds] == [0, *(b[1] for b in bounds[:-1])]
    assert bounds[-1][1] == len(corpus)
    paths = [tmp_path / f"{index}.npy" for index in range(3)]
    for path, bound in zip(paths, bounds, strict=True):
        embed_shard(corpus, encoder, path, bound)
    rows = load_embeddings(paths)
    assert rows.shape == (len(corpus), 3, encoder.dim)
    expected = encoder.encode_images(np.stack([corpus.picture(FRAMES + 2, 1)] * 4))[0]
    np.testing.assert_allclose(rows[FRAMES + 2, 1].astype(np.float32), expected.astype(np.float32), atol=2e-3)
    counted = encoder.images_encoded
    embed_shard(corpus, encoder, paths[0], bounds[0])
    assert encoder.images_encoded == counted, "a shard that is there is not made again"


def _square_encoder() -> torch.nn.Module:
    from models.tiny import tiny_siglip
    from sarm2_rollouts.tasks import IMAGE_SIZE

    model: torch.nn.Module = tiny_siglip(side=IMAGE_SIZE)
    return model


# --- the rest --------------------------------------------------------------------------------------


def test_the_clock_reaches_one_at_the_mean_last_frame_and_stays_there() -> None:
    np.testing.assert_allclose(clock(5, 3.0), [0, 0.5, 1, 1, 1])
    assert clock(1, 1.0).tolist() == [0.0]


def test_text_codes_depend_on_the_text_alone() -> None:
    one = text_codes(["open the drawer"], 8)
    np.testing.assert_array_equal(one[0], text_codes(["hammer", "Open the drawer"], 8)[1])
    assert not np.array_equal(one[0], text_codes(["hammer"], 8)[0])


def test_jobs_run_side_by_side_and_a_failure_names_its_reason_and_log(tmp_path: Path) -> None:
    console = Console(quiet=True)
    good = [Job(f"good {n}", leave_a_note, (tmp_path / f"{n}.txt",), tmp_path / "logs") for n in range(2)]
    run_jobs(good, at_once=2, console=console)
    assert [(tmp_path / f"{n}.txt").read_text() for n in range(2)] == ["done", "done"]
    with pytest.raises(ModelFailed, match=r"no luck with x\.txt.*bad\.log.*--resume"):
        run_jobs([Job("bad", fail, (tmp_path / "x.txt",), tmp_path / "logs")], at_once=1, console=console)


def test_an_error_for_users_comes_out_of_a_job_as_it_was(tmp_path: Path) -> None:
    console, logs, place = Console(quiet=True), tmp_path / "logs", tmp_path / "x.txt"
    with pytest.raises(NotFound) as found:
        run_jobs([Job("a job", find, (place,), logs)], at_once=1, console=console)
    assert (found.value.message, found.value.field) == ("there is no x.txt [yet]", "place")
    assert "NotFound" in (logs / "a_job.log").read_text(), "where it was raised can still be read"
    with pytest.raises(
        ModelFailed, match="exit code 3: it left no message"
    ):  # what an earlier start raised is not told again
        run_jobs([Job("a job", give_up, (place,), logs)], at_once=1, console=console)


def test_a_job_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "count.txt"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    parent = subprocess.Popen([sys.executable, "-m", "models.errands", str(place)], env=environment)
    deadline = time.monotonic() + 60
    while not place.exists():
        assert time.monotonic() < deadline, "the job did not start"
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(1.0)
    before = place.read_text()
    time.sleep(1.0)
    assert place.read_text() == before, "the job outlived its parent"
