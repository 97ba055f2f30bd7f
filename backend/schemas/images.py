"""Generated images."""

from __future__ import annotations

from datetime import datetime

from backend.schemas.generations import ImageRecipe
from backend.schemas.strict import Id, Strict


class Image(Strict):
    """``GET /images/{id}``."""

    id: Id
    job: Id
    index: int
    width: int
    height: int
    url: str
    thumbnail_url: str
    starred: bool
    concepts: list[Id]
    recipe: ImageRecipe
    created_at: datetime


class ImagePatch(Strict):
    starred: bool
