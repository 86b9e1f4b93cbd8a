"""Half-size bundles: the small tower's weights went through float16, which stores them exactly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sarm2_client.errors import InvalidInput
from sarm2_models.checkpoint import ENCODER, MANIFEST

WEIGHTS = f"{ENCODER}/model.safetensors"


def halve_encoder(bundle: Path) -> None:
    """Store the encoder of a bundle in float16; it loads to the same float32 weights as before.

    Raises InvalidInput for an encoder whose weights float16 cannot hold exactly.
    """
    path = bundle / WEIGHTS
    tensors = load_file(path)
    halves = {name: value.to(torch.float16) for name, value in tensors.items()}
    changed = [
        name
        for name, value in halves.items()
        if not torch.equal(value.to(tensors[name].dtype), tensors[name])
    ]
    if changed:
        raise InvalidInput(
            f"{len(changed)} weights of the encoder do not fit float16 exactly, first {changed[0]}"
        )
    save_file(halves, path, metadata={"format": "pt"})
    manifest_path = bundle / MANIFEST
    manifest = json.loads(manifest_path.read_text())
    manifest["files"][WEIGHTS] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n")
