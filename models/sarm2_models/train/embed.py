"""Every picture through the frozen encoder, once.

Embeddings of a split are kept in a few `.npy` files, each a run of frames; a file appears when it is whole,
so an interrupted embedding goes on at the next missing one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sarm2_client.images import resize_with_pad
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.train.corpus import Corpus
from sarm2_models.window import Float16Array
from sarm2_rollouts.whole_file import whole_file

FRAMES_AT_ONCE = 64


def shard_bounds(frames: int, shards: int) -> list[tuple[int, int]]:
    """Start and end of each shard, as equal as they can be."""
    edges = np.linspace(0, frames, shards + 1).astype(int)
    return [(int(start), int(end)) for start, end in itertools.pairwise(edges)]


def embed_shard(
    corpus: Corpus,
    encoder: ImageTextEncoder,
    path: Path,
    bounds: tuple[int, int],
    *,
    tick: Callable[[int], None] = lambda frames: None,
) -> None:
    """Write float16 (frames, C, D) of the frames from `bounds[0]` up to `bounds[1]`; nothing if it is there.

    Args:
        tick: called with the number of frames just embedded.
    """
    if path.exists():
        return
    start, stop = bounds
    cameras = len(corpus.cameras)
    rows = np.zeros((stop - start, cameras, encoder.dim), dtype=np.float16)
    for first in range(start, stop, FRAMES_AT_ONCE):
        chunk = range(first, min(first + FRAMES_AT_ONCE, stop))
        pictures = [corpus.picture(frame, camera) for frame in chunk for camera in range(cameras)]
        # Recorded pictures have the side of the trained tower; another encoder's is reached as in scoring.
        fitted = [resize_with_pad(picture, encoder.image_size) for picture in pictures]
        encoded = encoder.encode_images(np.stack(fitted))
        rows[chunk.start - start : chunk.stop - start] = encoded.reshape(len(chunk), cameras, -1)
        tick(len(chunk))
    with whole_file(path) as fresh, fresh.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def load_embeddings(paths: list[Path]) -> Float16Array:
    """The shards of a split as one array, float16 (T, C, D)."""
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])
