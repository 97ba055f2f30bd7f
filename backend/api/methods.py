"""What can be chosen: methods of learning, merges, schedulers."""

from __future__ import annotations

from typing import Any

from backend.api.registry import make_router, problems
from backend.schemas.bases import SHIPPED
from backend.schemas.generations import SCHEDULERS, SchedulerInfo
from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.card import MergeMethodInfo
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import MethodCard, MethodInfo, Presets
from backend.schemas.strict import Page

router = make_router("methods")


def describe(card: MethodCard) -> MethodInfo:
    """A method as the API shows it: ``params`` is a JSON schema with defaults."""
    return MethodInfo(
        name=card.name,
        title=card.title,
        side=card.side(card.params_type()),
        description=card.description,
        source=card.source,
        min_photos=card.min_photos,
        max_photos=card.max_photos,
        params=card.params_type.model_json_schema(),
        presets=_presets(card.presets[SHIPPED]),
        presets_by_backbone={backbone: _presets(values) for backbone, values in card.presets.items()},
    )


def _presets(presets: Presets) -> dict[str, dict[str, Any]]:
    return {str(name): dict(values) for name, values in presets.items()}


@router.get("/methods", responses=problems())
def list_methods() -> Page[MethodInfo]:
    """Methods of learning a concept, each with the JSON schema of its ``params``."""
    return Page(items=[describe(card) for card in CARDS.values()])


@router.get("/merge-methods", responses=problems())
def list_merge_methods() -> Page[MergeMethodInfo]:
    """Ways to merge weights, each with what it takes, what it makes, and the JSON schema of its ``params``."""
    return Page(
        items=[
            MergeMethodInfo(
                name=card.name,
                title=card.title,
                description=card.description,
                source=card.source,
                takes=card.takes,
                makes=card.makes,
                params=card.params_type.model_json_schema(),
            )
            for card in MERGE_CARDS.values()
        ]
    )


@router.get("/schedulers", responses=problems())
def list_schedulers() -> Page[SchedulerInfo]:
    """Solvers for generations."""
    return Page(items=list(SCHEDULERS))
