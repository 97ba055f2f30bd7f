"""What the forecast says from sketches, without a model, against the merge itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.schemas.merges.closed_form import ClosedFormParams
from backend.services.merge_forecast import forecast
from tests.ml.merging import made, taught
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel
from worker.ml.merges import MERGES, MergeInput
from worker.ml.merges.sketch import merge_sketch
from worker.ml.run import InProcessRun

IDS = [f"019a0000-0000-7000-8000-00000000000{number}" for number in range(4)]


def sketched(model: DiffusionModel, weights: ConceptWeights) -> dict[str, object]:
    sketch = merge_sketch(model, weights)
    assert sketch is not None
    kept: dict[str, object] = json.loads(json.dumps(sketch))
    return kept


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
    told = forecast([sketched(model, each) for each in weights], IDS[:count], [1.0] * count)
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
    told = forecast([sketched(model, each) for each in (one, other)], IDS[:2], [1.0, 1.0]).pairs[0]
    assert (told.first, told.second) == (IDS[0], IDS[1])
    assert 0.0 < told.crosstalk < 5.0
    assert 0.0 < told.overlap < 1.0
    itself = forecast([sketched(model, one)] * 2, IDS[:2], [1.0, 1.0])
    assert itself.pairs[0].crosstalk == pytest.approx(1.0, rel=1e-3)
    assert itself.pairs[0].overlap == pytest.approx(1.0, rel=1e-5)
    assert itself.pairs[0].token_cosine == pytest.approx(1.0, rel=1e-3)
    assert itself.verdict == "poor"
    assert any("are the same in several" in note for note in itself.notes)


def test_half_the_scale_is_half_the_drift_alone(model: DiffusionModel) -> None:
    sketch = sketched(model, made(model, "stark", "dog", seed=1))
    whole, half = (forecast([sketch], IDS[:1], [scale]).drift_alone[0] for scale in (1.0, 0.5))
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
        forecast(sketches, IDS[:2], [1.0, 1.0])
