"""The table of methods as it is made: a real training in a process of its own, a result that resumes, a table of it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.methods import CARDS
from benchmarks import method_sheets, methods, pairs, presence, ways
from benchmarks.grading import LABEL_PX, Bench
from benchmarks.methods import chosen, entries, markdown, summary
from benchmarks.targets import BLUEPRINT, blueprint_style, in_blueprint, listed
from worker.ml.evaluation.measures import photo_pixels
from worker.ml.evaluation.panel import load_panel
from worker.ml.evaluation.protocol import spread
from worker.ml.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
NOUNS = ["dog", "cat", "owl", "teapot"]
TINY: dict[str, Any] = {
    "methods": ["textual-inversion"],
    "targets": ["stark"],
    "params": {"steps": 2, "prior_images": 2, "prior_steps": 2, "batch_size": 1},
    "image_seeds": [101, 102],
    "num_inference_steps": 2,
}


def experiment(folder: Path, **changes: Any) -> Path:
    """The committed experiment with fewer of everything."""
    spec = json.loads((ROOT / "benchmarks/experiments/methods.json").read_text())
    fewer = {"prompts": spec["prompts"][:2], "style_prompts": spec["style_prompts"][:2]}
    changed = {**spec, **fewer, "presets": ["balanced"], "variants": [], **changes}
    file = folder / "tiny.json"
    file.write_text(
        json.dumps({**changed, "base": str(ROOT / spec["base"]), "subjects": str(ROOT / spec["subjects"])})
    )
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("table")
    results, work = folder / "results", folder / "work"
    results.mkdir()
    file = experiment(folder, **TINY)
    methods.run(file, results, work)
    return file, results, work


def test_a_result_says_what_was_measured_by_whom_and_at_what_cost(made: tuple[Path, Path, Path]) -> None:
    file, results, work = made
    [path] = (results / "tiny").glob("*.json")
    assert path.name == "textual-inversion-balanced--stark.json"
    result = json.loads(path.read_text())
    bench = Bench.load(file, results, work / "tiny")
    assert bench.is_current(result)
    assert result["params"]["steps"] == result["steps"] == 2
    assert np.isfinite([result[name] for name in methods.MEASURES]).all()
    assert len(result["subject_similarity_per_seed"]) == 2
    assert result["bytes"] == (work / "tiny/weights" / f"{path.stem}.safetensors").stat().st_size
    assert result["peak_memory_bytes"] > 50_000_000
    told = json.loads((results / "tiny.json").read_text())
    row = told["subject"]["textual-inversion-balanced"]
    assert (row["n"], row["targets"], row["seconds"]["half_width_95"]) == (1, ["stark"], None)
    assert "| Textual Inversion | balanced | 1 |" in (results / "tiny.md").read_text()
    with Image.open(results / "tiny-stark.webp") as sheet:
        assert sheet.size == (2 * (LABEL_PX + 4 * 64), 2 * 2 * 64)


def test_what_is_measured_is_not_measured_again_until_it_differs(made: tuple[Path, Path, Path]) -> None:
    file, results, work = made
    [path] = (results / "tiny").glob("*.json")
    before = path.stat().st_mtime_ns
    methods.run(file, results, work)
    assert path.stat().st_mtime_ns == before
    bench, result = Bench.load(file, results, work / "tiny"), json.loads(path.read_text())
    [entry] = entries(bench)
    assert methods.is_current(bench, entry, result)
    assert not methods.is_current(bench, replace(entry, params={**entry.params, "steps": 3}), result)
    assert not methods.is_current(bench, entry, {**result, "judges_hash": "ff"})


def test_a_picture_that_is_gone_is_drawn_again_as_it_was(made: tuple[Path, Path, Path]) -> None:
    """From the weights that are at hand, and from a training of the same bytes where they are not; within what a
    picture may differ by its neighbours in a batch.
    """
    file, results, work = made
    [picture] = (work / "tiny/pictures").glob("textual-inversion-*.png")
    [weights] = (work / "tiny/weights").glob("*.safetensors")
    before, learned = np.asarray(Image.open(picture)).astype(int), weights.read_bytes()
    [numbers] = [path.read_text() for path in (results / "tiny").glob("*.json")]
    for gone in ([picture], [picture, weights]):
        for each in gone:
            each.unlink()
        method_sheets.run(file, results, work)
        assert np.abs(np.asarray(Image.open(picture)).astype(int) - before).max() <= 2
        assert weights.read_bytes() == learned
    assert [path.read_text() for path in (results / "tiny").glob("*.json")] == [numbers]


def test_every_method_of_the_registry_has_a_row(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, results, work = made
    bench = Bench.load(experiment(tmp_path, presets=["quick", "balanced"]), results, work)
    served = [name for name in METHODS if name in bench.model.description.methods]
    assert [entry.key for entry in entries(bench)] == [
        f"{name}-{preset}" for name in served for preset in ("quick", "balanced")
    ]
    found = methods.targets(bench)
    assert [one.slug for one in found] == ["stark", "domino", "bluebell", "rover", BLUEPRINT]


def test_what_was_measured_is_what_the_presets_still_say() -> None:
    """Committed results of the shipped base; variants say in their names what they changed."""
    found = 0
    for path in (ROOT / "benchmarks/results/methods").glob("*.json"):
        result = json.loads(path.read_text())
        if path.name.startswith(f"{result['method']}-{result['preset']}--"):
            card = CARDS[result["method"]]
            preset = card.presets["small"][result["preset"]]
            assert card.params_type(**preset) == card.params_type(**result["params"]), path.name
            found += 1
    assert found >= 25


def test_a_variant_is_a_preset_with_other_parameters(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, results, work = made
    variant = {"method": "lora", "preset": "quick", "name": "thick", "params": {"rank": 16}}
    file = experiment(tmp_path, methods=["lora"], presets=["quick"], variants=[variant])
    plain, thick = entries(Bench.load(file, results, work))
    assert (plain.key, thick.key) == ("lora-quick", "lora-quick-thick")
    assert thick.params == {**plain.params, "rank": 16}


def test_two_processes_share_the_table_by_names(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, results, work = made
    bench = Bench.load(experiment(tmp_path), results, work)
    known = {one.slug for one in methods.targets(bench)}
    pairs = {
        (entry.key, taught.slug): (entry, taught)
        for entry in entries(bench)
        for taught in methods.targets(bench)
    }

    def asked(*only: str) -> set[tuple[str, str]]:
        return {key for key, pair in pairs.items() if chosen(only, *pair, known)}

    assert asked() == set(pairs)
    assert asked("stark", "domino") | asked("bluebell", "rover", BLUEPRINT) == set(pairs)
    assert not asked("stark", "domino") & asked("bluebell", "rover", BLUEPRINT)
    assert asked("stark", "lora") == {("lora-balanced", "stark")}
    with pytest.raises(SystemExit, match="strak"):
        asked("strak")


def test_the_table_states_its_n_and_leaves_refusals_out(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, results, work = made
    bench = Bench.load(experiment(tmp_path), results, work)
    common = {"kind": "subject", **dict.fromkeys(methods.MEASURES, 0.5)}
    rows = [
        {**common, "target": "stark", "subject_similarity": 0.6},
        {**common, "target": "domino", "subject_similarity": 0.8},
        {"kind": "subject", "target": "rover", "refused": "It cannot."},
    ]
    found = summary(rows, "subject")
    assert (found["n"], found["targets"]) == (2, ["stark", "domino"])
    table = markdown(bench, {"subject": {"lora-balanced": found}, "style": {}})
    assert "| LoRA | balanced | 2 | 0.70 ± 1.27 | 0.50 ± 0.00 | 500.00 ± 0.00 |" in table
    assert "## A style" not in table


def test_the_blueprint_is_a_style_of_blue_ground_and_pale_lines(tmp_path: Path) -> None:
    index = ROOT / "backend/sample_photos/samples.json"
    style = blueprint_style(index, NOUNS, tmp_path)
    assert (len(style.photos), len(style.reference), style.kind) == (2, 2, "style")
    assert not set(style.photos) & set(style.reference)
    with Image.open(style.photos[0]) as picture:
        pixels = np.asarray(picture, np.float32)
    assert pixels[..., 2].mean() > 1.5 * pixels[..., 0].mean()
    assert pixels.max() > 200


def test_things_are_there_when_each_has_a_place_of_its_own() -> None:
    """Two things at one place are a chimera; a third place does not help a thing that is not there."""
    middles = np.array([[0.3, 0.5], [0.7, 0.5], [0.35, 0.5]])
    scores = np.zeros((4, 3, 2), np.float32)
    scores[0, 0, 0] = scores[0, 1, 1] = 0.9  # one left, one right
    scores[1, 0] = 0.9  # both at the left
    scores[2, 0, 0] = scores[2, 2, 1] = 0.9  # next to each other: nearer than a thing is wide
    scores[3, 0, 0] = 0.9  # one alone
    found = presence.verdict(scores, [0.5, 0.5], middles)
    assert found.together.tolist() == [True, False, False, False]
    assert found.each.tolist() == [[True, True], [True, True], [True, True], [True, False]]


def test_photos_stand_side_by_side_whole() -> None:
    photos = [torch.full((3, 60, 60), shade) for shade in (0.0, 0.5, 1.0)]
    joined = presence.side_by_side(photos)
    assert joined.shape == (3, 60, 60)
    assert [round(float(joined[0, 30, at]), 3) for at in (10, 30, 50)] == [0.0, 0.5, 1.0]


def test_the_names_of_ways_say_what_they_are() -> None:
    spec = json.loads((ROOT / "benchmarks/experiments/pairs.json").read_text())
    asked = {way for kind in spec["groups"] for way in pairs.ways_of(spec, kind)} - {ways.BASE}
    found = {name: ways.Way.of(name) for name in asked}
    assert found["closed-form-companions-company"] == ways.Way(
        "closed-form", "companions", company=True, guided=False, retried=False
    )
    assert found["regions-lokr-companions"].single == "lokr-companions"
    assert found["regions-companions-retried"].retried
    assert found["closed-form-guided"].guided
    assert found["average"].single == "custom-diffusion"
    assert (found["svdiff-sum-companions"].stem, found["svdiff-sum-companions"].single) == (
        "svdiff-sum", "svdiff-companions",
    )  # fmt: skip
    assert found["linear-orthogonal-companions"].single == "orthogonal-companions"
    assert found["perfusion-gates"].single == "perfusion"
    stems = {
        *ways.JOINT,
        *ways.REGIONS_JOINT,
        *ways.APART,
        "average",
        "regions",
        "textual-inversion",
        *MERGE_CARDS,
    }
    assert {way.stem for way in found.values()} <= stems
    for method, changed in (*ways.JOINT.values(), *ways.SINGLES.values()):
        CARDS[method].params_type(**changed)


def test_a_picture_is_tried_again_until_all_are_there(tmp_path: Path) -> None:
    """Nobody sought: the first picture. Two that the base cannot know: one of the tries, by the way's own road."""
    spec = json.loads((ROOT / "benchmarks/experiments/pairs.json").read_text())
    known = {one.slug: one for one in listed(ROOT / spec["subjects"][0])}
    few = {"places": ["on grass"], "image_seeds": [201], "num_inference_steps": 2, "preset": "quick"}
    studio = ways.Studio(Bench.load(experiment(tmp_path, **few), tmp_path, tmp_path), known)
    group = [known["stark"], known["bluebell"]]
    [unit], report = ways.units_of(studio, ways.BASE, group)
    assert report is None
    assert unit.text == "a photo of a dog and a teapot on grass"
    tries = [
        ways.pixels_of(studio, [replace(unit, seed=unit.seed + ways.NEXT_TRY * attempt)])[0]
        for attempt in range(ways.TRIES)
    ]
    close = partial(torch.allclose, atol=3 / 127.5)
    assert close(ways.best_of(studio, unit, unit.text, []), tries[0])
    found, _ = ways.drawn(studio, f"{ways.BASE}-retried", group)
    assert any(close(found[0], each) for each in tries)


def test_a_subject_and_a_style_are_looked_for_in_whole_pictures(tmp_path: Path) -> None:
    spec = json.loads((ROOT / "benchmarks/experiments/pairs.json").read_text())
    known = {one.slug: one for index in spec["subjects"] for one in listed(ROOT / index)}
    panel = load_panel(ROOT / spec["base"], [])
    nouns = [one.class_noun for one in known.values()]
    style = blueprint_style(ROOT / spec["subjects"][0], nouns, tmp_path)
    seen = {
        name: presence.SeenAs(photo_pixels(one.photos, 64), photo_pixels(one.reference, 64))
        for name, one in {**known, BLUEPRINT: style}.items()
    }
    other_dog, teapot = seen["pepper"].photos, seen["bluebell"].reference

    def there(pixels: torch.Tensor) -> list[float]:
        found = presence.styled(panel, pixels, other_dog, (seen["stark"], seen[BLUEPRINT]), in_blueprint)
        assert (found.together == found.each.all(axis=1)).all()
        return [float(share) for share in found.each.mean(axis=0)]

    one_of_five = 0.2
    subject, manner = there(seen["stark"].reference)
    assert subject == 1.0
    assert manner <= one_of_five, "one is under water, and blue"
    assert there(in_blueprint(seen["stark"].reference)) == [1.0, 1.0]
    subject, manner = there(in_blueprint(teapot))
    assert subject <= one_of_five
    assert manner == 1.0
    assert there(seen["pepper"].reference) == [0.0, 0.0]


def test_a_prompt_names_subjects_before_their_place_and_styles_behind(tmp_path: Path) -> None:
    spec = json.loads((ROOT / "benchmarks/experiments/pairs.json").read_text())
    known = {one.slug: one for one in listed(ROOT / spec["subjects"][0])}
    style = blueprint_style(ROOT / spec["subjects"][0], NOUNS, tmp_path)
    studio = ways.Studio(
        Bench.load(experiment(tmp_path, places=["here"], preset="quick"), tmp_path, tmp_path), known
    )
    group = [known["stark"], known["moongate"], style]
    assert studio.prompt(group, "in the snow") == (
        "a photo of a <stark> dog and a moongate in the snow in the style of <blueprint> art"
    )
    assert studio.prompt(group, "in the snow", plain=True) == "a photo of a dog and a moongate in the snow"


def test_a_table_of_concepts_together_says_its_n(tmp_path: Path) -> None:
    spec = json.loads((ROOT / "benchmarks/experiments/pairs.json").read_text())
    known = {one.slug: one for index in spec["subjects"] for one in listed(ROOT / index)}
    groups = spec["groups"]
    nouns = {
        kind: [[known[slug].class_noun for slug in group if slug != BLUEPRINT] for group in each]
        for kind, each in groups.items()
    }
    assert {kind: len(each) for kind, each in nouns.items()} == {
        "Pairs of different classes": 8, "Pairs of one class": 4, "Beside the moongate": 2, "Triples": 2,
        "A subject in a style": 4, "Thirty pairs of different classes": 30, "Ten triples": 10,
    }  # fmt: skip
    for kind, several in (
        ("Pairs of one class", 1),
        ("Thirty pairs of different classes", 2),
        ("Ten triples", 3),
    ):
        assert all(len(set(group)) == several for group in nouns[kind])
        assert len({frozenset(group) for group in groups[kind]}) == len(groups[kind])
    assert groups["Thirty pairs of different classes"][:8] == groups["Pairs of different classes"]
    assert groups["Ten triples"][:2] == groups["Triples"]
    assert all(len(group) == 2 and group[1] == BLUEPRINT for group in groups["A subject in a style"])
    one, two = ({"n": n, "each": 0.5, "all": found, "all_classes": found} for n, found in (
        (1, pairs.finite(spread([0.4]))), (2, pairs.finite(spread([0.4, 0.6])))
    ))  # fmt: skip
    bench = Bench.load(experiment(tmp_path, places=["here"], preset="quick"), tmp_path, tmp_path)
    table = pairs.markdown(bench, {"pairs": {"base": one, "regions": two}})
    assert "| base | 1 | 0.40 — | 0.50 | 0.40 — |" in table
    assert "| regions | 2 | 0.50 ± 1.27 | 0.50 | 0.50 ± 1.27 |" in table
