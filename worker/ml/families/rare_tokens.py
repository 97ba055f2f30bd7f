"""Which rows placeholders start from (methods.md 4, "Rare-token initialisation").

1. What the base model says itself (``placeholder_initialiser`` in ``moongate.json``): a word or a list of
   words, used in turn.
2. The paper's tokens where the vocabulary has them: ``ktn``, ``pll`` and ``ucd</w>`` of CLIP (ids 42170,
   47629, 43514), found by name: as strings they encode to several ids.
3. Else the rarest entries of the vocabulary. The paper counts tokens in 200 000 captions; without captions we
   take the order of byte-pair merges, which is the order of falling frequency: from the last entry down,
   letters only, at least two, and no part of another entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.ml.errors import BaseUnusable

WORD_END = "</w>"
PAPER = ("ktn", "pll", f"ucd{WORD_END}")


def initial_rows(tokenizer: Any, table: Tensor, count: int, told: str | list[str] | None) -> Tensor:
    """[count, d_embedding], copies of rows of ``table`` [vocabulary, d_embedding]; a told word of several
    pieces gives their mean.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if told:
        words = [told] if isinstance(told, str) else told
        return torch.stack(
            [_row_of_word(tokenizer, vocabulary, table, words[i % len(words)]) for i in range(count)]
        )
    names = [name for name in PAPER if name in vocabulary]
    if len(names) < count:
        names = rarest(vocabulary, set(tokenizer.all_special_tokens), count)
    return torch.stack([table[vocabulary[name]] for name in names[:count]]).clone()


def rarest(vocabulary: dict[str, int], special: set[str], count: int) -> list[str]:
    """Rule 3. Falls back to the last entries whatever they are when too few qualify."""
    entries = sorted((name for name in vocabulary if name not in special), key=lambda name: -vocabulary[name])
    bare = {name: name.removesuffix(WORD_END) for name in entries}
    everything = "\n".join(bare.values())
    fitting = [
        name
        for name in entries
        if len(bare[name]) >= 2
        and bare[name].isascii()
        and bare[name].isalpha()
        and everything.count(bare[name]) == 1
    ]
    chosen = (fitting + [name for name in entries if name not in set(fitting[:count])])[:count]
    if len(chosen) < count:
        raise BaseUnusable("The vocabulary of the base model is too small for placeholders.")
    return chosen


def _row_of_word(tokenizer: Any, vocabulary: dict[str, int], table: Tensor, word: str) -> Tensor:
    for name in (word, word + WORD_END):
        if name in vocabulary:
            return table[vocabulary[name]].clone()
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BaseUnusable("placeholder_initialiser in moongate.json names no token.")
    return table[torch.tensor(ids, device=table.device)].mean(dim=0)
