"""The encoder: folders that transformers wrote, pictures, texts, identity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from models.tiny import DIM, SIDE, save_siglip, tiny_encoder, tiny_siglip, tiny_tokenizer
from sarm2_client.errors import InvalidImage, InvalidInput, NotFound
from sarm2_models.encoder import ImageTextEncoder, round_to_half


def pictures(count: int, side: int = SIDE) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_folder_saved_by_transformers_itself_loads_and_gives_its_image_and_text_features(
    tmp_path: Path,
) -> None:
    reference = tiny_siglip()
    encoder = ImageTextEncoder.load(save_siglip(tmp_path))
    images = pictures(5)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    tokens = tiny_tokenizer()(
        ["open drawer", "pick up"], padding="max_length", max_length=12, return_tensors="pt"
    )
    with torch.inference_mode():
        image_features = reference.get_image_features(pixel_values=pixels).pooler_output.numpy()
        text_features = reference.get_text_features(input_ids=tokens["input_ids"]).pooler_output.numpy()
    np.testing.assert_allclose(encoder.encode_images(images), image_features, atol=2e-3)
    np.testing.assert_allclose(encoder.encode_texts(["open drawer", "pick up"]), text_features, atol=2e-3)


def test_the_normalisation_of_the_folder_is_used(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    encoder = ImageTextEncoder.load(folder)
    images = pictures(4)
    pixels = (images.astype(np.float32) / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    with torch.inference_mode():
        expected = tiny_siglip().vision_model(
            pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        )
    np.testing.assert_allclose(encoder.encode_images(images), expected.pooler_output.numpy(), atol=2e-3)
    assert encoder.preprocess.mean == mean
    assert encoder.preprocess.hash != tiny_encoder().preprocess.hash


def test_embeddings_are_float16_and_a_picture_has_the_same_bits_in_any_company() -> None:
    encoder, images = tiny_encoder(), pictures(70)
    together = encoder.encode_images(images)
    assert together.dtype == np.float16
    assert together.shape == (70, DIM)
    for count in (1, 2, 3, 5, 66):
        assert np.array_equal(encoder.encode_images(images[:count]), together[:count])


def test_a_text_has_the_same_bits_in_any_company_and_case_does_not_count() -> None:
    encoder = tiny_encoder()
    together = encoder.encode_texts(["Open drawer", "nail", "ball", "pick up the ball", "no progress"])
    assert np.array_equal(encoder.encode_texts(["open DRAWER"]), together[:1])
    assert together.dtype == np.float16


def test_nothing_in_gives_nothing_out() -> None:
    encoder = tiny_encoder()
    assert encoder.encode_texts([]).shape == (0, DIM)
    assert encoder.encode_images(pictures(0)).shape == (0, DIM)


def test_a_text_longer_than_the_tower_is_cut() -> None:
    encoder = tiny_encoder()
    assert np.isfinite(encoder.encode_texts(["ball " * 10_000])).all()


@pytest.mark.parametrize("text", ["", " ", "\0\n\x1b", "lone \ud800 surrogate", "😀" * 100, "ball/../ball"])
def test_any_text_at_all_has_an_embedding(text: str) -> None:
    assert np.isfinite(tiny_encoder().encode_texts([text])).all()


def test_every_encoded_picture_is_counted() -> None:
    encoder = tiny_encoder()
    encoder.encode_images(pictures(3))
    encoder.encode_images(pictures(2))
    assert encoder.images_encoded == 5


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, SIDE, SIDE, 3), np.float32),
        np.zeros((1, SIDE, SIDE + 1, 3), np.uint8),
        np.zeros((1, 3, SIDE, SIDE), np.uint8),
        np.zeros((SIDE, SIDE, 3), np.uint8),
    ],
)
def test_pictures_of_another_shape_or_dtype_are_refused(
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> None:
    with pytest.raises(InvalidImage, match="resize_with_pad"):
        tiny_encoder().encode_images(images)


def test_the_id_names_weights_and_preprocessing(tmp_path: Path) -> None:
    first = tiny_encoder(0)
    assert first.id == tiny_encoder(0).id == ImageTextEncoder.load(save_siglip(tmp_path)).id
    assert first.id != tiny_encoder(1).id
    other = ImageTextEncoder(tiny_siglip(0), tiny_tokenizer(), mean=(0.4, 0.4, 0.4))
    assert first.id != other.id
    assert first.weights_sha256 == other.weights_sha256


def test_saving_and_loading_is_exact(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    encoder.save(tmp_path)
    again = ImageTextEncoder.load(tmp_path)
    assert again.id == encoder.id
    assert np.array_equal(again.encode_images(pictures(4)), encoder.encode_images(pictures(4)))
    assert np.array_equal(again.encode_texts(["ball"]), encoder.encode_texts(["ball"]))


def test_saving_and_loading_say_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from models.tiny import tiny_encoder; "
        "from sarm2_models.encoder import ImageTextEncoder; "
        "tiny_encoder().save(Path(sys.argv[1])); ImageTextEncoder.load(sys.argv[1])"
    )
    # In a process of its own: transformers gives each warning once a process.
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1], check=True,
    )  # fmt: skip
    assert done.stdout + done.stderr == ""


def test_weights_rounded_to_half_take_half_the_space_and_lose_nothing(tmp_path: Path) -> None:
    model = tiny_siglip()
    tiny_encoder().save(tmp_path / "whole")
    round_to_half(model)
    encoder = ImageTextEncoder(model, tiny_tokenizer())
    encoder.save(tmp_path / "half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    again = ImageTextEncoder.load(tmp_path / "half")
    assert again.id == encoder.id
    assert np.array_equal(again.encode_images(pictures(4)), encoder.encode_images(pictures(4)))


def test_nothing_there_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="expected a folder saved by transformers"):
        ImageTextEncoder.load(tmp_path / "nowhere")
    with pytest.raises(NotFound, match="expected a folder saved by transformers"):
        ImageTextEncoder.load(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32
    )
    SiglipVisionModel(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="of type 'siglip'"):
        ImageTextEncoder.load(tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused_and_never_made_up(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="weights are missing"):
        ImageTextEncoder.load(folder)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InvalidInput, match="damaged"):
        ImageTextEncoder.load(folder)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="do not fit"):
        ImageTextEncoder.load(folder)


def test_weights_in_pickle_are_not_read(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound):
        ImageTextEncoder.load(folder)


def test_image_and_text_features_of_unequal_width_are_refused() -> None:
    model = tiny_siglip()
    model.config.text_config.projection_size = 8
    with pytest.raises(InvalidInput, match="same width"):
        ImageTextEncoder(model, tiny_tokenizer())


def test_no_gradient_reaches_the_encoder() -> None:
    model = tiny_siglip()
    ImageTextEncoder(model, tiny_tokenizer())
    assert not any(parameter.requires_grad for parameter in model.parameters())
