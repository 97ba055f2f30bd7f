"""Before, merged and trained together: the same prompt and seeds, beside one another."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from backend.errors import NotFound
from backend.models import ConceptWeights
from backend.schemas.concepts import Concept
from backend.schemas.generations import GenerationCreate
from backend.schemas.merges.requests import MergeReport
from backend.services import generations, jobs, merges, weights
from frontend import merge_view, phrases
from frontend.asking import valid
from frontend.pages.compose import Result, result_of
from frontend.schema_shapes import plain

FIELDS = ("prompt", "seed", "num_images")
MOST = 10
"""Columns that stand beside one another."""
PICTURES = "3"


@dataclass(frozen=True)
class Parent:
    """Weights that went into a merge. ``concepts`` is empty where they are gone by now, ``strength`` where the merge
    came without a report.
    """

    id: str
    concepts: list[Concept]
    words: str
    strength: str
    made_at: datetime | None


@dataclass(frozen=True)
class Column:
    """One way to draw the prompt."""

    title: str
    meaning: str
    concepts: list[Concept]
    result: Result


def parents(session: Session, owner: str, row: ConceptWeights) -> list[Parent]:
    """What the weights were made of, in the order in which it was merged."""
    told = row.report.get("merge")
    inputs = MergeReport.model_validate(told).inputs if told else []
    strengths = {each.id: plain(each.scale) for each in inputs}
    found = []
    for parent in row.parents:
        strength = strengths.get(parent, "")
        try:
            there = weights.get(session, owner, parent)
        except NotFound:
            found.append(Parent(parent, [], "deleted since", strength, None))
            continue
        taught = merge_view.taught_by(session, owner, parent)
        made = phrases.version(there.method, there.manifest.get("merge"))
        found.append(Parent(parent, taught, made, strength, there.created_at))
    return found


def usual(session: Session, owner: str, row: ConceptWeights, shown: Sequence[str]) -> dict[str, str]:
    """What stands in the form: what is shown below it, else a prompt with all the concepts."""
    for job_id in shown:
        request = jobs.get(session, owner, job_id).request
        if (request.get("weights") or [{}])[0].get("id") == row.id:
            return {name: "" if request.get(name) is None else str(request[name]) for name in FIELDS}
    return {
        "prompt": prompt_of(merge_view.taught_by(session, owner, row.id)),
        "seed": "1",
        "num_images": PICTURES,
    }


def prompt_of(taught: list[Concept]) -> str:
    """``a photo of @stark and @mia``; styles stand behind."""
    subjects = " and ".join(f"@{each.token}" for each in taught if each.kind == "subject")
    styles = " and ".join(f"@{each.token}" for each in taught if each.kind == "style")
    return f"a photo of {subjects or 'a place'}" + (f" in the style of {styles}" if styles else "")


def alone(prompt: str, others: list[Concept]) -> str:
    """The prompt with the plain noun in place of each of the others; of a style nothing is left."""
    for each in others:
        noun = re.escape(each.class_noun)
        name = rf"@{re.escape(each.token)}(?![\w-])"
        if each.class_noun:
            pattern = rf"(?:\b(?:an?|the)\s+)?{name}(?:\s+{noun}\b)?"
            prompt = re.sub(pattern, phrases.with_article(each.class_noun), prompt, flags=re.IGNORECASE)
        else:
            prompt = re.sub(
                rf",?\s*(?:\b(?:in the style of|in|by)\s+)?{name}", "", prompt, flags=re.IGNORECASE
            )
    return " ".join(prompt.split())


def start(
    session: Session, owner: str, row: ConceptWeights, asked: dict[str, str], max_queued_jobs: int
) -> list[str]:
    """Generations of each concept alone, merged, and trained together where there are such weights; ids of the jobs.
    All draw from one seed, a random one where none was asked for. Invalid where one of them cannot be drawn; then none
    is.
    """
    taught = merge_view.taught_by(session, owner, row.id)
    wanted: list[tuple[str, str]] = []
    for parent in parents(session, owner, row):
        for concept in parent.concepts:
            others = [each for each in taught if each.id != concept.id]
            wanted.append((parent.id, alone(asked["prompt"], others)))
    wanted = [*wanted[: MOST - 2], (row.id, asked["prompt"])]
    if (together := merges.jointly_trained(session, owner, row)) is not None:
        wanted.append((together, asked["prompt"]))
    plain = {name: value for name, value in asked.items() if value and name != "prompt"}
    plain.setdefault("seed", str(random.getrandbits(32)))
    started = []
    for weights_id, prompt in wanted:
        body = valid(GenerationCreate, {**plain, "prompt": prompt, "weights": [{"id": weights_id}]})
        started.append(generations.start(session, owner, body, max_queued_jobs).id)
    return started


def columns(session: Session, owner: str, row: ConceptWeights, shown: Sequence[str]) -> list[Column]:
    """The generations as they stand, in the order in which they are named."""
    together = merges.jointly_trained(session, owner, row)
    found = []
    for job_id in shown:
        job = jobs.to_schema(session, jobs.get(session, owner, job_id))
        choices: list[dict[str, Any]] = job.request.get("weights") or []
        used = str(choices[0]["id"]) if choices else ""
        taught = merge_view.taught_by(session, owner, used) if used else []
        found.append(
            Column(
                *_title(used, row.id, together, taught, job.request), taught, result_of(session, owner, job)
            )
        )
    return found


def _title(
    used: str, merged: str, together: str | None, taught: list[Concept], request: dict[str, Any]
) -> tuple[str, str]:
    if used == merged:
        return "Merged", "All concepts of the merge in one prompt."
    if used and used == together:
        return (
            "Trained together",
            "Weights that learned these concepts in one training: the yardstick of a merge.",
        )
    named = [each.name for each in taught if f"@{each.token}" in str(request.get("prompt", "")).lower()]
    title = " and ".join(named) or "Before"
    return f"{title} alone" if len(named) == 1 else title, f"Before the merge: {request.get('prompt', '')}"
