"""Prior images: made once, kept, continued where they were interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backend.schemas.prior_images import CHUNK
from tests.ml.teaching import stark, teach
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.run import InProcessRun, Released
from worker.ml.training.prior import ensure_prior, prior_key

PROMPTS = ["photo of a dog", "a dog on the beach"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_chunk_has_one_caption_and_counts_round_up_to_chunks(model: DiffusionModel, tmp_path: Path) -> None:
    made = ensure_prior(model, PROMPTS, count=5, steps=2, cache_dir=tmp_path, run=InProcessRun())
    assert made.captions == (PROMPTS[0],) * CHUNK + (PROMPTS[1],) * CHUNK
    assert made.latents.shape == (2 * CHUNK, 4, 8, 8)
    assert len(files(tmp_path)) == 2 * CHUNK
    assert len({latent.sum().item() for latent in made.latents}) == 2 * CHUNK


def test_they_are_reused_and_extended_without_a_step_too_many(model: DiffusionModel, tmp_path: Path) -> None:
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    run = InProcessRun(on_step=count)
    first = ensure_prior(model, PROMPTS, count=4, steps=2, cache_dir=tmp_path, run=run)
    again = ensure_prior(model, PROMPTS, count=4, steps=2, cache_dir=tmp_path, run=run)
    assert steps == 2
    assert torch.equal(first.latents, again.latents)
    more = ensure_prior(model, PROMPTS, count=8, steps=2, cache_dir=tmp_path, run=run)
    assert steps == 4
    assert torch.equal(more.latents[:4], first.latents)


def test_an_interrupted_set_continues_with_the_same_bytes(model: DiffusionModel, tmp_path: Path) -> None:
    ensure_prior(model, PROMPTS, count=8, steps=2, cache_dir=tmp_path / "whole", run=InProcessRun())

    def on_step(unit: str, done: int, total: int, metrics: dict[str, float]) -> None:
        run.request = "release" if done > 2 * CHUNK else None

    run = InProcessRun(on_step=on_step)
    with pytest.raises(Released):
        ensure_prior(model, PROMPTS, count=8, steps=2, cache_dir=tmp_path / "cut", run=run)
    assert len(files(tmp_path / "cut")) == CHUNK
    ensure_prior(model, PROMPTS, count=8, steps=2, cache_dir=tmp_path / "cut", run=InProcessRun())
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_damaged_file_is_made_again(model: DiffusionModel, tmp_path: Path) -> None:
    ensure_prior(model, PROMPTS, count=4, steps=2, cache_dir=tmp_path, run=InProcessRun())
    before = files(tmp_path)
    (victim,) = tmp_path.rglob("2.safetensors")
    victim.write_bytes(b"junk")
    ensure_prior(model, PROMPTS, count=4, steps=2, cache_dir=tmp_path, run=InProcessRun())
    assert files(tmp_path) == before


def test_the_key_holds_everything_the_pictures_depend_on(
    model: DiffusionModel, v_model: DiffusionModel
) -> None:
    keys = {
        prior_key(model, PROMPTS, 2),
        prior_key(v_model, PROMPTS, 2),
        prior_key(model, PROMPTS, 3),
        prior_key(model, PROMPTS[:1], 2),
        prior_key(model, PROMPTS[::-1], 2),
    }
    assert len(keys) == 5


def test_the_next_concept_of_the_class_finds_them(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    teach(model, [stark(photos)], tmp_path, steps=1)
    units: set[str] = set()
    run = InProcessRun(on_step=lambda unit, *_: units.add(unit))
    teach(model, [ConceptExamples("wolf", "dog", "subject", photos[:1])], tmp_path, steps=1, run=run, seed=99)
    assert units == {"photos", "train"}


@pytest.mark.parametrize(
    ("concept", "overrides"),
    [("", {}), ("dog", {"prior_weight": 0.0}), ("dog", {"prior_images": 0})],
)
def test_without_a_class_or_a_weight_there_are_none(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, concept: str, overrides: dict[str, object]
) -> None:
    run = InProcessRun()
    teach(model, [ConceptExamples("gate", concept, "subject", photos)], tmp_path, run=run, **overrides)
    assert files(tmp_path) == {}
    assert all("prior_loss" not in row for row in run.history["train"])
