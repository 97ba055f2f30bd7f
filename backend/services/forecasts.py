"""About how long a training takes and how large its file is, from trainings that ended well on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.models import ConceptWeights, Job
from backend.schemas.bases import BaseModelInfo
from backend.schemas.methods import CARDS
from backend.schemas.trainings import Preset, TrainingForecast

RECENT = 5
"""Trainings that say how long one takes here."""


@dataclass(frozen=True)
class Experience:
    """A training that ended well: seconds of work, optimiser steps made (0 without any), bytes of its file."""

    run_s: float
    steps: int
    size_bytes: int

    def expected_s(self, params: Mapping[str, Any]) -> float | None:
        """Seconds with these parameters, by the number of steps; None where the two cannot be compared."""
        if "steps" not in params:
            return self.run_s
        return self.run_s * int(params["steps"]) / self.steps if self.steps else None


def recent(session: Session, method: str, base: str | None = None, limit: int = 1) -> list[Experience]:
    """The last trainings with the method, on the base where one is named; newest first."""
    query = (
        select(Job.total_steps, Job.metrics, ConceptWeights.size_bytes)
        .join(ConceptWeights, ConceptWeights.job_id == Job.id)
        .where(Job.kind == "train", Job.state == "succeeded", ConceptWeights.method == method)
        .order_by(Job.id.desc())
        .limit(limit)
    )
    if base is not None:
        query = query.where(Job.base == base)
    return [
        Experience(run_s, steps, size_bytes)
        for steps, metrics, size_bytes in session.execute(query)
        if (run_s := metrics.get("run_s"))
    ]


def judged(lately: list[Experience], params: Mapping[str, Any]) -> TrainingForecast:
    """What a training with these parameters would do and take, by the newest experience where there is one."""
    expected_s = lately[0].expected_s(params) if lately else None
    if expected_s is None:
        basis = "Nothing has been trained with this method on this machine yet, so there is no estimate."
    elif "steps" in params:
        basis = "From the last training with this method on this machine, by the number of steps."
    else:
        basis = "As long as the last time with this method on this machine."
    return TrainingForecast(
        steps=int(params.get("steps", 0)),
        prior_images=_prior_images(params),
        expected_s=None if expected_s is None else round(expected_s, 1),
        size_bytes=None if expected_s is None else lately[0].size_bytes,
        basis=basis,
    )


def _prior_images(params: Mapping[str, Any]) -> int:
    """How many prior images a training uses: none where the prior term is off, or asks the base model instead."""
    with_images = params.get("prior", "generated") in ("generated", "folder")
    return int(params.get("prior_images", 0)) if params.get("prior_weight", 1) and with_images else 0


def usual_s(
    session: Session,
    base: BaseModelInfo | None,
    method: str = "custom-diffusion",
    preset: Preset = "quick",
) -> float | None:
    """How long a training with the preset takes here, from the last ones with the method on the base; None without
    any.
    """
    card = CARDS[method]
    params = card.params_type(**card.presets_for(base)[preset]).model_dump()
    lately = recent(session, method, base.id if base else None, RECENT)
    took = [seconds for each in lately if (seconds := each.expected_s(params))]
    return median(took) if took else None
