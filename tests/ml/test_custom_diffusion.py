"""Custom Diffusion: what is trained, what the rows are, and what weights must fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.schemas.methods.custom_diffusion import CustomDiffusionParams
from tests.ml.teaching import prepare, stark, teach
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.errors import InputInvalid, PromptTooLong, WeightsInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS, ConceptExamples
from worker.ml.run import InProcessRun
from worker.ml.training.augmentation import SMALL, ZOOMED
from worker.ml.training.captions import class_prompts, other_class_prompts, photo_caption
from worker.ml.training.dataset import VIEWS_PER_PLAIN_PHOTO, build_bank, deal
from worker.ml.training.loop import Progress, advance, train

METHOD = METHODS["custom-diffusion"]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prior")


@pytest.fixture(scope="module")
def weights(model: DiffusionModel, photos: list[Path], prior: Path) -> ConceptWeights:
    return teach(model, [stark(photos)], prior)


def test_trained_are_all_keys_and_values_and_one_row(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """T3: names, count and number of numbers. They start at no change and at a rare token's row."""
    tensors = prepare(model, [stark(photos)], prior).tensors()
    attentions = [name for name, module in model.denoiser.named_modules() if name.endswith("attn2")]
    sites = {f"site.{name}.{part}.delta" for name in attentions for part in ("to_k", "to_v")}
    assert tensors.keys() == sites | {"token.stark.learned"}
    assert sum(tensor.numel() for tensor in tensors.values()) == 4 * 2 * 64 * 32 + 32
    assert all(not tensors[name].any() for name in sites)
    assert torch.equal(tensors["token.stark.learned"], model.initial_rows(1))


def test_the_matrices_decay_towards_the_base_and_the_word_does_not(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    matrices, words = prepare(
        model, [stark(photos)], prior, weight_decay=0.02, token_learning_rate=0.5
    ).groups
    assert (matrices.weight_decay, words.weight_decay) == (0.02, 0.0)
    assert (matrices.learning_rate, words.learning_rate) == (2e-4, 0.5)


def test_half_of_the_rows_are_prior_images_that_never_hear_the_placeholder(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    trainee = prepare(model, [stark(photos)], prior, batch_size=4)
    for step in range(6):
        rows = trainee.rows(step)
        texts = [rows.prompts[place].text for place in rows.prompt_of_row]
        assert rows.latents.shape == (8, 4, 8, 8)
        assert rows.masks.shape == (8, 1, 8, 8)
        assert sum(rows.prior) == 4
        for text, is_prior, mask in zip(texts, rows.prior, rows.masks, strict=True):
            assert ("<stark>" in text) != is_prior
            assert not is_prior or (bool(mask.all()) and text.startswith("photo of a dog"))
        assert len({prompt.text for prompt in rows.prompts}) == len(rows.prompts)


def test_rows_are_a_function_of_the_step(model: DiffusionModel, photos: list[Path], prior: Path) -> None:
    one, two = (prepare(model, [stark(photos)], prior) for _ in range(2))
    for step in (0, 5, 3):
        assert torch.equal(one.rows(step).latents, two.rows(step).latents)
        assert torch.equal(one.rows(step).masks, two.rows(step).masks)
        assert one.rows(step).prompt_of_row == two.rows(step).prompt_of_row
    assert not torch.equal(one.rows(0).latents, one.rows(1).latents)


def test_every_photo_comes_up_equally_often(model: DiffusionModel, photos: list[Path]) -> None:
    bank = build_bank(model, photos, seed=1, stream="photos", augment=False, flip=False, run=InProcessRun())
    views = VIEWS_PER_PLAIN_PHOTO
    assert len(bank.prefixes) == 3 * views
    dealt = deal(bank.prefixes, 1, "deck", first=3 * views, count=3 * views, together=1)
    assert sorted(entry // views for entry in dealt) == [0] * views + [1] * views + [2] * views


def test_a_batch_holds_few_captions_and_every_view_equally_often(
    model: DiffusionModel, photos: list[Path]
) -> None:
    bank = build_bank(
        model, photos[:2], seed=1, stream="photos", augment=True, flip=False, run=InProcessRun()
    )
    size = len(bank.prefixes)
    for epoch in range(3):
        dealt = deal(bank.prefixes, 1, "deck", first=epoch * size, count=size, together=2)
        assert sorted(dealt) == list(range(size))
        mixed = [i for i in range(0, size, 2) if bank.prefixes[dealt[i]] != bank.prefixes[dealt[i + 1]]]
        assert len(mixed) <= 2


def test_hands_are_whole_where_captions_allow() -> None:
    captions = ["a"] * 5 + ["b"] * 8 + ["c"] * 3
    dealt = [captions[entry] for entry in deal(captions, 0, "deck", first=0, count=16, together=4)]
    hands = sorted("".join(sorted(dealt[i : i + 4])) for i in range(0, 16, 4))
    assert hands == ["aaaa", "accc", "bbbb", "bbbb"]


def test_places_are_dealt_to_the_concepts_in_turn(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """Three rows a step for two concepts: 2 + 1, then 1 + 2, and nobody's deck skips a card."""
    concepts = [stark(photos), ConceptExamples("wolf", "cat", "subject", photos[:1])]
    trainee = prepare(model, concepts, prior, batch_size=3, prior_weight=0.0)
    counts = []
    for step in range(4):
        rows = trainee.rows(step)
        texts = [rows.prompts[place].text for place in rows.prompt_of_row]
        counts.append((sum("<stark>" in text for text in texts), sum("<wolf>" in text for text in texts)))
    assert counts == [(2, 1), (1, 2), (2, 1), (1, 2)]


def test_a_shorter_training_is_the_beginning_of_a_longer_one(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    short, long = (prepare(model, [stark(photos)], prior, steps=steps) for steps in (2, 500))
    assert torch.equal(short.rows(1).latents, long.rows(1).latents)


def test_captions() -> None:
    assert photo_caption("stark", "dog", "subject") == "photo of a <stark> dog"
    assert photo_caption("stark", "dog", "subject", "zoomed in") == "zoomed in photo of a <stark> dog"
    assert photo_caption("gate", "", "subject") == "photo of a <gate>"
    assert photo_caption(None, "owl", "subject", "close up") == "close up photo of an owl"
    assert photo_caption(None, "woodcut", "style") == "painting in the style of woodcut"
    assert photo_caption("ink", "", "style") == "painting in the style of <ink> art"
    assert (
        photo_caption("ink", "woodcut", "style", "close up")
        == "close up painting in the style of <ink> woodcut"
    )


def test_class_prompts_hold_the_class_in_many_surroundings() -> None:
    examples = ["a photo of {} on the beach", "a {} in snow", "a red {} at night", "no subject"]
    assert class_prompts("owl", "subject", examples) == [
        "photo of an owl",
        "a photo of an owl on the beach",
        "a owl in snow",
        "a red owl at night",
    ]
    assert class_prompts("", "subject", examples) == []
    assert class_prompts("", "style", examples) == ["painting in the style of art", "art"]


def test_two_concepts_train_jointly_each_with_a_word_of_its_own(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """methods.md 5: one set of matrices, every V* gets a gradient (T10), rows take turns."""
    concepts = [stark(photos), ConceptExamples("wolf", "cat", "subject", photos[:1])]
    trainee = prepare(model, concepts, prior, batch_size=2, token_learning_rate=0.01)
    progress = Progress(trainee)
    before = {name: tensor.detach().clone() for name, tensor in progress.tensors.items()}
    assert not torch.equal(before["token.stark.learned"], before["token.wolf.learned"])
    rows = trainee.rows(0)
    texts = " ".join(prompt.text for prompt in rows.prompts)
    assert "<stark> dog" in texts
    assert "<wolf> cat" in texts
    advance(model, [progress], InProcessRun())
    assert all(not torch.equal(before[name], tensor) for name, tensor in progress.tensors.items())
    assert [taught.token for taught in trainee.result(1).manifest.tokens] == ["stark", "wolf"]


def test_one_concept_of_a_joint_training_is_a_training_of_one(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    alone = prepare(model, [stark(photos)], prior)
    again = prepare(model, [stark(photos)], prior)
    assert alone.fingerprint == again.fingerprint
    assert alone.fingerprint != prepare(model, [stark(photos)], prior, seed=8).fingerprint
    assert alone.fingerprint != prepare(model, [stark(photos[:2])], prior).fingerprint
    assert alone.fingerprint != prepare(model, [stark(photos)], prior, learning_rate=1e-3).fingerprint


def test_doubling_lambda_doubles_the_priors_share_of_the_gradient(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """T11, with the photos' share taken off by linearity: g(2) - g(1) = g(3) - g(2)."""
    gradients = []
    for weight in (1.0, 2.0, 3.0):
        progress = Progress(prepare(model, [stark(photos)], prior, prior_weight=weight, max_grad_norm=100.0))
        advance(model, [progress], InProcessRun())
        name = next(name for name in progress.tensors if name.startswith("site."))
        gradient = progress.tensors[name].grad
        assert gradient is not None
        gradients.append(gradient.double())
    share = gradients[1] - gradients[0]
    assert share.abs().max() > 0
    torch.testing.assert_close(
        gradients[2] - gradients[1], share, atol=1e-6 * share.abs().max().item() * 10, rtol=1e-4
    )


def test_the_manifest_says_how_it_was_made(model: DiffusionModel, weights: ConceptWeights) -> None:
    manifest = weights.manifest
    assert (manifest.method, manifest.side, manifest.base) == ("custom-diffusion", "text", "tiny")
    assert (manifest.base_hash, manifest.prediction_type) == (model.description.hash, "epsilon")
    assert (manifest.seed, manifest.steps, manifest.parents) == (7, 6, [])
    assert CustomDiffusionParams.model_validate(manifest.params).steps == 6


def test_queries_and_outputs_train_too_and_nothing_else(
    model: DiffusionModel, photos: list[Path], prior: Path
) -> None:
    """T3 of ``crossattn``: every parameter under ``attn2`` and V*; all start at no change and decay towards it."""
    trainee = prepare(model, [stark(photos)], prior, train="crossattn", weight_decay=0.02)
    matrices, words = trainee.groups
    under = [name for name, _ in model.denoiser.named_parameters() if ".attn2." in name]
    assert len(under) == 5 * 4
    assert {file_key(name) for name in under} == matrices.tensors.keys()
    assert words.tensors.keys() == {"token.stark.learned"}
    assert all(not tensor.any() for tensor in matrices.tensors.values())
    assert matrices.weight_decay == 0.02
    assert trainee.alone


def file_key(parameter: str) -> str:
    return (
        "site."
        + parameter.removesuffix(".weight").replace(".bias", "")
        + (".bias_delta" if parameter.endswith(".bias") else ".delta")
    )


def test_a_new_category_is_taught_by_its_plain_name(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    """methods.md 4: no V* in captions or file; the base model's own nouns are preserved, the new one never."""
    known = copy.copy(model)
    nouns = ["dog", "teapot", "owl"]
    known.description = model.description.model_copy(update={"class_nouns": nouns})  # type: ignore[misc]
    gate = ConceptExamples("gate", "teapot", "subject", photos)
    trainee = prepare(known, [gate], tmp_path, word="class-noun", prior_images=8)
    assert not [name for name in trainee.tensors() if name.startswith("token.")]
    seen = set()
    for step in range(8):
        rows = trainee.rows(step)
        for place, is_prior in zip(rows.prompt_of_row, rows.prior, strict=True):
            text = rows.prompts[place].text
            assert "<" not in text
            assert is_prior != ("teapot" in text)
            seen.add(text.removeprefix("zoomed in ").removeprefix("close up "))
    assert "photo of a teapot" in seen
    assert "photo of a dog" in seen
    weights = train(known, [trainee], InProcessRun())[0]
    assert [(taught.vectors, taught.class_noun) for taught in weights.manifest.tokens] == [(0, "teapot")]
    assert all(name.startswith("site.") for name in weights.tensors)
    edits = ((METHOD.edit(known, weights), 1.0),)
    with torch.no_grad():
        named, plain = text_kv(
            known, [Prompt(f"a {word} on the beach", edits) for word in ("<gate> teapot", "teapot")]
        ).kv.keys[0]
    assert torch.equal(named, plain)


def test_a_new_category_needs_its_name_and_has_no_prior_where_the_base_names_nothing(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputInvalid, match="no class noun"):
        prepare(model, [ConceptExamples("ink", "", "style", photos)], tmp_path, word="class-noun")
    assert model.description.class_nouns == []
    trainee = prepare(model, [stark(photos)], tmp_path, word="class-noun")
    assert not any(trainee.rows(0).prior)
    assert not list(tmp_path.iterdir())


def test_a_style_is_captioned_as_paintings_and_preserves_art(
    model: DiffusionModel, photos: list[Path], tmp_path: Path
) -> None:
    """methods.md 4, "Style": the augmentation and its words as for a subject."""
    trainee = prepare(
        model, [ConceptExamples("ink", "", "style", photos)], tmp_path, prior_images=8, batch_size=4
    )
    photo_texts, prior_texts = set(), set()
    for step in range(12):
        rows = trainee.rows(step)
        for place, is_prior in zip(rows.prompt_of_row, rows.prior, strict=True):
            (prior_texts if is_prior else photo_texts).add(rows.prompts[place].text)
    assert prior_texts == {"painting in the style of art", "art"}
    plain = "painting in the style of <ink> art"
    assert plain in photo_texts
    assert photo_texts - {plain} <= {f"{prefix} {plain}" for prefix in (*ZOOMED, *SMALL)}
    assert len(photo_texts) > 2


def test_others_than_the_new_class_are_preserved() -> None:
    examples = ["a photo of {} on the beach", "no subject"]
    assert other_class_prompts("gate", "subject", ["dog", "gate", "owl", "cat"], examples) == [
        "photo of a dog",
        "a photo of an owl on the beach",
        "photo of a cat",
    ]
    assert other_class_prompts("gate", "subject", [], examples) == []
    assert other_class_prompts("woodcut", "style", ["dog"], examples) == [
        "painting in the style of art",
        "art",
    ]


@pytest.mark.parametrize(
    ("concepts", "previews", "error"),
    [
        ([ConceptExamples("stark", "dog", "subject", [])], [], InputInvalid),
        ([ConceptExamples("stark", "dog", "subject", [Path("none.png")])], [], (InputInvalid, OSError)),
        ([ConceptExamples("stark", "dog " * 30, "subject", [])], [], PromptTooLong),
        ([ConceptExamples("stark", "dog", "subject", [])], ["a <wolf>"], InputInvalid),
        ([ConceptExamples("stark", "dog", "subject", [])], ["a <stark> " * 20], PromptTooLong),
        ([ConceptExamples("stark", "dog", "subject", [])] * 2, [], InputInvalid),
    ],
)
def test_bad_concepts_are_refused_before_any_work(
    model: DiffusionModel,
    prior: Path,
    concepts: list[ConceptExamples],
    previews: list[str],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        prepare(model, concepts, prior, previews=previews)


def test_a_photo_that_is_no_picture_is_refused(model: DiffusionModel, prior: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"not a picture")
    with pytest.raises(InputInvalid, match="cannot be decoded"):
        prepare(model, [stark([tmp_path / "x.png"])], prior)


SITE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def put(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(name) if tensor is None else held.update({name: tensor})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (put(f"site.{SITE}.delta", None), "each once"),
        (put("site.conv_in.delta", torch.zeros(2, 2)), "each once"),
        (put(f"site.{SITE}.up", torch.zeros(2, 2)), "each once"),
        (put(f"site.{SITE}.delta", torch.zeros(64, 31)), "shape"),
        (put("token.stark.learned", torch.zeros(1, 31)), "32 numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    model: DiffusionModel,
    weights: ConceptWeights,
    spoil: Callable[[dict[str, Tensor]], object],
    sentence: str,
) -> None:
    held = dict(weights.tensors)
    spoil(held)
    with pytest.raises(WeightsInvalid, match=sentence):
        METHOD.edit(model, ConceptWeights(weights.manifest, held))


def test_weights_in_half_precision_still_load(model: DiffusionModel, weights: ConceptWeights) -> None:
    halves = ConceptWeights(
        weights.manifest, {name: tensor.half() for name, tensor in weights.tensors.items()}
    )
    assert all(delta.dtype == torch.float32 for delta in METHOD.deltas(model, halves).values())
