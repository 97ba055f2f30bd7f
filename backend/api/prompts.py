"""Prompts while they are typed."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body

from backend.api.dependencies import Owner, Reads
from backend.api.registry import make_router, problems
from backend.schemas.prompts import PromptCheck, PromptReport
from backend.services import prompts

router = make_router("prompts")
_CHECK = {"token": {"summary": "With a concept", "value": {"prompt": "a photo of @stark on the moon"}}}


@router.post("/prompts/check", responses=problems(413, 415))
def check_prompt(
    body: Annotated[PromptCheck, Body(openapi_examples=_CHECK)], session: Reads, owner: Owner
) -> PromptReport:
    """How many tokens the text encoder would read, what it would read, and which ``@tokens`` cannot be used."""
    return prompts.check(session, owner, body.prompt, body.base)
