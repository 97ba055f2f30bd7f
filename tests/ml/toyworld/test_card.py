"""The card says what was measured, of the weights that are there."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from worker.ml.families import describe_base
from worker.ml.toyworld.card import GOALS, model_card

SHIPPED = Path(__file__).resolve().parents[3] / "worker/base_models/toyworld"


def test_the_shipped_card_is_about_the_shipped_weights() -> None:
    measures = json.loads((SHIPPED / "measures.json").read_text())
    card = (SHIPPED / "MODEL_CARD.md").read_text()
    assert measures["base_hash"] == describe_base(SHIPPED).hash
    assert measures["base_hash"] in card
    assert all(asked in measures["prompt_accuracy"]["generated"] for asked in GOALS)
    for designer in ("Noto Emoji", "Fluent Emoji", "Twemoji", "EmojiOne", "CC BY 4.0"):
        assert designer in card
    with Image.open(SHIPPED / "sheet.webp") as sheet:
        assert sheet.width > 600


def test_a_card_is_as_modest_as_its_numbers() -> None:
    measures = json.loads((SHIPPED / "measures.json").read_text())
    found = measures["prompt_accuracy"]["generated"]
    assert "not trained to convergence" not in model_card(_with(measures, dict.fromkeys(found, 1.0)), {})
    assert "goes astray" in model_card(_with(measures, found | {"colour": 0.6}), {})
    assert "missed more often" in model_card(_with(measures, found | {"colour": 0.4}), {})


def _with(measures: dict, found: dict) -> dict:
    return measures | {"prompt_accuracy": measures["prompt_accuracy"] | {"generated": found}}
