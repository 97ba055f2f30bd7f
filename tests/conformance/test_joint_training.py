"""Every method teaches two concepts at once: one file with both words, which both stand in one prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ml.teaching import stark, teach
from worker.ml.families.base import DiffusionModel
from worker.ml.merges.sketch import merge_sketch
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, generate


@pytest.mark.parametrize("method", METHODS)
def test_two_concepts_are_taught_together(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, method: str
) -> None:
    mia = ConceptExamples("mia", "cat", "subject", list(photos))
    weights = teach(model, [stark(photos), mia], tmp_path, method=method)
    assert [taught.token for taught in weights.manifest.tokens] == ["stark", "mia"]
    unit = GenerationUnit(
        index=0, text="a <stark> and a <mia>", negative_text="", seed=3, num_inference_steps=2, guidance_scale=2.0,
        scheduler="ddim", width=64, height=64, weights=((weights, 1.0),),
    )  # fmt: skip
    [(_, pixels)] = list(generate(model, [unit], InProcessRun()))
    assert pixels.std() > 0
    sketch = merge_sketch(model, weights)
    assert sketch is None or sketch["tokens"] == ["stark", "mia"]
