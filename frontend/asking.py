"""What a page's handler asks for: the studio, the owner, an id of the path, the fields of a form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, ImmutableMultiDict, UploadFile

from backend.auth import current_owner
from backend.errors import AppError, Invalid, NotFound
from backend.schemas.problems import FieldError
from backend.studio import Studio

_ID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
_SENTENCES = {
    "missing": "Please fill this in.",
    "string_too_short": "Please fill this in.",
    "string_too_long": "Use at most {max_length} characters.",
    "string_pattern_mismatch": "This does not have the right form.",
    "int_parsing": "Give a whole number.",
    "int_from_float": "Give a whole number.",
    "int_type": "Give a whole number.",
    "float_parsing": "Give a number.",
    "finite_number": "Give a number.",
    "greater_than_equal": "Give at least {ge}.",
    "greater_than": "Give more than {gt}.",
    "less_than_equal": "Give at most {le}.",
    "less_than": "Give less than {lt}.",
}


def studio_of(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


def checked_id(value: Annotated[str, Path(alias="id")]) -> str:
    """An id of the path; anything else is simply not found."""
    if not _ID.fullmatch(value):
        raise NotFound
    return value


async def form_of(request: Request) -> FormData:
    """The fields of the form. At most 20 files and 200 fields."""
    return await request.form(max_files=20, max_fields=200)


Schema = TypeVar("Schema", bound=BaseModel)
Studied = Annotated[Studio, Depends(studio_of)]
Owner = Annotated[str, Depends(current_owner)]
ItemId = Annotated[str, Depends(checked_id)]
Form = Annotated[FormData, Depends(form_of)]


def text(form: ImmutableMultiDict[str, Any], name: str) -> str:
    """A field of a form or of a query as text; absent and file fields are empty."""
    value = form.get(name, "")
    return value.strip() if isinstance(value, str) else ""


def files(form: FormData, name: str) -> list[UploadFile]:
    """The files of a field; a browser sends one nameless empty file where none was chosen."""
    return [value for value in form.getlist(name) if isinstance(value, UploadFile) and value.filename]


def filled(form: FormData, names: Sequence[str]) -> dict[str, str]:
    """The fields among ``names`` that hold something."""
    return {name: value for name in names if (value := text(form, name))}


def valid(schema: type[Schema], values: Mapping[str, Any]) -> Schema:
    """The request that the fields mean, or Invalid with a sentence for every field at once."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        found = [
            FieldError(pointer="/" + "/".join(str(part) for part in item["loc"]), detail=sentence(item))
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise Invalid(errors=found) from None


def sentence(item: Mapping[str, Any]) -> str:
    """What is wrong with a field, for the person who filled it in."""
    template = _SENTENCES.get(str(item["type"]), "This value is not right.")
    try:
        return template.format(**item.get("ctx", {}))
    except KeyError:
        return "This value is not right."


def beside_fields(error: AppError, prefixes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Sentences by field name; under the empty name what belongs to no field. ``prefixes`` rename pointers."""
    said: dict[str, str] = {}
    for wrong in error.errors:
        pointer = wrong.pointer.lstrip("/")
        for old, new in (prefixes or {}).items():
            pointer = pointer.replace(old, new, 1) if pointer.startswith(old) else pointer
        said.setdefault(pointer.split("/")[0], wrong.detail)
    return said or {"": error.detail}
