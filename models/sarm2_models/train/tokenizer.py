"""The small tower's own tokenizer and the texts it learns from.

Byte-level pairs over a few hundred sentences: any text can be written in it, and what it has never seen falls
into short pieces. It is saved in the form that `transformers.AutoTokenizer` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sarm2_models.vocabulary import load_vocabulary, vocabulary_names

VOCABULARY_SIZE = 640
TEXT_LENGTH = 24
"""Tokens of a text; shorter ones are padded, longer ones cut."""

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"


def text_corpus(instructions: Sequence[str]) -> list[str]:
    """Instructions, the primitives of every vocabulary, and their names."""
    words = [load_vocabulary(name) for name in vocabulary_names()]
    texts = [*instructions]
    for vocabulary in words:
        texts += [*vocabulary.texts, *(name.replace("_", " ") for name in vocabulary.primitives)]
    return sorted({text.lower() for text in texts})


def make_tokenizer(texts: Sequence[str]) -> Any:
    """A tokenizer fitted on `texts`; the same texts give the same tokenizer."""
    core = Tokenizer(models.BPE(unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, core.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=TEXT_LENGTH,
        padding_side="right",
    )
