"""The closed-form merge on a tiny base: words keep what they learned, and what cannot be merged is said in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.schemas.merges.closed_form import ClosedFormParams
from tests.ml.merging import key_value, made, taught
from worker.ml.caption_factor import HeldTexts, caption_factor, caption_ids, corpus_notes, held_states
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.constraint_rows import of_states
from worker.ml.errors import InputInvalid, MethodUnsupported, WeightsInvalid
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, Merged, MergeInput
from worker.ml.placeholders import placeholders
from worker.ml.readers import reader_of
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.streams import rng

CAPTIONS = 300


def merged(model: DiffusionModel, *inputs: MergeInput, **params: object) -> Merged:
    chosen = ClosedFormParams.model_validate({"captions": CAPTIONS, **params})
    return MERGES["closed-form"].merge(model, inputs, chosen, InProcessRun())


def read(model: DiffusionModel, text: str, *inputs: MergeInput) -> tuple[Tensor, ...]:
    """Keys and values of ``text`` with the weights in use."""
    edits = tuple((reader_of(each.weights).edit(model, each.weights), each.scale) for each in inputs)
    with torch.no_grad():
        kv = text_kv(model, [Prompt(text, edits)]).kv
    return kv.keys + kv.values


def words_off(model: DiffusionModel, result: Merged, text: str, *own: MergeInput, first: int) -> float:
    """How far keys and values of the words of ``text``, from position ``first`` to the end of text, are from the
    concept's own, as a share of what it changed.
    """
    virtual = {name: range(model.vocabulary_size, model.vocabulary_size + 1) for name in placeholders(text)}
    last = model.token_ids(text, virtual).index(model.token_ids("", {})[1]) + 1
    both = read(model, text, MergeInput("m", result.weights)), read(model, text, *own)
    off = max(
        float((here[0, first:last] - there[0, first:last]).abs().max())
        for here, there in zip(*both, strict=True)
    )
    size = max(float(there.abs().max()) for there in both[1])
    return off / size


@pytest.fixture(scope="module")
def dog(model: DiffusionModel) -> MergeInput:
    return MergeInput("dog-weights", made(model, "stark", "dog", seed=1))


@pytest.fixture(scope="module")
def cat(model: DiffusionModel) -> MergeInput:
    return MergeInput("cat-weights", made(model, "mimi", "cat", seed=2))


def test_words_keep_the_keys_and_values_they_learned(
    model: DiffusionModel, dog: MergeInput, cat: MergeInput
) -> None:
    result = merged(model, dog, cat)
    assert result.report.verified, result.report.failures
    assert result.report.rank == result.report.constraint_rows == 12
    assert words_off(model, result, "photo of a <stark> dog", dog, first=4) < 1e-5
    assert words_off(model, result, "photo of a <mimi> cat", cat, first=4) < 1e-5
    assert words_off(model, result, "<stark> dog", dog, first=1) < 1e-5
    simply_both = words_off(model, result, "photo of a <stark> dog", dog, cat, first=4)
    assert simply_both > 1e-2
    manifest = result.weights.manifest
    assert (manifest.method, manifest.merge, manifest.side) == ("closed-form", "closed-form", "text")
    assert manifest.parents == ["dog-weights", "cat-weights"]
    assert [token.token for token in manifest.tokens] == ["stark", "mimi"]


def test_in_company_words_keep_what_they_learned_behind_another_subject_too(
    model: DiffusionModel, dog: MergeInput, cat: MergeInput
) -> None:
    """From the row of V* to the noun; without it those rows are another thing than the concept makes of them."""
    alone, together = merged(model, dog, cat), merged(model, dog, cat, company=True)
    assert together.report.verified, together.report.failures
    assert together.report.rank == together.report.constraint_rows == 12 + 2 * 2
    for text, own in (
        ("photo of a <mimi> cat and a <stark> dog", dog),
        ("photo of a <stark> dog and a <mimi> cat", cat),
    ):
        assert behind_off(model, together, text, own) < 1e-5
        assert behind_off(model, alone, text, own) > 1e-2
    assert words_off(model, together, "photo of a <stark> dog", dog, first=4) < 1e-5
    assert words_off(model, together, "photo of a <mimi> cat", cat, first=4) < 1e-5
    back = merged(model, cat, dog, company=True)
    states = torch.randn(5, model.cross_attention()[0].key.weight.shape[1], generator=rng(3, "states", 0))
    for name in key_value(model):
        here, there = (changed(model, each, name, states) for each in (together, back))
        assert torch.allclose(here, there, atol=1e-5 * float(here.abs().max()))


def test_in_company_nobody_stands_alone(model: DiffusionModel, dog: MergeInput) -> None:
    """One subject has no company, and a style is no subject: the switch does nothing there."""
    ink = made(model, "ink", "art", seed=9)
    words = [word.model_copy(update={"kind": "style"}) for word in ink.manifest.tokens]
    style = MergeInput("ink", replace(ink, manifest=ink.manifest.model_copy(update={"tokens": words})))
    for inputs in ([dog], [dog, style]):
        alone, together = (merged(model, *inputs, company=company).report for company in (False, True))
        assert together.constraint_rows == alone.constraint_rows


def behind_off(model: DiffusionModel, result: Merged, text: str, own: MergeInput) -> float:
    """How far what the merge adds at the last word and its noun is from what the concept adds there, as a share."""
    words = reader_of(result.weights).edit(model, result.weights).tokens
    virtual, table = {}, []
    for name in placeholders(text):
        virtual[name] = range(model.vocabulary_size + len(table), model.vocabulary_size + len(table) + 1)
        table.append(words[name].learned)
    ids = model.token_ids(text, virtual)
    end = ids.index(model.token_ids("", {})[1])
    states = model.encode_prompts(torch.tensor([ids]), torch.cat(table)).states[0, end - 2 : end]
    off = []
    for name in key_value(model):
        here, there = changed(model, result, name, states), changed(model, own, name, states)
        off.append(float((here - there).abs().max() / there.abs().max()))
    return max(off)


def changed(model: DiffusionModel, of: Merged | MergeInput, name: str, states: torch.Tensor) -> torch.Tensor:
    """What the weights add to the key or value of ``states``."""
    return of_states(reader_of(of.weights).edit(model, of.weights).sites[name], states.double())


def test_gates_factors_and_untrained_words_are_kept_as_well(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, dog: MergeInput
) -> None:
    """A gated Perfusion, a rank-one edit and a LoRA of one untaught word, and Textual Inversion, whose change is 0."""
    gated = MergeInput("gated", taught(model, "one", "cat", tmp_path, photos, "perfusion", steps=2))
    locked = MergeInput(
        "locked", taught(model, "four", "owl", tmp_path, photos, "perfusion", steps=2, locking="global")
    )
    word = MergeInput("word", made(model, "two", "teapot", method="textual-inversion", seed=5))
    for other, text, first in (
        (gated, "photo of a <one>", 4),
        (locked, "photo of a <four>", 4),
        (word, "photo of a <two> teapot", 4),
    ):
        result = merged(model, dog, other)
        assert result.report.verified, result.report.failures
        assert words_off(model, result, text, other, first=first) < 2e-5
        assert words_off(model, result, "photo of a <stark> dog", dog, first=4) < 2e-5


def test_words_that_nobody_taught_get_a_vector_of_their_own(model: DiffusionModel) -> None:
    """Two LoRA whose V* is the same rare token's row would contradict one another."""
    one = MergeInput("a", made(model, "one", "dog", method="lora", seed=3, learned_word=False))
    two = MergeInput("b", made(model, "two", "dog", method="lora", seed=4, learned_word=False))
    result = merged(model, one, two)
    assert result.report.verified, result.report.failures
    assert any("<two> stood for the same vector" in note for note in result.report.notes)
    assert words_off(model, result, "photo of a <one> dog", one, first=4) < 1e-5
    assert words_off(model, result, "photo of a <two> dog", two, first=4) < 1e-5
    again = MergeInput("a", one.weights, renames={"one": "same"})
    itself = merged(model, one, again)
    assert itself.report.verified
    assert itself.report.rank == merged(model, one).report.rank
    assert itself.report.notes == [
        "<one> of one of the weights is called <same> here, because another word has that name.",
        *corpus_notes(model),
    ]


def test_scales_move_the_word_and_the_change(model: DiffusionModel, dog: MergeInput, cat: MergeInput) -> None:
    half = MergeInput("half", dog.weights, scale=0.5)
    result = merged(model, half, cat)
    assert result.report.verified
    assert words_off(model, result, "photo of a <stark> dog", half, first=4) < 1e-5
    assert words_off(model, result, "photo of a <stark> dog", dog, first=4) > 1e-3


def test_drift_is_what_the_captions_move_by(model: DiffusionModel, dog: MergeInput, cat: MergeInput) -> None:
    """From the captions' own states, projected by the merged matrices: nothing of the algebra is used."""
    report = merged(model, dog, cat)
    edit = reader_of(report.weights).edit(model, report.weights)
    run = InProcessRun()
    ids = caption_ids(model, CAPTIONS, run)
    kept = [each for place, each in enumerate(ids) if (place + 1) % 10]
    texts = HeldTexts(CAPTIONS)
    rows = torch.cat([states for _, states in held_states(model, kept, texts)])
    out = torch.cat([states for _, states in held_states(model, ids[9::10], texts)])
    assert report.report.held_rows == len(rows)
    for layer in model.cross_attention():
        for site in (layer.key, layer.value):
            change, told = edit.sites[site.name].dense().double(), None
            told = next(each for each in report.report.sites if each.site == site.name)
            for states, number in (
                (rows, told.drift),
                (out, told.drift_held_out),
                (rows, told.drift_predicted),
            ):
                measured = (states @ change.T).norm() / (states @ site.weight.double().T).norm()
                assert number == pytest.approx(float(measured), rel=1e-4)


def test_start_token_and_padding_are_switches(
    model: DiffusionModel, dog: MergeInput, cat: MergeInput
) -> None:
    def start_moves(result: Merged) -> float:
        both = read(model, "photo", MergeInput("m", result.weights)), read(model, "photo")
        return sum(float((here[0, 0] - there[0, 0]).norm()) for here, there in zip(*both, strict=True))

    held, free = merged(model, dog, cat), merged(model, dog, cat, start_token=False, padding=0)
    assert start_moves(held) < 0.7 * start_moves(free)
    assert (held.report.held_rows or 0) > (free.report.held_rows or 0)


def test_words_before_the_word_are_averaged_where_wished(
    model: DiffusionModel, dog: MergeInput, cat: MergeInput
) -> None:
    result = merged(model, dog, cat, prefix=True)
    assert (result.report.constraint_rows, result.report.rank) == (18, 15)
    assert (result.report.inconsistency or 0) > 0.1
    assert any("contradict" in note for note in result.report.notes)
    assert result.report.verified, result.report.failures
    assert words_off(model, result, "photo of a <stark> dog", dog, first=4) < 1e-5


def test_two_weights_that_teach_one_noun_contradict_and_fail(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    both = [
        taught(
            model,
            token,
            "moongate",
            tmp_path,
            photos,
            "custom-diffusion",
            word="class-noun",
            seed=seed,
            steps=3,
        )
        for seed, token in enumerate(("one", "two"))
    ]
    result = merged(model, *(MergeInput(str(at), each) for at, each in enumerate(both)))
    assert not result.report.verified
    assert any(failure.startswith("The words are off by") for failure in result.report.failures)


def test_clashing_names_must_be_renamed_and_are_said(model: DiffusionModel, dog: MergeInput) -> None:
    other = made(model, "stark", "cat", seed=9)
    with pytest.raises(InputInvalid, match="Two of the weights call a word <stark>"):
        merged(model, dog, MergeInput("b", other))
    result = merged(model, dog, MergeInput("b", other, renames={"stark": "stark-2"}))
    assert result.report.inputs[1].renamed == {"stark": "stark-2"}
    assert (
        words_off(
            model,
            result,
            "<stark-2> cat",
            MergeInput("x", made(model, "stark-2", "cat", seed=9)),
            first=1,
        )
        < 1e-5
    )
    with pytest.raises(InputInvalid, match="do not teach"):
        merged(model, dog, MergeInput("b", other, renames={"strak": "x"}))


def test_what_cannot_be_merged_is_said(
    model: DiffusionModel, v_model: DiffusionModel, photos: list[Path], tmp_path: Path, dog: MergeInput
) -> None:
    with pytest.raises(WeightsInvalid, match="were trained on"):
        merged(model, dog, MergeInput("v", made(v_model, "vee", "dog")))
    layered = taught(
        model, "lay", "dog", tmp_path, photos, "textual-inversion", steps=1, per_layer=True, vectors=1
    )
    with pytest.raises(MethodUnsupported, match="another vector for every layer"):
        merged(model, dog, MergeInput("l", layered))
    around = taught(model, "aro", "dog", tmp_path, photos, "custom-diffusion", steps=1, train="crossattn")
    with pytest.raises(MethodUnsupported, match="more of the model than keys and values"):
        merged(model, dog, MergeInput("q", around))
    encoder = taught(
        model, "enc", "dog", tmp_path, photos, "lora", steps=1, attention="cross", text_encoder=True
    )
    with pytest.raises(MethodUnsupported, match="changes the text encoder"):
        merged(model, dog, MergeInput("e", encoder))
    with pytest.raises(InputInvalid, match="nothing to merge"):
        merged(model)


def test_more_words_than_dimensions_fail_their_proof(model: DiffusionModel) -> None:
    """The tiny encoder has 32 directions; eight concepts ask for 48."""
    many = [MergeInput(str(at), made(model, f"w{at}", "dog", seed=at)) for at in range(8)]
    report = merged(model, *many).report
    assert not report.verified
    assert (report.rank, report.constraint_rows) == (32, 48)


def test_the_factor_is_kept_and_a_damaged_one_is_made_again(tiny_folder: Path, tmp_path: Path) -> None:
    texts, run = HeldTexts(100), InProcessRun()

    def steps(cache: Path) -> int:
        counted: list[str] = []
        watched = InProcessRun(on_step=lambda unit, *_: counted.append(unit))
        fresh = load_base(tiny_folder, cache_dir=cache)
        first = caption_factor(fresh, texts, watched)
        assert caption_factor(fresh, texts, watched) is first
        return len(counted)

    assert steps(tmp_path) > 0
    assert steps(tmp_path) == 0
    (file,) = (tmp_path / "captions").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert steps(tmp_path) > 0
    other = load_base(tiny_folder, cache_dir=tmp_path)
    with torch.no_grad():
        next(other.text_encoder.parameters()).add_(1e-3)
    caption_factor(other, texts, run)
    assert len(list((tmp_path / "captions").iterdir())) == 2


def test_a_cancel_acts_while_captions_are_read(tiny_folder: Path, dog: MergeInput) -> None:
    run = InProcessRun(request="cancel")
    with pytest.raises(Cancelled):
        MERGES["closed-form"].merge(load_base(tiny_folder), [dog], ClosedFormParams(), run)
