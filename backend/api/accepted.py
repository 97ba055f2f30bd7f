"""The answer to work that was accepted: 202, the job, and where it lives."""

from __future__ import annotations

from fastapi import Response
from sqlalchemy.orm import Session

from backend import models
from backend.schemas.jobs import Job
from backend.services import jobs


def accepted(session: Session, response: Response, row: models.Job) -> Job:
    """The job as it stands, with its Location."""
    response.headers["location"] = f"/api/v1/jobs/{row.id}"
    return jobs.to_schema(session, row)
