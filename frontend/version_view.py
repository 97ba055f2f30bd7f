"""Versions of a concept's weights with how much each layer changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from backend.schemas.concepts import Concept
from backend.schemas.weights import WeightsAnalysis
from backend.services import weights
from frontend import phrases

MOST_SITES = 40


@dataclass(frozen=True)
class SiteBar:
    """One bar: a layer and its relative change, 0..1."""

    name: str
    full: str
    change: float


@dataclass(frozen=True)
class VersionView:
    id: str
    title: str
    base: str
    job: str | None
    steps: int
    size_bytes: int
    file_url: str
    created_at: datetime
    sites: list[SiteBar]
    changed: int
    mean_change: float
    largest_change: float
    groups: list[tuple[str, float]]
    words: dict[str, float]


def versions(session: Session, owner: str, concept: Concept) -> list[VersionView]:
    """Newest first."""
    return [_version(session, owner, summary.id) for summary in concept.weights]


def _version(session: Session, owner: str, weights_id: str) -> VersionView:
    row = weights.get(session, owner, weights_id)
    shown = weights.to_schema(session, row)
    analysis = WeightsAnalysis.model_validate(row.analysis) if row.analysis else None
    changed = [site for site in analysis.sites if site.relative_change > 0] if analysis else []
    changes = [site.relative_change for site in changed]
    return VersionView(
        id=shown.id,
        title=phrases.method(shown.manifest.method),
        base=shown.manifest.base,
        job=shown.job,
        steps=shown.manifest.steps,
        size_bytes=shown.size_bytes,
        file_url=shown.file_url,
        created_at=shown.created_at,
        sites=[SiteBar(short(site.site), site.site, site.relative_change) for site in changed[:MOST_SITES]],
        changed=len(changed),
        mean_change=sum(changes) / len(changes) if changes else 0.0,
        largest_change=max(changes, default=0.0),
        groups=sorted(analysis.mean_by_group.items(), key=lambda group: -group[1]) if analysis else [],
        words={word: change for word, change in analysis.token_change.items() if change} if analysis else {},
    )


def short(site: str) -> str:
    """``down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k`` as ``down 1.0 cross keys``."""
    parts = site.split(".")
    place = parts[0].removesuffix("_blocks").removesuffix("_block").replace("_", " ")
    numbers = ".".join([part for part in parts[1:] if part.isdigit()][:2])
    words = {"to_k": "keys", "to_v": "values", "to_q": "queries", "to_out": "output", "attn1": "self",
             "attn2": "cross"}  # fmt: skip
    attention = next((words[part] for part in parts if part in ("attn1", "attn2")), "")
    role = next((part for part in reversed(parts) if not part.isdigit()), "")
    said = [place, numbers, attention, words.get(role, role.replace("_", " ") if role != parts[0] else "")]
    return " ".join(filter(None, said))
