"""What a studio exports another one takes: the file of every method and every merge, whole and made smaller."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.methods import CARDS
from backend.schemas.weights import Compression
from backend.services.written_tensors import MERGED, WRITES
from backend.studio import Studio
from tests.backend.conftest import Api
from tests.backend.workshop import Workshop
from tests.conformance.test_merges import PARAMS, WORDS, inputs_for
from tests.conformance.test_methods import VARIANTS
from tests.ml.teaching import stark, teach
from worker.ml.compression import compress
from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import Prompt, text_kv
from worker.ml.errors import InputInvalid
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import installed
from worker.ml.merges import MERGES, MergeInput
from worker.ml.methods import METHODS
from worker.ml.readers import reader_of
from worker.ml.run import InProcessRun
from worker.ml.streams import rng

TAUGHT: list[tuple[str, dict[str, Any]]] = [(method, {}) for method in METHODS] + [
    (method, params) for method, variants in VARIANTS.items() for params in variants
]
NOISY = (torch.randn(1, 4, 8, 8, generator=rng(0, "noisy", 0)), torch.tensor([400]))


@pytest.fixture
def shop(workshop: Workshop, model: DiffusionModel) -> Workshop:
    """Of a studio that serves the tiny base."""
    workshop.open(model.description)
    return workshop


@pytest.mark.parametrize(
    ("method", "params"), TAUGHT, ids=["-".join([method, *params]) for method, params in TAUGHT]
)
def test_weights_of_every_method(
    method: str,
    params: dict[str, Any],
    model: DiffusionModel,
    photos: list[Path],
    tmp_path: Path,
    *,
    api: Api,
    shop: Workshop,
) -> None:
    weights = teach(model, [stark(photos)], tmp_path / "prior", method=method, **params)
    taken(api, shop, model, weights, api.concept("Rex")["id"])
    for smaller in smaller_versions(model, weights):
        taken(api, shop, model, smaller, api.concept("Rex")["id"])


def smaller_versions(model: DiffusionModel, weights: ConceptWeights) -> Iterator[ConceptWeights]:
    """Cut in several ways, where that can be; a file without any tensor is none."""
    for criterion, value, precision in (
        ("rank", 1, "float16"),
        ("energy", 0.9, "int8"),
        ("energy", 1.0, "float16"),
        ("token-only", 0, "float32"),
    ):
        wanted = Compression(criterion=criterion, value=value, precision=precision)  # type: ignore[arg-type]
        with suppress(InputInvalid):  # the method has nothing that could be cut
            cut = compress(
                model, weights, wanted, "019a0000-0000-7000-8000-000000000000", InProcessRun()
            ).weights
            if cut.tensors:
                yield cut


@pytest.mark.parametrize("merge", sorted(MERGES))
def test_weights_of_every_merge(
    merge: str, model: DiffusionModel, photos: list[Path], tmp_path: Path, *, api: Api, shop: Workshop
) -> None:
    merged = merged_by(merge, model, tmp_path, photos)
    for weights in (merged, *smaller_versions(model, merged)):
        taken(
            api, shop, model, weights, *(api.concept(token, class_noun=noun)["id"] for token, noun in WORDS)
        )


def merged_by(merge: str, model: DiffusionModel, folder: Path, photos: list[Path]) -> ConceptWeights:
    card = MERGE_CARDS[merge]
    known = inputs_for(model, card.takes, folder, photos)
    inputs = [MergeInput(f"weights-{at}", each) for at, each in enumerate(known)]
    params = card.params_type(**PARAMS.get(merge, {}))
    return MERGES[merge].merge(model, inputs, params, InProcessRun()).weights


def test_the_tables_are_the_cards() -> None:
    assert WRITES.keys() == CARDS.keys()
    assert MERGED.keys() == MERGE_CARDS.keys()


def test_the_order_of_layers_is_the_networks(model: DiffusionModel) -> None:
    names = [site.name for layer in model.cross_attention() for site in (layer.key, layer.value)]
    assert list(model.description.text_sites) == names
    assert model.description.denoiser_shapes == {
        name: list(each.shape) for name, each in model.denoiser.named_parameters()
    }


Spoil = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def without(name: str) -> Spoil:
    return lambda said, tensors: tensors.__delitem__(name)


def having(name: str, *shape: int, value: float = 0.5, dtype: torch.dtype = torch.float32) -> Spoil:
    return lambda said, tensors: tensors.__setitem__(name, torch.full(shape, value).to(dtype))


def saying(**changes: Any) -> Spoil:
    return lambda said, tensors: said.update(changes)


def given(**changes: Any) -> Spoil:
    return lambda said, tensors: said["params"].update(changes)


KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
INNER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
CLIP = "encoder.layers.0.self_attn.q_proj"
BAD_LORA: dict[str, Spoil] = {
    "a factor is missing": without(f"site.{KEY}.up"),
    "alpha is missing": without(f"site.{KEY}.alpha"),
    "alpha is huge": having(f"site.{KEY}.alpha", value=1e30),
    "alpha is no number": having(f"site.{KEY}.alpha", value=float("nan")),
    "alpha has a side": having(f"site.{KEY}.alpha", 1),
    "another rank than said": given(rank=5),
    "layers that are not chosen": given(attention="cross"),
    "a text encoder that was not trained": having(f"encoder.{CLIP}.down", 4, 32),
    "a text encoder that is not there": given(text_encoder=True),
    "lengths of rows without DoRA": having(f"site.{KEY}.magnitude", 32),
    "DoRA without lengths": given(use_dora=True),
    "a matrix": having(f"site.{KEY}.delta", 32, 32),
    "a layer that is not there": having("site.down_blocks.9.resnets.0.conv1.down", 4, 32),
    "bytes": having(f"site.{KEY}.down", 4, 32, dtype=torch.int8),
    "a scale for bytes": having(f"site.{KEY}.scale", 4),
    "shared rows": having("merge.rows", 4, 32),
    "two vectors": saying(tokens=[{"token": "stark", "class_noun": "dog", "kind": "subject", "vectors": 2}]),
    "text side": saying(side="text"),
    "another prediction": saying(prediction_type="v_prediction"),
    "a merge that makes no LoRA": saying(merge="linear"),
    "a merge that is not known": saying(merge="telepathy"),
    "a merge without scales": saying(merge="lora-svd", params={"rank": 0, "strength": 1.0}),
    "smaller, and yet with all it had": saying(
        compression={"method": "svd", "criterion": "rank", "value": 1, "precision": "int8"},
        merge="closed-form",
    ),
}


def test_spoiled_weights_are_refused_and_store_nothing(
    model: DiffusionModel, photos: list[Path], tmp_path: Path, *, api: Api, shop: Workshop
) -> None:
    weights = teach(model, [stark(photos)], tmp_path / "prior", method="lora")
    assert weights.manifest.side == "weights"
    assert f"site.{INNER}.down" in weights.tensors
    refused(api, shop, weights, BAD_LORA)


BAD_MERGES: dict[str, dict[str, Spoil]] = {
    "closed-form": {
        "no rows": without("merge.rows"),
        "rows without a matrix": lambda said, tensors: [
            tensors.pop(n) for n in list(tensors) if n.endswith(".values")
        ],  # type: ignore[return-value]
        "another rank": having(f"site.{KEY}.values", 32, 1),
        "weight side": saying(side="weights"),
        "not a number of its own": given(scales=[1.0, float("inf")]),
        "other parameters": given(captions=-1),
        "more words than rows": saying(tokens=[]),
    },
    "lora-svd": {
        "a rank above the matrix": lambda said, tensors: tensors.update(
            {f"site.{KEY}.down": torch.zeros(40, 32), f"site.{KEY}.up": torch.zeros(32, 40)}
        ),
        "a matrix": having(f"site.{KEY}.delta", 32, 32),
        "half of a change": without(f"site.{KEY}.up"),
    },
    "perfusion-gates": {
        "gates of others": given(gates={}),
        "no gates": lambda said, tensors: said["params"].pop("gates"),
        "a gate that is always open": lambda said, tensors: said["params"]["gates"]["stark"].update(
            temperature=0.0
        ),
    },
}


@pytest.mark.parametrize("merge", sorted(BAD_MERGES))
def test_spoiled_merges_are_refused_and_store_nothing(
    merge: str, model: DiffusionModel, photos: list[Path], tmp_path: Path, *, api: Api, shop: Workshop
) -> None:
    refused(api, shop, merged_by(merge, model, tmp_path, photos), BAD_MERGES[merge])


def refused(api: Api, shop: Workshop, weights: ConceptWeights, spoils: Mapping[str, Spoil]) -> None:
    for name, spoil in spoils.items():
        said, tensors = weights.manifest.model_dump(mode="json"), dict(weights.tensors)
        spoil(said, tensors)
        content = safetensors.torch.save(tensors, {"format": "pt", "moongate": json.dumps(said)})
        answer = api.client.post("/api/v1/weights/import", files={"file": ("x.safetensors", content)})
        assert answer.status_code == 422, name
        assert answer.json()["code"] in {"weights-invalid", "other-base", "unknown-method"}, (
            name,
            answer.text,
        )
        assert answer.json()["errors"][0]["pointer"] == "/file", name
    assert list(shop.studio.storage.keys()) == []
    assert api.client.get("/api/v1/concepts").json()["items"] == []


def taken(api: Api, shop: Workshop, model: DiffusionModel, weights: ConceptWeights, *concepts: str) -> None:
    """Imported into the concepts, the file is what it was, and prompts with their tokens draw the same."""
    content = weights.to_bytes()
    answer = api.client.post(
        "/api/v1/weights/import", files={"file": ("x.safetensors", content)}, data={"concept": list(concepts)}
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert sorted(made["concepts"]) == sorted(concepts)
    assert api.client.get(made["file_url"]).content == content
    named = [api.client.get(f"/api/v1/concepts/{concept}").json()["token"] for concept in concepts]
    prompt = "a photo of " + " and ".join(f"@{token}" for token in named)
    spec = shop.job(api.generate(prompt, num_images=1, weights=[{"id": made["id"]}])["id"]).spec
    back = ConceptWeights.load(stored(shop.studio, spec))
    assert torch.equal(predicted(model, back, spec["text"]), predicted(model, weights, spec["text"]))
    words = [f"<{taught.token}> {taught.class_noun}".strip() for taught in weights.manifest.tokens]
    assert spec["text"] == "a photo of " + " and ".join(words)
    for page in [f"/concepts/{concepts[0]}"] + ([f"/merge/{made['id']}"] if len(concepts) > 1 else []):
        assert api.client.get(page).status_code == 200


def stored(studio: Studio, spec: dict[str, Any]) -> Path:
    """The one weights file that a generation's spec names."""
    [used] = spec["weights"]
    return studio.storage.path(used["file"]["storage_key"])


def predicted(model: DiffusionModel, weights: ConceptWeights, text: str) -> torch.Tensor:
    """What the denoiser predicts with the weights in use."""
    reader = reader_of(weights)
    edit, installation = reader.edit(model, weights), reader.installation(model, weights)
    with installed(model, ((installation, 1.0),) if installation else ()), torch.no_grad():
        return model.predict(*NOISY, text_kv(model, [Prompt(text, ((edit, 1.0),))]))
