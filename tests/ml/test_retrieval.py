"""Prior images retrieved by caption: the nearest captions, no look-alikes, each picture encoded once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.ml.teaching import prepare, stark, teach
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.training.prior import PriorImages
from worker.ml.training.retrieval import LIBRARY, fingerprint, library_key, retrieve_prior, text_ends

CAPTIONS = [
    "photo of a dog on the beach",
    "photo of a dog",
    "a red teapot in snow",
    "watercolor night city",
    "photo of an owl",
    "a small blue cat in the room",
]


def picture(number: int) -> Image.Image:
    draw = np.random.default_rng(number)
    return Image.fromarray(draw.integers(0, 256, (9, 8, 3), dtype=np.uint8)).resize(
        (80, 72), Image.Resampling.NEAREST
    )


def add(prior_dir: Path, name: str, caption: str, shown: Image.Image) -> None:
    """An entry as ``worker.prior_library`` writes it."""
    library = prior_dir / LIBRARY
    library.mkdir(parents=True, exist_ok=True)
    shown.save(library / f"{name}.jpg", quality=95, subsampling=0)
    index = library / "index.json"
    held = json.loads(index.read_text()) if index.exists() else {}
    looks = f"{fingerprint(library / f'{name}.jpg'):016x}"
    held[f"{name}.png"] = {"file": f"{name}.jpg", "caption": caption, "fingerprint": looks, "stamp": [1, 1]}
    index.write_text(json.dumps(held))


@pytest.fixture
def prior_dir(tmp_path: Path) -> Path:
    for number, caption in enumerate(CAPTIONS):
        add(tmp_path, f"p{number}", caption, picture(number))
    return tmp_path


def retrieved(
    model: DiffusionModel, prior_dir: Path, count: int, photos: list[Path], run: InProcessRun | None = None
) -> PriorImages:
    return retrieve_prior(
        model, "photo of a dog", count=count, photos=photos, cache_dir=prior_dir, run=run or InProcessRun()
    )


def test_the_order_is_that_of_the_cosines_of_text_states(
    model: DiffusionModel, photos: list[Path], prior_dir: Path
) -> None:
    """Once more in numpy, from the state at the end of each text that the encoder itself pools."""
    states = text_ends(model, ["photo of a dog", *CAPTIONS]).double().numpy()
    lengths = np.linalg.norm(states, axis=1)
    cosines = states[1:] @ states[0] / (lengths[1:] * lengths[0])
    expected = [CAPTIONS[at] for at in np.argsort(-cosines)]
    found = retrieved(model, prior_dir, len(CAPTIONS), photos)
    assert list(found.captions) == expected
    assert found.captions[0] == "photo of a dog"
    assert found.latents.shape == (6, 4, 8, 8)
    assert retrieved(model, prior_dir, 2, photos).captions == found.captions[:2]


def test_look_alikes_are_taken_once_and_those_of_a_taught_photo_never(
    model: DiffusionModel, photos: list[Path], prior_dir: Path
) -> None:
    add(prior_dir, "twin", "photo of a dog", picture(1).resize((160, 144)))
    with Image.open(photos[0]) as taught:
        add(prior_dir, "taught", "photo of a dog", taught.convert("RGB"))
    found = retrieved(model, prior_dir, 20, photos)
    assert sorted(found.captions) == sorted(CAPTIONS)


def test_captions_that_cannot_be_read_whole_or_name_a_token_are_passed_over(
    model: DiffusionModel, photos: list[Path], prior_dir: Path
) -> None:
    add(prior_dir, "long", "photo of a dog " * 40, picture(20))
    add(prior_dir, "token", "photo of a <stark> dog", picture(21))
    assert sorted(retrieved(model, prior_dir, 20, photos).captions) == sorted(CAPTIONS)


def test_each_picture_is_encoded_once_for_everybody(
    model: DiffusionModel, photos: list[Path], prior_dir: Path
) -> None:
    first = retrieved(model, prior_dir, 3, photos)
    kept = sorted((prior_dir / library_key(model)).iterdir())
    assert len(kept) == 3
    stamps = [path.stat().st_mtime_ns for path in kept]
    again = retrieved(model, prior_dir, 3, photos[:1])
    assert torch.equal(first.latents, again.latents)
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    kept[0].write_bytes(b"junk")
    assert torch.equal(retrieved(model, prior_dir, 3, photos).latents, first.latents)


def test_too_few_near_captions_are_told(model: DiffusionModel, photos: list[Path], prior_dir: Path) -> None:
    run = InProcessRun()
    retrieved(model, prior_dir, 50, photos, run)
    assert [code for code, _ in run.notes] == ["prior_far"]


@pytest.mark.parametrize("method", ["custom-diffusion", "lora", "dreambooth"])
def test_every_method_with_a_prior_can_take_it_from_there(
    model: DiffusionModel, photos: list[Path], prior_dir: Path, method: str
) -> None:
    trainee = prepare(
        model, [stark(photos)], prior_dir, method=method, prior="folder", prior_weight=1.0, prior_images=4
    )
    rows = trainee.rows(0)
    texts = [rows.prompts[place].text for place in rows.prompt_of_row]
    assert sum(rows.prior) == 2
    assert all(text in CAPTIONS for text, is_prior in zip(texts, rows.prior, strict=True) if is_prior)


def test_a_new_category_takes_no_picture_that_claims_to_show_it(
    model: DiffusionModel, photos: list[Path], prior_dir: Path
) -> None:
    gate = ConceptExamples("gate", "dog", "subject", photos)
    trainee = prepare(model, [gate], prior_dir, prior="folder", word="class-noun", prior_images=6)
    texts = {prompt.text for step in range(6) for prompt in trainee.rows(step).prompts}
    assert "a red teapot in snow" in texts
    assert "photo of a dog on the beach" not in texts


def test_without_a_library_the_training_fails_in_words(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputInvalid, match="MOONGATE_PRIOR_FOLDER"):
        teach(model, [stark(photos)], tmp_path, prior="folder")
