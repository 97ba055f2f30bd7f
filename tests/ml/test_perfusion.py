"""Perfusion: where it starts, what is locked, what is left alone, and what its file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.schemas.generations import Gate
from tests.ml.teaching import prepare, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, TextKV, text_kv
from worker.ml.errors import InputInvalid, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.gates import gated_change
from worker.ml.methods import METHODS, ConceptExamples, with_gate
from worker.ml.methods.perfusion import BEGINNINGS
from worker.ml.run import InProcessRun
from worker.ml.text_statistics import placeholder_state, word_state
from worker.ml.training.loop import Progress, advance
from worker.ml.training.trainee import Trainee

METHOD = METHODS["perfusion"]
TEXT = "a photo of a <stark> on the beach"


def prepared(model: DiffusionModel, concepts: list[ConceptExamples], **params: Any) -> Trainee:
    return prepare(model, concepts, Path("no-prior"), method="perfusion", **params)


def taught(model: DiffusionModel, photos: list[Path], **params: Any) -> ConceptWeights:
    """Fast enough that the word is another one after six steps."""
    fast = {"token_learning_rate": 0.1, "key_decay": 0.5} | params
    return teach(model, [stark(photos)], Path("no-prior"), method="perfusion", **fast)


def read(model: DiffusionModel, weights: ConceptWeights, *texts: str, negative: bool = False) -> TextKV:
    edit = METHOD.edit(model, weights)
    return text_kv(model, [Prompt(text, ((edit, 1.0),), negative) for text in texts]).kv


def plain(model: DiffusionModel, *texts: str) -> TextKV:
    return text_kv(model, [Prompt(text) for text in texts]).kv


def equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_trained_are_the_word_and_the_values_it_stands_for(model: DiffusionModel, photos: list[Path]) -> None:
    """T3. No key has a gradient; key and dual follow without one."""
    trainee = prepared(model, [stark(photos)])
    values = {layer.value.name: len(layer.value.weight) for layer in model.cross_attention()}
    assert {name: tuple(tensor.shape) for name, tensor in trainee.tensors().items()} == {
        "learned.stark": (1, 32),
        **{f"target.stark.{name}": (1, out) for name, out in values.items()},
    }
    assert {name: tensor.requires_grad for name, tensor in trainee.followers.items()} == {
        "key.stark": False,
        "dual.stark": False,
    }
    assert [group.learning_rate for group in trainee.groups] == [0.03, 0.006]


def test_at_the_start_the_class_state_is_read_as_ever(model: DiffusionModel, photos: list[Path]) -> None:
    """With the gate wide open ``h(i*) = W i*``, and i* is the class word's state: T1."""
    edit = METHOD.edit(
        model, prepared(model, [stark(photos)], draw_bias=0.0, draw_temperature=0.05).result(0)
    )
    state = word_state(model, BEGINNINGS, "dog")[None]
    for layer in model.cross_attention():
        for site in (layer.key, layer.value):
            changed = gated_change(state, site.weight, [(edit.gated[site.name], 1.0)])
            torch.testing.assert_close(changed, torch.zeros_like(changed), atol=1e-4, rtol=0)


def test_the_words_own_key_is_the_class_words(model: DiffusionModel, photos: list[Path]) -> None:
    """Local: at the key i* itself the key is the gate times ``W_K`` of the class word's state."""
    weights = taught(model, photos)
    edit = METHOD.edit(model, weights)
    state = word_state(model, BEGINNINGS, "dog")
    assert torch.equal(weights.tensors["token.stark.class_state"], state[None])
    for layer in model.cross_attention():
        gated = edit.gated[layer.key.name]
        torch.testing.assert_close(gated.targets, state[None] @ layer.key.weight.T)
        assert float(gated.gates(gated.keys)) == pytest.approx(torch.sigmoid(torch.tensor(0.3 / 0.15)).item())


def test_globally_locked_keys_are_those_of_the_class_prompt(
    model: DiffusionModel, photos: list[Path]
) -> None:
    """To the bit, at every position, in one batch with a prompt of nobody; values are the word's."""
    weights = taught(model, photos, locking="global")
    found = read(model, weights, TEXT, "a cat")
    expected = plain(model, TEXT.replace("<stark>", "dog"), "a cat")
    assert equal(found.keys, expected.keys)
    assert not any(
        torch.allclose(a[0], b[0], atol=1e-3) for a, b in zip(found.values, expected.values, strict=True)
    )
    local = METHOD.edit(model, taught(model, photos))
    assert not equal(
        text_kv(model, [Prompt(TEXT, ((local, 1.0),))]).kv.keys, (found.keys[0][:1], *found.keys[1:])
    )


def test_other_prompts_keep_their_bits(model: DiffusionModel, photos: list[Path]) -> None:
    """Rows without the concept, its negative prompt, and scale 0."""
    weights = taught(model, photos)
    edit = METHOD.edit(model, weights)
    negative = read(model, weights, "", "snow", negative=True)
    untouched = plain(model, "", "snow")
    assert equal(negative.keys + negative.values, untouched.keys + untouched.values)
    both = text_kv(model, [Prompt(TEXT, ((edit, 1.0),)), Prompt("a cat"), Prompt("a cat", ((edit, 0.0),))]).kv
    alone = plain(model, "a cat")
    for ours, theirs in zip(both.keys + both.values, alone.keys + alone.values, strict=True):
        torch.testing.assert_close(ours[1:], theirs.expand(2, -1, -1), atol=1e-6, rtol=1e-6)


def test_words_unlike_the_key_are_read_as_the_gate_promises(
    model: DiffusionModel, photos: list[Path]
) -> None:
    """``W e - (k.e / n2) W i* + gate o*`` for every token of a prompt of others."""
    weights = taught(model, photos)
    key, dual = (weights.tensors[f"token.stark.{part}"][0] for part in ("key", "dual"))
    found = read(model, weights, "a cat on the beach")
    states = model.encode_prompts(torch.tensor([model.token_ids("a cat on the beach", {})]), None).states
    nearness = states[0] @ dual / (key @ dual)
    gate = torch.sigmoid((nearness - 0.7) / 0.15)
    for layer, values in zip(model.cross_attention(), found.values, strict=True):
        weight = layer.value.weight
        target = weights.tensors[f"site.{layer.value.name}.target"][0]
        expected = states[0] @ weight.T - torch.outer(nearness, weight @ key) + torch.outer(gate, target)
        torch.testing.assert_close(values[0], expected, atol=1e-4, rtol=1e-4)


def test_the_key_is_the_moving_average_of_the_words_state(model: DiffusionModel, photos: list[Path]) -> None:
    trainee = prepared(model, [stark(photos)], key_decay=0.9, token_learning_rate=0.05)
    progress = Progress(trainee)
    expected = trainee.followers["key.stark"].clone()
    sentences = [f"{beginning} <stark>" for beginning in BEGINNINGS]
    for _ in range(3):
        advance(model, [progress], InProcessRun())
        state = placeholder_state(model, sentences, "stark", trainee.tensors()["learned.stark"].detach())
        expected = 0.9 * expected + 0.1 * state
        torch.testing.assert_close(trainee.followers["key.stark"], expected)
    solved = prepared(model, [stark(photos)])
    first = solved.followers["dual.stark"] @ solved.followers["key.stark"].T
    moved = trainee.followers["dual.stark"] @ trainee.followers["key.stark"].T
    assert float(first) > 0
    assert float(moved) > 0
    assert not torch.equal(solved.followers["dual.stark"], trainee.followers["dual.stark"])


def test_a_noun_is_needed_and_its_last_piece_is_the_start(model: DiffusionModel, photos: list[Path]) -> None:
    with pytest.raises(InputInvalid, match="class noun"):
        prepared(model, [ConceptExamples("gate", "", "subject", photos)])
    pieces = model.word_rows("warthog")
    assert len(pieces) > 1
    weights = prepared(model, [ConceptExamples("pig", "warthog", "subject", photos)]).result(0)
    assert torch.equal(weights.tensors["token.pig.start"], pieces[-1:])
    style = prepared(model, [ConceptExamples("ink", "", "style", photos)])
    assert torch.equal(style.tensors()["learned.ink"], model.word_rows("painting")[-1:])
    assert all("in the style of <ink>" in prompt.text for prompt in style.rows(0).prompts)


def test_two_words_learned_together_have_a_key_and_a_row_each(
    model: DiffusionModel, photos: list[Path]
) -> None:
    concepts = [stark(photos), ConceptExamples("bell", "teapot", "subject", photos)]
    weights = teach(model, concepts, Path("no-prior"), method="perfusion")
    site = model.cross_attention()[0].value.name
    assert len(weights.tensors[f"site.{site}.target"]) == 2
    edit = METHOD.edit(model, weights)
    alone = METHOD.edit(model, taught(model, photos))
    prompt = "a photo of a <stark> and a <bell>"
    assert text_kv(model, [Prompt(prompt, ((edit, 1.0),))]).kv.keys[0].isfinite().all()
    apart = Prompt("a photo of a <stark>", ((alone, 1.0), (replace(edit, tokens={}), 0.5)))
    assert text_kv(model, [apart]).kv.values[0].isfinite().all()


def test_the_file_holds_five_rows_and_one_value_a_site(model: DiffusionModel, photos: list[Path]) -> None:
    """Locked keys follow from the class state: half of the paper's 100 kB on SD 1.x, 4 (12,480 + 5 x 768) = 65 kB."""
    weights = taught(model, photos)
    numbers = sum(tensor.numel() for tensor in weights.tensors.values())
    assert numbers == 5 * 32 + sum(len(layer.value.weight) for layer in model.cross_attention())
    assert 4 * (12_480 + 5 * 768) < 100_000


def _without(name: str) -> Callable[[ConceptWeights], dict[str, Any]]:
    return lambda weights: {k: v for k, v in weights.tensors.items() if k != name}


def _other(
    name: str, made: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[ConceptWeights], dict[str, Any]]:
    return lambda weights: {**weights.tensors, name: made(weights.tensors[name])}


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (_without("token.stark.dual"), "each once"),
        (_other("token.stark.key", lambda t: t[:, :5]), "shape"),
        (_other("token.stark.dual", lambda t: -t), "do not go together"),
        (_other("token.stark.dual", lambda t: 0 * t), "do not go together"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    model: DiffusionModel, photos: list[Path], spoiled: Callable[[ConceptWeights], dict[str, Any]], words: str
) -> None:
    weights = prepared(model, [stark(photos)]).result(0)
    with pytest.raises(WeightsInvalid, match=words):
        METHOD.edit(model, ConceptWeights(weights.manifest, spoiled(weights)))


def test_the_gate_may_be_another_one_when_pictures_are_drawn(
    model: DiffusionModel, photos: list[Path]
) -> None:
    weights = prepared(model, [stark(photos)]).result(0)
    assert with_gate(weights, None) is weights
    edit = METHOD.edit(model, with_gate(weights, Gate(bias=0.4, temperature=0.2)))
    assert {(float(gated.bias), float(gated.temperature)) for gated in edit.gated.values()} == {(0.4, 0.2)}
    other = prepare(model, [stark(photos)], Path("no-prior"), method="rank-one").result(0)
    with pytest.raises(InputInvalid, match="no gate"):
        with_gate(other, Gate(bias=0.4, temperature=0.2))


def test_parameters_of_another_method_are_refused(model: DiffusionModel, photos: list[Path]) -> None:
    weights = prepared(model, [stark(photos)]).result(0)
    other = weights.manifest.model_copy(update={"params": {"draw_temperature": 0.0}})
    with pytest.raises(WeightsInvalid, match="not Perfusion's"):
        METHOD.edit(model, ConceptWeights(other, weights.tensors))
