"""The frozen SigLIP-2 encoder: pictures and texts become float16 embeddings of one width.

Loaded by `transformers` from a local folder or a hub name. `google/siglip2-base-patch16-224` and its kin are
`SiglipModel` there (`Siglip2Model` is the variable-resolution kind and is refused). Embeddings are rounded to
float16 on every path, so that cached and fresh ones agree.

Shapes: B pictures, H and W3 the encoder's square side, N texts, D embedding, L patches, K values of a patch.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, SiglipConfig, SiglipModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from sarm2_client.errors import InvalidImage, InvalidInput, NotFound
from sarm2_client.images import RESIZE_NAME
from sarm2_client.wire import Preprocess
from sarm2_models.layers import pad_rows

Float16Array = npt.NDArray[np.float16]

PREPROCESSOR_FILE = "preprocessor_config.json"
MAX_BATCH = 64
"""Pictures or texts that go through the network at once; more are taken in turns."""


class ImageTextEncoder:
    """Pictures and texts to embeddings. Frozen: gradients never flow.

    Args:
        model: a SiglipModel whose image and text features have the same width.
        tokenizer: its tokenizer.
        mean, std: per RGB channel, of pixels scaled to [0, 1].
        device: where it runs.
        dtype: of the arithmetic; float32 on a CPU, bfloat16 is a good choice on a GPU.

    Attributes:
        id: names weights, size and preprocessing; equal ids give equal embeddings (up to `dtype`).
        weights_sha256: of all weights, as hex.
        dim: D. image_size: side of the square input in pixels.
        preprocess: what `hello` says of the input.
        images_encoded: how many pictures went through the network so far.
    """

    def __init__(
        self,
        model: SiglipModel,
        tokenizer: Any,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        vision, text = model.config.vision_config, model.config.text_config
        _check_model(vision, text)
        self.dim, self.image_size = int(vision.hidden_size), int(vision.image_size)
        self.weights_sha256 = _hash_weights(model)
        self.preprocess = make_preprocess(self.image_size, mean, std)
        self.id = (
            f"siglip-{self.dim}d-{self.image_size}px-{self.weights_sha256[:12]}-{self.preprocess.hash[:8]}"
        )
        self.images_encoded = 0
        self.device, self.dtype = torch.device(device), dtype
        # Kept in float32 on the CPU, so that saving gives back what was loaded, whatever `dtype` runs.
        self._original = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._text_length = int(text.max_position_embeddings)
        plain = self.device.type == "cpu" and dtype == torch.float32
        frozen = model if plain else copy.deepcopy(model).to(device=self.device, dtype=dtype)
        self._vision, self._text = frozen.vision_model, frozen.text_model
        self._patches = _FoldedPatches(self._vision.embeddings, mean, std).to(device=self.device, dtype=dtype)

    @classmethod
    def load(
        cls, source: str | Path, device: str = "cpu", *, dtype: torch.dtype = torch.float32
    ) -> ImageTextEncoder:
        """Load what `transformers` saved: a local folder, or a name on the hub (which needs the network).

        Only safetensors weights are read, and no code of the source is run.

        Raises:
            NotFound: no such folder or name, or a file is missing from it.
            InvalidInput: a model of another kind, or of unequal image and text width.
        """
        name = str(source)
        try:
            config = _read_config(name)
            model = _load_model(name, config)
            tokenizer = AutoTokenizer.from_pretrained(name, config=config)
            mean, std = _read_normalisation(name)
        except (OSError, ValueError) as error:
            raise NotFound(
                f"encoder {name!r}: expected a folder saved by transformers (config.json, model.safetensors, "
                f"tokenizer files) or a name on the hub; {error}",
                field="encoder",
            ) from error
        return cls(model, tokenizer, mean=mean, std=std, device=device, dtype=dtype)

    def save(self, folder: Path) -> None:
        """Write a folder that `load` and transformers read: config, weights, tokenizer and normalisation.

        Weights that are float16 numbers (see `round_to_half`) are stored as such.
        """
        model = self._original
        with _quiet(), _without_warnings():
            # Half the size where nothing is lost by it; loading gives float32 again.
            (copy.deepcopy(model).half() if _fits_half(model) else model).save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)
        values = {"image_mean": self.preprocess.mean, "image_std": self.preprocess.std}
        size = {"height": self.image_size, "width": self.image_size}
        (folder / PREPROCESSOR_FILE).write_text(json.dumps({**values, "size": size}, indent=2) + "\n")

    @torch.inference_mode()
    def encode_images(self, images_BHWC: npt.NDArray[np.uint8]) -> Float16Array:
        """Pooled image features.

        Args:
            images_BHWC: uint8 RGB (B, side, side, 3), as `sarm2_client.images.resize_with_pad` gives.

        Returns:
            float16 (B, D). On one thread a row's bits do not depend on the other rows.

        Raises:
            InvalidImage: another dtype or shape.
        """
        self._check_images(images_BHWC)
        parts = [
            self._encode(torch.from_numpy(images_BHWC[start : start + MAX_BATCH]).to(self.device))
            for start in range(0, len(images_BHWC), MAX_BATCH)
        ]
        self.images_encoded += len(images_BHWC)
        return np.concatenate([np.zeros((0, self.dim), np.float16), *parts])

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float16Array:
        """Pooled text features, float16 (N, D); lower-cased, padded to full length, as SigLIP-2 learned."""
        parts = [
            self._encode_texts(list(texts[start : start + MAX_BATCH]))
            for start in range(0, len(texts), MAX_BATCH)
        ]
        return np.concatenate([np.zeros((0, self.dim), np.float16), *parts])

    def _encode(self, images_BHWC: Tensor) -> Float16Array:
        hidden_BLD = self._vision.encoder(inputs_embeds=self._patches(images_BHWC)).last_hidden_state
        hidden_BLD = self._vision.post_layernorm(hidden_BLD)
        # In the layers every token is a row, so even one picture has enough; in the head a picture is one.
        pooled_BD = self._vision.head(pad_rows(hidden_BLD))[: len(images_BHWC)]
        return _to_float16(pooled_BD)

    def _encode_texts(self, texts: list[str]) -> Float16Array:
        tokens = self._tokenizer(
            # A lone surrogate is no text and would end in a TypeError of the tokenizer.
            [text.lower().encode("utf-8", "replace").decode() for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self._text_length,
            return_tensors="pt",
        )["input_ids"]
        pooled_ND = self._text(input_ids=pad_rows(tokens).to(self.device)).pooler_output
        return _to_float16(pooled_ND[: len(texts)])

    def _check_images(self, images_BHWC: npt.NDArray[np.uint8]) -> None:
        expected = (self.image_size, self.image_size, 3)
        if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[1:] != expected:
            raise InvalidImage(
                f"expected uint8 pictures of shape (B, {expected[0]}, {expected[1]}, 3), got "
                f"{images_BHWC.dtype} {images_BHWC.shape}; resize with sarm2_client.images.resize_with_pad",
                field="images",
            )


class _FoldedPatches(nn.Module):
    """uint8 pixels to patch embeddings in one product: the normalisation is folded into its weights.

    W ((x / 255 - mean) / std) + b = (W / (255 std)) x + (b - sum W mean / std), exact because patches are not
    padded; it saves three passes over the picture.
    """

    def __init__(self, embeddings: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        conv = embeddings.patch_embedding
        weight_DCPP = conv.weight.detach().float()
        channel_mean = torch.tensor(list(mean)).to(weight_DCPP).view(1, 3, 1, 1)
        channel_std = torch.tensor(list(std)).to(weight_DCPP).view(1, 3, 1, 1)
        folded = (weight_DCPP / (255 * channel_std)).permute(0, 2, 3, 1).flatten(1)
        shift = (weight_DCPP * channel_mean / channel_std).sum((1, 2, 3))
        self.patch = int(conv.kernel_size[0])
        self.linear = nn.Linear(folded.shape[1], folded.shape[0])
        self.linear.weight.data, self.linear.bias.data = (
            folded.contiguous(),
            conv.bias.detach().float() - shift,
        )
        self.position = nn.Parameter(embeddings.position_embedding.weight.detach().float().clone())
        self.requires_grad_(False)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        batch, side = images_BHWC.shape[:2]
        grid, patch = side // self.patch, self.patch
        patches = images_BHWC[:, : grid * patch, : grid * patch].reshape(batch, grid, patch, grid, patch, 3)
        patches_BLK = patches.permute(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, patch * patch * 3)
        result: Tensor = self.linear(patches_BLK.to(self.linear.weight.dtype)) + self.position
        return result


def round_to_half(model: nn.Module) -> None:
    """Round all weights to float16 numbers, kept as float32: the folder that `save` writes is half as large.

    For a tower that was trained here, before it is frozen and anything is embedded with it.
    """
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())


def make_preprocess(size: int, mean: Sequence[float], std: Sequence[float]) -> Preprocess:
    """The description of a preprocessing, with the hash that two sides compare."""
    values: dict[str, Any] = {
        "size": size,
        "resize": RESIZE_NAME,
        "colour": "rgb",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }
    text = msgspec.json.encode(values, order="deterministic")
    return Preprocess(**values, hash=hashlib.sha256(text).hexdigest())


def _read_config(name: str) -> SiglipConfig:
    values, _ = SiglipConfig.get_config_dict(name)
    if not values:
        raise FileNotFoundError("there is no config.json")
    kind = values.get("model_type")
    if kind != "siglip":
        raise InvalidInput(
            f"encoder {name!r}: expected a model of type 'siglip' (fixed-resolution SigLIP or SigLIP-2), got "
            f"{kind!r}",
            field="encoder",
        )
    # Not `from_pretrained`: it formats the config for a log line, see `_without_warnings`.
    return SiglipConfig(**values)


def _load_model(name: str, config: SiglipConfig) -> SiglipModel:
    try:
        with _quiet():
            model, report = SiglipModel.from_pretrained(
                name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (RuntimeError, SafetensorError) as error:
        raise InvalidInput(
            f"encoder {name!r}: its weights are damaged or do not fit its config.json; {error}",
            field="encoder",
        ) from error
    for weight in model.parameters():
        weight.data = weight.data.clone()  # off the memory map: see `checkpoint._read_tensors`
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        # transformers would go on with random numbers in their place.
        raise InvalidInput(
            f"encoder {name!r}: {len(wrong)} weights are missing or of another shape, first {wrong[0]}; "
            "the weights do not belong to the config",
            field="encoder",
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars, which would run through ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without transformers' warnings, where it writes a config.

    It writes what differs from a default SiglipTextConfig, and that default (vocabulary 32000, ids 49406
    and 49407) does not pass its own check: every SigLIP warns, whatever ids it has (transformers 5.23).
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _check_model(vision: Any, text: Any) -> None:
    if vision.hidden_size != text.projection_size:
        raise InvalidInput(
            f"encoder: image features are {vision.hidden_size} wide, text features {text.projection_size}; "
            "expected the same width",
            field="encoder",
        )
    # Some releases of transformers write the field only where it is false.
    pools = getattr(vision, "vision_use_head", True)
    if not isinstance(vision.image_size, int) or not pools or vision.num_channels != 3:
        raise InvalidInput(
            "encoder: expected a square RGB input and a pooling head (vision_use_head)", field="encoder"
        )


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _read_normalisation(source: str) -> tuple[list[float], list[float]]:
    """Mean and std of `preprocessor_config.json`; SigLIP's own .5 where the file or a field is missing."""
    path = cached_file(source, PREPROCESSOR_FILE, _raise_exceptions_for_missing_entries=False)
    data: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    mean, std = (list(map(float, data.get(key, [0.5] * 3))) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not np.isfinite([*mean, *std]).all():
        raise InvalidInput(
            f"encoder: {PREPROCESSOR_FILE} needs three finite means and three positive deviations, got "
            f"{mean} and {std}",
            field="encoder",
        )
    return mean, std


def _fits_half(model: nn.Module) -> bool:
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return all(torch.equal(tensor.half().float(), tensor) for tensor in tensors)


def _to_float16(values: Tensor) -> Float16Array:
    result: Float16Array = values.to(torch.float16).cpu().numpy()
    return result
