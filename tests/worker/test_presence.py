"""Looking at a picture: the judge's verdict, and beside it where each concept's word acts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from backend.schemas.bases import JudgesDescription
from backend.schemas.executor import FromExecutor, ImageDone, Progress, RunJob
from backend.schemas.generations import GenerateSpec, GuidedAttention, ImageRecipe, PinnedWeights
from backend.schemas.presence import Presence, PresenceCheck
from backend.schemas.trainings import PinnedConcept, PinnedFile
from tests.ml.fixtures import model, one_thread, photos, tiny_folder
from tests.ml.teaching import everything, same, stark, teach
from worker.drawing import draw_alone
from worker.ml.evaluation.presence import Seen
from worker.ml.evaluation.word_attention import Acting
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import ConceptExamples
from worker.ml.regions import Box
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, RegionUnit, generate
from worker.pipe_run import Reporter
from worker.presence import Looker, _told, draw_and_look

__all__ = ["model", "one_thread", "photos", "tiny_folder"]
ONE, TWO = (f"01900000-0000-7000-8000-{place:012d}" for place in (1, 2))
UNIT = GenerationUnit(0, "a <stark> dog on the beach", "", 11, 2, 5.0, "ddim", 32, 32)


class Colours:
    """A panel whose individuals are mean colours."""

    hash = "colours"

    def image_text_features(self, pixels: Tensor) -> Tensor:
        return self.subject_features(pixels)

    def text_features(self, texts: list[str]) -> Tensor:
        raise AssertionError("nobody reads here")

    def subject_features(self, pixels: Tensor) -> Tensor:
        return normalize(pixels.mean((2, 3)), dim=1)


@pytest.fixture(scope="module", params=["custom-diffusion", "lora"])
def weights(
    request: pytest.FixtureRequest,
    model: DiffusionModel,
    photos: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """Two concepts that one training taught; the second is called otherwise by now."""
    both = [stark(photos), ConceptExamples("mimi", "cat", "subject", photos)]
    return teach(model, both, tmp_path_factory.mktemp("prior"), method=request.param, learning_rate=0.002)


def looked(model: DiffusionModel, photos: list[Path], unit: GenerationUnit) -> list[Presence]:
    pinned = [PinnedFile(id=ONE, storage_key=str(i), sha256="0" * 64) for i in range(len(photos))]
    names = {ONE: ("stark", "dog"), TWO: ("renamed", "cat")}
    concepts = [
        PinnedConcept(id=key, token=token, class_noun=noun, kind="subject", photos=pinned)
        for key, (token, noun) in names.items()
    ]
    file = PinnedFile(id=ONE, storage_key="w", sha256="0" * 64)
    spec = GenerateSpec(
        prompt="@stark", text=unit.text, negative_prompt="", base="tiny", base_hash="0" * 64, num_images=1, seed=11,
        weights=[PinnedWeights(file=file, scale=1.0, tokens=["mimi", "stark"], concepts=[TWO, ONE])],
        num_inference_steps=2, guidance_scale=5.0, scheduler="ddim", width=32, height=32,
    )  # fmt: skip
    check = PresenceCheck(
        judges=JudgesDescription(name="colours", hash="cd" * 32),
        concepts=concepts, plain_text="a dog on the beach", regions=[], retries=0,
    )  # fmt: skip
    inputs = {str(i): str(path) for i, path in enumerate(photos)}
    run = InProcessRun()
    ((_, pixels),) = generate(model, [unit], run)
    return Looker(model, Colours(), check, spec, inputs).look(pixels, unit, run)


def asked(
    folder: Path,
    photos: list[Path],
    learned: Any = None,
    sent: list[FromExecutor] | None = None,
    guidance_of_missing: float = 0.0,
    **changes: Any,
) -> Reporter:
    """A job of two pictures in which two concepts are looked for, with two retries each."""
    pinned = [PinnedFile(id=ONE, storage_key=str(i), sha256="0" * 64) for i in range(len(photos))]
    check = {
        "judges": {"name": "colours", "hash": "cd" * 32},
        "concepts": [
            PinnedConcept(id=key, token=token, class_noun=noun, kind="subject", photos=pinned).model_dump()
            for key, token, noun in ((ONE, "stark", "dog"), (TWO, "renamed", "cat"))
        ],
        "plain_text": "a dog and a cat", "regions": [], "retries": 2,
        "guidance_of_missing": guidance_of_missing,
    }  # fmt: skip
    spec = {
        "prompt": "@stark and @renamed", "text": "a dog and a cat", "negative_prompt": "", "base": "tiny",
        "base_hash": "0" * 64, "num_images": 2, "seed": 11, "weights": [], "num_inference_steps": 2,
        "guidance_scale": 5.0, "scheduler": "ddim", "width": 32, "height": 32, "check": check,
    } | changes  # fmt: skip
    inputs = {str(i): str(path) for i, path in enumerate(photos)}
    if learned is not None:
        learned.save(folder / "weights")
        inputs["w"] = str(folder / "weights")
    staging = folder / "staging"
    staging.mkdir(exist_ok=True)
    job = RunJob(
        job=ONE, fence=1, kind="generate", spec=GenerateSpec.model_validate(spec).model_dump(mode="json"),
        inputs=inputs, staging=str(staging), checkpoints="", cache="", base_folder="",
    )  # fmt: skip
    return Reporter(job, (sent if sent is not None else []).append)


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the judge says of the pictures that follow, first ones first."""
    told: list[tuple[str, ...]] = []

    def said(*_: Any) -> list[Seen]:
        return [Seen(state, 0.5, Box(0, 0, 1, 1)) for state in told.pop(0)]  # type: ignore[arg-type]

    monkeypatch.setattr("worker.presence.look", said)
    return told


def test_progress_goes_on_over_tries(
    model: DiffusionModel, photos: list[Path], verdicts: list[tuple[str, ...]], tmp_path: Path
) -> None:
    """Every try and every picture of the base is a part of the job; tries that are spared count as made."""
    verdicts += [("present", "missing"), ("present", "present"), ("fused", "missing")]
    verdicts += [("missing", "present"), ("missing", "missing")]
    steps: list[tuple[int, int]] = []
    run = InProcessRun(on_step=lambda _, done, total, __: steps.append((done, total)))
    sent: list[FromExecutor] = []
    draw_and_look(model, Colours(), asked(tmp_path, photos, sent=sent), run)
    assert not verdicts
    assert {total for _, total in steps} == {2 * 3 * 2 * 2}
    done = [done for done, _ in steps]
    assert done == [*range(1, 9), *range(13, 25)]
    [told] = [each for each in sent if isinstance(each, Progress)]
    assert (told.phase, told.step, told.total) == ("drawing", 24, 24)


def test_what_cannot_be_told_costs_no_retries(
    model: DiffusionModel, photos: list[Path], verdicts: list[tuple[str, ...]], tmp_path: Path
) -> None:
    """Other seeds are tried for who is missing beside it alone. Of equals that with fewer missing is kept."""
    verdicts += [("unknown", "unknown")]
    verdicts += [("unknown", "missing"), ("fused", "missing"), ("unknown", "present")]
    sent: list[FromExecutor] = []
    draw_and_look(model, Colours(), asked(tmp_path, photos, sent=sent), InProcessRun())
    assert not verdicts
    kept = [each for each in sent if isinstance(each, ImageDone)]
    assert [[seen.state for seen in each.presence] for each in kept] == [
        ["unknown"] * 2,
        ["unknown", "present"],
    ]
    verdicts += [
        ("present", "missing"),
        ("present", "unknown"),
        ("missing", "unknown"),
        ("unknown", "unknown"),
    ]
    sent.clear()
    again = tmp_path / "again"
    again.mkdir()
    draw_and_look(model, Colours(), asked(again, photos, sent=sent), InProcessRun())
    kept = [each for each in sent if isinstance(each, ImageDone)]
    assert [[seen.state for seen in each.presence] for each in kept] == [
        ["present", "unknown"],
        ["unknown"] * 2,
    ]


def test_tries_after_a_failed_one_are_guided_to_who_was_not_there(
    model: DiffusionModel, photos: list[Path], verdicts: list[tuple[str, ...]], weights: Any, tmp_path: Path
) -> None:
    """Whoever was missing or fused in a try before, nobody of whom nothing is known; the recipe says who, and draws the
    picture that was kept.
    """
    used = {
        "file": {"id": ONE, "storage_key": "w", "sha256": "0" * 64},
        "scale": 1.0, "tokens": ["mimi", "stark"], "concepts": [TWO, ONE],
    }  # fmt: skip
    taught = {"text": "a <stark> dog on a <mimi> cat", "weights": [used], "num_inference_steps": 4}
    told: list[FromExecutor] = []
    first = asked(tmp_path, photos, weights, told, guidance_of_missing=6.0, **taught)
    verdicts += [("present", "fused"), ("missing", "missing"), ("present", "present")]
    verdicts += [("unknown", "missing"), ("unknown", "present")]
    draw_and_look(model, Colours(), first, InProcessRun())
    kept = [each for each in told if isinstance(each, ImageDone)]
    assert [each.attention for each in kept] == [
        GuidedAttention(scale=6.0, concepts=[TWO, ONE]),
        GuidedAttention(scale=6.0, concepts=[TWO]),
    ]
    for done in kept:
        with Image.open(first.staging / done.file) as picture:
            pixels = np.asarray(picture).astype(int)
            recipe = ImageRecipe.model_validate_json(picture.info["moongate"])
        assert done.attention is not None
        assert (recipe.attention_guidance, recipe.attention_concepts) == (6.0, done.attention.concepts)
        folder = tmp_path / f"again-{done.index}"
        folder.mkdir()
        same_seed = {"seed": recipe.seed, "num_images": 1, "check": None}
        for changes, is_same in (
            ({"attention_guidance": 6.0, "attention_concepts": recipe.attention_concepts}, True),
            ({}, False),
        ):
            again = asked(folder, photos, weights, **{**taught, **same_seed, **changes})
            draw_alone(model, again, InProcessRun())
            with Image.open(folder / "staging" / "image-0.png") as picture:
                difference = np.abs(np.asarray(picture).astype(int) - pixels).max()
            assert bool(difference <= 2) is is_same


def test_tries_are_not_guided_unless_asked_or_where_nobody_can_be(
    model: DiffusionModel, photos: list[Path], verdicts: list[tuple[str, ...]], tmp_path: Path
) -> None:
    """Without weights the prompt has no word of the concepts."""
    for name, scale in (("off", 0.0), ("nobody", 6.0)):
        told: list[FromExecutor] = []
        verdicts += [("present", "missing"), ("present", "present")]
        (tmp_path / name).mkdir()
        job = asked(tmp_path / name, photos, None, told, guidance_of_missing=scale, num_images=1)
        draw_and_look(model, Colours(), job, InProcessRun())
        [done] = [each for each in told if isinstance(each, ImageDone)]
        assert (done.attention, done.seed) == (None, 12)


def test_each_word_of_the_prompt_is_found(model: DiffusionModel, photos: list[Path], weights: Any) -> None:
    before = everything(model)
    both = replace(
        UNIT, text="a <stark> dog on a <mimi> cat", weights=((weights, 1.0),), attention_guidance=0.5
    )
    found = looked(model, photos, both)
    assert [one.token for one in found] == ["stark", "renamed"]
    for one in found:
        assert one.attention is not None
        assert 0.0 < one.attention.share <= 1.0
        assert one.attention.box.x + one.attention.box.width <= 1.0
        assert set(one.attention.same_place) <= {"stark", "renamed"} - {one.token}
    alone = looked(model, photos, replace(UNIT, weights=((weights, 1.0),)))
    assert alone[0].attention is not None
    assert (alone[0].attention.same_place, alone[1].attention) == ([], None)
    nobody = looked(model, photos, replace(UNIT, text="a dog on the beach", weights=((weights, 1.0),)))
    assert [one.attention for one in nobody] == [None, None]
    assert same(before, everything(model))


def test_in_a_picture_with_regions_there_is_nothing_to_find(
    model: DiffusionModel, photos: list[Path], weights: Any
) -> None:
    boxed = replace(
        UNIT, text="a dog", regions=(RegionUnit("a <stark> dog", Box(0, 0, 0.5, 1), ((weights, 1.0),)),)
    )
    assert [one.attention for one in looked(model, photos, boxed)] == [None, None]


def test_words_in_the_same_place_are_named() -> None:
    own, near, far = (Acting(0.4, Box(x, 0, 0.5, 1)) for x in (0.0, 0.125, 0.5))
    told = _told(own, [("near", near), ("far", far)])
    assert (told.same_place, told.share, told.box.x) == (["near"], 0.4, 0.0)


def test_records_from_before_are_read() -> None:
    old = {"concept": ONE, "token": "stark", "state": "present", "score": 0.7,
           "box": {"x": 0, "y": 0, "width": 1, "height": 1}}  # fmt: skip
    assert Presence.model_validate(old).attention is None
