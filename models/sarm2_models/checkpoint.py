"""A trained model as a folder, and back: nothing is loaded that does not match, and the error says what.

    manifest.json        format, id, version, encoder (id, hash, source), preprocess, hashes of the files
    config.json          sizes (`RewardModelConfig`)
    vocabulary.json      primitives, texts, groups
    statistics.json      of the training data
    calibration.json     temperature, uncertain rule, interval
    heads.safetensors    stage.*, value.* and the texts' embeddings
    encoder/             what `transformers` loads, if the bundle carries its encoder

Reading runs no code of the folder: JSON and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_models.calibration import Calibration
from sarm2_models.config import RewardModelConfig
from sarm2_models.encoder import ImageTextEncoder, make_preprocess
from sarm2_models.reward_model import RewardModel, Statistics
from sarm2_models.stage import StageEstimator
from sarm2_models.value import ValueDecoder
from sarm2_models.vocabulary import Vocabulary, load_vocabulary, vocabulary_names

FORMAT = "sarm2-bundle.v1"
MANIFEST, CONFIG, VOCABULARY = "manifest.json", "config.json", "vocabulary.json"
STATISTICS, CALIBRATION, HEADS = "statistics.json", "calibration.json", "heads.safetensors"
ENCODER = "encoder"
REQUIRED = (CONFIG, VOCABULARY, STATISTICS, CALIBRATION, HEADS)


class EncoderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The encoder that the heads were trained on. `source` is None where the bundle carries it."""

    id: str
    dim: int
    image_size: int
    weights_sha256: str
    source: str | None


class PreprocessEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The preprocessing that the heads were trained on; see `wire.Preprocess`."""

    size: int
    resize: str
    colour: str
    mean: list[float]
    std: list[float]
    hash: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.json`. `files`: path to SHA-256 of every other file; `instructions`: the known tasks.

    `adapted_from`: id, version and weights of the bundle that this one was adapted from, if any.
    """

    format: str
    id: str
    version: str
    encoder: EncoderEntry
    preprocess: PreprocessEntry
    instructions: list[str]
    files: dict[str, str]
    adapted_from: str | None = None

    @property
    def weights_sha256(self) -> str:
        """One hash over everything that decides a score: heads, texts, calibration, statistics, encoder."""
        names = (HEADS, CONFIG, VOCABULARY, STATISTICS, CALIBRATION)
        parts = [*(self.files[name] for name in names), self.encoder.weights_sha256, self.preprocess.hash]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def default_bundle() -> Path:
    """The folder of the bundle that is shipped with this package."""
    return Path(__file__).parent / "bundles" / "metaworld"


def save_bundle(
    folder: Path,
    model: RewardModel,
    *,
    model_id: str | None = None,
    version: str | None = None,
    encoder_source: str | None = None,
    adapted_from: str | None = None,
    reports: Mapping[str, object] = MappingProxyType({}),
) -> Manifest:
    """Write a model as a folder, never half of it; an earlier bundle there is replaced.

    Args:
        folder: the bundle's folder, made if missing.
        model: what to save.
        model_id, version: what `hello` will say; by default the model's own.
        encoder_source: a hub name to load the encoder from; by default the bundle carries it.
        adapted_from: the bundle that this one comes from.
        reports: plain data by file name, kept as JSON in the bundle's `report` folder.

    Raises:
        InvalidInput: the folder exists and is no bundle.
    """
    if encoder_source is not None and Path(encoder_source).exists():
        raise InvalidInput(
            f"encoder_source is for hub names, but {encoder_source!r} is a folder here; leave it out, and "
            "the bundle carries the encoder",
            field="encoder_source",
        )
    folder = folder.absolute()
    if not may_replace(folder):
        raise InvalidInput(f"{folder} exists and is no bundle; choose another folder", field="folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_parts(working, model, carries_encoder=encoder_source is None)
        manifest = _make_manifest(working, model, model_id, version, encoder_source)
        manifest = msgspec.structs.replace(manifest, adapted_from=adapted_from)
        for name, content in reports.items():
            (working / "report").mkdir(exist_ok=True)
            _write_json(working / "report" / name, content)
        _write_json(working / MANIFEST, msgspec.to_builtins(manifest))
        _swap(working, folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return manifest


def load_bundle(
    folder: Path,
    device: str = "cpu",
    *,
    encoder: ImageTextEncoder | str | None = None,
    encoder_dtype: torch.dtype = torch.float32,
) -> RewardModel:
    """Load a model from its folder.

    Args:
        folder: the bundle.
        device: where the encoder and the heads run.
        encoder: one that is loaded already, or a folder or hub name to load it from; by default what the
            bundle carries or names. It must be the very encoder that the heads were trained on.
        encoder_dtype: of the encoder's arithmetic, where it is loaded here; the heads' is float32.

    Raises:
        NotFound: no bundle there, or a file is missing.
        InvalidInput: a hash, size, vocabulary, preprocessing or encoder that does not match, or weights that
            are not finite.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    config = RewardModelConfig.from_dict(_read_json(folder / CONFIG))
    vocabulary = _read_vocabulary(folder, config)
    statistics = _read_statistics(folder)
    calibration = Calibration.from_dict(_read_json(folder / CALIBRATION))
    _check_preprocess(manifest)
    tensors = _read_tensors(folder / HEADS)
    stage, value = StageEstimator(config, vocabulary), ValueDecoder(config, vocabulary)
    _fill(stage, tensors, "stage.")
    _fill(value, tensors, "value.")
    if isinstance(encoder, ImageTextEncoder):
        loaded = encoder
    else:
        source = encoder or _encoder_source(folder, manifest)
        loaded = ImageTextEncoder.load(source, device, dtype=encoder_dtype)
    _check_encoder(manifest, loaded)
    return RewardModel(
        config,
        loaded,
        stage,
        value,
        statistics,
        vocabulary=vocabulary,
        calibration=calibration,
        primitive_texts_PD=_text(tensors, "primitives"),
        instructions=manifest.instructions,
        instruction_texts_ND=_text(tensors, "instructions"),
        model_id=manifest.id,
        version=manifest.version,
        weights_sha256=manifest.weights_sha256,
    )


def may_replace(folder: Path) -> bool:
    """Whether a bundle may be saved there: nothing lies there yet, or a bundle does."""
    return not folder.exists() or (folder / MANIFEST).is_file() or not any(folder.iterdir())


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone. Raises NotFound or InvalidInput."""
    path, before = folder / MANIFEST, _replaced(folder)
    if not path.is_file():
        hint = (
            f"; the one that was being replaced when a kill came lies in {before}" if before.exists() else ""
        )
        raise NotFound(f"no bundle at {folder}: {MANIFEST} is missing{hint}", field="bundle")
    data = _read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise InvalidInput(f"{path}: expected format {FORMAT!r}, got {got!r}", field="bundle")
    try:
        manifest = msgspec.convert(data, Manifest)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{path}: {error}", field="bundle") from error
    for name in REQUIRED:
        if name not in manifest.files:
            raise InvalidInput(f"{MANIFEST} states no hash of {name}", field="bundle")
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check that every file of the manifest is there with the hash that it states."""
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidInput(f"{MANIFEST}: {name!r} lies outside the bundle", field="bundle")
        if not path.is_file():
            raise NotFound(f"bundle {folder}: {name} is missing; copy the whole folder again", field="bundle")
        got = _sha256(path)
        if got != expected:
            raise InvalidInput(
                f"bundle {folder}: {name} has SHA-256 {got[:12]}..., expected {expected[:12]}...; it "
                "was changed or damaged after it was saved, copy the whole folder again",
                field="bundle",
            )


# --- writing ----------------------------------------------------------------------------------------


def _write_parts(working: Path, model: RewardModel, *, carries_encoder: bool) -> None:
    _write_json(working / CONFIG, model.config.to_dict())
    _write_json(working / VOCABULARY, model.vocabulary.to_dict())
    _write_json(working / STATISTICS, asdict(model.statistics))
    _write_json(working / CALIBRATION, model.calibration.to_dict())
    tensors = {
        **{f"stage.{name}": tensor for name, tensor in model.stage.state_dict().items()},
        **{f"value.{name}": tensor for name, tensor in model.value.state_dict().items()},
        "text.primitives": torch.from_numpy(model.primitive_texts_PD),
        "text.instructions": torch.from_numpy(model.instruction_texts_ND),
    }
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(plain, working / HEADS)
    if carries_encoder:
        model.encoder.save(working / ENCODER)


def _make_manifest(
    working: Path, model: RewardModel, model_id: str | None, version: str | None, source: str | None
) -> Manifest:
    encoder = model.encoder
    paths = sorted(path for path in working.rglob("*") if path.is_file())
    return Manifest(
        format=FORMAT,
        id=model_id or model.model_id,
        version=version or model.version,
        encoder=EncoderEntry(encoder.id, encoder.dim, encoder.image_size, encoder.weights_sha256, source),
        preprocess=msgspec.convert(msgspec.to_builtins(encoder.preprocess), PreprocessEntry),
        instructions=list(model.instructions),
        files={path.relative_to(working).as_posix(): _sha256(path) for path in paths},
    )


def _swap(working: Path, folder: Path) -> None:
    """Put `working` in the place of `folder`; at no time is a half-written bundle there. A kill between the
    two steps leaves none there, and the old one in a folder that `read_manifest` names."""
    working.chmod(0o755)
    old = _replaced(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(working, folder)
    shutil.rmtree(old, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    """Where a bundle lies while another takes its place."""
    return folder.with_name(f".{folder.name}.old")


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# --- reading ----------------------------------------------------------------------------------------


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path}: expected a JSON file, got {error}", field="bundle") from error


def _read_vocabulary(folder: Path, config: RewardModelConfig) -> Vocabulary:
    vocabulary = Vocabulary.from_dict(_read_json(folder / VOCABULARY))
    if vocabulary.name != config.vocabulary:
        raise InvalidInput(
            f"bundle {folder}: {CONFIG} names the vocabulary {config.vocabulary!r}, {VOCABULARY} holds "
            f"{vocabulary.name!r}",
            field="vocabulary",
        )
    if vocabulary.name in vocabulary_names() and vocabulary != load_vocabulary(vocabulary.name):
        raise InvalidInput(
            f"bundle {folder}: its vocabulary {vocabulary.name!r} differs from the one of that name in this "
            "version; give a changed vocabulary a name of its own and train again",
            field="vocabulary",
        )
    return vocabulary


def _read_statistics(folder: Path) -> Statistics:
    data = _read_json(folder / STATISTICS)
    try:
        mean, std = (tuple(float(value) for value in data[key]) for key in ("state_mean", "state_std"))
        statistics = Statistics(mean, std, int(data["episodes"]), int(data["frames"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{folder / STATISTICS}: {error!r}", field="statistics") from error
    if not np.isfinite([*mean, *std]).all() or min(std, default=0) < 0:
        raise InvalidInput(
            f"{folder / STATISTICS}: expected finite means and deviations of at least 0", field="statistics"
        )
    return statistics


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        # Read, not mapped: a file that is overwritten in place under a map ends the process.
        return parse_safetensors(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise InvalidInput(f"{path}: expected a safetensors file, got {error}", field="weights") from error


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    wanted = module.state_dict()
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unknown:
        raise InvalidInput(
            f"{HEADS}: does not fit {CONFIG}: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}",
            field="weights",
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise InvalidInput(
                f"{HEADS}: {prefix}{name} is {tensor.dtype} {tuple(tensor.shape)}, {CONFIG} wants "
                f"{wanted[name].dtype} {tuple(wanted[name].shape)}",
                field="weights",
            )
        if not torch.isfinite(tensor).all():
            raise InvalidInput(
                f"{HEADS}: {prefix}{name} holds numbers that are not finite: it diverged; train it again",
                field="weights",
            )
    module.load_state_dict(given)


def _text(tensors: Mapping[str, Tensor], name: str) -> Any:
    tensor = tensors.get(f"text.{name}")
    if tensor is None or tensor.dtype != torch.float16:
        raise InvalidInput(f"{HEADS}: expected float16 text.{name}", field="weights")
    return tensor.numpy()


def _check_preprocess(manifest: Manifest) -> None:
    stated = manifest.preprocess
    ours = make_preprocess(stated.size, stated.mean, stated.std)
    if msgspec.to_builtins(ours) != msgspec.to_builtins(stated):
        raise InvalidInput(
            f"the bundle was trained on pictures prepared by {stated.resize!r} in {stated.colour!r} (hash "
            f"{stated.hash[:8]}), this version prepares by {ours.resize!r} in {ours.colour!r} (hash "
            f"{ours.hash[:8]}); use the version that made the bundle, or train again",
            field="preprocess",
        )


def _encoder_source(folder: Path, manifest: Manifest) -> str | Path:
    """What the bundle names, or what it carries."""
    if manifest.encoder.source is not None:
        return manifest.encoder.source
    if not (folder / ENCODER).is_dir():
        raise NotFound(
            f"bundle {folder}: it should carry its encoder, but {ENCODER}/ is missing", field="encoder"
        )
    return folder / ENCODER


def _check_encoder(manifest: Manifest, encoder: ImageTextEncoder) -> None:
    stated = manifest.encoder
    pairs = {
        "width": (stated.dim, encoder.dim),
        "picture size": (stated.image_size, encoder.image_size),
        "preprocessing hash": (manifest.preprocess.hash, encoder.preprocess.hash),
        "weights' SHA-256": (stated.weights_sha256, encoder.weights_sha256),
        "id": (stated.id, encoder.id),
    }
    for what, (expected, got) in pairs.items():
        if expected != got:
            raise InvalidInput(
                f"the heads were trained on the encoder {stated.id}: expected {what} {expected}, got {got}",
                field="encoder",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
