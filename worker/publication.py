"""From staging to the studio: verify, move into storage, commit with the fence (reliability 2.4).

Files are moved before the commit, so a crash between the two leaves an unreferenced file that garbage collection
removes, never a row without its file. ``False`` means that nothing was published and nothing may be any more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.failpoints import fp
from backend.models import Artifact, Job
from backend.schemas.compressions import CompressSpec
from backend.schemas.executor import ImageDone, Preview, Succeeded
from backend.schemas.generations import GenerateSpec
from backend.schemas.merges.requests import MergeSpec
from backend.schemas.trainings import TrainSpec
from backend.services import publishing
from backend.services.publishing import NewImage, NewWeights
from backend.storage import Storage, Stored
from worker.attempt import Attempt
from worker.recipes import published_recipe
from worker.verification import (
    OutputInvalid,
    verified_merge,
    verified_picture,
    verified_report,
    verified_weights,
)

Result = TypeVar("Result")
MADE_BY: dict[str, type[TrainSpec | CompressSpec | MergeSpec]] = {
    "train": TrainSpec,
    "compress": CompressSpec,
    "merge": MergeSpec,
}
"""Specs of the kinds of jobs that make weights."""


class Commit(Protocol):
    """Runs a function in a write transaction; again while the database is away and the lease may still live."""

    def __call__(self, write: Callable[[Session], Result], /) -> Result: ...


class Publication:
    """Publishes what an executor leaves in an attempt's staging. Every method may raise OutputInvalid."""

    def __init__(self, storage: Storage, commit: Commit) -> None:
        self._storage = storage
        self._commit = commit

    def image(self, attempt: Attempt, done: ImageDone) -> bool:
        """One finished picture of a generation."""
        spec = GenerateSpec.model_validate(attempt.spec)
        path = _inside(attempt.staging, done.file)
        thumbnail = verified_picture(path, (spec.width, spec.height))
        recipe = published_recipe(spec, done)
        new = NewImage(done.index, recipe, self._storage.adopt(path), self._storage.put(thumbnail))
        fp("publish.after_rename")
        return self._settle(
            lambda session: publishing.publish_image(session, attempt.unit, new) is not None,
            lambda session: _referenced(session, new.file),
            [new.file, new.thumbnail],
        )

    def preview(self, attempt: Attempt, shown: Preview) -> bool:
        """One preview of a training."""
        path = _inside(attempt.staging, shown.file)
        verified_picture(path)
        file = self._storage.adopt(path)
        return self._settle(
            lambda session: publishing.publish_preview(
                session, attempt.unit, file, step=shown.step, index=shown.index, prompt=shown.prompt
            ),
            lambda session: _referenced(session, file),
            [file],
        )

    def success(self, attempt: Attempt, done: Succeeded) -> bool:
        """The end of a job, with its weights if it made any."""
        weights = self._weights(attempt, done) if "weights" in done.files else None
        evaluation = verified_report(done.report, attempt.spec) if attempt.kind == "evaluate" else None
        fp("publish.after_rename")
        metrics = attempt.metrics(done)
        told: dict[str, Any] = {}
        if weights is None and evaluation is None and done.report:
            told = {"report": done.report}
        elif weights is not None and attempt.kind == "merge":  # where that of a merge that failed stands too
            told = {"report": weights.report}
        published = self._settle(
            lambda session: publishing.succeed(
                session, attempt.unit, result=told, metrics=metrics, weights=weights, evaluation=evaluation
            ),
            lambda session: _ended(session, attempt),
            [weights.file] if weights is not None else [],
        )
        fp("publish.after_commit")
        return published

    def _weights(self, attempt: Attempt, done: Succeeded) -> NewWeights:
        spec = MADE_BY[attempt.kind].model_validate(attempt.spec)
        path = _inside(attempt.staging, done.files["weights"])
        manifest = verified_weights(path, spec)
        if isinstance(spec, MergeSpec):
            verified_merge(done.report, spec)
        report = dict(done.report)
        analysis, sketch = report.pop("analysis", None), report.pop("sketch", None)
        return NewWeights(manifest, analysis, report, self._storage.adopt(path), spec.concepts, sketch)

    def _settle(
        self, write: Callable[[Session], bool], stands: Callable[[Session], bool], files: list[Stored]
    ) -> bool:
        """Commit; where that seems to fail, look whether an earlier try of the same commit arrived after all."""
        try:
            done = self._commit(write)
        except IntegrityError:
            done = False
        if not done:
            done = self._commit(stands)
        if not done:
            for file in files:
                self._storage.delete(file.key)
        return done


def _inside(staging: Path, name: str) -> Path:
    """A plain file directly in staging. Raises OutputInvalid."""
    path = staging / name
    if Path(name).name != name or not path.is_file() or path.is_symlink():
        raise OutputInvalid("the executor named a file that is not in its staging directory")
    return path


def _referenced(session: Session, file: Stored) -> bool:
    return session.scalar(select(Artifact.id).where(Artifact.storage_key == file.key)) is not None


def _ended(session: Session, attempt: Attempt) -> bool:
    ours = select(Job.id).where(
        Job.id == attempt.unit.job, Job.fence == attempt.unit.fence, Job.state == "succeeded"
    )
    return session.scalar(ours) is not None
