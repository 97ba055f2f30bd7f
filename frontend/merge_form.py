"""The form that brings concepts together: which versions of them, how strongly, and by which merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from urllib.parse import urlencode

from sqlalchemy.orm import Session

from backend.errors import AppError, Invalid
from backend.schemas.concepts import Concept, ConceptWeightsSummary
from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.card import MergeCard
from backend.schemas.merges.requests import MergeCreate
from backend.services import concepts, method_params
from frontend import method_fields, phrases
from frontend.asking import text, valid
from frontend.method_fields import PREFIX, FieldView, Given, Parameters
from frontend.schema_shapes import plain

CONCEPT = "c"
VERSION, STRENGTH = "v.", "s."
"""Fields of a chosen concept are these and its id: which of its versions, and its scale."""
MOST_CONCEPTS = 200
USUAL = str(MergeCreate.model_fields["method"].default)
TOO_FEW = "Choose at least two concepts."


@dataclass(frozen=True)
class Version:
    """A version to choose from."""

    id: str
    words: str
    chosen: bool


@dataclass(frozen=True)
class Candidate:
    """A concept that has learned something. ``usual``: nothing was said about its version and strength."""

    id: str
    name: str
    token: str
    picture: str | None
    chosen: bool
    versions: list[Version]
    strength: str
    usual: bool


@dataclass(frozen=True)
class MergeChoiceView:
    """A merge as a card."""

    name: str
    title: str
    description: str
    source: str
    chosen: bool


@dataclass(frozen=True)
class MergeForm:
    """Everything the template of the form needs. ``together``: address of the form that trains the chosen ones
    jointly; empty where fewer than two are chosen. ``chosen`` stand in the order in which they were named.
    """

    candidates: list[Candidate]
    methods: list[MergeChoiceView]
    method: MergeChoiceView
    fields: tuple[FieldView, ...]
    together: str
    chosen: list[Candidate]


def view(session: Session, owner: str, given: Given) -> MergeForm:
    """``given`` is the page's query, or the form that came back."""
    rows, _ = concepts.page(session, owner, limit=MOST_CONCEPTS)
    known = concepts.to_schemas(session, rows)
    names = {concept.id: concept.name for concept in known}
    wanted = chosen_concepts(given)
    candidates = [_candidate(each, names, given, each.id in wanted) for each in known if each.weights]
    by_id = {each.id: each for each in candidates}
    chosen = [by_id[each] for each in wanted if each in by_id]
    methods = [
        MergeChoiceView(card.name, card.title, card.description, card.source, card.name == _card(given).name)
        for card in MERGE_CARDS.values()
    ]
    return MergeForm(
        candidates=candidates,
        methods=methods,
        method=next(each for each in methods if each.chosen),
        fields=method_fields.fields(_parameters(_card(given)), given),
        together=_together([each.id for each in chosen]),
        chosen=chosen,
    )


def chosen_concepts(given: Given) -> list[str]:
    """Ids of the concepts that are ticked, each once."""
    return list(dict.fromkeys(each for each in given.getlist(CONCEPT) if isinstance(each, str) and each))


def wanted(session: Session, owner: str, given: Given) -> MergeCreate:
    """The request that the form means. Invalid with everything that is wrong with it at once."""
    form = view(session, owner, given)
    strengths: dict[str, list[tuple[str, float | str]]] = {}
    for each in form.chosen:
        version = next(version.id for version in each.versions if version.chosen)
        strengths.setdefault(version, []).append((each.name, _scale(each.strength)))
    if len(strengths) < 2:
        raise Invalid.at(
            "/weights",
            TOO_FEW if len(form.chosen) < 2 else "These share one version already: it has them all.",
        )
    card = _card(given)
    params = method_fields.wanted(_parameters(card), "", given)
    body = {
        "weights": [{"id": version, "scale": _shared(said)} for version, said in strengths.items()],
        "method": text(given, "method") or USUAL,
        "params": params,
    }
    method_params.of_type(card.params_type, params)
    return valid(MergeCreate, body)


def beside(given: Given, error: AppError) -> dict[str, str]:
    """What is wrong, by the name of the field it stands beside; what belongs to none under the empty name."""
    said = method_fields.beside(_card(given).params_type, error)
    other = next((wrong.detail for wrong in error.errors if not wrong.pointer.startswith("/params")), "")
    if other or not said:
        said[""] = other or error.detail
    return said


def _card(given: Given) -> MergeCard:
    return MERGE_CARDS.get(text(given, "method"), MERGE_CARDS[USUAL])


def _parameters(card: MergeCard) -> Parameters:
    return Parameters(card.params_type, {"": {}})


def _candidate(concept: Concept, names: dict[str, str], given: Given, chosen: bool) -> Candidate:
    asked, strength = text(given, VERSION + concept.id), text(given, STRENGTH + concept.id)
    usual = _usual(concept)
    picked = asked if asked in {each.id for each in concept.weights} else usual
    return Candidate(
        id=concept.id,
        name=concept.name,
        token=concept.token,
        picture=concept.picture_url,
        chosen=chosen,
        versions=[
            Version(each.id, words(each, concept.id, names), each.id == picked) for each in concept.weights
        ],
        strength=strength,
        usual=picked == usual and strength in ("", "1", "1.0"),
    )


def _usual(concept: Concept) -> str:
    """The newest version that teaches the concept alone, else the newest."""
    alone = [each.id for each in concept.weights if each.concepts == [concept.id]]
    return (alone or [concept.weights[0].id])[0]


def words(version: ConceptWeightsSummary, concept: str, names: Mapping[str, str]) -> str:
    """``Custom Diffusion, with Mia, drawn at scale 0.65 when alone, 2 hours ago``."""
    others = " and ".join(names.get(each, "a concept") for each in version.concepts if each != concept)
    said = [
        phrases.version(version.method, version.merge),
        f"with {others}" if others else "",
        f"drawn at scale {plain(version.scale)} when alone" if version.scale != 1 else "",
    ]
    return ", ".join(filter(None, [*said, phrases.ago(version.created_at)]))


def _shared(said: list[tuple[str, float | str]]) -> float | str:
    """The strength of a version, from the concepts that it was chosen for and theirs. Invalid where they differ."""
    if len({scale for _, scale in said}) > 1:
        names = " and ".join(name for name, _ in said)
        raise Invalid.at(
            "/weights", f"{names} stand in one version, which has one strength: give each the same."
        )
    return said[0][1]


def _scale(said: str) -> float | str:
    """A number where it is one; a text that is none stays one, so that the request's schema says what is wrong."""
    try:
        number = float(said.replace(",", ".")) if said else 1.0
    except ValueError:
        number = nan
    return number if isfinite(number) else said


def _together(ids: list[str]) -> str:
    if len(ids) < 2:
        return ""
    return f"/concepts/{ids[0]}?{urlencode([('with', each) for each in ids[1:]])}#train"


__all__ = [
    "PREFIX", "Candidate", "MergeForm", "beside", "chosen_concepts", "view", "wanted", "words",
]  # fmt: skip
