"""Describing and loading base models: what a folder says, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer

from backend.schemas.methods import CARDS
from tests.ml.tiny_base import POSITIONS
from worker.ml.errors import BaseUnusable
from worker.ml.families import FAMILIES, describe_base, load_base
from worker.ml.families.rare_tokens import initial_rows, rarest

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "mine"))


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_folder_without_a_card_is_inferred(folder: Path) -> None:
    found = describe_base(folder)
    assert (found.id, found.family, found.title) == ("mine", "sd15", "mine")
    assert (found.resolution, found.size_multiple, found.max_size) == (32, 8, 64)
    assert found.prompt_limit_tokens == POSITIONS
    assert found.methods == list(CARDS)
    assert found.backbone == "stable-diffusion"


def test_the_card_decides(folder: Path) -> None:
    said = {
        "id": "toyworld",
        "family": "toyworld",
        "title": "Toyworld",
        "max_size": 96,
        "defaults": {"num_inference_steps": 12, "guidance_scale": 4.0, "scheduler": "unipc"},
        "class_nouns": ["dog"],
        "backbone": "stable-diffusion",
        "example_prompts": ["a photo of {} on the beach"],
        "measures": {"psnr_db": 27},
    }
    (folder / "moongate.json").write_text(json.dumps(said))
    found = describe_base(folder)
    assert (found.id, found.family, found.max_size, found.resolution) == ("toyworld", "toyworld", 96, 32)
    assert found.defaults.num_inference_steps == 12
    assert found.class_nouns == ["dog"]
    assert found.backbone == "stable-diffusion"
    (folder / "moongate.json").write_text('{"family": "toyworld"}')
    assert describe_base(folder).backbone == "small"


def test_the_tokenizer_travels_as_json(folder: Path) -> None:
    text = "a photo of a DOG, on the beach 你好"
    travelled = Tokenizer.from_str(describe_base(folder).tokenizer_json)
    ours = load_base(folder).token_ids(text, {})
    ids = travelled.encode(text).ids
    assert ours[: len(ids)] == ids


def test_the_hash_names_the_weights(folder: Path) -> None:
    before = describe_base(folder).hash
    (folder / "moongate.json").write_text('{"title": "other"}')
    assert describe_base(folder).hash == before
    content = bytearray((folder / UNET).read_bytes())
    content[-1] ^= 1
    (folder / UNET).write_bytes(content)
    assert describe_base(folder).hash != before


def test_families_and_methods_agree_with_their_cards() -> None:
    assert {"toyworld", "sd15"} <= FAMILIES.keys()
    assert all(set(family.methods) <= CARDS.keys() for family in FAMILIES.values())


def test_shards_load_like_one_file(folder: Path, tiny_folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / UNET)
    names = sorted(tensors)
    parts = {"a-00001.safetensors": names[::2], "a-00002.safetensors": names[1::2]}
    (folder / UNET).unlink()
    for file, held in parts.items():
        safetensors.torch.save_file(
            {n: tensors[n] for n in held}, folder / "unet" / file, metadata={"format": "pt"}
        )
    index = {"metadata": {}, "weight_map": {n: file for file, held in parts.items() for n in held}}
    (folder / (UNET + ".index.json")).write_text(json.dumps(index))
    loaded, plain = load_base(folder).denoiser.state_dict(), load_base(tiny_folder).denoiser.state_dict()
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)


def test_half_precision_on_disk_loads_as_asked(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / UNET)
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    safetensors.torch.save_file(halves, folder / UNET, metadata={"format": "pt"})
    assert load_base(folder).dtype == torch.float32
    assert load_base(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def pickled_only(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def own_code(folder: Path) -> None:
    edit_json(folder / "unet/config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Model"}))


def python_file(folder: Path) -> None:
    (folder / "unet/modelling.py").write_text("import os")


def other_pipeline(folder: Path) -> None:
    edit_json(folder / "model_index.json", lambda c: c.update(_class_name="FluxPipeline"))


def other_denoiser(folder: Path) -> None:
    edit_json(folder / "model_index.json", lambda c: c.update(unet=["my_code", "UNet2DConditionModel"]))


def flow(folder: Path) -> None:
    edit_json(
        folder / "scheduler/scheduler_config.json", lambda c: c.update(prediction_type="flow_prediction")
    )


def unknown_family(folder: Path) -> None:
    (folder / "moongate.json").write_text('{"family": "sd9"}')


def wrong_card(folder: Path) -> None:
    (folder / "moongate.json").write_text('{"resolution": "big"}')


def broken_json(folder: Path) -> None:
    (folder / "vae/config.json").write_text("{")


def shard_elsewhere(folder: Path) -> None:
    (folder / (UNET + ".index.json")).write_text('{"weight_map": {"a": "../../secret.safetensors"}}')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (remove("model_index.json"), "lacks .*model_index.json"),
        (remove(UNET), "lacks unet/diffusion_pytorch_model.safetensors"),
        (remove("text_encoder/config.json"), "lacks text_encoder/config.json"),
        (pickled_only, "pickled weights only"),
        (own_code, "auto_map"),
        (python_file, "code of its own"),
        (other_pipeline, "FluxPipeline is not supported"),
        (other_denoiser, "my_code"),
        (flow, "predicts flow_prediction"),
        (unknown_family, "family sd9"),
        (wrong_card, "resolution"),
        (broken_json, "cannot be read as JSON"),
        (shard_elsewhere, "names files that are not safetensors beside it"),
    ],
)
def test_a_bad_folder_is_refused_with_a_sentence(
    folder: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(folder)
    with pytest.raises(BaseUnusable, match=sentence) as caught:
        describe_base(folder)
    assert caught.value.code == "base_unusable"
    assert str(folder) not in str(caught.value)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("problem", ["missing", "unexpected", "cut"])
def test_weights_that_are_not_complete_are_refused(folder: Path, component: str, problem: str) -> None:
    (path,) = (folder / component).glob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    if problem == "missing":
        tensors.pop(sorted(tensors)[3])
    if problem == "unexpected":
        tensors["surprise"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    if problem == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BaseUnusable, match=component) as caught:
        load_base(folder)
    assert str(folder) not in str(caught.value)


def test_published_text_encoders_load(folder: Path, tiny_folder: Path) -> None:
    """Files on disk keep the prefix ``text_model.`` and often a buffer that is no weight (methods.md 16.1)."""
    path = folder / "text_encoder/model.safetensors"
    held = {
        f"text_model.{n.removeprefix('text_model.')}": t for n, t in safetensors.torch.load_file(path).items()
    }
    held["text_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    safetensors.torch.save_file(held, path, metadata={"format": "pt"})
    ids = torch.tensor([load_base(tiny_folder).token_ids("a dog", {})])
    published, plain = load_base(folder), load_base(tiny_folder)
    assert torch.equal(published.encode_prompts(ids, None).states, plain.encode_prompts(ids, None).states)


def test_placeholders_start_from_what_the_card_says(folder: Path) -> None:
    (folder / "moongate.json").write_text('{"placeholder_initialiser": "dog"}')
    model = load_base(folder)
    table = vars(model)["text_encoder"].get_input_embeddings().weight
    rows = model.initial_rows(2)
    assert torch.equal(rows[0], table[model.token_ids("dog", {})[1]])
    assert torch.equal(rows[0], rows[1])


def test_placeholders_start_from_the_papers_tokens_by_name(folder: Path) -> None:
    """CLIP's ktn and pll are pieces without an end of word: only a look-up in the vocabulary finds them."""
    vocabulary = {"ktn": 0, "pll": 1, "ucd</w>": 2}

    class Vocabulary:
        all_special_tokens: tuple[str, ...] = ()

        def get_vocab(self) -> dict[str, int]:
            return vocabulary

    table = torch.eye(3)
    assert torch.equal(initial_rows(Vocabulary(), table, 3, None), table)


def test_else_from_the_rarest_words_each_another() -> None:
    vocabulary = {"a": 0, "##": 1, "dog</w>": 2, "zeb": 3, "zebra</w>": 4, "qu</w>": 5, "<end>": 6}
    assert rarest(vocabulary, {"<end>"}, 3) == ["qu</w>", "zebra</w>", "dog</w>"]
