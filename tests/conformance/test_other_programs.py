"""Weights in the layouts of other programs: diffusers itself reads what is written, and what it writes is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from fastapi.testclient import TestClient
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from backend.schemas.weights import Compression
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop
from tests.ml.teaching import stark, teach
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.families.base import DiffusionModel
from worker.ml.methods import METHODS
from worker.ml.run import InProcessRun
from worker.ml.streams import rng

EVERYWHERE = {
    "attention": "all",
    "feed_forward": True,
    "convolution": True,
    "text_encoder": True,
    "train_token": True,
    "alpha": 6.0,
}
"""A LoRA on every kind of layer, whose alpha is not its rank."""
IMPORT = "/api/v1/weights/import"
Deltas = dict[str, Tensor]


@pytest.fixture
def shop(client: TestClient, studio: Studio, model: DiffusionModel) -> Workshop:
    """Of a studio whose only base is the tiny one."""
    opened = Workshop(studio)
    opened.open(model.description)
    return opened


@pytest.fixture
def pipeline(tiny_folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True, safety_checker=None)


@pytest.fixture
def lora(model: DiffusionModel, photos: list[Path], tmp_path: Path) -> ConceptWeights:
    weights = teach(model, [stark(photos)], tmp_path / "prior", method="lora", **EVERYWHERE)
    draw = rng(0, "factors", 0)
    moved = {
        name: torch.randn(each.shape, generator=draw) if name.endswith(".up") else each
        for name, each in weights.tensors.items()
    }
    return ConceptWeights(weights.manifest, moved)


def imported(api: Api, content: bytes, status: int = 201, **fields: str) -> dict[str, Any]:
    answer = api.client.post(IMPORT, files={"file": ("x.safetensors", content)}, data=fields)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def exported(api: Api, weights: ConceptWeights, layout: str, folder: Path, status: int = 200) -> Path:
    """The file that a person gets who imported the weights and downloads them in the layout."""
    made = imported(api, weights.to_bytes(), concept=api.concept("Rex")["id"])
    answer = api.client.get(made["file_url"], params={"format": layout})
    assert answer.status_code == status, answer.text
    path = folder / f"{layout}.safetensors"
    path.write_bytes(answer.content)
    return path


def own_changes(model: DiffusionModel, weights: ConceptWeights) -> Deltas:
    """{"unet.<path>" or "text_encoder.<path>": dW} of everything that the weights change."""
    edit = METHODS["lora"].installation(model, weights)
    assert edit is not None
    parts = {"unet": edit.denoiser, "text_encoder": edit.text_encoder}
    return {
        f"{part}.{path}": change.dense() for part, known in parts.items() for path, change in known.items()
    }


def fused_changes(pipeline: StableDiffusionPipeline, load: Callable[[], None]) -> Deltas:
    """What every parameter of the pipeline has moved by once the adapter is fused into it."""
    before = parameters(pipeline)
    load()
    pipeline.fuse_lora(components=["unet", "text_encoder"])
    pipeline.unload_lora_weights()
    moved = {name: each - before[name] for name, each in parameters(pipeline).items()}
    return {name: each for name, each in moved.items() if bool(each.any())}


def parameters(pipeline: StableDiffusionPipeline) -> Deltas:
    known = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    return {
        f"{part}.{name}": each.detach().clone()
        for part, module in known.items()
        for name, each in module.named_parameters()
    }


def close(found: Deltas, expected: Deltas) -> None:
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["kohya", "webui", "diffusers"])
def test_diffusers_reads_our_lora(
    layout: str,
    lora: ConceptWeights,
    model: DiffusionModel,
    pipeline: StableDiffusionPipeline,
    tmp_path: Path,
    *,
    api: Api,
    shop: Workshop,
) -> None:
    path = exported(api, lora, layout, tmp_path)
    found = fused_changes(pipeline, lambda: pipeline.load_lora_weights(path.parent, weight_name=path.name))
    close(found, own_changes(model, lora))


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_what_is_written_is_read_again(
    layout: str, lora: ConceptWeights, model: DiffusionModel, tmp_path: Path, *, api: Api, shop: Workshop
) -> None:
    content = exported(api, lora, layout, tmp_path).read_bytes()
    concept = api.concept("Kim", class_noun="sks dog")
    made = imported(api, content, concept=concept["id"])
    assert (made["manifest"]["origin"], made["manifest"]["side"]) == (layout, "weights")
    native = tmp_path / "native.safetensors"
    native.write_bytes(api.client.get(made["file_url"]).content)
    back = ConceptWeights.load(native)
    close(own_changes(model, back), own_changes(model, lora))
    assert shop.job(api.generate("a photo of @kim")["id"]).spec["text"] == "a photo of <kim> sks dog"
    again = imported(api, native.read_bytes(), concept=concept["id"])
    assert again["sha256"] == made["sha256"]
    cut = Compression(criterion="rank", value=1, precision="float16")
    smaller = compress(model, back, cut, "019a0000-0000-7000-8000-000000000000", InProcessRun()).weights
    assert imported(api, smaller.to_bytes(), concept=concept["id"])["manifest"]["origin"] == layout
    for page in (f"/concepts/{concept['id']}", "/compose"):
        assert api.client.get(page).status_code == 200


def test_what_diffusers_writes_is_read(
    model: DiffusionModel, pipeline: StableDiffusionPipeline, tmp_path: Path, *, api: Api, shop: Workshop
) -> None:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["to_k", "to_v"], init_lora_weights="gaussian")
    trained = copy.deepcopy(pipeline.unet)
    trained.add_adapter(config)
    torch.manual_seed(0)
    for name, each in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each)
    state = get_peft_model_state_dict(trained)
    said = {"unet_lora_adapter_metadata": config.to_dict()}
    said["unet_lora_adapter_metadata"]["target_modules"] = sorted(config.target_modules or ())
    StableDiffusionPipeline.save_lora_weights(tmp_path, state, **said)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    expected = fused_changes(pipeline, lambda: pipeline.load_lora_weights(tmp_path))
    made = imported(api, path.read_bytes(), concept=api.concept("Rex")["id"])
    native = tmp_path / "native.safetensors"
    native.write_bytes(api.client.get(made["file_url"]).content)
    close(own_changes(model, ConceptWeights.load(native)), expected)


@pytest.mark.parametrize(
    ("method", "params"), [("loha", {}), ("lokr", {}), ("lokr", {"rank": 2, "factor": 4, "alpha": 6.0})]
)
def test_lycoris_names_and_equations(
    method: str,
    params: dict[str, Any],
    model: DiffusionModel,
    photos: list[Path],
    tmp_path: Path,
    *,
    api: Api,
    shop: Workshop,
) -> None:
    """By LyCORIS: ``(w1_a w1_b) * (w2_a w2_b) alpha / r`` and ``w1 (x) w2``, w2 perhaps ``w2_a w2_b alpha / r``."""
    weights = teach(model, [stark(photos)], tmp_path / "prior", method=method, **params)
    held = safetensors.torch.load_file(exported(api, weights, "kohya", tmp_path))
    for path, expected in METHODS[method].deltas(model, weights).items():
        name = f"lora_unet_{path.replace('.', '_')}"
        own = {
            part.removeprefix(f"{name}."): held.pop(part)
            for part in list(held)
            if part.startswith(f"{name}.")
        }
        if method == "loha":
            scale = own["alpha"] / own["hada_w1_b"].shape[0]
            found = scale * (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
        elif "lokr_w2" in own:
            found = torch.kron(own["lokr_w1"], own["lokr_w2"])
        else:
            block = own["alpha"] / own["lokr_w2_b"].shape[0] * (own["lokr_w2_a"] @ own["lokr_w2_b"])
            found = torch.kron(own["lokr_w1"], block)
        torch.testing.assert_close(found, expected)
    assert not held
    exported(api, weights, "diffusers", tmp_path, 409)


def test_the_word_alone(
    lora: ConceptWeights,
    model: DiffusionModel,
    photos: list[Path],
    pipeline: StableDiffusionPipeline,
    tmp_path: Path,
    *,
    api: Api,
    shop: Workshop,
) -> None:
    word = exported(api, lora, "embedding", tmp_path)
    pipeline.load_textual_inversion(word)
    place = pipeline.tokenizer.convert_tokens_to_ids("<stark>")
    row = pipeline.text_encoder.get_input_embeddings().weight[place]
    torch.testing.assert_close(row, lora.tensors["token.stark.learned"][0])
    two = teach(model, [stark(photos)], tmp_path / "prior", method="textual-inversion", vectors=2)
    held = safetensors.torch.load_file(exported(api, two, "embedding", tmp_path))
    assert torch.equal(held["<stark>"], two.tensors["token.stark.learned"])
    layered = teach(model, [stark(photos)], tmp_path / "prior", method="textual-inversion", per_layer=True)
    exported(api, layered, "embedding", tmp_path, 409)
    exported(api, two, "kohya", tmp_path, 409)
    exported(
        api,
        teach(model, [stark(photos)], tmp_path / "p", method="lora", use_dora=True),
        "kohya",
        tmp_path,
        409,
    )


KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
Tensors = dict[str, Tensor]
PAIR: Tensors = {f"{KEY}.lora_down.weight": torch.ones(2, 32), f"{KEY}.lora_up.weight": torch.ones(64, 2)}
WIDE: Tensors = {f"{KEY}.lora_down.weight": torch.ones(33, 32), f"{KEY}.lora_up.weight": torch.ones(64, 33)}
PEFT = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PEFT_PAIR: Tensors = {f"{PEFT}.lora_A.weight": torch.ones(2, 32), f"{PEFT}.lora_B.weight": torch.ones(64, 2)}
BAD: list[tuple[str, Tensors, dict[str, Any], str]] = [
    ("half a change", {f"{KEY}.lora_down.weight": torch.ones(2, 32)}, {}, "weights-invalid"),
    ("another width", PAIR | {f"{KEY}.lora_down.weight": torch.ones(2, 33)}, {}, "weights-invalid"),
    ("another rank", PAIR | {f"{KEY}.lora_up.weight": torch.ones(64, 3)}, {}, "weights-invalid"),
    ("a rank above the matrix", WIDE, {}, "weights-invalid"),
    ("not a number", PAIR | {f"{KEY}.alpha": torch.tensor(float("nan"))}, {}, "weights-invalid"),
    ("a huge alpha", PAIR | {f"{KEY}.alpha": torch.tensor(1e30)}, {}, "weights-invalid"),
    ("alphas", PAIR | {f"{KEY}.alpha": torch.ones(2)}, {}, "weights-invalid"),
    ("a layer of another base", {"lora_unet_nowhere.lora_down.weight": torch.ones(2, 2)}, {}, "weights-foreign"),
    ("LoHa", {f"{KEY}.hada_w1_a": torch.ones(2, 2)}, {}, "weights-foreign"),
    ("DoRA", PAIR | {f"{KEY}.dora_scale": torch.ones(64)}, {}, "weights-foreign"),
    ("a layer twice", PEFT_PAIR | {f"{PEFT}.lora.down.weight": torch.ones(2, 32)}, {}, "weights-invalid"),
    ("bytes", {name: each.to(torch.int8) for name, each in PAIR.items()}, {}, "weights-invalid"),
    ("something else", {"model.weight": torch.ones(2)}, {}, "weights-foreign"),
    ("peft's DoRA", PEFT_PAIR, {"unet.use_dora": True}, "weights-invalid"),
    ("an alpha of words", PEFT_PAIR, {"unet.lora_alpha": "many"}, "weights-invalid"),
    ("an endless alpha", PEFT_PAIR, {"unet.lora_alpha": 1e300}, "weights-invalid"),
]  # fmt: skip


def foreign(tensors: Tensors, adapter: dict[str, Any] | None = None) -> bytes:
    metadata = {"format": "pt", "ss_comment": "<script>"} | (
        {"lora_adapter_metadata": json.dumps(adapter)} if adapter else {}
    )
    return safetensors.torch.save(tensors, metadata)


def test_bad_files_of_other_programs_are_refused_and_store_nothing(api: Api, shop: Workshop) -> None:
    concept = api.concept("Rex")["id"]
    for name, tensors, adapter, code in BAD:
        told = imported(api, foreign(tensors, adapter), 422, concept=concept)
        assert (told["code"], told["errors"][0]["pointer"]) == (code, "/file"), (name, told)
    spoiled = safetensors.torch.save(PAIR, {"lora_adapter_metadata": "[" * 10_000})
    assert imported(api, spoiled, 422, concept=concept)["code"] == "weights-invalid"
    assert list(shop.studio.storage.keys()) == []
    assert list((shop.studio.storage.root / "staging").iterdir()) == []


def test_a_file_of_another_program_needs_a_concept_with_words_and_a_base(api: Api, shop: Workshop) -> None:
    content = foreign(PAIR)
    assert imported(api, content, 422)["errors"][0]["pointer"] == "/concept"
    style = api.concept("Ink", kind="style", class_noun="")["id"]
    assert imported(api, content, 422, concept=style)["errors"][0]["pointer"] == "/concept"
    rex = api.concept("Rex")["id"]
    assert imported(api, content, 422, concept=rex, base="nowhere")["errors"][0]["pointer"] == "/base"
    assert list((shop.studio.storage.root / "staging").iterdir()) == []
    made = imported(api, content, concept=rex, base="tiny")
    assert made["manifest"]["side"] == "text"
    assert "<script>" not in api.client.get(made["file_url"]).text
