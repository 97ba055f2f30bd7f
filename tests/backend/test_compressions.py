"""``POST /compressions``: pinned, refused with reasons, published as weights that know where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load, save

from backend import migrate
from backend.main import create_app
from backend.models import Job
from backend.schemas.calibration import Calibration, CalibrationPoint
from backend.schemas.compressions import CompressionCreate, CompressSpec
from backend.schemas.methods import CARDS
from backend.schemas.weights import Criterion, TaughtToken
from backend.services import compressions
from backend.settings import Settings
from tests.backend.conftest import ORIGIN, Api, on_both_databases
from tests.backend.native_weights import manifest, native, smaller, tensors
from tests.backend.pictures import photo
from tests.backend.workshop import JUDGES, TEXT_SITES, TOKEN_WIDTH, Workshop, base

COMPRESS = "/api/v1/compressions"


def brought(client: TestClient, content: bytes | None = None) -> dict[str, Any]:
    """Weights of the toy base: two matrices [4, 6] and a word."""
    answer = client.post("/api/v1/weights/import", files={"file": ("x", content or native())})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


@on_both_databases
def test_a_compression_makes_weights_with_a_parent_and_a_report(
    client: TestClient, workshop: Workshop
) -> None:
    old = brought(client)
    answer = client.post(COMPRESS, json={"weights": old["id"], "rank": 2, "precision": "int8"})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["kind"], job["request"]["rank"]) == ("compress", 2)
    spec = workshop.job(job["id"]).spec
    assert spec["compression"] == {"method": "svd", "criterion": "rank", "value": 2.0, "precision": "int8"}
    assert spec["weights"][0]["file"]["sha256"] == old["sha256"]
    made = workshop.compress()
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["result"] == {"weights": made}
    new = client.get(f"/api/v1/weights/{made}").json()
    assert (new["parents"], new["job"], new["concepts"]) == ([old["id"]], job["id"], old["concepts"])
    assert new["manifest"]["compression"]["criterion"] == "rank"
    assert new["report"]["compression"]["bytes_after"] == 300_000
    concept = client.get(f"/api/v1/concepts/{old['concepts'][0]}").json()
    assert [one["id"] for one in concept["weights"]] == [made, old["id"]]
    drawn = client.post("/api/v1/generations", json={"prompt": "a photo of @mia", "num_images": 1}).json()
    assert workshop.job(drawn["id"]).spec["weights"][0]["file"]["id"] == made
    assert workshop.draw()


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "one-criterion", ""),
    ({"rank": 1, "energy": 0.5}, "one-criterion", "/rank"),
    ({"token_only": False}, "one-criterion", ""),
    ({"rank": 0}, "invalid", "/rank"),
    ({"rank": 5}, "rank-too-large", "/rank"),
    ({"rank": 1.5}, "invalid", "/rank"),
    ({"energy": 0}, "invalid", "/energy"),
    ({"nuclear": 1.01}, "invalid", "/nuclear"),
    ({"max_bytes": 0}, "invalid", "/max_bytes"),
    ({"max_bytes": 600}, "budget-too-small", "/max_bytes"),
    ({"rank": 1, "precision": "int4"}, "invalid", "/precision"),
    ({"rank": 1, "method": "lora"}, "invalid", "/method"),
    ({"rank": 1, "speed": 3}, "invalid", "/speed"),
]


def test_wrong_requests(client: TestClient, workshop: Workshop) -> None:
    old = brought(client)
    for body, code, pointer in WRONG:
        answer = client.post(COMPRESS, json={"weights": old["id"], **body})
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, code), problem
        assert problem["errors"][0]["pointer"] == pointer
        if code == "rank-too-large":
            assert problem["limit"] == 4
    assert client.get("/api/v1/jobs").json()["items"] == []


def test_the_smallest_budget_is_named_and_accepted(client: TestClient, workshop: Workshop) -> None:
    old = brought(client)
    minimum = client.post(COMPRESS, json={"weights": old["id"], "max_bytes": 500}).json()["minimum"]
    assert 500 < minimum < old["size_bytes"] + 200
    for budget, status in ((minimum - 1, 422), (minimum, 202)):
        assert client.post(COMPRESS, json={"weights": old["id"], "max_bytes": budget}).status_code == status


def test_deleted_weights_are_missing_and_used_ones_stay(client: TestClient, workshop: Workshop) -> None:
    old = brought(client)
    assert client.post(COMPRESS, json={"weights": old["id"], "rank": 1}).status_code == 202
    assert client.delete(f"/api/v1/weights/{old['id']}").json()["code"] == "in-use"
    made = workshop.compress()
    assert client.delete(f"/api/v1/weights/{old['id']}").status_code == 204
    assert client.post(COMPRESS, json={"weights": old["id"], "rank": 1}).status_code == 404
    assert client.get(f"/api/v1/weights/{made}").json()["parents"] == [old["id"]]


def test_smaller_weights_may_be_made_smaller_again(client: TestClient, workshop: Workshop) -> None:
    old = brought(client, smaller(rank=2))
    assert client.post(COMPRESS, json={"weights": old["id"], "rank": 3}).json()["limit"] == 2
    assert client.post(COMPRESS, json={"weights": old["id"], "rank": 1}).status_code == 202
    assert workshop.compress()


def test_words_alone_cannot_be_smaller(client: TestClient, workshop: Workshop) -> None:
    held = {name: each for name, each in tensors().items() if name.startswith("token.")}
    cut = {"method": "svd", "criterion": "token-only", "value": 0, "precision": "float16"}
    old = brought(client, native(manifest(compression=cut), held))
    problem = client.post(COMPRESS, json={"weights": old["id"], "rank": 1}).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("nothing-to-compress", "/weights")


def test_a_file_that_is_gone_is_nothing_to_compress(client: TestClient, api: Api, workshop: Workshop) -> None:
    _, unreadable = api.taught(workshop)
    assert (
        client.post(COMPRESS, json={"weights": unreadable, "rank": 1}).json()["code"] == "nothing-to-compress"
    )


def test_the_same_request_twice_is_one_job(client: TestClient, workshop: Workshop) -> None:
    old = brought(client)
    answers = [
        client.post(COMPRESS, json={"weights": old["id"], "energy": 0.9}, headers={"idempotency-key": "k"})
        for _ in range(2)
    ]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(client.get("/api/v1/jobs").json()["items"]) == 1


def test_every_criterion_has_its_field() -> None:
    assert set(compressions.FIELDS.values()) == set(get_args(Criterion))
    assert compressions.FIELDS.keys() <= CompressionCreate.model_fields.keys()


@pytest.mark.parametrize("int8", [False, True])
def test_smaller_weights_of_another_studio_are_imported(
    client: TestClient, workshop: Workshop, int8: bool
) -> None:
    content = smaller(int8=int8)
    made = brought(client, content)
    assert made["manifest"]["compression"]["value"] == 2
    assert client.get(made["file_url"]).content == content


def test_smaller_weights_that_are_not_right_are_refused(client: TestClient, workshop: Workshop) -> None:
    cut = smaller(int8=True)
    said = json.loads(cut[8 : 8 + int.from_bytes(cut[:8], "little")])["__metadata__"]

    def refused(change: Any) -> None:
        held = load(cut)
        change(held)
        content = bytes(save(held, metadata=said))
        answer = client.post("/api/v1/weights/import", files={"file": ("x", content)})
        assert (answer.status_code, answer.json()["code"]) == (422, "weights-invalid"), answer.text

    site = next(name for name in load(cut) if name.endswith(".scale")).removesuffix(".scale")
    refused(lambda held: held.pop(f"{site}.scale"))
    refused(lambda held: held.pop(f"{site}.up"))
    refused(lambda held: held.update({f"{site}.up": held[f"{site}.up"].astype("float32")}))
    refused(lambda held: held.update({f"{site}.scale": held[f"{site}.scale"][:1]}))
    refused(lambda held: held.update({f"{site}.delta": held[f"{site}.up"].astype("float32")}))
    refused(lambda held: held.update({"token.mia.start": held["token.mia.start"].astype("int8")}))


SITES = list(TEXT_SITES)
PARTS: list[tuple[str, dict[str, list[int]], int]] = [
    ("lora", {"down": [2, 6], "up": [4, 2], "alpha": []}, 2),
    ("lora", {"down": [2, 6], "up": [4, 2], "alpha": [], "magnitude": [4]}, 4),
    ("loha", {"first_down": [1, 6], "first_up": [4, 1], "second_down": [1, 6], "second_up": [4, 1], "alpha": []}, 4),
    ("lokr", {"first": [2, 2], "second": [2, 3]}, 4),
    ("lokr", {"first": [2, 2], "second_up": [2, 1], "second_down": [1, 3], "alpha": []}, 4),
    ("linear", {"delta": [4, 6], "bias_delta": [4]}, 4),
    ("closed-form", {"values": [4, 3]}, 3),
]  # fmt: skip


@pytest.mark.parametrize(("method", "parts", "most"), PARTS)
def test_whatever_holds_a_change_can_be_made_smaller_up_to_its_rank(
    client: TestClient, api: Api, workshop: Workshop, method: str, parts: dict[str, list[int]], most: int
) -> None:
    held = {
        f"site.{site}.{part}": np.ones(shape, "float32") for site in SITES for part, shape in parts.items()
    }
    if method == "closed-form":
        held["merge.rows"] = np.ones((3, TOKEN_WIDTH), "float32")
    api.train(api.concept("Stark", photos=3)["id"])
    old = workshop.train(content=bytes(save(held)), method=method)
    assert client.post(COMPRESS, json={"weights": old, "rank": most + 1}).json()["limit"] == most
    assert client.post(COMPRESS, json={"weights": old, "rank": most}).status_code == 202


@pytest.mark.parametrize("method", [name for name, card in CARDS.items() if card.small_already])
def test_what_is_small_already_says_so(client: TestClient, api: Api, workshop: Workshop, method: str) -> None:
    held = {f"site.{SITES[0]}.shift": np.ones(4, "float32")}
    api.train(api.concept("Stark", photos=3)["id"])
    old = workshop.train(content=bytes(save(held)), method=method)
    problem = client.post(COMPRESS, json={"weights": old, "energy": 0.5}).json()
    assert problem["code"] == "nothing-to-compress"
    assert problem["detail"].endswith(CARDS[method].small_already)


def learned(api: Api, workshop: Workshop, **concept: Any) -> tuple[str, str]:
    """A concept with three photos, and weights of it that were calibrated to 0.65."""
    stark = api.concept("Stark", photos=3, **concept)["id"]
    api.train(stark)
    found = Calibration(
        scale=0.65, points=[CalibrationPoint(scale=0.65, subject_similarity=0.8, prompt_similarity=0.9)],
        prompts=["a", "b"], image_seeds=[1], judges=JUDGES,
    )  # fmt: skip
    return stark, workshop.train(
        content=native(), scale=0.65, report={"calibration": found.model_dump(mode="json")}
    )


def pinned(client: TestClient, workshop: Workshop, weights: str, **more: Any) -> Job:
    answer = client.post(COMPRESS, json={"weights": weights, "rank": 1, **more})
    assert answer.status_code == 202, answer.text
    return workshop.job(answer.json()["id"])


def test_pictures_are_compared_by_the_judges_with_what_calibration_knows(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    _, weights = learned(api, workshop)
    job = pinned(client, workshop, weights)
    spec = CompressSpec.model_validate(job.spec)
    assert (spec.judges, job.queue) == (JUDGES, "train_any")
    assert [len(each.photos) for each in spec.concepts] == [3]
    assert spec.known is not None
    assert spec.known.points[0].subject_similarity == 0.8
    made = client.get(f"/api/v1/weights/{workshop.compress()}").json()
    assert made["manifest"]["scale"] == 0.65
    assert made["report"]["compression"]["similarity"]["after"]["subject_similarity"] == 0.79
    again = pinned(client, workshop, made["id"])
    assert (again.spec["known"], again.spec["judges"]["name"]) == (None, JUDGES.name)


def test_calibration_knows_nothing_once_photos_are_others(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    stark, weights = learned(api, workshop)
    api.photos(stark, photo(9))
    job = pinned(client, workshop, weights)
    assert (job.spec["known"], len(job.spec["concepts"][0]["photos"])) == (None, 4)


def test_nobody_compares_where_nobody_is_asked_or_nobody_could(
    client: TestClient, api: Api, workshop: Workshop
) -> None:
    stark, weights = learned(api, workshop)
    imported = brought(client)["id"]
    wordless = TaughtToken(token="stark", class_noun="dog", kind="subject", vectors=0)
    api.train(stark)
    named = workshop.train(content=native(), tokens=[wordless])
    for job in (
        pinned(client, workshop, weights, compare=False),
        pinned(client, workshop, imported),
        pinned(client, workshop, named, compare=True),
    ):
        assert (job.spec["judges"], job.spec["known"], job.queue) == (None, None, "cpu")
        assert [each["photos"] for each in job.spec["concepts"]] == [[]]
    workshop.open(base(judges=None))
    assert pinned(client, workshop, weights, compare=True).spec["judges"] is None


def test_a_studio_that_does_not_calibrate_compares_where_it_is_asked(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, low_water_bytes=0, log_json=True, calibrate=False)
    migrate.upgrade(settings)
    app = create_app(settings)
    with TestClient(app, base_url=ORIGIN) as client:
        shop, own = Workshop(app.state.studio), Api(client)
        shop.open()
        _, weights = learned(own, shop)
        assert pinned(client, shop, weights).spec["judges"] is None
        assert pinned(client, shop, weights, compare=True).spec["judges"]["name"] == JUDGES.name
