"""The worker's end of a merge: only what was verified, and what was asked for, is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.schemas.merges.requests import MergeSpec
from backend.schemas.weights import TaughtToken, WeightsManifest
from tests.backend.workshop import merge_report
from worker.executor import JobFailed
from worker.inputs import PINNED
from worker.merging import require_verified
from worker.verification import OutputInvalid, verified_merge, verified_weights

IDS = ("019a0000-0000-7000-8000-000000000000", "019a0000-0000-7000-8000-000000000001")
CONCEPTS = [
    {"id": IDS[0], "token": "stark", "class_noun": "dog", "kind": "subject", "photos": []},
    {"id": IDS[1], "token": "stark-2", "class_noun": "cat", "kind": "subject", "photos": []},
]
SPEC = MergeSpec.model_validate(
    {
        "weights": [
            {
                "file": {"id": each, "storage_key": each, "sha256": "ab"},
                "scale": 1.0,
                "tokens": ["stark"],
                "concepts": [],
            }
            for each in IDS
        ],
        "concepts": CONCEPTS,
        "renames": {IDS[1]: {"stark": "stark-2"}},
        "method": "closed-form",
        "params": {},
        "base": "toy",
        "base_hash": "ab",
    }
)


def file(folder: Path, **changes: Any) -> Path:
    """A weights file whose manifest is that of the merge, but for ``changes``."""
    words = [TaughtToken(token=each["token"], class_noun="dog", kind="subject") for each in CONCEPTS]
    manifest = WeightsManifest(
        method="closed-form", side="text", base="toy", base_family="toyworld", base_hash="ab", tokens=words,
        prediction_type="epsilon", params={}, seed=0, steps=0, parents=list(IDS), merge="closed-form", code_version="0",
    ).model_copy(update=changes)  # fmt: skip
    header = {
        "__metadata__": {"moongate": manifest.model_dump_json()},
        "site.a.delta": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    encoded = json.dumps(header).encode()
    path = folder / "weights.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(4))
    return path


def test_the_manifest_is_about_this_merge(tmp_path: Path) -> None:
    assert verified_weights(file(tmp_path), SPEC).merge == "closed-form"
    one = [TaughtToken(token="stark", class_noun="dog", kind="subject")]
    for changes in (
        {"merge": "linear"},
        {"merge": None},
        {"parents": [IDS[0]]},
        {"base_hash": "cd"},
        {"tokens": one},
    ):
        with pytest.raises(OutputInvalid, match="another merge"):
            verified_weights(file(tmp_path, **changes), SPEC)


def test_only_a_verified_report_about_these_weights_is_published() -> None:
    def told(**changes: Any) -> dict[str, Any]:
        return {"merge": merge_report(SPEC, **changes).model_dump(mode="json")}

    assert verified_merge(told(), SPEC).verified
    for report, why in (
        (told(verified=False), "not passed"),
        (told(merge="linear"), "another merge"),
        (told(inputs=[]), "another merge"),
        ({}, "cannot be read"),
    ):
        with pytest.raises(OutputInvalid, match=why):
            verified_merge(report, SPEC)


def test_a_merge_that_is_not_verified_fails_with_its_report() -> None:
    require_verified(merge_report(SPEC))
    bad = merge_report(SPEC, verified=False, failures=["The words are off by 2 %."])
    with pytest.raises(JobFailed, match="The words are off by 2 %") as failed:
        require_verified(bad)
    assert (failed.value.code, failed.value.retryable) == ("merge_unverified", False)
    assert failed.value.report == {"merge": bad.model_dump(mode="json")}


def test_inputs_are_the_weights() -> None:
    assert [each.id for each in PINNED["merge"](SPEC.model_dump(mode="json"))] == list(IDS)
