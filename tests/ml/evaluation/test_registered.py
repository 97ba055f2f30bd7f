"""Registered judges: tiny random models of transformers' own classes, loaded from folders as an administrator's are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Dinov2Model

from tests.ml.evaluation.tiny_judges import write_clip, write_dinov2, write_vit
from worker.ml.errors import JudgesUnusable
from worker.ml.evaluation.panel import describe_panel, load_panel
from worker.ml.evaluation.registered import CLIP_MEAN, CLIP_STD, Lens, load

SHIPPED = Path(__file__).resolve().parents[3] / "worker/base_models/toyworld"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    return {
        "clip": write_clip(root / "clip-tiny"),
        "dino": write_dinov2(root / "dino-tiny"),
        "vit": write_vit(root / "vit-tiny"),
    }


def test_features_are_those_of_the_models_themselves(folders: dict[str, Path]) -> None:
    panel = load_panel(Path("unused"), [folders["dino"], folders["clip"]])
    pixels = torch.rand(3, 3, 40, 40) * 2 - 1
    clip = CLIPModel.from_pretrained(folders["clip"]).eval()
    dino = Dinov2Model.from_pretrained(folders["dino"]).eval()
    judges = load([folders["clip"], folders["dino"]])
    with torch.no_grad():
        seen = clip.get_image_features(pixel_values=judges.clip_lens(pixels))
        seen = getattr(seen, "pooler_output", seen)
        told = dino(pixel_values=judges.image_lens(pixels)).last_hidden_state[:, 0]
        ids = judges.tokenizer(["a dog on the beach"], return_tensors="pt")["input_ids"]
        read = clip.get_text_features(input_ids=ids)
        read = getattr(read, "pooler_output", read)
    for mine, theirs in (
        (panel.image_text_features(pixels), seen),
        (panel.subject_features(pixels), told),
        (panel.text_features(["a dog on the beach"]), read),
    ):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine.norm(dim=1), torch.ones(len(mine)), atol=1e-5)
        assert torch.allclose(mine, theirs / theirs.norm(dim=1, keepdim=True), atol=1e-5)


def test_dinos_own_vit_serves_too(folders: dict[str, Path]) -> None:
    panel = load_panel(Path("unused"), [folders["clip"], folders["vit"]])
    assert panel.subject_features(torch.rand(2, 3, 64, 48) * 2 - 1).shape == (2, 32)


def test_pictures_are_resized_cropped_and_normalised() -> None:
    lens = Lens(8, 6, CLIP_MEAN, CLIP_STD)
    grey = torch.zeros(1, 3, 16, 32)
    expected = (0.5 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(lens(grey), expected[None, :, None, None].expand(1, 3, 6, 6), atol=1e-5)
    halves = torch.cat([-torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16)], 3)
    seen = lens(halves)[0, 0, 3] * CLIP_STD[0] + CLIP_MEAN[0]
    assert seen[0] < 0.1
    assert seen[-1] > 0.9


def test_what_the_folder_says_of_its_pictures_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    said = {"size": {"shortest_edge": 30}, "crop_size": 20, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    clip = shutil.copytree(folders["clip"], tmp_path / "clip")
    (clip / "preprocessor_config.json").write_text(json.dumps(said))
    assert load([clip, folders["dino"]]).clip_lens == Lens(30, 20, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_texts_beyond_the_judges_positions_are_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        load_panel(Path("unused"), [folders["clip"], folders["dino"]]).text_features(["dog " * 60])


def test_the_hash_names_the_judges(folders: dict[str, Path], tmp_path: Path) -> None:
    pair = [folders["clip"], folders["dino"]]
    described = describe_panel(Path("unused"), pair)
    assert described is not None
    assert described.name == "clip-tiny and dino-tiny"
    assert described.hash == load_panel(Path("unused"), pair[::-1]).hash
    other = write_dinov2(tmp_path / "dino-tiny", seed=5)
    assert describe_panel(Path("unused"), [folders["clip"], other]) != described


def test_own_judges_serve_where_none_are_registered(tmp_path: Path) -> None:
    own = describe_panel(SHIPPED, [])
    assert own is not None
    assert own.hash == load_panel(SHIPPED, []).hash
    assert describe_panel(tmp_path, []) is None
    with pytest.raises(JudgesUnusable, match="none are registered"):
        load_panel(tmp_path, [])


def test_folders_that_cannot_judge_are_refused_in_words(folders: dict[str, Path], tmp_path: Path) -> None:
    for chosen, words in (
        ([folders["clip"]], "found: clip"),
        ([folders["clip"], folders["clip"]], "found: clip, clip"),
        ([folders["dino"], folders["vit"]], "found: dinov2, vit"),
        ([folders["clip"], tmp_path], "config.json"),
    ):
        with pytest.raises(JudgesUnusable, match=words):
            describe_panel(SHIPPED, chosen)
    pickled = shutil.copytree(folders["dino"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(JudgesUnusable, match="pickled"):
        load([folders["clip"], pickled])
    coded = shutil.copytree(folders["dino"], tmp_path / "coded")
    (coded / "modeling.py").write_text("raise SystemExit")
    with pytest.raises(JudgesUnusable, match="code of its own"):
        load([folders["clip"], coded])
    damaged = shutil.copytree(folders["dino"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(JudgesUnusable, match="cannot be loaded"):
        load([folders["clip"], damaged])
    lacking = shutil.copytree(folders["dino"], tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "layer.1." not in name},
        lacking / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(JudgesUnusable, match="lacks some of its weights"):
        load([folders["clip"], lacking])
