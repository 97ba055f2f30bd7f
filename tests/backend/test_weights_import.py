"""Weights of another studio: a sound file is a version that prompts use; any other stores nothing (in-W1 to W7)."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from backend.settings import Settings
from backend.studio import Studio
from tests.backend.conftest import Api, on_both_databases
from tests.backend.native_weights import (
    manifest,
    native,
    one_word_tensors,
    perfusion,
    rank_one,
    repacked,
    tensors,
    with_header,
)
from tests.backend.workshop import Workshop, base

IMPORT = "/api/v1/weights/import"


def sent(client: TestClient, content: bytes, status: int = 201, **fields: str) -> dict[str, Any]:
    answer = client.post(IMPORT, files={"file": ("stark.safetensors", content)}, data=fields)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


@on_both_databases
def test_an_imported_file_is_a_version_that_prompts_use(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    content = native()
    made = sent(client, content)
    assert (made["job"], made["manifest"]) == (None, manifest())
    [concept] = client.get("/api/v1/concepts").json()["items"]
    assert (concept["name"], concept["token"], concept["class_noun"]) == ("Mia", "mia", "dog")
    assert [one["id"] for one in concept["weights"]] == [made["id"]]
    assert client.get(made["file_url"]).content == content
    job = api.generate("a photo of @mia in the snow", num_images=1)
    assert job["request"]["prompt"] == "a photo of @mia in the snow"
    assert workshop.draw()
    assert client.get(f"/api/v1/concepts/{concept['id']}").json()["weights"][0]["job"] is None
    assert client.delete(f"/api/v1/concepts/{concept['id']}?cascade=true").status_code == 204


def test_a_category_taught_by_its_own_name_has_no_rows(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    gate = {"token": "gate", "class_noun": "moongate", "kind": "subject", "vectors": 0, "layers": []}
    params = manifest()["params"] | {"word": "class-noun"}
    data = {name: tensor for name, tensor in tensors().items() if not name.startswith("token.")}
    made = sent(client, native(json.dumps(manifest(tokens=[gate], params=params)), data))
    assert made["manifest"]["tokens"] == [gate]
    spec = workshop.job(api.generate("a @gate", num_images=1)["id"]).spec
    assert spec["text"] == "a <gate> moongate"


def test_into_a_concept_that_is_named(client: TestClient, api: Api, workshop: Workshop) -> None:
    concept = api.concept("Rex")
    made = sent(client, native(), concept=concept["id"])
    assert made["concepts"] == [concept["id"]]
    spec = workshop.job(api.generate("@rex", num_images=1)["id"]).spec
    assert spec["text"] == "<mia> dog"
    assert spec["weights"][0]["file"]["id"] == made["id"]


def test_taken_tokens_get_a_number_and_several_tokens_several_concepts(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    api.concept("Mia")
    sent(client, native(manifest("mia", "tom"), tensors("mia", "tom")))
    tokens = [one["token"] for one in client.get("/api/v1/concepts").json()["items"]]
    assert sorted(tokens) == ["mia", "mia-2", "tom"]


def test_half_precision_is_as_good(client: TestClient, workshop: Workshop) -> None:
    sent(client, native(data=tensors(dtype="float16")))


def test_the_same_base_under_another_name(client: TestClient, workshop: Workshop) -> None:
    made = sent(client, native(manifest(base="their-name")))
    [concept] = client.get("/api/v1/concepts").json()["items"]
    assert made["manifest"]["base"] == "their-name"
    assert concept["weights"][0]["base"] == "toy"


def test_a_rank_one_edit_is_a_version_like_any_other(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    said = rank_one("mia", "tom")
    sent(client, native(said, one_word_tensors(said)))
    spec = workshop.job(api.generate("@mia and @tom", num_images=1)["id"]).spec
    assert spec["text"] == "<mia> dog and <tom> dog"
    gated = [{"id": spec["weights"][0]["file"]["id"], "gate": {"bias": 0.5, "temperature": 0.2}}]
    answer = client.post("/api/v1/generations", json={"prompt": "@mia", "weights": gated})
    assert (answer.status_code, answer.json()["code"]) == (422, "no-gate")
    assert answer.json()["errors"][0]["pointer"] == "/weights/0/gate"


def test_a_word_that_stands_for_its_noun_needs_a_concept_that_says_what_it_is(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    said = perfusion()
    content = native(said, one_word_tensors(said))
    assert sent(client, content, 422)["errors"][0]["pointer"] == "/concept"
    sent(client, content, concept=api.concept("Rex")["id"])
    spec = workshop.job(api.generate("a photo of @rex", num_images=1)["id"]).spec
    assert spec["text"] == "a photo of <mia>"
    gate = {"bias": 0.5, "temperature": 0.2}
    [version] = client.get("/api/v1/concepts").json()["items"][0]["weights"]
    drawn = api.generate("a photo of @rex", num_images=1, weights=[{"id": version["id"], "gate": gate}])
    assert workshop.job(drawn["id"]).spec["weights"][0]["gate"] == gate
    style = perfusion(tokens=[{"token": "ink", "class_noun": "", "kind": "style"}])
    sent(client, native(style, one_word_tensors(style)))


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/moongate-was-here",))


def archive() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("archive/data.pkl", pickle.dumps(Code()))
    return out.getvalue()


def changed(**values: Any) -> Callable[[], bytes]:
    """A file whose manifest says something else."""
    return lambda: native(manifest(**values))


def spoiled(name: str, value: float) -> Callable[[], bytes]:
    """A file with one wrong number."""

    def make() -> bytes:
        data = tensors()
        data[name][0, 0] = value
        return native(data=data)

    return make


def reshaped(**data: Any) -> Callable[[], bytes]:
    """A file with other tensors; dots of names are written as two underscores."""
    more = {name.replace("__", "."): value for name, value in data.items()}
    return lambda: native(data={k: v for k, v in (tensors() | more).items() if v is not None})


def _doubled(header: dict[str, Any]) -> str:
    text = json.dumps(header)
    return text[:-1] + "," + text[1:]


def _shift(header: dict[str, Any]) -> None:
    header["token.mia.start"]["data_offsets"] = header["token.mia.learned"]["data_offsets"]


def _grow(header: dict[str, Any]) -> None:
    header["token.mia.start"]["shape"] = [1, 7]


def one_word(
    make: Callable[..., dict[str, Any]], said: dict[str, Any] | None = None, **data: Any
) -> Callable[[], bytes]:
    """A file of a rank-one method with another header, or with other tensors; dots as in `reshaped`."""
    described = make(**(said or {}))
    more = {name.replace("__", "."): value for name, value in data.items()}
    held = {k: v for k, v in (one_word_tensors(make()) | more).items() if v is not None}
    return lambda: native(described, held)


ROW = "token.mia.learned"
VALUE = "site__mid_block__attentions__0__transformer_blocks__0__attn2__to_v"
KEY_TARGET = "site__mid_block__attentions__0__transformer_blocks__0__attn2__to_k__target"
TWO_VECTORS = {"tokens": [{"token": "mia", "class_noun": "", "kind": "subject", "vectors": 2}]}
WITH_NOUN = {"tokens": [{"token": "mia", "class_noun": "dog", "kind": "subject"}]}
SITE = "site__mid_block__attentions__0__transformer_blocks__0__attn2__to_k__delta"
NOT_DOGS = {"token": "mia", "class_noun": "<dog>", "kind": "subject"}
LAYERED = {"token": "mia", "class_noun": "dog", "kind": "subject", "vectors": 1, "layers": ["a", "b"]}
NAMELESS = {"token": "ink", "class_noun": "", "kind": "style", "vectors": 0, "layers": []}
HUGE = {"token": "mia", "class_noun": "dog", "kind": "subject", "vectors": 10**9}


def _without_manifest(header: dict[str, Any]) -> None:
    del header["__metadata__"]["moongate"]


def _with_number(header: dict[str, Any]) -> None:
    header["__metadata__"]["ss_seed"] = 3


CASES: list[tuple[str, Callable[[], bytes], int, str]] = [
    ("pickle", lambda: pickle.dumps(Code(), protocol=2), 415, "unsupported-weights"),
    ("pickle, newest", lambda: pickle.dumps(Code()), 415, "unsupported-weights"),
    ("torch zip", archive, 415, "unsupported-weights"),
    ("hdf5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), 415, "unsupported-weights"),
    ("gguf", lambda: b"GGUF" + bytes(100), 415, "unsupported-weights"),
    ("nothing", lambda: b"", 422, "empty-file"),
    ("seven bytes", lambda: b"1234567", 422, "weights-invalid"),
    ("header of nothing", lambda: with_header(b"", length=0), 422, "weights-invalid"),
    ("header beyond the file", lambda: with_header(b"{}", length=3), 422, "weights-invalid"),
    ("header of 2^63", lambda: with_header(b"{}", length=2**63), 422, "weights-invalid"),
    ("header of 9 MB", lambda: with_header(b'{"a":"' + b"x" * 9_000_000 + b'"}'), 422, "weights-invalid"),
    ("not utf-8", lambda: with_header(b'{"\xff":1}'), 422, "weights-invalid"),
    ("no object", lambda: with_header(b"[1,2,3,4]"), 422, "weights-invalid"),
    ("trailing junk", lambda: with_header(b"{} {}"), 422, "weights-invalid"),
    ("duplicate keys", lambda: repacked(_doubled), 422, "weights-invalid"),
    ("deep", lambda: with_header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 422, "weights-invalid"),
    ("no metadata", lambda: with_header(b"{}"), 422, "weights-invalid"),
    ("somebody else's", lambda: repacked(_without_manifest), 422, "weights-foreign"),
    ("metadata that is no text", lambda: repacked(_with_number), 422, "weights-invalid"),
    ("metadata of others", lambda: native(comment="hello"), 422, "weights-invalid"),
    ("html", lambda: native(**{"modelspec.title": "<b>\x1b[31m"}), 422, "weights-invalid"),
    ("much metadata", lambda: native(ss_seed="9" * 100_000), 422, "weights-invalid"),
    ("manifest that is no json", lambda: native("hello"), 422, "weights-invalid"),
    ("manifest with more", changed(owner_id="x"), 422, "weights-invalid"),
    ("other version", changed(format_version=2), 422, "weights-invalid"),
    ("unknown method", changed(method="telepathy"), 422, "unknown-method"),
    ("parameters of another method", changed(method="lora"), 422, "weights-invalid"),
    ("rows for layers", changed(tokens=[LAYERED]), 422, "weights-invalid"),
    ("weight side", changed(side="weights", params={"train": "crossattn"}), 422, "base-unavailable"),
    ("neither rows nor noun", changed(tokens=[NAMELESS]), 422, "weights-invalid"),
    ("wrong side", changed(side="weights"), 422, "weights-invalid"),
    ("wrong parameters", changed(params={"steps": -1}), 422, "weights-invalid"),
    ("other base", changed(base_hash="cd" * 32), 422, "other-base"),
    ("no tokens", changed(tokens=[]), 422, "weights-invalid"),
    ("bad token", changed(tokens=[{"token": "../x", "class_noun": "dog", "kind": "subject"}]), 422, "weights-invalid"),
    ("hostile noun", changed(tokens=[NOT_DOGS]), 422, "weights-invalid"),
    ("huge rank", changed(tokens=[HUGE]), 422, "weights-invalid"),
    ("not a number", spoiled(ROW, float("nan")), 422, "weights-invalid"),
    ("infinite", spoiled(ROW, float("inf")), 422, "weights-invalid"),
    ("1e30", spoiled(ROW, 1e30), 422, "weights-invalid"),
    ("missing tensor", reshaped(**{SITE: None}), 422, "weights-invalid"),
    ("extra tensor", reshaped(extra=np.ones((2, 2), "float32")), 422, "weights-invalid"),
    ("other shape", reshaped(**{SITE: np.ones((4, 5), "float32")}), 422, "weights-invalid"),
    ("other type", reshaped(**{SITE: np.ones((4, 6), "float64")}), 422, "weights-invalid"),
    ("overlapping", lambda: repacked(_shift), 422, "weights-invalid"),
    ("shape beyond its extent", lambda: repacked(_grow), 422, "weights-invalid"),
    ("cut off", lambda: native()[:-8], 422, "weights-invalid"),
    ("longer", lambda: native() + b"secret", 422, "weights-invalid"),
]  # fmt: skip


NO_GATE = {"params": {"draw_temperature": 0.0}}
ONE_WORD_CASES: list[tuple[str, Callable[[], bytes]]] = [
    ("no key", one_word(perfusion, token__mia__key=None)),
    ("a huge dual", one_word(perfusion, token__mia__dual=np.full((1, 6), 1e9, "float32"))),
    ("wide states", one_word(perfusion, token__mia__key=np.ones((1, 7), "float32"))),
    ("a row for every place", one_word(perfusion, **{f"{VALUE}__target": np.ones((77, 4), "float32")})),
    ("stored keys", one_word(perfusion, **{KEY_TARGET: np.ones((1, 4), "float32")})),
    ("two vectors", one_word(perfusion, TWO_VECTORS)),
    ("a noun beside the word", one_word(perfusion, WITH_NOUN)),
    ("a gate without width", one_word(perfusion, NO_GATE)),
    ("a rank-one edit with a class", one_word(rank_one, token__mia__class_state=np.ones((1, 6), "float32"))),
    ("no change", one_word(rank_one, **{f"{VALUE}__change": None})),
    ("another width", one_word(rank_one, **{f"{VALUE}__change": np.ones((1, 5), "float32")})),
]


def test_bad_files_of_rank_one_methods_are_refused(
    client: TestClient, workshop: Workshop, studio: Studio
) -> None:
    for name, make in ONE_WORD_CASES:
        answer = client.post(IMPORT, files={"file": ("x.safetensors", make())})
        assert (answer.status_code, answer.json()["code"]) == (422, "weights-invalid"), (name, answer.text)
    assert list(studio.storage.keys()) == []


def test_bad_files_are_refused_and_store_nothing(
    client: TestClient, workshop: Workshop, studio: Studio
) -> None:
    for name, make, status, code in CASES:
        answer = client.post(IMPORT, files={"file": ("x.safetensors", make())})
        assert (answer.status_code, answer.json()["code"]) == (status, code), (name, answer.text)
        assert answer.headers["content-type"] == "application/problem+json", name
        assert answer.json()["errors"][0]["pointer"] == "/file", name
    assert list(studio.storage.keys()) == []
    assert list((studio.storage.root / "staging").iterdir()) == []
    assert client.get("/api/v1/concepts").json()["items"] == []
    assert client.get("/healthz").status_code == 200


def test_where_it_cannot_go(client: TestClient, api: Api, workshop: Workshop, studio: Studio) -> None:
    style = api.concept("Ink", kind="style", class_noun="")["id"]
    assert sent(client, native(), 422, concept=style)["errors"][0]["pointer"] == "/concept"
    two = native(manifest("mia", "tom"), tensors("mia", "tom"))
    assert sent(client, two, 422, concept=api.concept("Rex")["id"])["errors"][0]["pointer"] == "/concept"
    gone = api.concept("Gone")["id"]
    client.delete(f"/api/v1/concepts/{gone}")
    assert sent(client, native(), 404, concept=gone)["code"] == "not-found"
    sent(client, native(), 422, concept="nonsense")
    assert client.post(IMPORT, files={"other": ("x", native())}).status_code == 422
    assert client.post(IMPORT, data={"file": "text"}).status_code in {415, 422}
    assert list(studio.storage.keys()) == []


def test_a_base_that_is_not_here_yet(client: TestClient, workshop: Workshop) -> None:
    other = native(manifest(base_hash="ef" * 32))
    assert sent(client, other, 422)["code"] == "other-base"
    workshop.open(base("further", hash="ef" * 32))
    sent(client, other)


class TestSmall:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_weights_bytes": 100})

    def test_a_file_above_the_limit(self, client: TestClient, workshop: Workshop) -> None:
        assert sent(client, native(), 413)["code"] == "file-too-large"
