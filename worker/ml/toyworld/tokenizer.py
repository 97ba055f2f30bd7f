"""The tokenizer: byte-pair encoding in CLIP's format, trained on captions (stack.md 1.4).

Vocabulary in CLIP's order: 256 byte symbols, the same with the end-of-word suffix, one entry a merge, start
token, end token. Any text encodes: bytes are the fallback. A few rare words get a token of their own although
no caption holds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer

from worker.ml.toyworld.world import RARE_TOKENS

POSITIONS = 40
START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"


def train_tokenizer(captions: Iterable[str], vocabulary: int = 1000) -> CLIPTokenizer:
    """A `CLIPTokenizer` of at most ``vocabulary`` entries with ``POSITIONS`` positions."""
    blank = CLIPTokenizer()
    trained = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    trained.normalizer = blank.backend_tokenizer.normalizer
    trained.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(_byte_symbols())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=alphabet,
        end_of_word_suffix=SUFFIX,
        show_progress=False,
        min_frequency=2,
    )
    corpus = [*captions, *(" ".join([word] * 3) for word in RARE_TOKENS * 3)]
    trained.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    entries = [
        *alphabet,
        *(symbol + SUFFIX for symbol in alphabet),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    ids = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(
        vocab=ids,
        merges=merges,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=POSITIONS,
    )


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + number) for number in range(len(hidden))]


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of ``texts``, padded to ``POSITIONS``. Raises ValueError for a text that is too long: nothing is
    cut.
    """
    rows: list[list[int]] = tokenizer(texts, padding="max_length")["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > POSITIONS:
            raise ValueError(f"{len(row)} tokens: {text}")
    return rows


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write ``tokenizer/`` of a diffusers folder, with the two files older programs read as well."""
    tokenizer.save_pretrained(folder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(state["vocab"], ensure_ascii=False))
    merges = [" ".join(pair) if not isinstance(pair, str) else pair for pair in state["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
