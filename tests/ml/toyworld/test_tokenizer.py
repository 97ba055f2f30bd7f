"""The tokenizer: words of the world are short, rare words are one token, anything at all comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from worker.ml.toyworld.captions import caption
from worker.ml.toyworld.scenes import SpriteBank, sample_scene
from worker.ml.toyworld.tokenizer import POSITIONS, save_tokenizer, token_ids, train_tokenizer
from worker.ml.toyworld.world import NOUNS, RARE_TOKENS


@pytest.fixture(scope="module")
def folder(bank: SpriteBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    texts = [caption(sample_scene(bank, rng), rng) for _ in range(3000)]
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def test_words_of_the_world_and_rare_words_are_single_tokens(tokenizer: CLIPTokenizer) -> None:
    for word in [*RARE_TOKENS, *(word for noun in NOUNS for word in noun.split())]:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
    assert len({tokenizer(word)["input_ids"][1] for word in RARE_TOKENS}) == len(RARE_TOKENS)


@pytest.mark.parametrize(
    "text", ["a photo of a red dog on the beach", "Élan vital, 9 × 7!", "犬と猫", "🙂 qx"]
)
def test_any_text_comes_back(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_rows_are_padded_and_nothing_is_cut(tokenizer: CLIPTokenizer) -> None:
    rows = token_ids(tokenizer, ["", "a dog"])
    assert [len(row) for row in rows] == [POSITIONS, POSITIONS]
    assert rows[0][0] == tokenizer.bos_token_id
    assert set(rows[0][1:]) == {tokenizer.eos_token_id}
    with pytest.raises(ValueError, match="tokens"):
        token_ids(tokenizer, ["dog " * POSITIONS])


def test_older_programs_find_their_files(folder: Path) -> None:
    assert (folder / "merges.txt").read_text().startswith("#version")
    assert (folder / "vocab.json").exists()
