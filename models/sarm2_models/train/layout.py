"""Where a training run keeps what: one folder, readable by its names.

run.json                settings, finished stages and their seconds
data/SPLIT/             LeRobot v3.0 datasets (JPEG in parquet)
labels/TASK.json        both labels of a few episodes
index/SPLIT/            the same as flat arrays
tower/encoder/          the frozen tower, as `transformers` saves it; missing if one was given
embeddings/SPLIT.K.npy  embeddings, in shards
heads/VARIANT/          stage.safetensors, value.safetensors
calibration.json
report/                 report.json, ladder.png, curves.png, labels.png
bundle/                 the result
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sarm2_models.calibration import Calibration
from sarm2_models.config import RewardModelConfig, preset
from sarm2_models.device import check_device
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.reward_model import Statistics
from sarm2_models.train.corpus import Corpus, load_corpus
from sarm2_models.train.embed import load_embeddings
from sarm2_models.train.given_encoder import GivenEncoder
from sarm2_models.train.heads import Texts
from sarm2_models.train.plan import Split, TrainPlan, train_plan
from sarm2_models.train.variants import (
    Heads,
    Variant,
    coded_texts,
    load_heads,
    needs_tower,
    physical_count,
    simulator_embeddings,
    variant_config,
)
from sarm2_models.train.windows import Frames
from sarm2_models.vocabulary import Vocabulary, load_vocabulary

SHARDS = 4


@dataclass(frozen=True)
class RunFolder:
    """A training run's folder and settings; picklable, so that child processes can be given it.

    Attributes:
        given: the frozen encoder that it does not train itself, if any.
        device: where pictures are embedded, and tower and heads learn; a run may go on with another one.
    """

    root: Path
    plan: TrainPlan
    tasks: tuple[str, ...]
    seed: int
    given: GivenEncoder | None = None
    device: str = "cpu"

    @property
    def config(self) -> RewardModelConfig:
        """Sizes of the model that is trained."""
        sizes = preset(self.plan.model)
        return sizes if self.given is None else replace(sizes, embedding_dim=self.given.dim)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The plan's splits, in its order."""
        return tuple(self.plan.episodes)

    @property
    def vocabulary(self) -> Vocabulary:
        """Its vocabulary."""
        return load_vocabulary(self.config.vocabulary)

    @property
    def bundle(self) -> Path:
        """The finished bundle."""
        return self.root / "bundle"

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.root / "report"

    @property
    def tower(self) -> Path:
        """The frozen tower that the run trains."""
        return self.root / "tower" / "encoder"

    def dataset(self, split: Split) -> Path:
        """A split's LeRobot dataset."""
        return self.root / "data" / split

    def labels(self, task: str) -> Path:
        """A task's episodes that were labelled both ways."""
        return self.root / "labels" / f"{task}.json"

    def index(self, split: Split) -> Path:
        """A split's flat arrays."""
        return self.root / "index" / split

    def heads(self, variant: Variant) -> Path:
        """A variant's heads."""
        return self.root / "heads" / variant

    def shards(self, split: Split) -> list[Path]:
        """The embedding files of a split."""
        return [self.root / "embeddings" / f"{split}.{shard}.npy" for shard in range(SHARDS)]

    def settings(self) -> dict[str, Any]:
        """What must be equal for a run to be gone on with."""
        return {
            "plan": self.plan.to_dict(),
            "tasks": list(self.tasks),
            "seed": self.seed,
            # Its id alone: wherever it lies it is the same, and a report names no folder of a machine.
            "encoder": self.given.id if self.given else None,
        }

    # --- loading -----------------------------------------------------------------------------------

    def corpus(self, split: Split) -> Corpus:
        """A split's frames."""
        return load_corpus(self.index(split))

    def statistics(self) -> Statistics:
        """Of the training split's proprioceptive state."""
        corpus = self.corpus("train")
        return Statistics.fit([corpus.state_TS[corpus.frames(number)] for number in range(corpus.episodes)])

    def load_encoder(self) -> ImageTextEncoder:
        """The frozen encoder: the one given, or the tower."""
        return self.given.load(self.device) if self.given else ImageTextEncoder.load(self.tower, self.device)

    def texts(self, variant: Variant) -> Texts:
        """The texts as a variant reads them."""
        instructions = self.corpus("train").instructions
        if not needs_tower(variant):
            return coded_texts(self.vocabulary, instructions, self.config.embedding_dim)
        encoder = self.load_encoder()
        return Texts(encoder.encode_texts(self.vocabulary.texts), encoder.encode_texts(instructions))

    def frames(self, variant: Variant, split: Split) -> Frames:
        """A split's frames as a variant sees them."""
        corpus, config = self.corpus(split), variant_config(self.config, variant)
        dim = self.config.embedding_dim
        if variant == "ceiling":
            train = self.corpus("train")
            embeddings = simulator_embeddings(
                corpus, dim, Statistics.fit([train.simulator_TK[:, : physical_count(train)]])
            )
        elif variant == "state_only":
            embeddings = np.zeros((len(corpus), len(config.cameras), 1), dtype=np.float16)
            embeddings = np.broadcast_to(embeddings, (*embeddings.shape[:2], dim))
        else:
            embeddings = load_embeddings(self.shards(split))
        state_TS = self.statistics().standardise(corpus.state_TS)
        return Frames.of(corpus, embeddings, state_TS, config.window, self.device)

    def load_heads(self, variant: Variant) -> Heads:
        """A variant's trained heads."""
        return load_heads(self.heads(variant), variant_config(self.config, variant))

    def load_calibration(self) -> Calibration:
        """The model's calibration."""
        return Calibration.from_dict(json.loads((self.root / "calibration.json").read_text()))


def make_run(
    root: Path,
    plan_name: str,
    tasks: tuple[str, ...],
    seed: int,
    encoder: str | None = None,
    device: str = "cpu",
) -> RunFolder:
    """A run's folder by preset name; nothing is written yet.

    Args:
        encoder: a frozen one, as a folder or a name on the hub; by default the preset's. Without either a
            tower is trained.
        device: `cpu` or `cuda`.

    Raises:
        NotFound: an unknown preset, or no encoder there.
        InvalidInput: the encoder is a model of another kind, or there is no such device.
    """
    check_device(device)
    plan = train_plan(plan_name).for_tasks(len(tasks))
    source = encoder or plan.default_encoder
    return RunFolder(root, plan, tasks, seed, GivenEncoder.of(source) if source else None, device)
