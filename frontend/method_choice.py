"""Methods to choose from: when to choose each, what its presets do here, and in words why one cannot be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backend.schemas.bases import BaseModelInfo
from backend.schemas.methods import CARDS
from backend.schemas.methods.card import MethodCard
from backend.schemas.trainings import TrainingCreate
from backend.services import bases, forecasts, method_params, trainings
from backend.services.forecasts import SOMETHING_NEW, Asked, Known, Subject
from frontend import phrases
from frontend.method_fields import Parameters

USUAL = str(TrainingCreate.model_fields["method"].default)
"""The method of a request that names none."""
DEFAULT_PRESET = "quick"
PURPOSES = {"together": "for pictures of several concepts", "faces": "for people"}
"""Of presets that are not more or less of the same."""


@dataclass(frozen=True)
class PresetView:
    """A preset as a card: what it does, and about how long it takes here."""

    name: str
    facts: str
    expected_s: float | None
    basis: str


@dataclass(frozen=True)
class MethodChoice:
    """A method as a card. ``reason`` says why it cannot be chosen; empty when it can."""

    name: str
    title: str
    description: str
    source: str
    reason: str
    chosen: bool


def choices(known: Sequence[BaseModelInfo], wanted: str) -> list[MethodChoice]:
    """All methods for the bases that may be taught. Chosen is what is wanted; where that is empty, the usual method,
    or the first that can be chosen.
    """
    reasons = {card.name: _reason(known, card) for card in CARDS.values()}
    usual = next((name for name in (USUAL, *CARDS) if not reasons.get(name, "unknown")), USUAL)
    chosen = wanted if wanted in CARDS else usual
    return [
        MethodChoice(name, card.title, card.description, card.source, reasons[name], name == chosen)
        for name, card in CARDS.items()
    ]


def _reason(known: Sequence[BaseModelInfo], card: MethodCard) -> str:
    """Empty where one of the bases can be taught, and while none is known yet."""
    said = [bases.cannot_be_taught(base, card) for base in known]
    return said[0] if said and all(said) else ""


def parameters(card: MethodCard, base: BaseModelInfo | None) -> Parameters:
    """What the form says of the method's parameters, with the presets that fit the base."""
    return Parameters(card.params_type, card.presets_for(base))


def presets(
    card: MethodCard,
    base: BaseModelInfo | None,
    known: Known,
    subjects: Sequence[Subject] = (SOMETHING_NEW,),
    *,
    calibrate: bool = False,
) -> list[PresetView]:
    """The method's presets for the base, each with what trainings on this machine say of it for these concepts."""
    found = []
    for name in card.presets_for(base):
        params = method_params.checked(card, base, name, {}, len(subjects))
        judges = trainings.judges(base, subjects, params, calibrate) if base else None
        nouns = base.class_nouns if base else ()
        forecast = forecasts.judged(known, card.name, Asked(params, subjects, nouns, judges is not None))
        steps = phrases.count(forecast.steps, "step") if "steps" in params else "computed at once"
        compared = phrases.count(forecast.prior_images, "ordinary picture")
        facts = f"{steps}, {compared} to compare with" if forecast.prior_images else steps
        facts = f"{PURPOSES[name]}: {facts}" if name in PURPOSES else facts
        found.append(PresetView(name, facts, forecast.expected_s, forecast.basis))
    return found
