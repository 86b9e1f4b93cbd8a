"""The frozen encoder that a training run is given, in the place of the tower that it would train itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sarm2_client.errors import Conflict
from sarm2_models.encoder import ImageTextEncoder


@dataclass(frozen=True)
class GivenEncoder:
    """Where it is and what it is; picklable, which the encoder itself is not meant to be.

    Attributes:
        source: a folder that transformers saved, or a name on the hub.
        id: of its weights and preprocessing, see `ImageTextEncoder.id`.
        dim: D, width of its embeddings.
    """

    source: str
    id: str
    dim: int

    @classmethod
    def of(cls, source: str) -> GivenEncoder:
        """Load it once, to see what it is. Raises NotFound or InvalidInput as `ImageTextEncoder.load`."""
        encoder = ImageTextEncoder.load(source)
        return cls(source, encoder.id, encoder.dim)

    @property
    def hub_name(self) -> str | None:
        """What a bundle refers to; None for a folder, which means nothing elsewhere and is copied."""
        return None if Path(self.source).exists() else self.source

    def load(self, device: str = "cpu") -> ImageTextEncoder:
        """The encoder. Raises Conflict where `source` has become another one since the run began."""
        encoder = ImageTextEncoder.load(self.source, device)
        if encoder.id != self.id:
            raise Conflict(
                f"encoder {self.source!r} was {self.id} when the run began and is {encoder.id} now; bring "
                "the first one back, or start another run with --out"
            )
        return encoder
