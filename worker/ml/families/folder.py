"""Reading a base model's folder without building a model: what it is, whether it is safe, which bytes it
consists of.

A base model is a diffusers folder: ``model_index.json``, ``tokenizer/``, ``text_encoder/``, ``unet/``,
``vae/``, ``scheduler/``, weights as safetensors (single files or shards with an index). ``moongate.json``
beside the index is optional and may say: ``id``, ``family``, ``title``, ``resolution``, ``size_multiple``,
``max_size``, ``backbone``, ``defaults``, ``example_prompts``, ``class_nouns``, ``placeholder_initialiser``.
``captions.txt``, also optional, is a corpus of captions, one a line, from which methods learn which words are alike.
Nothing in the folder is ever executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import CLIPTokenizer

from backend.schemas.bases import Backbone, BaseDescription, SamplingDefaults
from worker.ml.errors import BaseUnusable

MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library itself reads at most."""

MAX_CAPTIONS_BYTES = 16 << 20

COMPONENTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}
WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
PREDICTIONS: dict[str, Literal["epsilon", "v_prediction"]] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
}
BLOCKS = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
DEFAULT_FAMILY = "sd15"


class Moongate(BaseModel):
    """``moongate.json``. Further keys (a model card's measures, judges) are other readers' and ignored here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str | None = None
    family: str | None = None
    title: str | None = None
    resolution: int | None = None
    size_multiple: int | None = None
    max_size: int | None = None
    backbone: Backbone | None = None
    defaults: SamplingDefaults = SamplingDefaults()
    example_prompts: list[str] = Field(default_factory=list)
    class_nouns: list[str] = Field(default_factory=list)
    placeholder_initialiser: str | list[str] | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `BaseUnusable` naming the file relative to its component."""
    shown = f"{path.parent.name}/{path.name}"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BaseUnusable(f"The base model lacks {shown}.") from None
    except (OSError, ValueError):
        raise BaseUnusable(f"{shown} of the base model cannot be read as JSON.") from None
    if not isinstance(content, dict):
        raise BaseUnusable(f"{shown} of the base model is not a JSON object.")
    return content


def read_moongate(folder: Path) -> Moongate:
    """What ``moongate.json`` says of the base, or the defaults where there is none. Raises `BaseUnusable`."""
    if not (folder / "moongate.json").exists():
        return Moongate()
    try:
        return Moongate.model_validate(read_json(folder / "moongate.json"))
    except ValidationError as error:
        first = error.errors()[0]
        raise BaseUnusable(f"moongate.json: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def read_captions(folder: Path) -> tuple[str, ...]:
    """The lines of ``captions.txt``, without empty ones; none where there is no such file. Raises `BaseUnusable`."""
    path = folder / "captions.txt"
    if not path.exists():
        return ()
    try:
        if path.stat().st_size > MAX_CAPTIONS_BYTES:
            raise BaseUnusable("captions.txt of the base model has more than 16 MB.")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        raise BaseUnusable("captions.txt of the base model cannot be read as text.") from None
    return tuple(line.strip() for line in lines if line.strip())


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors files of a component: one, or the shards its index lists. Pickled weights do not count."""
    single = folder / component / WEIGHTS[component]
    index = single.with_name(single.name + ".index.json")
    if index.exists():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise BaseUnusable(f"The shard index of {component} lists no weights.")
        names = sorted({str(name) for name in listed.values()})
        if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise BaseUnusable(
                f"The shard index of {component} names files that are not safetensors beside it."
            )
        files = [folder / component / name for name in names]
    else:
        files = [single]
    for file in files:
        if not file.is_file():
            pickled = any((folder / component).glob("*.bin")) or any((folder / component).glob("*.ckpt"))
            hint = (
                " It has pickled weights only, which can run code: convert them to safetensors."
                if pickled
                else ""
            )
            raise BaseUnusable(f"The base model lacks {component}/{file.name}.{hint}")
    return files


def weights_hash(folder: Path) -> str:
    """sha256 over relative names and bytes of all weight files of text encoder, denoiser and autoencoder,
    hexadecimal.
    """
    digest = hashlib.sha256()
    files = [file for component in WEIGHTS for file in weight_files(folder, component)]
    for file in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(
            file.relative_to(folder).as_posix().encode() + b"\0" + str(file.stat().st_size).encode() + b"\0"
        )
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_classes(folder: Path) -> None:
    """Raises `BaseUnusable` unless every component is of a class this code knows, and none brings code of its
    own.
    """
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise BaseUnusable(f"A pipeline of class {index.get('_class_name')} is not supported.")
    configs = [
        folder / component / name
        for component in COMPONENTS
        for name in ("config.json", "tokenizer_config.json")
    ]
    if any("auto_map" in read_json(path) for path in configs if path.exists()):
        raise BaseUnusable("The base model brings code of its own (auto_map), which is never run.")
    for component, expected in COMPONENTS.items():
        found = index.get(component)
        if found not in (list(expected), [expected[0], expected[1] + "Fast"]):
            raise BaseUnusable(f"The {component} of the base model is {found}, not {expected[1]}.")
    configured = {
        "unet": read_json(folder / "unet/config.json"),
        "vae": read_json(folder / "vae/config.json"),
    }
    for component, config in configured.items():
        if config.get("_class_name") != COMPONENTS[component][1]:
            raise BaseUnusable(f"The {component} of the base model is of class {config.get('_class_name')}.")
    if any(path.suffix == ".py" for path in folder.rglob("*.py")):
        raise BaseUnusable("The base model brings code of its own, which is never run.")
    prediction_type(folder)


def prediction_type(folder: Path) -> Literal["epsilon", "v_prediction"]:
    """What the denoiser predicts. Raises `BaseUnusable` for anything that is not supported."""
    said = read_json(folder / "scheduler/scheduler_config.json").get("prediction_type", "epsilon")
    if said not in PREDICTIONS:
        raise BaseUnusable(f"A base model that predicts {said} is not supported.")
    return PREDICTIONS[said]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base model's folder, offline. Raises `BaseUnusable`."""
    try:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BaseUnusable("The tokenizer of the base model cannot be read.") from error


def describe(folder: Path, families: Mapping[str, tuple[tuple[str, ...], Backbone]]) -> BaseDescription:
    """Describes the base model in ``folder`` from its JSON files and the bytes of its weights.

    ``families``: the methods that each can serve, and its backbone. Raises `BaseUnusable`.
    """
    check_classes(folder)
    said = read_moongate(folder)
    family = said.family or DEFAULT_FAMILY
    if family not in families:
        raise BaseUnusable(f"The family {family} is not known here.")
    methods, backbone = families[family]
    unet, vae = read_json(folder / "unet/config.json"), read_json(folder / "vae/config.json")
    encoder = read_json(folder / "text_encoder/config.json")
    tokenizer = load_tokenizer(folder)
    cell = 2 ** (len(vae["block_out_channels"]) - 1)
    resolution = said.resolution or int(unet["sample_size"]) * cell
    positions = int(encoder.get("max_position_embeddings", 77))
    denoiser = parameter_shapes(folder, "unet")
    return BaseDescription(
        id=said.id or folder.resolve().name,
        family=family,
        title=said.title or folder.resolve().name,
        resolution=resolution,
        size_multiple=said.size_multiple or cell * 2 ** (len(unet["block_out_channels"]) - 1),
        max_size=said.max_size or 2 * resolution,
        hash=weights_hash(folder),
        methods=list(methods),
        defaults=said.defaults,
        prompt_limit_tokens=min(positions, int(tokenizer.model_max_length)),
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        example_prompts=said.example_prompts,
        class_nouns=said.class_nouns,
        text_sites=text_sites(denoiser),
        denoiser_shapes=denoiser,
        encoder_shapes=encoder_shapes(folder),
        prediction_type=prediction_type(folder),
        token_width=int(encoder["hidden_size"]),
        backbone=said.backbone or backbone,
    )


def parameter_shapes(folder: Path, component: str) -> dict[str, list[int]]:
    """Shape of every parameter of a component by its path, from the headers of its files; buffers do not count.

    So the web process can tell whether imported weights fit without loading anything.
    """
    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder, component):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES)))
        except ValueError:
            raise BaseUnusable(f"{path.name} of the base model is not a safetensors file.") from None
        header.pop("__metadata__", None)
        shapes |= {name: list(entry["shape"]) for name, entry in header.items() if "F" in str(entry["dtype"])}
    return dict(sorted(shapes.items()))


def text_sites(denoiser: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Shape [out, in] of every key and value matrix of cross-attention, in the order of the network's modules."""
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in denoiser.items()
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    }
    return {site: matrices[site] for site in sorted(matrices, key=_place)}


def _place(site: str) -> tuple[int, list[int], str]:
    """The library builds the blocks down, up, mid (methods.md 0.5), each numbered from 0."""
    numbers = [int(part) for part in site.split(".") if part.isdecimal()]
    return BLOCKS.get(site.partition(".")[0], len(BLOCKS)), numbers, site


def encoder_shapes(folder: Path) -> dict[str, list[int]]:
    """Of the text encoder, without its table of words and the ``text_model.`` of some versions of the library."""
    shapes = {
        name.removeprefix("text_model."): each
        for name, each in parameter_shapes(folder, "text_encoder").items()
    }
    return {name: shape for name, shape in shapes.items() if name != "embeddings.token_embedding.weight"}
