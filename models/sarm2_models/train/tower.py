"""The small image tower: SigLIP-2's architecture, taught on simulator frames.

A sigmoid image-text loss alone teaches such a tower nothing about where things are: all frames of a task have
one instruction. What works is regression, from the pooled embedding of each view, of where tool, object and
goal are, of how gripper and joint stand, and of what is left of every stage. Targets are centred and scaled
*within* their task: across tasks nearly all of the variance is which task it is. Beside it: which task and
which primitive (weight .2 each), which patch holds the projected tool, object and goal and where inside it
(.3), and a sigmoid image-text loss (.1) for the text side. All heads of this training are thrown away; image
and text tower are kept.

Shapes: B pictures, C cameras, D embedding, L patches, R regression targets, Q projected points, P primitives,
N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipConfig, SiglipModel

from sarm2_models.encoder import ImageTextEncoder, round_to_half
from sarm2_models.train.checkpoints import TrainState, load_state, save_state
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.loop import CHECKPOINT_EVERY, Tick, learning_rate_factor, mixed_precision, silent
from sarm2_models.train.plan import TowerPlan
from sarm2_models.train.targets import TowerTargets
from sarm2_models.train.tokenizer import END, PAD, TEXT_LENGTH, make_tokenizer, text_corpus
from sarm2_models.vocabulary import Vocabulary

LOGIT_SCALE, LOGIT_BIAS = 10.0, -10.0
"""Where the sigmoid loss starts (SigLIP, arXiv 2303.15343, section 3.2)."""


def build_tower(plan: TowerPlan, tokenizer: Any) -> SiglipModel:
    """An untrained tower for `tokenizer`."""
    sizes = {
        "hidden_size": plan.dim,
        "intermediate_size": 4 * plan.dim,
        "num_attention_heads": plan.attention_heads,
        # The exact form: on a CPU it takes a fifth of the time of SigLIP's approximation by a tanh.
        "hidden_act": "gelu",
    }
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        **sizes,
        **special,
        "bos_token_id": tokenizer.eos_token_id,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "num_hidden_layers": plan.text_layers,
        "projection_size": plan.dim,
    }
    vision = {
        **sizes,
        "image_size": plan.image_size,
        "patch_size": plan.patch_size,
        "num_hidden_layers": plan.layers,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(float(np.log(LOGIT_SCALE)))
        model.logit_bias.fill_(LOGIT_BIAS)
    return model


@dataclass(frozen=True)
class TowerOutput:
    """What the heads say of a batch of pictures.

    Attributes:
        pooled_BD: the embedding.
        regression_BR: targets of each picture's view.
        tasks_BN, primitives_BP: logits.
        patches_BLQ3: per patch and point whether the point is here (logit), and its offset inside the patch.
    """

    pooled_BD: Tensor
    regression_BR: Tensor
    tasks_BN: Tensor
    primitives_BP: Tensor
    patches_BLQ3: Tensor


class TowerInTraining(nn.Module):
    """The tower and the heads that are thrown away afterwards.

    Args:
        tower: image and text tower.
        cameras: C; every view has its own regression.
        targets: R. points: Q. tasks: how many. primitives: P.
    """

    def __init__(
        self, tower: SiglipModel, cameras: int, targets: int, points: int, tasks: int, primitives: int
    ) -> None:
        super().__init__()
        self.tower = tower
        dim = tower.config.vision_config.hidden_size
        self.regress = nn.Linear(dim, cameras * targets)
        self.classify = nn.Linear(dim, tasks)
        self.name = nn.Linear(dim, primitives)
        self.patch = nn.Linear(dim, points * 3)
        self.cameras, self.targets, self.points = cameras, targets, points

    def forward(self, images_BHWC: Tensor, camera_B: Tensor) -> TowerOutput:
        """uint8 pictures (B, H, W, 3) and the view of each."""
        pixels = images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        out = self.tower.vision_model(pixel_values=pixels)
        pooled_BD, patches_BLD = out.pooler_output, out.last_hidden_state
        by_view = self.regress(pooled_BD).view(-1, self.cameras, self.targets)
        return TowerOutput(
            pooled_BD=pooled_BD,
            regression_BR=by_view[torch.arange(len(camera_B), device=camera_B.device), camera_B],
            tasks_BN=self.classify(pooled_BD),
            primitives_BP=self.name(pooled_BD),
            patches_BLQ3=self.patch(patches_BLD).view(len(camera_B), -1, self.points, 3),
        )


@dataclass(frozen=True)
class TextSide:
    """The texts of the sigmoid loss: instructions first, then primitives; token ids (N, length)."""

    ids: Tensor
    tasks: int

    def matches(self, task_B: Tensor, primitive_B: Tensor) -> Tensor:
        """+1 where a text is true of a picture, -1 elsewhere: (B, N)."""
        signs = -torch.ones(len(task_B), len(self.ids), device=task_B.device)
        rows = torch.arange(len(task_B), device=task_B.device)
        signs[rows, task_B] = 1.0
        signs[rows, self.tasks + primitive_B] = 1.0
        return signs


def tower_loss(
    model: TowerInTraining, batch: dict[str, Tensor], text: TextSide, plan: TowerPlan
) -> tuple[Tensor, float]:
    """The weighted sum of all terms, and the regression term alone for the log."""
    with mixed_precision():
        out: TowerOutput = model(batch["images"], batch["camera"])
        texts_ND = model.tower.text_model(input_ids=text.ids).pooler_output
    weight_BR = batch["target_weight"]
    error_BR = (out.regression_BR.float() - batch["target"]).square()
    regression = (weight_BR * error_BR).sum() / weight_BR.sum().clamp_min(1.0)
    classified = functional.cross_entropy(out.tasks_BN.float(), batch["task"])
    named = functional.cross_entropy(out.primitives_BP.float(), batch["primitive"])
    dense = dense_loss(out.patches_BLQ3.float(), batch["patch"], batch["offset"], batch["visible"])
    signs_BN = text.matches(batch["task"], batch["primitive"])
    sigmoid = sigmoid_loss(model.tower, out.pooled_BD.float(), texts_ND.float(), signs_BN)
    total = regression + plan.classify * (classified + named) + plan.dense * dense + plan.text * sigmoid
    return total, float(regression.detach())


def dense_loss(patches_BLQ3: Tensor, patch_BQ: Tensor, offset_BQ2: Tensor, visible_BQ: Tensor) -> Tensor:
    """Cross entropy over patches for where each visible point is, and its offset inside the true patch."""
    logits_BQL = patches_BLQ3[..., 0].transpose(1, 2)
    place = functional.cross_entropy(logits_BQL.flatten(0, 1), patch_BQ.flatten(), reduction="none")
    index = patch_BQ[:, None, :, None].expand(-1, 1, -1, 2)
    offset = (patches_BLQ3[..., 1:].gather(1, index)[:, 0] - offset_BQ2).square().sum(-1)
    weight = visible_BQ.float()
    loss = weight * (place.view_as(weight) + 4.0 * offset)
    return loss.sum() / weight.sum().clamp_min(1.0)


def sigmoid_loss(tower: SiglipModel, images_BD: Tensor, texts_ND: Tensor, signs_BN: Tensor) -> Tensor:
    """SigLIP's pairwise loss with several true texts a picture, a mean over pictures."""
    logits = functional.normalize(images_BD, dim=-1) @ functional.normalize(texts_ND, dim=-1).T
    logits = logits * tower.logit_scale.exp() + tower.logit_bias
    return -functional.logsigmoid(signs_BN * logits).sum(-1).mean()


def train_tower(
    corpus: Corpus,
    vocabulary: Vocabulary,
    plan: TowerPlan,
    folder: Path,
    *,
    seed: int,
    tick: Tick = silent,
    device: str = "cpu",
    stop_after: int | None = None,
) -> ImageTextEncoder:
    """Train on every picture of `corpus`, drawn at random; returns the frozen encoder.

    The weights are rounded through float16 at the end, so that they can be stored in half the space exactly.

    Args:
        folder: where checkpoints go; one that is there is gone on from.
        device: where it learns.
        stop_after: give up after this many steps in all, keeping a checkpoint (for tests of resuming).
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(text_corpus(corpus.instructions))
    ids = _token_ids(tokenizer, [*corpus.instructions, *vocabulary.texts]).to(device)
    text = TextSide(ids, len(corpus.task_names))
    targets = TowerTargets.fit(corpus)
    model = TowerInTraining(
        build_tower(plan, tokenizer),
        len(corpus.cameras),
        targets.count,
        len(targets.points),
        len(corpus.task_names),
        len(vocabulary.primitives),
    ).to(device)
    scoring = model.tower.config._attn_implementation
    model.tower.set_attn_implementation("eager")  # the fastest to train: a picture is 36 tokens
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )
    state = TrainState(model, optimiser)
    path = folder / "tower.checkpoint.safetensors"
    model.train()
    for step in range(load_state(path, state), plan.steps):
        if stop_after is not None and step >= stop_after:
            save_state(path, state, step)
            break
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * learning_rate_factor(step, plan.steps)
        rng = np.random.default_rng([seed, 3, step])
        drawn = targets.batch(corpus, rng.integers(len(corpus), size=plan.batch), rng, plan.patch_size)
        batch = {name: values.to(device) for name, values in drawn.items()}
        loss, regression = tower_loss(model, batch, text, plan)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        state.average(0.98)
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < plan.steps:
            save_state(path, state, step + 1)
        tick(step + 1, plan.steps, f"loss {float(loss.detach()):.3f}, error {regression:.3f}")
    else:
        state.use_average()
        path.unlink(missing_ok=True)
    model.cpu()
    model.tower.set_attn_implementation(scoring)  # to the bit as the saved tower embeds
    round_to_half(model.tower)
    return ImageTextEncoder(model.tower, tokenizer)


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    ids: Tensor = tokenizer(
        [text.lower() for text in texts],
        padding="max_length",
        truncation=True,
        max_length=TEXT_LENGTH,
        return_tensors="pt",
    )["input_ids"]
    return ids


__all__ = [
    "END",
    "PAD",
    "TextSide",
    "TowerInTraining",
    "build_tower",
    "dense_loss",
    "sigmoid_loss",
    "train_tower",
]
