"""Several concepts that train jointly, by every method (methods.md 5)."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from backend.schemas.methods import CARDS
from tests.ml.teaching import prepare, stark
from tests.ml.tiny_base import write_tiny_base
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.training.loop import Progress, advance, train

WITH_COLLAGES = [name for name, card in CARDS.items() if "collages" in card.params_type.model_fields]


class Told(InProcessRun):
    """Keeps the numbers that come with every step."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[dict[str, float]] = []

    def step(self, unit: str, done: int, total: int, **metrics: float) -> None:
        super().step(unit, done, total, **metrics)
        if "loss" in metrics:
            self.metrics.append(metrics)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    folder = tmp_path_factory.mktemp("joint") / "tiny"
    write_tiny_base(folder, "v_prediction")
    return load_base(folder, cache_dir=folder.parent / "cache")


def pair(photos: list[Path]) -> list[ConceptExamples]:
    return [stark(photos[:2]), ConceptExamples("wolf", "cat", "subject", photos[2:])]


@pytest.mark.parametrize("others", [("wolf",), ("wolf", "minerva", "rex")])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_teaches_several_words_at_once(
    method: str, others: tuple[str, ...], base: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    run, names = Told(), ("stark", *others)
    rest = [ConceptExamples(name, "cat", "subject", photos[place % 3 :]) for place, name in enumerate(others)]
    trainee = prepare(base, [stark(photos[:2]), *rest], tmp_path, method=method, run=run)
    [weights] = train(base, [trainee], run)
    assert tuple(taught.token for taught in weights.manifest.tokens) == names
    edit, installation = METHODS[method].edit(base, weights), METHODS[method].installation(base, weights)
    with installed(base, ((installation, 1.0),) if installation else ()), torch.no_grad():
        texts = [Prompt(f"photo of a <{name}> dog", ((edit, 1.0),)) for name in names]
        values = text_kv(base, texts).kv.values[0]
    assert not any(torch.equal(one, other) for one, other in combinations(values, 2))
    told = {name for metrics in run.metrics for name in metrics}
    assert {f"photo_loss/{name}" for name in names} <= told


@pytest.mark.parametrize("method", METHODS)
def test_one_concept_has_no_losses_by_concept(
    method: str, base: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    run = Told()
    train(base, [prepare(base, [stark(photos)], tmp_path, method=method, run=run)], run)
    assert run.metrics
    assert not any(name.startswith("photo_loss/") for metrics in run.metrics for name in metrics)


def test_the_loss_of_a_concept_is_the_mean_of_its_photo_rows(
    base: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    """Of two photo rows a step one is each concept's, so the mean of both losses is that of the photos."""
    run = Told()
    train(base, [prepare(base, pair(photos), tmp_path, batch_size=2, run=run)], run)
    for metrics in run.metrics:
        mean = (metrics["photo_loss/stark"] + metrics["photo_loss/wolf"]) / 2
        assert metrics["photo_loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("method", WITH_COLLAGES)
def test_collages_name_both_and_keep_the_rest(
    method: str, base: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    plain, mixed = (
        prepare(base, pair(photos), tmp_path, method=method, batch_size=4, prior_weight=1.0, collages=share)
        for share in (0.0, 0.6)
    )
    shown = dict.fromkeys((False, True), 0)
    for step in range(12):
        without, rows = plain.rows(step), mixed.rows(step)
        assert rows.prior == without.prior
        for row, preserved in enumerate(rows.prior):
            text = rows.prompts[rows.prompt_of_row[row]].text
            if rows.tokens[row]:
                assert torch.equal(rows.latents[row], without.latents[row])
                assert text == without.prompts[without.prompt_of_row[row]].text
                continue
            shown[preserved] += 1
            assert ("<stark> dog" in text and "<wolf> cat" in text) is not preserved
            assert "dog" in text
            assert "cat" in text
            assert rows.masks[row].all()
            assert not torch.equal(rows.latents[row], without.latents[row])
    for preserved, count in shown.items():  # 48 rows of each kind at 0.6: 28.8, and three sigma are 10
        assert 19 <= count <= 39, preserved


@pytest.mark.parametrize("method", WITH_COLLAGES)
@pytest.mark.parametrize("unmix", [0.0, 10.0])
def test_a_joint_step_with_collages_trains(
    method: str, unmix: float, base: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    shares = {"collages": 0.9, "unmix_weight": unmix}
    trainee = prepare(base, pair(photos), tmp_path, method=method, batch_size=4, **shares)
    with trainee.installed():
        progress = Progress(trainee)
        [loss] = advance(base, [progress], InProcessRun())
    assert torch.isfinite(loss.total)
    assert (loss.unmix is not None and bool(loss.unmix > 0)) is (unmix > 0)
    assert progress.done == 1
