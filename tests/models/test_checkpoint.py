"""Bundles: saving and loading is exact, and nothing is loaded that does not match."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.tiny import random_images, random_states, save_siglip, tiny_encoder, tiny_model
from sarm2_client.errors import InvalidInput, NotFound
from sarm2_models.calibration import Calibration, ConformalInterval, UncertainRule
from sarm2_models.checkpoint import load_bundle, read_manifest, save_bundle
from sarm2_models.predictor import Predictor
from sarm2_models.reward_model import RewardModel, ScoreBatch

CALIBRATION = Calibration(
    1.5, UncertainRule(0.06, 0.05, 0.04, 0.9, 100), ConformalInterval(0.9, (2.0, 2.0), ((0.1,), (0.2,)), 9)
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    save_bundle(folder, tiny_model(calibration=CALIBRATION), model_id="toy", version="1.2")
    return folder


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "toy"))


def scores(model: RewardModel) -> ScoreBatch:
    return Predictor(model).score_episode("pick up the ball", 10.0, random_images(9), random_states(9))


def rewrite(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file and the hash that the manifest states of it."""
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    if name != "manifest.json":
        restate(folder, name)


def restate(folder: Path, name: str) -> None:
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    rewrite(folder, "manifest.json", lambda manifest: manifest["files"].update({name: digest}))


def test_saving_and_loading_is_exact(saved: Path) -> None:
    before, loaded = tiny_model(calibration=CALIBRATION), load_bundle(saved)
    one, other = scores(before), scores(loaded)
    for field in fields(ScoreBatch):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)
    assert loaded.config == before.config
    assert loaded.vocabulary == before.vocabulary
    assert loaded.statistics == before.statistics
    assert loaded.calibration == before.calibration
    assert loaded.encoder.id == before.encoder.id
    np.testing.assert_array_equal(loaded.primitive_texts_PD, before.primitive_texts_PD)


def test_the_texts_come_from_the_bundle_and_not_from_the_text_tower(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_encoder()
    asked: list[str] = []
    monkeypatch.setattr(encoder, "encode_texts", asked.extend)
    model = load_bundle(saved, encoder=encoder)
    assert model.instruction("open the drawer").known
    assert asked == []


def test_a_loaded_model_says_who_it_is(saved: Path) -> None:
    info = load_bundle(saved).info
    assert (info.id, info.version) == ("toy", "1.2")
    assert len(info.weights_sha256) == 64
    assert info.tasks == ["pick up the ball", "open the drawer"]


def test_two_models_have_two_hashes_and_a_bundle_saved_again_keeps_its_own(
    saved: Path, tmp_path: Path
) -> None:
    loaded = load_bundle(saved)
    save_bundle(tmp_path / "again", loaded)
    save_bundle(tmp_path / "other", tiny_model(seed=1, calibration=CALIBRATION))
    assert load_bundle(tmp_path / "again").weights_sha256 == loaded.weights_sha256
    assert load_bundle(tmp_path / "other").weights_sha256 != loaded.weights_sha256


def test_a_bundle_names_no_place_of_the_machine_that_made_it(saved: Path) -> None:
    for path in saved.rglob("*.json"):
        assert str(saved.parent) not in path.read_text()


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "config.json",
        "vocabulary.json",
        "statistics.json",
        "calibration.json",
        "heads.safetensors",
        "encoder/model.safetensors",
        "encoder/tokenizer.json",
    ],
)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(NotFound, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["heads.safetensors", "config.json", "encoder/model.safetensors", "calibration.json"]
)
def test_one_flipped_bit_is_refused(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(InvalidInput, match=rf"{name} has SHA-256"):
        load_bundle(bundle)


def test_weights_that_are_not_finite_are_refused_and_named(tmp_path: Path) -> None:
    model = tiny_model()
    model.value.fuse.bias.data[0] = np.inf
    save_bundle(tmp_path / "diverged", model)
    with pytest.raises(InvalidInput, match=r"value\.fuse\.bias .* not finite"):
        load_bundle(tmp_path / "diverged")


def set_value(*path: str, to: object) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", set_value("format", to="sarm2-bundle.v9"), "expected format"),
        ("manifest.json", set_value("files", to={}), "no hash of config.json"),
        ("manifest.json", set_value("surprise", to=1), "surprise"),
        ("manifest.json", set_value("files", "../x", to="0"), "outside the bundle"),
        ("manifest.json", set_value("preprocess", "mean", to=[0.4, 0.5, 0.5]), "prepared by"),
        ("manifest.json", set_value("preprocess", "resize", to="stretch"), "prepared by 'stretch'"),
        ("manifest.json", set_value("preprocess", "hash", to="0" * 64), "prepared by"),
        ("manifest.json", set_value("encoder", "weights_sha256", to="0" * 64), "weights' SHA-256"),
        ("manifest.json", set_value("encoder", "dim", to=768), "expected width 768, got 16"),
        ("manifest.json", set_value("encoder", "image_size", to=224), "expected picture size 224"),
        ("manifest.json", set_value("instructions", to=["one"]), "instruction texts"),
        ("config.json", set_value("stage", "dim", to=32), r"heads.safetensors: stage\..* wants"),
        ("config.json", set_value("value", "layers", to=3), "weights are missing"),
        ("config.json", set_value("stage", "layers", to=1), "are unknown"),
        ("config.json", set_value("embedding_dim", to=32), "heads.safetensors"),
        ("config.json", set_value("cameras", to=["top"]), "heads.safetensors"),
        ("config.json", set_value("state_dim", to=7), "heads.safetensors"),
        ("config.json", set_value("vocabulary", to="published"), "names the vocabulary 'published'"),
        ("config.json", set_value("window", "gap_s", to=-1.0), "window.gap_s"),
        ("vocabulary.json", set_value("groups", to=["a", "other"]), "not a vocabulary"),
        ("statistics.json", set_value("state_std", to=[1.0, 1.0, 1.0, -1.0]), "at least 0"),
        ("statistics.json", set_value("state_mean", to=[0.0]), "statistics"),
        ("statistics.json", set_value("state_mean", to="x"), "statistics.json"),
        ("calibration.json", set_value("temperature", to=0), "positive temperature"),
        ("calibration.json", set_value("interval", to={}), "as `to_dict` gives"),
    ],
)
def test_what_does_not_match_is_refused_and_said(
    bundle: Path, name: str, change: Callable[[Any], None], message: str
) -> None:
    rewrite(bundle, name, change)
    with pytest.raises(InvalidInput, match=message):
        load_bundle(bundle)


def test_a_changed_vocabulary_under_a_shipped_name_is_refused(bundle: Path) -> None:
    def swap(vocabulary: Any) -> None:
        rows = vocabulary["primitive"]
        rows[0], rows[1] = rows[1], rows[0]

    rewrite(bundle, "vocabulary.json", swap)
    with pytest.raises(InvalidInput, match="differs from the one of that name"):
        load_bundle(bundle)


def test_a_vocabulary_of_its_own_name_travels_with_the_bundle(bundle: Path) -> None:
    rewrite(bundle, "vocabulary.json", set_value("name", to="mine"))
    rewrite(bundle, "config.json", set_value("vocabulary", to="mine"))
    assert load_bundle(bundle).vocabulary.name == "mine"


def test_heads_without_their_texts_are_refused(bundle: Path) -> None:
    tensors = load_file(bundle / "heads.safetensors")
    del tensors["text.primitives"]
    save_file(tensors, bundle / "heads.safetensors")
    restate(bundle, "heads.safetensors")
    with pytest.raises(InvalidInput, match=r"text\.primitives"):
        load_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1", b"3"])
def test_a_manifest_that_is_no_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(InvalidInput, match="manifest"):
        load_bundle(bundle)


def test_another_encoder_is_refused_and_the_same_from_elsewhere_is_taken(saved: Path, tmp_path: Path) -> None:
    assert load_bundle(saved, encoder=str(save_siglip(tmp_path / "same"))).encoder.dim == 16
    with pytest.raises(InvalidInput, match="trained on the encoder"):
        load_bundle(saved, encoder=str(save_siglip(tmp_path / "other", seed=3)))
    with pytest.raises(InvalidInput, match=r"expected width 16, got 24"):
        load_bundle(saved, encoder=str(save_siglip(tmp_path / "wide", dim=24)))


def test_a_bundle_can_leave_its_encoder_to_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "thin"
    save_bundle(folder, tiny_model(), encoder_source="someone/some-siglip2")
    assert not (folder / "encoder").exists()
    assert read_manifest(folder).encoder.source == "someone/some-siglip2"
    assert load_bundle(folder, encoder=tiny_encoder()).encoder.dim == 16


def test_a_folder_of_this_machine_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="hub names"):
        save_bundle(tmp_path / "toy", tiny_model(), encoder_source=str(save_siglip(tmp_path / "here")))


def test_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save_bundle(folder, tiny_model(), version="1")
    save_bundle(folder, tiny_model(), version="2")
    assert read_manifest(folder).version == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInput, match="is no bundle"):
        save_bundle(tmp_path / "home", tiny_model())


def test_a_save_that_fails_leaves_the_old_bundle_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "toy"
    save_bundle(folder, tiny_model(), version="1")
    broken = tiny_model()

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(broken.encoder, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_bundle(folder, broken, version="2")
    assert load_bundle(folder).version == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


def test_a_bundle_that_was_being_replaced_when_a_kill_came_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    save_bundle(folder, tiny_model())
    folder.rename(tmp_path / ".bundle.old")  # between the two steps of a replacement
    with pytest.raises(NotFound, match=re.escape(f"lies in {tmp_path / '.bundle.old'}")):
        load_bundle(folder)
    save_bundle(folder, tiny_model())
    assert not (tmp_path / ".bundle.old").exists()
