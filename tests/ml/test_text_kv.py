"""Text keys and values: equal to the plain pipeline, composed per row, and nothing of the base model is
touched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from backend.schemas.generations import SCHEDULERS as OFFERED
from tests.ml.teaching import everything, random_edit, same
from worker.ml.attention import cross_attention_modules
from worker.ml.conditioning import Prompt, TextEdit, TextKV, TokenRows, text_kv
from worker.ml.errors import InputInvalid, PromptTooLong
from worker.ml.families import load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, generate
from worker.ml.sampling.schedulers import SCHEDULERS, build_scheduler

TEXT = "a photo of a dog on the beach"


def layers_of(kv: TextKV) -> list[torch.Tensor]:
    return [*kv.keys, *kv.values]


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("prediction", ["tiny_folder", "tiny_v_folder"])
def test_without_edits_a_picture_is_bit_equal_to_the_plain_pipeline(
    scheduler: str, prediction: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(prediction)
    model = load_base(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(scheduler, model.scheduler_config, 4)
    expected = pipeline(
        TEXT,
        negative_prompt="snow",
        num_inference_steps=4,
        guidance_scale=5.0,
        width=32,
        height=32,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    unit = GenerationUnit(0, TEXT, "snow", 3, 4, 5.0, scheduler, 32, 32)
    ((_, pixels),) = generate(model, [unit], InProcessRun())
    assert np.array_equal(pixels, (expected * 255).round().astype(np.uint8))


def test_the_engine_offers_the_schedulers_of_the_api() -> None:
    assert set(SCHEDULERS) == {info.name for info in OFFERED}


def test_ready_keys_and_values_give_the_bits_of_the_text_states(model: DiffusionModel) -> None:
    """The same prediction whether the denoiser projects or is given what was projected."""
    states = model.encode_prompts(torch.tensor([model.token_ids(TEXT, {})]), None).states
    noisy, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        plain = model.denoiser(noisy, t, encoder_hidden_states=states).sample
        ours = model.predict(noisy, t, text_kv(model, [Prompt(TEXT)]))
    assert torch.equal(plain, ours)


def test_scale_zero_is_the_base_model_to_the_last_bit(model: DiffusionModel) -> None:
    edit = random_edit(model)
    base = text_kv(model, [Prompt(TEXT)]).kv
    zero = text_kv(model, [Prompt(TEXT, ((edit, 0.0),))]).kv
    full = text_kv(model, [Prompt(TEXT, ((edit, 1.0),))]).kv
    assert all(torch.equal(a, b) for a, b in zip(layers_of(base), layers_of(zero), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(layers_of(base), layers_of(full), strict=True))


def test_scale_zero_reads_the_placeholder_as_its_start_row(model: DiffusionModel) -> None:
    edit = random_edit(model)
    untaught = TextEdit({"stark": TokenRows(edit.tokens["stark"].start, edit.tokens["stark"].start)}, {})
    zero = text_kv(model, [Prompt("a <stark> dog", ((edit, 0.0),))]).kv
    start = text_kv(model, [Prompt("a <stark> dog", ((untaught, 1.0),))]).kv
    assert all(torch.equal(a, b) for a, b in zip(layers_of(zero), layers_of(start), strict=True))


def test_scale_multiplies_the_change(model: DiffusionModel) -> None:
    edit = random_edit(model)
    base, half, full = (text_kv(model, [Prompt(TEXT, ((edit, s),))]).kv for s in (0.0, 0.5, 1.0))
    for b, h, f in zip(layers_of(base), layers_of(half), layers_of(full), strict=True):
        torch.testing.assert_close(h, (b + f) / 2)


def test_concepts_of_one_name_live_side_by_side_and_add_up_in_one_prompt(model: DiffusionModel) -> None:
    mine, yours, other = (
        random_edit(model, seed=1),
        random_edit(model, seed=2),
        random_edit(model, "wolf", seed=3),
    )
    prompts = [
        Prompt("a <stark> dog", ((mine, 1.0),)),
        Prompt("a <stark> dog", ((yours, 1.0),)),
        Prompt("a <stark> dog and a <wolf> cat", ((mine, 1.0), (other, 0.7))),
        Prompt(TEXT),
    ]
    together = text_kv(model, prompts).kv
    for row, prompt in enumerate(prompts):
        alone = text_kv(model, [prompt]).kv
        for a, b in zip(layers_of(together), layers_of(alone), strict=True):
            torch.testing.assert_close(a[row], b[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together.keys[0][0], together.keys[0][1], atol=1e-3)


def test_an_edit_may_leave_negative_prompts_alone(model: DiffusionModel) -> None:
    edit = random_edit(model)
    gentle = TextEdit(edit.tokens, edit.sites, negative=False)
    base = text_kv(model, [Prompt("")]).kv
    left = text_kv(model, [Prompt("", ((gentle, 1.0),), negative=True)]).kv
    acted = text_kv(model, [Prompt("", ((edit, 1.0),), negative=True)]).kv
    assert torch.equal(base.keys[0], left.keys[0])
    assert not torch.equal(base.keys[0], acted.keys[0])


def test_ids_without_placeholders_are_the_tokenizers_own(model: DiffusionModel) -> None:
    tokenizer = vars(model)["tokenizer"]
    for text in ("", TEXT, "  A   photo,of a DOG!! ", "éü 你好 <3 x>y"):
        assert model.token_ids(text, {}) == tokenizer(text, padding="max_length", max_length=24).input_ids


def test_placeholders_touch_neither_tokenizer_nor_table(model: DiffusionModel) -> None:
    before, entries = everything(model), len(vars(model)["tokenizer"])
    rows = torch.randn(2, 32)
    first = model.vocabulary_size
    ids = model.token_ids("a <new-1> cat", {"new-1": range(first, first + 2)})
    assert ids[2:4] == [first, first + 1]
    model.encode_prompts(torch.tensor([ids]), rows)
    assert same(before, everything(model))
    assert len(vars(model)["tokenizer"]) == entries
    assert not vars(model)["text_encoder"].get_input_embeddings()._forward_hooks


def test_a_virtual_row_reads_like_a_row_of_the_table(model: DiffusionModel) -> None:
    """Giving the row of a known word through a placeholder encodes to the same bits, pooled state included
    (T14).
    """
    dog = model.token_ids("dog", {})[1]
    row = vars(model)["text_encoder"].get_input_embeddings().weight[dog][None]
    first = model.vocabulary_size
    virtual = model.token_ids("a photo of a <x> cat", {"x": range(first, first + 1)})
    real = model.token_ids("a photo of a dog cat", {})
    through = model.encode_prompts(torch.tensor([virtual]), row)
    plain = model.encode_prompts(torch.tensor([real]), None)
    assert torch.equal(through.states, plain.states)
    assert torch.equal(through.pooled, plain.pooled)
    end = real.index(vars(model)["tokenizer"].eos_token_id)
    assert torch.equal(through.pooled, through.states[:, end])


def test_too_long_is_refused_and_never_cut(model: DiffusionModel) -> None:
    fits = " ".join(["dog"] * 22)
    text_kv(model, [Prompt(fits)])
    with pytest.raises(PromptTooLong) as caught:
        text_kv(model, [Prompt(fits + " dog")])
    assert (caught.value.tokens, caught.value.limit, caught.value.code) == (25, 24, "prompt_too_long")


def test_unknown_and_ambiguous_placeholders_are_refused(model: DiffusionModel) -> None:
    edit = random_edit(model)
    with pytest.raises(InputInvalid, match="No chosen weights teach <wolf>"):
        text_kv(model, [Prompt("a <wolf>", ((edit, 1.0),))])
    with pytest.raises(InputInvalid, match="Two of the chosen weights"):
        text_kv(model, [Prompt("a <stark>", ((edit, 1.0), (random_edit(model, seed=1), 1.0)))])


def test_only_cross_attention_takes_keys_and_values(model: DiffusionModel) -> None:
    named = cross_attention_modules(model.denoiser)
    assert all(name.endswith("attn2") for name, _ in named)
    assert len(named) == len(model.cross_attention()) == 4
    replaced = [n for n, p in model.denoiser.attn_processors.items() if type(p).__name__ == "TextKVProcessor"]
    assert sorted(replaced) == sorted(f"{name}.processor" for name, _ in named)


def test_detaching_the_first_token_cuts_its_gradient_and_nothing_else(model: DiffusionModel) -> None:
    """methods.md 4, test (ii): equal values; the gradient is that of a loss which does not see position 0."""
    edit = random_edit(model)
    site = model.cross_attention()[0].key.name
    matrix = edit.sites[site].dense().requires_grad_()
    prompt = Prompt(TEXT, ((edit, 1.0),))
    weight = torch.randn(1, 24, model.cross_attention()[0].key.weight.shape[0])

    def gradient(detach: bool, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys = text_kv(model, [prompt], detach_first=detach).kv.keys[0]
        (grad,) = torch.autograd.grad((keys * seen).sum(), matrix)
        return keys.detach(), grad

    rest = weight.clone()
    rest[:, 0] = 0
    plain, _ = gradient(False, weight)
    detached, cut = gradient(True, weight)
    _, without = gradient(False, rest)
    assert torch.equal(plain, detached)
    assert torch.equal(cut, without)


def test_frozen_captions_are_encoded_once(model: DiffusionModel) -> None:
    cache: dict[str, torch.Tensor] = {}
    edit = random_edit(model)
    first = text_kv(model, [Prompt(TEXT), Prompt("a <stark> dog", ((edit, 1.0),))], cache=cache).kv
    assert list(cache) == [TEXT]
    cache[TEXT] = torch.zeros_like(cache[TEXT])
    second = text_kv(model, [Prompt(TEXT), Prompt("a <stark> dog", ((edit, 1.0),))], cache=cache).kv
    assert torch.equal(second.keys[0][0], torch.zeros_like(second.keys[0][0]))
    assert torch.equal(first.keys[0][1], second.keys[0][1])
