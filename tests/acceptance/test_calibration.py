"""A training of the studio as it comes is calibrated, and what it found is what a prompt gets."""

from __future__ import annotations

from pathlib import Path

import httpx2 as httpx

from tests.acceptance.jobs import base_available, finished
from tests.acceptance.studios import EMBEDDED_COMMANDS, embedded, started

FEW = {"steps": 40, "batch_size": 2, "prior_images": 4, "prior_steps": 4, "preview_every": 0}


def test_the_scale_that_was_found_is_what_a_prompt_gets(tmp_path: Path) -> None:
    studio = embedded(tmp_path, MOONGATE_CALIBRATE="true")
    with started(EMBEDDED_COMMANDS, studio), httpx.Client(base_url=studio.api, timeout=90) as client:
        base_available(client)
        concept = client.post("/samples/stark").raise_for_status().json()
        body = {"concepts": [concept["id"]], "preset": "quick", "params": FEW, "seed": 3}
        job = finished(client, client.post("/trainings", json=body).raise_for_status().json())
        spent = job["metrics"]["spent"]
        kinds = {"loading", "prior", "photos", "train", "preview", "calibration", "saving"}
        assert spent.keys() == kinds
        assert (spent["train"]["count"], spent["prior"]["count"], spent["preview"]["count"]) == (40, 4, 2)
        assert all(each["seconds"] > 0.0 for each in spent.values())
        again = client.post("/trainings", json={**body, "dry_run": True}).raise_for_status().json()
        assert again["images_to_draw"] == 0
        everything = sum(each["seconds"] for name, each in spent.items() if name != "prior")
        assert abs(again["expected_s"] - everything) < 0.2
        weights = client.get(f"/weights/{job['result']['weights']}").raise_for_status().json()
        told = weights["report"]["calibration"]
        assert told["scale"] == weights["manifest"]["scale"]
        assert told["scale"] in [point["scale"] for point in told["points"]]
        asked = {"prompt": "a photo of @stark", "num_images": 1, "num_inference_steps": 2}
        plain = finished(client, client.post("/generations", json=asked).raise_for_status().json())
        image = client.get(f"/images/{plain['result']['images'][0]}").raise_for_status().json()
        assert [used["scale"] for used in image["recipe"]["weights"]] == [told["scale"]]
        smaller = {"weights": weights["id"], "max_bytes": weights["size_bytes"] // 5}
        cut = finished(client, client.post("/compressions", json=smaller).raise_for_status().json())
        small = client.get(f"/weights/{cut['result']['weights']}").raise_for_status().json()
        similarity = small["report"]["compression"]["similarity"]
        assert small["manifest"]["scale"] == told["scale"] == similarity["after"]["scale"]
        assert (similarity["known_before"], similarity["before"] in told["points"]) == (True, True)
        assert similarity["after"]["subject_similarity"] != similarity["before"]["subject_similarity"]
        own = {**asked, "weights": [{"id": weights["id"], "scale": 0.3}]}
        stated = finished(client, client.post("/generations", json=own).raise_for_status().json())
        image = client.get(f"/images/{stated['result']['images'][0]}").raise_for_status().json()
        assert [used["scale"] for used in image["recipe"]["weights"]] == [0.3]
        unasked = {**body, "calibrate": False, "params": {**FEW, "steps": 2}}
        job = finished(client, client.post("/trainings", json=unasked).raise_for_status().json())
        weights = client.get(f"/weights/{job['result']['weights']}").raise_for_status().json()
        assert (weights["manifest"]["scale"], "calibration" in weights["report"]) == (1.0, False)
