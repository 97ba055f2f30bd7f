"""Checking a prompt while it is typed."""

from __future__ import annotations

from pydantic import Field

from backend.schemas.strict import Strict
from backend.schemas.trainings import PromptText


class PromptCheck(Strict):
    """``POST /prompts/check``."""

    prompt: PromptText
    base: str | None = None


class PromptReport(Strict):
    """How long a prompt is for the text encoder, and which of its tokens nobody knows."""

    tokens: int = Field(description="start and end token included")
    limit: int
    text: str = Field(description="as the text encoder reads it")
    awaited: list[str] = Field(description="tokens that are being taught now: pictures of them wait for that")
    unknown: list[str] = Field(description="tokens, without @, that cannot be used")
