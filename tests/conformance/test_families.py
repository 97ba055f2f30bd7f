"""What every family of base models must do."""

from __future__ import annotations

import json

import pytest
import torch

from tests.ml.teaching import everything, same
from tests.ml.tiny_base import write_tiny_base
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.families import FAMILIES, describe_base, load_base
from worker.ml.families.base import DiffusionModel
from worker.ml.run import InProcessRun
from worker.ml.sampling.engine import GenerationUnit, generate
from worker.ml.streams import rng

FOLDERS = {"toyworld": ("v_prediction", 3), "sd15": ("epsilon", 4)}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    prediction, seed = FOLDERS[request.param]
    folder = write_tiny_base(tmp_path_factory.mktemp("family") / request.param, prediction, seed)
    (folder / "moongate.json").write_text(json.dumps({"family": request.param, "id": request.param}))
    assert describe_base(folder).family == request.param
    return load_base(folder)


def test_modules_are_frozen_and_in_evaluation_mode(loaded: DiffusionModel) -> None:
    assert not any(parameter.requires_grad for parameter in loaded.denoiser.parameters())
    assert not any(module.training for module in loaded.denoiser.modules())


def test_latents_have_the_shape_and_come_back_as_pictures(loaded: DiffusionModel) -> None:
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = loaded.encode_images(pixels)
    assert latents.shape == (2, loaded.latent_channels, 32 // loaded.cell, 32 // loaded.cell)
    assert loaded.decode_latents(latents).shape == pixels.shape
    drawn = [loaded.encode_images(pixels, rng(0, "posterior", step)) for step in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_noise_is_a_function_of_the_generator(loaded: DiffusionModel) -> None:
    latents = torch.randn(4, loaded.latent_channels, 8, 8)
    one, two = (loaded.noised(latents, rng(3, "noise", 5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    x_t, t, target = one
    assert x_t.shape == target.shape == latents.shape
    assert t.shape == (4,)


def test_predictions_have_the_shape_of_the_target(loaded: DiffusionModel) -> None:
    latents = torch.randn(2, loaded.latent_channels, 8, 8)
    x_t, t, target = loaded.noised(latents, rng(3, "noise", 5))
    conditioning = text_kv(loaded, [Prompt("a dog"), Prompt("a cat")])
    assert loaded.predict(x_t, t, conditioning).shape == target.shape


def test_the_prediction_listens_to_the_text(loaded: DiffusionModel) -> None:
    noisy = torch.randn(1, loaded.latent_channels, 8, 8).expand(2, -1, -1, -1)
    conditioning = text_kv(loaded, [Prompt("a dog"), Prompt("night city")])
    with torch.no_grad():
        one, two = loaded.predict(noisy, torch.tensor([500, 500]), conditioning)
    assert (one - two).abs().max() > 1e-4


def test_sites_have_unique_names_and_every_key_and_value_is_one(loaded: DiffusionModel) -> None:
    names = [site.name for site in loaded.sites()]
    assert len(set(names)) == len(names)
    layers = loaded.cross_attention()
    assert layers
    for layer in layers:
        assert {layer.key.name, layer.value.name} <= set(names)
        assert layer.key.weight.shape == layer.value.weight.shape


def test_drawing_leaves_the_model_as_it_was(loaded: DiffusionModel) -> None:
    before = everything(loaded)
    unit = GenerationUnit(0, "a dog", "snow", 1, 3, 5.0, "dpmsolver++", 32, 32)
    ((_, pixels),) = generate(loaded, [unit], InProcessRun())
    assert pixels.shape == (32, 32, 3)
    assert same(before, everything(loaded))


def test_rows_to_start_from_are_rows_of_the_table_each_another(loaded: DiffusionModel) -> None:
    rows = loaded.initial_rows(3)
    assert len(rows.unique(dim=0)) == 3
