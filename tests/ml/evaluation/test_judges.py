"""The judges: their contract on random weights, and that the shipped ones rank held-out subjects rightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from worker.ml.evaluation.judges import FEATURES, Judges, TextTower, load_judges

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "worker/base_models/toyworld"
PHOTOS = ROOT / "backend/sample_photos"


@pytest.fixture(scope="module")
def judges() -> Judges:
    return load_judges(SHIPPED / "judges")


def photos(slug: str) -> Tensor:
    """Ten photos at 64 px, [10, 3, 64, 64] in [-1, 1]."""
    files = [PHOTOS / slug / f"{number:02d}.webp" for number in range(10)]
    images = [Image.open(file).resize((64, 64), Image.Resampling.BOX) for file in files]
    stacked = np.stack([np.asarray(image, np.float32) for image in images]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.copy()) / 127.5 - 1


def test_features_are_unit_rows_without_gradients(judges: Judges) -> None:
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    for rows in (
        judges.image_text_features(pixels),
        judges.subject_features(pixels),
        judges.text_features(["a dog"] * 3),
    ):
        assert rows.shape == (3, FEATURES)
        assert rows.dtype == torch.float32
        assert not rows.requires_grad
        assert torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-4)


def test_a_picture_is_judged_by_itself_whatever_its_neighbours(judges: Judges) -> None:
    pixels = torch.rand(5, 3, 64, 64) * 2 - 1
    together = judges.subject_features(pixels)
    assert torch.allclose(together[2:3], judges.subject_features(pixels[2:3]), atol=1e-4)


def test_other_sizes_are_resized(judges: Judges) -> None:
    large = photos("stark")[:2].repeat_interleave(4, 2).repeat_interleave(4, 3)
    agreement = (judges.subject_features(large) * judges.subject_features(photos("stark")[:2])).sum(1)
    assert agreement.min() > 0.95


def test_padding_of_a_text_says_nothing() -> None:
    torch.manual_seed(0)
    tower = TextTower(20, end_id=9).eval()
    short = torch.tensor([[1, 2, 3, 9]])
    padded = torch.tensor([[1, 2, 3, 9, 9, 9, 9]])
    assert torch.allclose(tower(short), tower(padded), atol=1e-6)
    assert not torch.allclose(tower(short), tower(torch.tensor([[1, 2, 4, 9]])), atol=1e-3)


def test_a_text_that_is_too_long_is_an_error(judges: Judges) -> None:
    with pytest.raises(ValueError, match="tokens"):
        judges.text_features(["dog " * 60])


def test_shipped_judges_rank_a_subjects_photos_above_other_subjects(judges: Judges) -> None:
    listed = json.loads((PHOTOS / "samples.json").read_text())["subjects"]
    features = {entry["slug"]: judges.subject_features(photos(entry["slug"])) for entry in listed}
    same = torch.cat([(rows @ rows.T)[~torch.eye(10, dtype=torch.bool)] for rows in features.values()])
    other = torch.cat(
        [(one @ two.T).flatten() for a, one in features.items() for b, two in features.items() if a != b]
    )
    above = (same[:, None] > other[None, :]).float().mean()
    assert above > 0.85


def test_shipped_judges_read_places_of_true_photos(judges: Judges) -> None:
    places = ("in the desert", "on a white background", "on the beach", "on a pink background", "on grass")
    candidates = [f"a photo of a dog {place}" for place in places]
    chosen = judges.prompt_choice(photos("stark")[:5], candidates)
    assert (chosen == torch.arange(5)).float().mean() >= 0.8
