"""Versions of a concept's weights with how much each layer changed and how judges see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.orm import Session

from backend.schemas.concepts import Concept
from backend.schemas.weights import WeightsAnalysis
from backend.services import bases, exports, weights
from backend.storage import Storage
from frontend import calibration_view, measure_view, merge_view, phrases, smaller_form
from frontend.calibration_view import CalibrationView
from frontend.measure_view import EvaluationView
from frontend.smaller_form import CutView, SmallerForm

MOST_SITES = 40
FORMATS: dict[str, tuple[str, str]] = {
    "kohya": ("web UIs", "Works in A1111, ComfyUI and kohya's scripts. Take the word along."),
    "diffusers": ("diffusers", "Works with load_lora_weights. Take the word along."),
    "embedding": ("the word", "Works in the embeddings folder of web UIs and with load_textual_inversion."),
}


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
    formats: list[tuple[str, str, str]]
    """Layouts of other programs: name, title, and a sentence that says where they work."""
    created_at: datetime
    sites: list[SiteBar]
    changed: int
    mean_change: float
    largest_change: float
    groups: list[tuple[str, float]]
    words: dict[str, float]
    others: list[Concept]
    merged: bool
    cut: CutView | None
    smaller: SmallerForm | None
    calibration: CalibrationView | None

    evaluation: EvaluationView | None
    measuring: str | None
    judged: bool


def versions(session: Session, storage: Storage, owner: str, concept: Concept) -> list[VersionView]:
    """Newest first, each with what judges said of it last."""
    live = measure_view.under_way(session, owner)
    judged = {base.id for base in bases.list_all(session) if base.judges is not None}
    return [
        replace(
            _version(session, storage, owner, summary.id),
            evaluation=measure_view.newest(session, owner, summary.id, concept.id),
            measuring=live.get(summary.id),
            judged=summary.base in judged,
            others=[
                each for each in merge_view.taught_by(session, owner, summary.id) if each.id != concept.id
            ]
            if len(summary.concepts) > 1
            else [],
        )
        for summary in concept.weights
    ]


def _version(session: Session, storage: Storage, owner: str, weights_id: str) -> VersionView:
    row = weights.get(session, owner, weights_id)
    shown = weights.to_schema(session, row)
    analysis = WeightsAnalysis.model_validate(row.analysis) if row.analysis else None
    changed = [site for site in analysis.sites if site.relative_change > 0] if analysis else []
    changes = [site.relative_change for site in changed]
    return VersionView(
        id=shown.id,
        title=phrases.version(shown.manifest.method, shown.manifest.merge),
        base=shown.manifest.base,
        job=shown.job,
        steps=shown.manifest.steps,
        size_bytes=shown.size_bytes,
        file_url=shown.file_url,
        formats=[(each, *FORMATS[each]) for each in exports.offered(storage, row) if each in FORMATS],
        created_at=shown.created_at,
        sites=[
            SiteBar(phrases.layer(site.site), site.site, site.relative_change)
            for site in changed[:MOST_SITES]
        ],
        changed=len(changed),
        mean_change=sum(changes) / len(changes) if changes else 0.0,
        largest_change=max(changes, default=0.0),
        groups=sorted(analysis.mean_by_group.items(), key=lambda group: -group[1]) if analysis else [],
        words={word: change for word, change in analysis.token_change.items() if change} if analysis else {},
        others=[],
        merged=shown.manifest.merge is not None,
        cut=smaller_form.cut_of(row),
        smaller=smaller_form.form_of(session, storage, row),
        calibration=calibration_view.of_weights(row),
        evaluation=None,
        measuring=None,
        judged=False,
    )
