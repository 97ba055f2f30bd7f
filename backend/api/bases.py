"""Base models."""

from __future__ import annotations

from backend.api.dependencies import Reads
from backend.api.registry import make_router, problems
from backend.schemas.bases import BaseModelInfo
from backend.schemas.strict import Page
from backend.services import bases

router = make_router("bases")


@router.get("/bases", responses=problems())
def list_bases(session: Reads) -> Page[BaseModelInfo]:
    """Base models that workers have registered; ``available`` means that a live worker has it."""
    return Page(items=bases.list_all(session))
