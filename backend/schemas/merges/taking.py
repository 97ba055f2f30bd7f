"""Which weights a merge can take: one rule, asked at the door of a request and again by the worker.

It needs no tensor library: what weights change stands in the names and shapes of their file
(`worker.ml.concept_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.card import MergeCard, Takes
from backend.schemas.methods import CARDS
from backend.schemas.weights import WeightsManifest

Shapes = Mapping[str, Sequence[int]]
"""{name of a tensor: its shape}"""
ONE_METHOD: dict[Takes, str] = {"lora": "lora", "svdiff": "svdiff", "perfusion": "perfusion"}
"""What merges of one method alone take."""
THIN_PARTS = frozenset({"down", "up", "alpha", "scale"})
"""What the change of a layer is made of where two thin matrices are all of it; DoRA's has a ``magnitude`` as well."""


@dataclass(frozen=True)
class Contents:
    """What a file of weights says of itself. ``named``: what a sentence calls the weights; ``shapes``: reads those of
    its tensors, where they are asked for; ``key_value``: names of the base model's keys and values of text.
    """

    named: str
    manifest: WeightsManifest
    shapes: Callable[[], Shapes]
    key_value: Collection[str]

    @property
    def text_side(self) -> bool:
        """Only keys and values of text, whatever the file holds."""
        return self.manifest.side == "text"

    @property
    def layered(self) -> bool:
        """Whether a word has vectors of its own for every layer (P+)."""
        return any(taught.layers for taught in self.manifest.tokens)

    def changes_encoder(self) -> bool:
        """Whether the text encoder is changed."""
        return not self.text_side and any(name.startswith("encoder.") for name in self.shapes())

    def sites(self) -> dict[str, dict[str, Sequence[int]]]:
        """{module of the denoiser: {part: shape}} of what is changed."""
        found: dict[str, dict[str, Sequence[int]]] = {}
        for name, shape in self.shapes().items():
            kind, _, rest = name.partition(".")
            if kind == "site":
                module, _, part = rest.rpartition(".")
                found.setdefault(module, {})[part] = shape
        return found


def cannot_take(card: MergeCard, held: Contents) -> str:
    """Why the merge cannot take these weights, as a sentence; empty when it can."""
    if held.changes_encoder():
        return (
            f"{held.named} changes the text encoder: every word would read differently to the others, so nothing can "
            "be merged with it. Train them together."
        )
    if card.takes == "text-kv":
        return _beside_keys_and_values(card, held) or _layered(card, held)
    if card.takes in ONE_METHOD:
        return _of_another_method(card, held) or (_not_thin(card, held) if card.takes == "lora" else "")
    if held.manifest.method == "perfusion":
        return (
            f"{held.named} was learned with {_title('perfusion')}: it opens a gate at its word and is no change that "
            "could be added up. Its words can share a prompt without a merge."
        )
    return _beside_matrices(card, held) or _layered(card, held) if card.takes == "linear-layers" else ""


def _beside_keys_and_values(card: MergeCard, held: Contents) -> str:
    further = [] if held.text_side else sorted(held.sites().keys() - set(held.key_value))
    if not further:
        return ""
    return (
        f"{held.named} changes more of the model than keys and values of text, {further[0]} among it, and these are "
        f"all that {card.title} merges. Choose another merge, or train them together."
    )


def _layered(card: MergeCard, held: Contents) -> str:
    if not held.layered:
        return ""
    return (
        f"{held.named} has a word with another vector for every layer (P+), and {card.title} needs one text for all "
        "layers. Such words can share a prompt with those of Textual Inversion without a merge."
    )


def _beside_matrices(card: MergeCard, held: Contents) -> str:
    if held.text_side:
        return ""
    everything = held.manifest.method == "svdiff" and held.manifest.params.get("layers") == "all"
    others = [
        module for module, parts in held.sites().items() if everything or not all(map(_flat, parts.items()))
    ]
    if not others:
        return ""
    return (
        f"{held.named} changes convolutions, norms or biases too, at {min(others)} for one. {card.title} takes changes "
        "of the matrices of linear layers alone; the sum takes others as well."
    )


def _flat(part: tuple[str, Sequence[int]]) -> bool:
    """Whether a tensor can belong to the change of a matrix: not to that of a convolution, a bias, or a gain."""
    name, shape = part
    return not name.endswith("_delta") and (len(shape) == 2 or name not in ("delta", "down", "up"))


def _of_another_method(card: MergeCard, held: Contents) -> str:
    wanted = ONE_METHOD[card.takes]
    if held.manifest.method == wanted:
        return ""
    return (
        f"{card.title} takes {_title(wanted)} alone, and {held.named} was made with "
        f"{_title(held.manifest.method)}."
    )


def _not_thin(card: MergeCard, held: Contents) -> str:
    if all(parts.keys() <= THIN_PARTS for parts in held.sites().values()):
        return ""
    return (
        f"{held.named} was learned with DoRA: the lengths of the matrices' rows belong to what it learned, and no thin "
        f"change holds them, so {card.title} cannot take it. The sum takes it."
    )


def _title(method: str) -> str:
    card = CARDS.get(method) or MERGE_CARDS.get(method)
    return card.title if card else method
