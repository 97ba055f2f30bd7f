"""What the forecast says from sketches, without a model, against the merge itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.closed_form import ClosedFormParams
from backend.schemas.merges.requests import MergeForecast
from backend.services.merge_forecast import forecast
from tests.ml.merging import made, taught
from worker.ml.caption_factor import HeldTexts, caption_factor
from worker.ml.concept_weights import ConceptWeights
from worker.ml.constraint_rows import Asked, read_sites, word_rows
from worker.ml.families.base import DiffusionModel
from worker.ml.least_change import whitened
from worker.ml.merges import MERGES, MergeInput
from worker.ml.merges.sketch import merge_sketch
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun

IDS = [f"019a0000-0000-7000-8000-00000000000{number}" for number in range(4)]


def sketched(model: DiffusionModel, weights: ConceptWeights) -> dict[str, object]:
    sketch = merge_sketch(model, weights)
    assert sketch is not None
    kept: dict[str, object] = json.loads(json.dumps(sketch))
    return kept


def told_of(method: str, sketches: Sequence[dict[str, object]], **params: Any) -> MergeForecast:
    """The forecast of a merge of all at scale 1."""
    given = MERGE_CARDS[method].params_type(**params).model_dump()
    return forecast(method, given, sketches, IDS[: len(sketches)], [1.0] * len(sketches))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_predicted_drift_is_that_of_the_merge(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, count: int
) -> None:
    weights = [
        made(model, "stark", "dog", seed=1),
        taught(model, "one", "cat", tmp_path, photos, "perfusion", steps=2),
        made(model, "mimi", "owl", seed=2),
    ][:count]
    inputs = [MergeInput(IDS[at], each) for at, each in enumerate(weights)]
    real = MERGES["closed-form"].merge(model, inputs, ClosedFormParams(), InProcessRun()).report
    told = told_of("closed-form", [sketched(model, each) for each in weights])
    assert told.drift == pytest.approx(real.drift, rel=0.1)
    by_site = {site.site: site.drift for site in real.sites}
    assert all(each.drift == pytest.approx(by_site[each.site], rel=0.1) for each in told.sites)
    assert (told.rank, told.constraint_rows) == (real.rank, real.constraint_rows)
    assert told.condition == pytest.approx(real.condition, rel=1e-3)
    assert len(told.pairs) == count * (count - 1) // 2
    assert len(told.drift_alone) == count


def test_crosstalk_is_what_adding_does_to_the_other_words(model: DiffusionModel) -> None:
    """Of two closed-form merges of one input each, which are nothing but their least changes."""
    one, other = made(model, "stark", "dog", seed=1), made(model, "mimi", "cat", seed=2)
    told = told_of("closed-form", [sketched(model, each) for each in (one, other)]).pairs[0]
    assert (told.first, told.second) == (IDS[0], IDS[1])
    assert 0.0 < told.crosstalk < 5.0
    assert 0.0 < told.overlap < 1.0
    itself = told_of("closed-form", [sketched(model, one)] * 2)
    assert itself.pairs[0].crosstalk == pytest.approx(1.0, rel=1e-3)
    assert itself.pairs[0].overlap == pytest.approx(1.0, rel=1e-5)
    assert itself.pairs[0].token_cosine == pytest.approx(1.0, rel=1e-3)
    assert itself.verdict == "poor"
    assert any("are the same in several" in note for note in itself.notes)


def test_half_the_scale_is_half_the_drift_alone(model: DiffusionModel) -> None:
    sketch = sketched(model, made(model, "stark", "dog", seed=1))
    whole, half = (
        forecast("closed-form", {}, [sketch], IDS[:1], [scale]).drift_alone[0] for scale in (1.0, 0.5)
    )
    assert half == pytest.approx(0.5 * whole)


def test_a_sketch_is_small_and_of_weights_that_can_be_merged_only(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    assert len(json.dumps(merge_sketch(model, made(model, "stark", "dog")))) < 20_000
    around = taught(model, "aro", "dog", tmp_path, photos, "custom-diffusion", steps=1, train="crossattn")
    assert merge_sketch(model, around) is None


def test_different_bases_are_refused(model: DiffusionModel, v_model: DiffusionModel) -> None:
    sketches = [sketched(each, made(each, "stark", "dog")) for each in (model, v_model)]
    with pytest.raises(ValueError, match="different base models"):
        told_of("closed-form", sketches)


# ---- merges that are no closed form


def related(one: ConceptWeights, other: ConceptWeights, share: float) -> ConceptWeights:
    """The other's words with changes that are ``share`` times the one's and else its own."""
    rest = (1.0 - share**2) ** 0.5
    tensors = {
        name: share * one.tensors[name] + rest * each if name.startswith("site.") else each
        for name, each in other.tensors.items()
    }
    return ConceptWeights(other.manifest, tensors)


def least_changes(model: DiffusionModel, weights: ConceptWeights) -> list[Tensor]:
    """Site by site the least change that does at the words what was learned, where captions are white, in float64."""
    states, learned = learned_at(model, weights)
    held = caption_factor(model, HeldTexts(1000, True, 4, 1e-8), InProcessRun()).held
    inverse = torch.linalg.pinv(whitened(states, held), rtol=1e-5)
    return [each @ inverse.T for each in learned]


def learned_at(model: DiffusionModel, weights: ConceptWeights) -> tuple[Tensor, list[Tensor]]:
    """Text states [s, d] of the words, and what is added there, site by site [o, s]."""
    asked = Asked(reader_of(weights).edit(model, weights), 1.0, weights.manifest.tokens)
    words = word_rows(model, [asked], prefix=False)[0]
    added = [torch.cat([word.changes[site.name] for word in words]).T for site in read_sites(model)]
    return torch.cat([word.states for word in words]), added


@pytest.mark.parametrize("share", [1.0, 0.6, -0.7, -1.0])
def test_whether_changes_pull_against_one_another_is_that_of_the_matrices(
    model: DiffusionModel, share: float
) -> None:
    """Estimated from 48 numbers a site."""
    one, own = (made(model, word, "dog", seed=at, learned_word=False) for at, word in enumerate(("a", "b")))
    other = related(one, own, share)
    told = told_of("ties", [sketched(model, each) for each in (one, other)])
    flat = [torch.cat([each.flatten() for each in least_changes(model, of)]) for of in (one, other)]
    true = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    assert abs(true) > 0.3
    assert told.pairs[0].agreement == pytest.approx(true, abs=0.1)
    assert told.pairs[0].sign_conflict == pytest.approx(math.acos(told.pairs[0].agreement) / math.pi)
    assert told.cancelled == pytest.approx(max(0.0, -true), abs=0.1)
    if share < -0.5:
        assert (told.verdict, told.pairs[0].verdict) == ("poor", "poor")


def test_unrelated_changes_have_opposite_signs_in_half_of_the_places(model: DiffusionModel) -> None:
    sketches = [sketched(model, made(model, f"w{at}", "dog", seed=at)) for at in range(2)]
    told = told_of("ties", sketches)
    assert told.pairs[0].sign_conflict == pytest.approx(0.5, abs=0.1)
    assert "opposite signs (50% by chance)" in told.sentence
    assert (told.drift, told.rank, told.drift_alone) == (None, None, [])


def test_what_a_rank_cannot_hold_is_never_more_than_is_really_lost(model: DiffusionModel) -> None:
    """Two LoRAs of rank 2: of rank 4 nothing is lost; of rank 1 less than the best change of that rank loses."""
    lora = [made(model, f"w{at}", "dog", method="lora", seed=at) for at in range(2)]
    sketches = [sketched(model, each) for each in lora]
    assert told_of("lora-svd", sketches, rank=4).beyond_rank == pytest.approx(0.0, abs=1e-5)
    assert told_of("lora-svd", sketches).beyond_rank is None
    told = told_of("lora-svd", sketches, rank=1)
    learned = [
        torch.cat(each, dim=1) for each in zip(*(learned_at(model, each)[1] for each in lora), strict=True)
    ]
    values = [torch.linalg.svdvals(each).square() for each in learned]
    tail, whole = (sum(float(each[first:].sum()) for each in values) for first in (1, 0))
    assert told.beyond_rank == pytest.approx(tail / whole, abs=0.1)
    assert f"about {told.beyond_rank:.0%} or more is beyond any change of rank 1" in " ".join(told.notes)
    assert told.verdict == "poor"


@pytest.mark.parametrize("method", MERGE_CARDS)
def test_every_merge_is_spoken_of_by_its_own_name(model: DiffusionModel, method: str) -> None:
    """Drift is of those that hold captions still; each names the layers responsible, or says that none is."""
    sketches = [sketched(model, made(model, f"w{at}", "dog", seed=at)) for at in range(2)]
    told = told_of(method, sketches)
    assert told.merge == method
    assert (told.drift is not None) == (method in ("closed-form", "gradient-fusion"))
    assert told.verdict is not None
    assert told.sites or any("same for all layers" in note for note in told.notes)
    assert len(told.pairs) == 1
    assert all(each.endswith(".") for each in (told.sentence, told.pairs[0].sentence, *told.notes))


def test_dropping_at_random_is_told_as_noise(model: DiffusionModel) -> None:
    sketches = [sketched(model, made(model, f"w{at}", "dog", seed=at)) for at in range(2)]
    plain, half = told_of("linear", sketches), told_of("dare", sketches, drop=0.8)
    assert (half.verdict, half.sentence, half.cancelled) == (plain.verdict, plain.sentence, plain.cancelled)
    assert "2.0 times as large as the change itself" in half.notes[0]
    voted = told_of("dare", sketches, drop=0.0, then="ties")
    assert voted.sentence == told_of("ties", sketches).sentence
    assert not any("noise" in note for note in voted.notes)


# ---- what the sketches assume


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"captions": 300}, "1000 captions held, not the 300 asked for"),
        ({"ridge": 0.5}, "a ridge of 1e-08, not the 0.5 asked for"),
        ({"start_token": False}, "the start token held, which was not asked for"),
        ({"padding": 0}, "4 paddings of each caption held, not the 0 asked for"),
        ({"prefix": True}, "the words before V* free, which were asked to be constrained"),
        ({"company": True}, "each word by itself, not in company as asked for"),
    ],
)
def test_a_setting_that_the_sketches_do_not_know_is_told(
    model: DiffusionModel, params: dict[str, Any], said: str
) -> None:
    sketches = [sketched(model, made(model, f"w{at}", "dog", seed=at)) for at in range(2)]
    usual, told = told_of("closed-form", sketches), told_of("closed-form", sketches, **params)
    (note,) = [each for each in told.notes if each not in usual.notes]
    assert said in note
    assert "of the usual settings" in note
    assert told.model_copy(update={"notes": usual.notes}) == usual


def test_all_settings_that_differ_are_told_and_those_of_sums_are_not(model: DiffusionModel) -> None:
    sketches = [sketched(model, made(model, f"w{at}", "dog", seed=at)) for at in range(2)]
    told = " ".join(told_of("closed-form", sketches, company=True, padding=2, captions=50).notes)
    assert all(each in told for each in ("in company", "4 paddings", "1000 captions"))
    assert "pins more directions and moves other texts at least as far" in told
    for method in MERGE_CARDS:
        assert not any("usual settings" in note for note in told_of(method, sketches).notes)
    fused = told_of("gradient-fusion", sketches, captions=50)
    assert "1000 captions held, not the 50 asked for" in " ".join(fused.notes)


def test_the_tolerance_is_that_of_the_merge(model: DiffusionModel) -> None:
    """It is the one setting that sketches can follow, as far as single precision goes."""
    weights = [made(model, word, "dog", seed=at) for at, word in enumerate(("one", "two"))]
    inputs = [MergeInput(IDS[at], each) for at, each in enumerate(weights)]
    sketches = [sketched(model, each) for each in weights]
    params = ClosedFormParams(tolerance=0.3)
    real = MERGES["closed-form"].merge(model, inputs, params, InProcessRun()).report
    told = told_of("closed-form", sketches, tolerance=0.3)
    assert real.rank is not None
    assert told.rank == real.rank < 12
    assert told.drift == pytest.approx(real.drift, rel=0.1)
    assert not any("usual settings" in note for note in told.notes)


# ---- the layers responsible


@pytest.mark.parametrize("share", [0.6, -0.7])
@pytest.mark.parametrize(("method", "params"), [("ties", {}), ("dare", {"then": "ties"})])
def test_a_vote_names_the_layers_with_the_most_opposite_signs(
    model: DiffusionModel, share: float, method: str, params: dict[str, Any]
) -> None:
    """Against the cosine of the changes of each layer; some layers are turned, so that they differ."""
    one, own = (made(model, word, "dog", seed=at, learned_word=False) for at, word in enumerate(("a", "b")))
    other = related(one, own, share)
    turned = {site.name for site in read_sites(model)[::3]}
    tensors = {
        name: -each if name.removeprefix("site.").removesuffix(".delta") in turned else each
        for name, each in other.tensors.items()
    }
    other = ConceptWeights(other.manifest, tensors)
    told = told_of(method, [sketched(model, each) for each in (one, other)], **params)
    names = [site.name for site in read_sites(model)]
    changes = [least_changes(model, of) for of in (one, other)]
    true = {
        name: math.acos(float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)))
        / math.pi
        for name, a, b in zip(names, *changes, strict=True)
    }
    found = {site.site: site.sign_conflict for site in told.sites}
    assert 0 < len(found) <= 8
    assert all(each == pytest.approx(true[name], abs=0.12) for name, each in found.items())
    assert list(found.values()) == sorted(found.values(), key=lambda each: -(each or 0.0))
    opposed = turned if share > 0 else set(names) - turned
    assert set(list(found)[: min(len(opposed), 8)]) <= opposed
    assert any("estimated" in note and "layer" in note.lower() for note in told.notes)


def test_a_layer_that_only_one_changes_has_no_opposite_signs(model: DiffusionModel) -> None:
    one, other = (made(model, word, "dog", seed=at, learned_word=False) for at, word in enumerate(("a", "b")))
    left = read_sites(model)[0].name
    without = {name: 0 * each if left in name else each for name, each in other.tensors.items()}
    told = told_of("ties", [sketched(model, each) for each in (one, ConceptWeights(other.manifest, without))])
    assert len(told.sites) == min(8, len(read_sites(model)) - 1)
    assert left not in {site.site for site in told.sites}


def test_gates_say_that_no_layer_is_more_responsible(model: DiffusionModel) -> None:
    told = told_of(
        "perfusion-gates", [sketched(model, made(model, f"w{at}", "dog", seed=at)) for at in range(2)]
    )
    assert told.sites == []
    assert any("same for all layers" in note for note in told.notes)


# ---- gradient fusion, of weights that change nothing but keys and values


@pytest.mark.parametrize("hold", [0.01, 1.0, 30.0])
def test_fusion_is_foreseen_where_captions_are_held(model: DiffusionModel, hold: float) -> None:
    weights = [
        made(model, word, noun, seed=at) for at, (word, noun) in enumerate((("a", "dog"), ("b", "cat")))
    ]
    inputs = [MergeInput(IDS[at], each) for at, each in enumerate(weights)]
    params = MERGE_CARDS["gradient-fusion"].params_type(hold=hold)
    real = MERGES["gradient-fusion"].merge(model, inputs, params, InProcessRun()).report
    told = told_of("gradient-fusion", [sketched(model, each) for each in weights], hold=hold)
    assert told.drift == pytest.approx(real.drift, rel=0.15)
    assert told.missed == pytest.approx(real.residual_of_change, rel=0.15, abs=2e-3)
    by_site = {site.site: (site.drift, site.residual_of_change) for site in real.sites}
    for site in told.sites:
        drift, missed = by_site[site.site]
        assert site.drift == pytest.approx(drift, rel=0.15)
        assert site.missed == pytest.approx(missed, rel=0.15, abs=2e-3)
    assert len(told.drift_alone) == 2
    assert told.verdict is not None
    assert told.missed is not None
    assert f"{told.missed:.1%}" in told.sentence


def test_fusion_that_holds_nothing_or_hardly_anything_is_not_foreseen(model: DiffusionModel) -> None:
    sketches = [sketched(model, made(model, f"w{at}", "dog", seed=at)) for at in range(2)]
    free = told_of("gradient-fusion", sketches, hold=0.0)
    assert (free.verdict, free.drift, free.sites) == (None, None, [])
    assert "is not forecast" in free.sentence
    assert "nothing is held" in free.sentence
    hardly = told_of("gradient-fusion", sketches, hold=1e-4)
    assert (hardly.verdict, hardly.drift) == (None, None)
    assert "the ridge" in hardly.sentence
    for sketch in sketches:
        del sketch["weight"]
    early = told_of("gradient-fusion", sketches)
    assert (early.verdict, early.drift) == (None, None)
    assert "earlier version" in early.sentence
    assert len(early.pairs) == 1
