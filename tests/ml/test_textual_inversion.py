"""Textual Inversion: what is trained, where it starts, what captions say, and how long vectors may grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ml.teaching import prepare, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.errors import InputInvalid, PromptTooLong, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.taught_words import spread
from worker.ml.training.captions import without_noun
from worker.ml.training.loop import Progress, advance
from worker.ml.training.templates import OBJECT_TEMPLATES, STYLE_TEMPLATES
from worker.ml.training.trainee import Trainee

METHOD = METHODS["textual-inversion"]


def prepared(model: DiffusionModel, concepts: list[ConceptExamples], **params: Any) -> Trainee:
    return prepare(model, concepts, Path("no-prior"), method="textual-inversion", **params)


@pytest.mark.parametrize(
    ("vectors", "per_layer", "shape"), [(1, False, (1, 32)), (3, False, (3, 32)), (2, True, (4, 2, 32))]
)
def test_trained_are_the_rows_alone(
    model: DiffusionModel, photos: list[Path], vectors: int, per_layer: bool, shape: tuple[int, ...]
) -> None:
    """T3; and the rate is that of one photo times the batch, without decay."""
    trainee = prepared(
        model, [stark(photos)], vectors=vectors, per_layer=per_layer, batch_size=3, learning_rate=1e-3
    )
    assert {name: tuple(tensor.shape) for name, tensor in trainee.tensors().items()} == {
        "token.stark.learned": shape
    }
    (group,) = trainee.groups
    assert group.learning_rate == pytest.approx(3e-3)
    assert group.weight_decay == 0.0
    taught = trainee.result(0).manifest.tokens[0]
    assert (taught.vectors, len(taught.layers)) == (vectors, 4 if per_layer else 0)


@pytest.mark.parametrize("per_layer", [False, True])
def test_at_the_start_the_word_reads_as_the_initial_word(
    model: DiffusionModel, photos: list[Path], per_layer: bool
) -> None:
    """methods.md 1, test ii. "teapot" is given, the class noun is "dog"; five pieces in five vectors."""
    for word, vectors in (("teapot", 1), ("", 1), ("warthog", len(model.word_rows("warthog")))):
        weights = prepared(
            model, [stark(photos)], initial_word=word, vectors=vectors, per_layer=per_layer
        ).result(0)
        edit = METHOD.edit(model, weights)
        found = text_kv(model, [Prompt("a photo of the <stark> on the beach", ((edit, 1.0),))]).kv
        expected = text_kv(model, [Prompt(f"a photo of the {word or 'dog'} on the beach")]).kv
        for ours, theirs in zip(found.keys + found.values, expected.keys + expected.values, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_pieces_spread_over_vectors() -> None:
    pieces = torch.arange(3.0)[:, None].expand(3, 2)
    assert torch.equal(spread(pieces, 3), pieces)
    assert spread(pieces, 5)[:, 0].tolist() == [0, 0, 1, 1, 2]
    assert spread(pieces, 2)[:, 0].tolist() == [0.0, 1.5]
    assert spread(pieces, 1)[:, 0].tolist() == [1.0]


def test_without_a_noun_a_style_starts_from_painting_and_a_category_from_a_rare_token(
    model: DiffusionModel, photos: list[Path]
) -> None:
    concepts = [ConceptExamples("ink", "", "style", photos), ConceptExamples("gate", "", "subject", photos)]
    tensors = prepared(model, concepts).tensors()
    assert torch.equal(tensors["token.ink.learned"], model.word_rows("painting"))
    assert torch.equal(tensors["token.gate.learned"], model.initial_rows(2)[1:])


def test_a_word_that_reads_as_nothing_is_refused(model: DiffusionModel) -> None:
    with pytest.raises(InputInvalid, match="no word that this base model could read"):
        model.word_rows(" ")


def test_captions_are_the_papers_sentences_without_the_noun(
    model: DiffusionModel, photos: list[Path]
) -> None:
    assert (len(OBJECT_TEMPLATES), len(STYLE_TEMPLATES)) == (27, 19)
    concepts = [stark(photos), ConceptExamples("ink", "", "style", photos)]
    trainee = prepared(model, concepts, batch_size=4)
    texts = {prompt.text for step in range(160) for prompt in trainee.rows(step).prompts}
    sentences = {each.format("<stark>") for each in OBJECT_TEMPLATES} | {
        each.format("<ink>") for each in STYLE_TEMPLATES
    }
    assert texts == sentences
    assert [prompt.text for prompt in trainee.rows(5).prompts] == [
        prompt.text for prompt in trainee.rows(5).prompts
    ]
    plain = prepared(model, concepts, batch_size=4, templates=False)
    texts = {prompt.text for step in range(4) for prompt in plain.rows(step).prompts}
    assert texts == {"a photo of a <stark>", "a painting in the style of <ink>"}


def test_the_word_is_used_without_its_noun(model: DiffusionModel, photos: list[Path]) -> None:
    assert without_noun("a <stark> dog and a dog", "stark", "dog") == "a <stark> and a dog"
    assert without_noun("a <stark> dogfish", "stark", "dog") == "a <stark> dogfish"
    weights = prepared(model, [stark(photos)]).result(0)
    assert weights.manifest.tokens[0].class_noun == ""
    run = InProcessRun()
    teach(
        model,
        [stark(photos)],
        Path("no-prior"),
        method="textual-inversion",
        steps=1,
        run=run,
        previews=["a <stark> dog"],
    )
    assert {image.prompt for images in run.previews.values() for image in images} == {"a <stark>"}


@pytest.mark.parametrize(
    ("norm", "low", "high"), [("free", 1.5, 1e9), ("cap", 0.0, 1.2001), ("mean", 0.9999, 1.0001)]
)
def test_lengths_are_reported_and_held(
    model: DiffusionModel, photos: list[Path], norm: str, low: float, high: float
) -> None:
    run = InProcessRun()
    trainee = prepared(model, [stark(photos)], norm=norm, norm_cap=1.2, learning_rate=0.1, vectors=2)
    progress = Progress(trainee)
    for _ in range(6):
        advance(model, [progress], run)
    (learned,) = progress.tensors.values()
    lengths = torch.linalg.vector_norm(learned, dim=-1) / model.mean_row_norm()
    assert bool(((lengths >= low) & (lengths <= high)).all())
    assert trainee.measures()["token_norm"] == pytest.approx(float(lengths.detach().mean()), rel=1e-5)


def test_two_words_train_together_and_leave_each_other_alone(
    model: DiffusionModel, photos: list[Path]
) -> None:
    """A step whose only row is of the first word gives the other no gradient."""
    concepts = [stark(photos), ConceptExamples("wolf", "cat", "subject", photos)]
    progress = Progress(prepared(model, concepts, batch_size=1))
    before = progress.tensors["token.wolf.learned"].detach().clone()
    advance(model, [progress], InProcessRun())
    assert progress.tensors["token.wolf.learned"].grad is None
    assert torch.equal(before, progress.tensors["token.wolf.learned"])
    assert progress.tensors["token.stark.learned"].grad is not None


def test_a_caption_that_is_too_long_with_all_vectors_is_refused(
    model: DiffusionModel, photos: list[Path]
) -> None:
    prepared(model, [stark(photos)], vectors=8)
    with pytest.raises(PromptTooLong):
        prepare(
            model, [stark(photos)], Path("no-prior"), method="textual-inversion", vectors=8,
            previews=["a <stark> and a <stark> and a <stark>"],
        )  # fmt: skip


def test_weights_of_other_layers_or_with_sites_are_refused(model: DiffusionModel, photos: list[Path]) -> None:
    weights = prepared(model, [stark(photos)], per_layer=True).result(0)
    taught = weights.manifest.tokens[0]
    other = taught.model_copy(update={"layers": ["other", *taught.layers[1:]]})
    with pytest.raises(WeightsInvalid, match="other cross-attention layers"):
        METHOD.edit(
            model, ConceptWeights(weights.manifest.model_copy(update={"tokens": [other]}), weights.tensors)
        )
    fewer = taught.model_copy(update={"layers": taught.layers[1:]})
    short = weights.manifest.model_copy(update={"tokens": [fewer]})
    with pytest.raises(WeightsInvalid, match=r"not \[3, 1, d\]"):
        ConceptWeights(short, weights.tensors)
    with pytest.raises(WeightsInvalid, match="changes no site"):
        METHOD.edit(
            model, ConceptWeights(weights.manifest, {**weights.tensors, "site.conv_in.delta": torch.zeros(2)})
        )
