"""Regions of a generation: boxes are checked, each resolves its own tokens and weights, and texts are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.errors import Invalid
from backend.schemas.generations import (
    ActingWeights,
    GenerationCreate,
    Layout,
    PinnedRegion,
    PinnedWeights,
    Region,
    RegionPasses,
)
from backend.services import prompts
from backend.services.box_layout import is_usual
from backend.services.prompts import Placeholder
from backend.services.region_texts import Subject, Texts, constructed, constructed_apart

EDGE = 1e-6
"""How far a box may stick out by rounding."""


@dataclass(frozen=True)
class Area:
    """A checked region of a request. ``names``: the tokens of its prompt."""

    pointer: str
    asked: Region
    prompt: str
    names: list[str]


@dataclass(frozen=True)
class Resolved:
    """A region with what its tokens stand for and the weights that act in it."""

    area: Area
    known: Mapping[str, Placeholder]
    weights: list[ActingWeights]


def checked(body: GenerationCreate) -> list[Area]:
    """The regions of a request. Invalid, with a pointer, for boxes and prompts that mean nothing."""
    areas = []
    for index, region in enumerate(body.regions):
        pointer = f"/regions/{index}"
        if region.width <= 0 or region.height <= 0:
            wrong = "width" if region.width <= 0 else "height"
            raise Invalid.at(f"{pointer}/{wrong}", "This box has no area. Draw it larger.", code="box-empty")
        edges = {"x": (region.x, region.x + region.width), "y": (region.y, region.y + region.height)}
        for name, (begin, end) in edges.items():
            if begin < -EDGE or end > 1 + EDGE:
                raise Invalid.at(
                    f"{pointer}/{name}",
                    "This box reaches out of the picture: its edges lie between 0 and 1.",
                    code="box-outside",
                )
        prompt = prompts.normal(region.prompt, f"{pointer}/prompt")
        if not prompt:
            raise Invalid.at(
                f"{pointer}/prompt",
                "Say what stands in this box: a concept, as @name, or some words.",
                code="region-without-prompt",
            )
        areas.append(Area(pointer, region, prompt, prompts.tokens(prompt)))
    return areas


def require_one_teacher(area: Area, taught: Sequence[tuple[str, Sequence[str]]]) -> None:
    """``taught``: (id, tokens) of the weights of a region. Invalid where two of them teach one token."""
    every = [token for _, tokens in taught for token in tokens]
    if twice := sorted({token for token in every if every.count(token) > 1}):
        raise Invalid.at(
            f"{area.pointer}/weights",
            f"Two of these weights teach @{twice[0]}. Choose one of them for a box.",
            code="tokens-clash",
        )


def passes(body: GenerationCreate) -> RegionPasses:
    """What "auto" comes to."""
    if body.region_passes != "auto":
        return body.region_passes
    return "one" if is_usual([(each.x, each.y, each.width, each.height) for each in body.regions]) else "each"


def texts(
    prompt: str, resolved: Sequence[Resolved], rest: Mapping[str, Placeholder], passes: RegionPasses
) -> Texts:
    """Encoder texts; ``rest`` are the tokens of the prompt that belong to no region."""
    subjects = [
        Subject(each.area.prompt, each.known, each.area.asked.x + each.area.asked.width / 2)
        for each in resolved
    ]
    return (constructed if passes == "one" else constructed_apart)(prompt, subjects, rest)


def layout(
    body: GenerationCreate, resolved: Sequence[Resolved], built: Texts, whole: list[ActingWeights]
) -> Layout:
    """The layout of the spec."""
    return Layout(
        regions=[
            PinnedRegion(
                x=each.area.asked.x, y=each.area.asked.y, width=each.area.asked.width, height=each.area.asked.height,
                prompt=each.area.prompt, text=text, weights=each.weights,
            )
            for each, text in zip(resolved, built.regions, strict=True)
        ],
        whole=whole,
        base_share=body.base_share,
        late_base_share=body.base_share if body.late_base_share is None else body.late_base_share,
        passes=passes(body),
    )  # fmt: skip


def with_weights(before: Layout | None, text: str, added: Sequence[PinnedWeights]) -> Layout | None:
    """The layout when weights that were awaited are there: they act on the texts that name what they teach. ``text`` is
    the picture's.
    """
    if before is None:
        return None

    def acting(read: str, chosen: list[ActingWeights]) -> list[ActingWeights]:
        new = [used for used in added if any(f"<{token}>" in read for token in used.tokens)]
        return [*chosen, *(ActingWeights(id=used.file.id, scale=used.scale, gate=used.gate) for used in new)]

    regions = [
        each.model_copy(update={"weights": acting(each.text, each.weights)}) for each in before.regions
    ]
    return before.model_copy(update={"regions": regions, "whole": acting(text, before.whole)})
