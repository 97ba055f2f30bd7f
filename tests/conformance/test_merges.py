"""What every merge must do. A new merge is covered by its row in the table and the weights it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.methods import CARDS
from backend.schemas.weights import Compression
from tests.ml.merging import made, taught
from tests.ml.teaching import everything, same
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, TextEdit, TokenRows, text_kv
from worker.ml.errors import InputInvalid, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.merges import MERGES, Merged, MergeInput
from worker.ml.methods.base import NotAdditive
from worker.ml.readers import reader_of
from worker.ml.run import Cancelled, InProcessRun
from worker.ml.streams import rng

PARAMS: dict[str, dict[str, Any]] = {
    "closed-form": {"captions": 200},
    "ties": {"density": 1.0},
    "dare": {"drop": 0.0},
    "gradient-fusion": {"captions": 200, "ridge": 1e-12, "hold": 0.0},
}
WORDS = (("stark", "dog"), ("mimi", "cat"))
TEXTS = ("a photo of a <stark> dog", "a photo of a <mimi> cat", "photo")
NOISY = (torch.randn(1, 4, 8, 8, generator=rng(0, "noisy", 0)), torch.tensor([400]))


@dataclass
class Case:
    """A merge with two weights of a kind that it takes."""

    name: str
    model: DiffusionModel
    inputs: list[MergeInput]
    result: Merged

    def merged(self, *inputs: MergeInput, run: InProcessRun | None = None) -> Merged:
        params = MERGE_CARDS[self.name].params_type(**PARAMS.get(self.name, {}))
        return MERGES[self.name].merge(self.model, inputs, params, run or InProcessRun())

    def predicted(self, text: str, weights: ConceptWeights, scale: float = 1.0) -> Tensor:
        reader = reader_of(weights)
        edit, installation = reader.edit(self.model, weights), reader.installation(self.model, weights)
        with installed(self.model, ((installation, scale),) if installation else ()), torch.no_grad():
            return self.model.predict(*NOISY, text_kv(self.model, [Prompt(text, ((edit, scale),))]))


def inputs_for(
    model: DiffusionModel, takes: str, folder: Path, photos: list[Path], *, seed: int = 3
) -> list[ConceptWeights]:
    """One a word, of a kind that a merge takes."""
    match takes:
        case "text-kv" | "additive" | "linear-layers":
            return [made(model, token, noun, seed=seed + at) for at, (token, noun) in enumerate(WORDS)]
        case "lora":
            return [
                made(model, token, noun, method="lora", seed=seed + at)
                for at, (token, noun) in enumerate(WORDS)
            ]
    return [
        taught(model, token, noun, folder, photos, takes, seed=seed + at, steps=3)
        for at, (token, noun) in enumerate(WORDS)
    ]


@pytest.fixture(scope="module", params=sorted(MERGES))
def case(
    request: pytest.FixtureRequest,
    model: DiffusionModel,
    photos: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    folder = tmp_path_factory.mktemp("merge")
    own = inputs_for(model, MERGE_CARDS[request.param].takes, folder, photos)
    inputs = [MergeInput(f"weights-{at}", each) for at, each in enumerate(own)]
    found = Case(request.param, model, inputs, None)  # type: ignore[arg-type]
    before = everything(model)
    found.result = found.merged(*inputs)
    assert same(before, everything(model))
    return found


def test_the_table_is_the_cards() -> None:
    assert MERGES.keys() == MERGE_CARDS.keys()
    assert all(merge.name == name for name, merge in MERGES.items())


def test_the_report_names_what_went_in_and_is_verified(case: Case) -> None:
    report, manifest = case.result.report, case.result.weights.manifest
    assert report.verified, report.failures
    assert report.merge == case.name == manifest.merge
    assert [each.id for each in report.inputs] == manifest.parents == ["weights-0", "weights-1"]
    assert [token.token for token in manifest.tokens] == ["stark", "mimi"]
    assert report.sites
    assert all(site.change >= 0 for site in report.sites)
    if MERGE_CARDS[case.name].makes == "text":
        assert manifest.side == "text"


def test_scale_zero_is_the_base_model_to_the_bit(case: Case) -> None:
    edit = reader_of(case.result.weights).edit(case.model, case.result.weights)
    starts = TextEdit({name: TokenRows(rows.start, rows.start) for name, rows in edit.tokens.items()}, {})
    for text in TEXTS:
        with torch.no_grad():
            base = case.model.predict(*NOISY, text_kv(case.model, [Prompt(text, ((starts, 1.0),))]))
        assert torch.equal(case.predicted(text, case.result.weights, 0.0), base)
        assert not torch.equal(case.predicted(text, case.result.weights), base)


def test_merged_weights_survive_the_file(case: Case, tmp_path: Path) -> None:
    case.result.weights.save(tmp_path / "w.safetensors")
    loaded = ConceptWeights.load(tmp_path / "w.safetensors")
    assert loaded.manifest == case.result.weights.manifest
    assert torch.equal(case.predicted(TEXTS[0], loaded), case.predicted(TEXTS[0], case.result.weights))


def test_the_same_inputs_make_the_same_file(case: Case) -> None:
    assert case.merged(*case.inputs).weights.to_bytes() == case.result.weights.to_bytes()


def test_deltas_agree_with_the_models_output(case: Case) -> None:
    weights, model = case.result.weights, case.model
    reader = reader_of(weights)
    deltas = reader.deltas(model, weights)
    if isinstance(deltas, NotAdditive):
        return
    assert {site.name for site in model.sites()} >= deltas.keys()
    words = TextEdit(reader.edit(model, weights).tokens, {})
    added = {model.denoiser.get_parameter(f"{name}.weight"): delta for name, delta in deltas.items()}
    before = {parameter: parameter.clone() for parameter in added}
    try:
        with torch.no_grad():
            for parameter, delta in added.items():
                parameter.add_(delta.reshape(parameter.shape))
            direct = model.predict(*NOISY, text_kv(model, [Prompt(TEXTS[0], ((words, 1.0),))]))
    finally:
        with torch.no_grad():
            for parameter, kept in before.items():
                parameter.copy_(kept)
    torch.testing.assert_close(case.predicted(TEXTS[0], weights), direct, atol=2e-5, rtol=1e-4)


def test_one_input_alone_is_read_as_itself(case: Case) -> None:
    """At its own words: keys and values from V* to the end of its caption."""
    own = case.inputs[0]
    alone = case.merged(own)
    assert alone.report.verified, alone.report.failures
    text, model = "photo of a <stark> dog", case.model
    if not any(token.class_noun for token in own.weights.manifest.tokens):
        text = "photo of a <stark>"
    virtual = {"stark": range(model.vocabulary_size, model.vocabulary_size + 1)}
    ids = model.token_ids(text, virtual)
    here = slice(ids.index(model.vocabulary_size), ids.index(model.token_ids("", {})[1]) + 1)

    def read(weights: ConceptWeights) -> Tensor:
        reader = reader_of(weights)
        installation = reader.installation(model, weights)
        with installed(model, ((installation, 1.0),) if installation else ()), torch.no_grad():
            kv = text_kv(model, [Prompt(text, ((reader.edit(model, weights), 1.0),))]).kv
        return torch.cat([each[0, here].flatten() for each in kv.keys + kv.values])

    torch.testing.assert_close(read(alone.weights), read(own.weights), atol=1e-5, rtol=1e-4)


def test_another_base_is_refused(case: Case, v_model: DiffusionModel) -> None:
    with pytest.raises(WeightsInvalid, match="were trained on"):
        MERGES[case.name].merge(v_model, case.inputs, MERGE_CARDS[case.name].params_type(), InProcessRun())


def test_a_cancel_acts(case: Case) -> None:
    with pytest.raises(Cancelled):
        case.merged(*case.inputs, run=InProcessRun(request="cancel"))


def test_made_smaller_they_are_still_that_merge(case: Case, tmp_path: Path) -> None:
    """Cut by nothing they predict the same; cut further they are off by more, the smaller the file; a file that has
    nothing to cut is refused in words.
    """
    weights, run = case.result.weights, InProcessRun()

    def cut(criterion: Any, value: float, precision: Any, of: ConceptWeights = weights) -> ConceptWeights:
        wanted = Compression(criterion=criterion, value=value, precision=precision)
        found = compress(case.model, of, wanted, "merged", run)
        file = tmp_path / f"{criterion}-{value}-{precision}-{len(list(tmp_path.iterdir()))}"
        found.weights.save(file)
        assert found.report.bytes_after == file.stat().st_size
        return ConceptWeights.load(file)

    if (card := CARDS.get(weights.manifest.method)) is not None and card.small_already:
        with pytest.raises(InputInvalid, match=card.small_already):
            cut("rank", 1, "float32")
        return
    same_change = cut("energy", 1.0, "float32")
    assert (same_change.manifest.merge, same_change.manifest.parents) == (case.name, ["merged"])
    for text in TEXTS:
        torch.testing.assert_close(
            case.predicted(text, same_change), case.predicted(text, weights), atol=1e-5, rtol=1e-4
        )
    whole = reader_of(weights).deltas(case.model, weights)

    def off(other: ConceptWeights) -> float:
        found = reader_of(other).deltas(case.model, other)
        return sum(float((found[name] - whole[name]).norm()) for name in found) / sum(
            float(each.norm()) for each in whole.values()
        )

    most, few = cut("rank", 4, "int8"), cut("rank", 2, "int8")
    assert len(few.to_bytes()) < len(most.to_bytes()) < len(weights.to_bytes())
    assert 0 < off(most) < off(few) < 1
    assert off(cut("rank", 2, "float32")) == pytest.approx(off(few), abs=0.01)
    again = cut("rank", 2, "int8", most)
    assert off(again) == pytest.approx(off(few), abs=0.02)
    budget = len(few.to_bytes())
    assert len(cut("bytes", budget, "float16").to_bytes()) <= budget
    assert not any(name for name in cut("token-only", 0, "float16").tensors if not name.startswith("token."))
