"""Real evaluations of a tiny base by tiny registered judges: killed, cancelled, and undisturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.models import LOCAL_OWNER, BaseModel, Concept, Evaluation, Job, Photo, WeightsConcept
from backend.schemas.evaluations import EvaluationCreate, EvaluationReport
from backend.services import evaluations
from tests.faults.test_crashes import descendants
from tests.faults.test_training import EMBEDDED, WARM_S, photos
from tests.ml.evaluation.tiny_judges import write_clip, write_dinov2
from tests.ml.tiny_base import write_tiny_base
from tests.worker.installation import Installation, installation
from worker.ml.evaluation.panel import describe_panel
from worker.ml.families import describe_base

SLOWLY = "evaluate.part=sleep:0.25"
PROMPTS = ["a photo of {} on the beach", "a photo of {} in the snow"]
PARTS = 4 * len(PROMPTS)
TINY: dict[str, Any] = {"steps": 4, "batch_size": 2, "prior_images": 2, "prior_steps": 2}


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("judges")
    return [write_clip(root / "clip"), write_dinov2(root / "dino")]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, judges: list[Path]) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("evaluations")
    base = write_tiny_base(folder / "bases" / "tiny")
    described = describe_base(base)
    with installation(
        folder, base=described.id, base_hash=described.hash, base_models=[base], judges=judges
    ) as studio:
        studio.start(EMBEDDED, MOONGATE_FAILPOINTS=SLOWLY)
        studio.until(lambda: "executor_ready" in studio.log(), WARM_S)
        yield studio


@pytest.fixture(scope="module")
def weights(studio: Installation) -> str:
    """Weights of a concept whose photos are rows, as an upload makes them."""
    job = studio.ended(studio.train(photos(), **TINY), 120)
    assert job.state == "succeeded", job.error
    [learned] = studio.weights_of(job.id)
    with studio.database.write() as session:
        [link] = session.query(WeightsConcept).filter_by(weights_id=learned.id).all()
        session.get_one(Concept, link.concept_id)
        for pinned in job.spec["concepts"][0]["photos"]:
            session.add(
                Photo(
                    id=pinned["id"], owner_id=LOCAL_OWNER, concept_id=link.concept_id, display_name="x", width=40,
                    height=48, sha256=pinned["sha256"], storage_key=pinned["storage_key"],
                    thumbnail_key=pinned["storage_key"], fingerprint="0" * 16,
                )
            )  # fmt: skip
    return learned.id


def ask(studio: Installation, weights: str) -> str:
    body = EvaluationCreate(weights=[weights], prompts=PROMPTS, num_images=2)
    with studio.database.write() as session:
        job = evaluations.start(session, LOCAL_OWNER, body)
    studio.doorbell.ring(session.info["hints"])
    return job.id


def reported(studio: Installation, job: Job) -> EvaluationReport:
    assert job.state == "succeeded", (job.error, studio.log()[-3000:])
    assert job.result is not None
    with studio.database.read() as session:
        row = session.get_one(Evaluation, job.result["evaluation"])
    assert job.result["report"] == row.report
    return EvaluationReport.model_validate(row.report)


@pytest.fixture(scope="module")
def undisturbed(studio: Installation, weights: str) -> EvaluationReport:
    job = studio.ended(ask(studio, weights), 120)
    assert (job.step, job.checkpoint_step) == (job.total_steps, PARTS)
    studio.until(lambda: not (studio.settings.work_dir / "checkpoints" / job.id).exists())
    return reported(studio, job)


def test_the_report_is_finite_and_by_the_registered_judges(
    studio: Installation, judges: list[Path], undisturbed: EvaluationReport
) -> None:
    assert undisturbed.judges == describe_panel(Path("unused"), judges)
    with studio.database.read() as session:
        registered = session.get_one(BaseModel, studio.base)
    assert registered.description["judges"] == undisturbed.judges.model_dump()
    [found] = undisturbed.concepts
    for measure in (found.subject_similarity, found.prompt_similarity, found.drift):
        assert np.isfinite([measure.raw, measure.zero, measure.one]).all()
        assert (measure.value is None) == (measure.one - measure.zero < 1e-6)
    assert found.subject_similarity.raw != found.subject_similarity.zero


def test_a_killed_executor_is_replaced_and_the_report_is_the_same(
    studio: Installation, weights: str, undisturbed: EvaluationReport
) -> None:
    job_id = ask(studio, weights)
    studio.until(lambda: (studio.job(job_id).checkpoint_step or 0) >= 3)
    [forkserver] = [pid for pid in descendants(studio.processes[-1].pid) if descendants(pid)]
    [executor] = descendants(forkserver)
    os.kill(executor, signal.SIGKILL)
    job = studio.ended(job_id, 120)
    assert reported(studio, job) == undisturbed
    assert studio.notes(job_id) == ["executor_died", "resumed"]
    assert job.attempt == 2


def test_a_cancelled_evaluation_leaves_nothing(studio: Installation, weights: str) -> None:
    job_id = ask(studio, weights)
    studio.until(lambda: studio.job(job_id).checkpoint_step)
    studio.cancel(job_id)
    assert studio.ended(job_id).state == "cancelled"
    studio.until(lambda: not (studio.settings.work_dir / "checkpoints" / job_id).exists())
    with studio.database.read() as session:
        assert session.query(Evaluation).filter_by(job_id=job_id).all() == []


def test_judges_that_have_changed_since_end_the_job_in_words(studio: Installation, weights: str) -> None:
    with studio.database.write() as session:
        row = session.get_one(BaseModel, studio.base)
        kept = row.description
        row.description = {**kept, "judges": {"name": "others", "hash": "ff" * 32}}
    job = studio.ended(ask(studio, weights), 60)
    with studio.database.write() as session:
        session.get_one(BaseModel, studio.base).description = kept
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "judges_unusable")
    assert "changed" in job.error["message"]
