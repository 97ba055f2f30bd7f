"""Whether what a weights file says of itself, and the tensors it has, are what this studio writes for a base model."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from backend.errors import AppError, Invalid
from backend.schemas.bases import BaseDescription
from backend.schemas.merges import MERGE_CARDS
from backend.schemas.merges.taking import ONE_METHOD
from backend.schemas.methods import CARDS
from backend.schemas.methods.perfusion import WordGate
from backend.schemas.strict import Strict
from backend.schemas.weights import ReadWeights, TaughtToken, WeightsManifest
from backend.services import concepts
from backend.services.written_tensors import Asked, Unfitting, in_bytes, written

TOKEN = re.compile(r"^[a-z][a-z0-9_-]{0,39}$")
MOST_TOKENS = 8
MOST_MERGED_TOKENS = 64
MOST_VECTORS = 64
NOUN_INSIDE = frozenset({"perfusion", "textual-inversion"})
"""Methods whose word stands for its class noun too, so that their files name none."""
Factor = Annotated[float, Field(ge=-100.0, le=100.0)]


class MergedBeside(Strict):
    """What a merge's header holds among the parameters beside those of the merge itself."""

    scales: Annotated[list[Factor], Field(min_length=1, max_length=MOST_MERGED_TOKENS)]
    negative: bool | None = None
    gates: dict[str, WordGate] | None = None


def wrong(detail: str, code: str = "weights-invalid") -> AppError:
    """A refusal at ``/file``."""
    return Invalid.at("/file", detail, code=code)


def check(read: ReadWeights, base: BaseDescription) -> None:
    """Raises Invalid unless the file is one that this studio writes for this base model."""
    manifest = read.manifest
    params = _params(manifest)
    _check_words(manifest, params, base)
    texts = [manifest.base, manifest.code_version, *manifest.parents]
    if any(len(text) > 200 for text in texts) or len(manifest.parents) > 64 or manifest.steps < 0:
        raise wrong("The description of the weights in the header is not right.")
    if manifest.side == "weights":
        require_described(base)
    _check_tensors(Asked(read, params, base))


def require_described(base: BaseDescription) -> None:
    """Raises Invalid while only a worker of an earlier version has registered the base model."""
    if not base.denoiser_shapes or not base.prediction_type:
        raise wrong(
            "No worker has said yet which layers this base model has. Try again when one is running.",
            "base-unavailable",
        )


def _params(manifest: WeightsManifest) -> BaseModel:
    """The parameters of the method, or of the merge, whose side is the manifest's."""
    merge = None if manifest.merge is None else MERGE_CARDS.get(manifest.merge)
    own = CARDS.get(manifest.method)
    if (manifest.merge is None and own is None) or (manifest.merge is not None and merge is None):
        raise wrong(
            "These weights were learned with a method that this studio does not have.", "unknown-method"
        )
    try:
        if manifest.origin is not None:
            return _foreign_params(manifest)
        if merge is None:
            assert own is not None
            params = own.params_type.model_validate(manifest.params, strict=True)
            sides: list[str] = [own.side(params)]
        else:
            if manifest.method != ONE_METHOD.get(merge.takes, merge.name):
                raise wrong("The merge in the file makes no weights of this method.")
            params = _merged_params(manifest)
            sides = ["text"] if merge.makes == "text" else ["text", "weights"]
    except ValidationError:
        raise wrong("The parameters in the file are not those of its method.") from None
    if manifest.side not in sides:
        raise wrong("The file says another side than its method has.")
    return params


def _foreign_params(manifest: WeightsManifest) -> BaseModel:
    """None: another program's file does not say them. Raises ValidationError."""
    if manifest.method != "lora" or manifest.merge is not None:
        raise wrong("Of other programs' files LoRA alone is read.")
    return Strict.model_validate(manifest.params)


def _merged_params(manifest: WeightsManifest) -> BaseModel:
    """Those of the merge. Sums of spectral shifts keep those of the method as well. Raises ValidationError."""
    assert manifest.merge is not None
    known = {name: value for name, value in manifest.params.items() if name in MergedBeside.model_fields}
    beside = MergedBeside.model_validate(known, strict=True)
    gated = {taught.token for taught in manifest.tokens} if manifest.method == "perfusion" else None
    if (None if beside.gates is None else set(beside.gates)) != gated:
        raise wrong("The gates in the file are not those of its words.")
    rest: dict[str, Any] = {name: value for name, value in manifest.params.items() if name not in known}
    kept = (
        CARDS["svdiff"].params_type
        if manifest.merge == "svdiff-sum"
        else MERGE_CARDS[manifest.merge].params_type
    )
    return kept.model_validate(rest, strict=True)


def _check_words(manifest: WeightsManifest, params: BaseModel, base: BaseDescription) -> None:
    names = [taught.token for taught in manifest.tokens]
    most = MOST_TOKENS if manifest.merge is None else MOST_MERGED_TOKENS
    if not 1 <= len(names) <= most or len(set(names)) < len(names):
        raise wrong(f"The file must teach one to {most} different tokens.")
    if not all(_plain(taught, manifest, params) for taught in manifest.tokens):
        raise wrong("A token or class noun in the file is not one that this studio writes.")
    layers = [site.removesuffix(".to_k") for site in base.text_sites if site.endswith(".to_k")]
    if any(taught.layers not in ([], layers) for taught in manifest.tokens):
        raise wrong("The word's vectors are for other layers than this base model has.")


def _plain(taught: TaughtToken, manifest: WeightsManifest, params: BaseModel) -> bool:
    """Whether its name, noun and vectors are such as the method writes; of a merge, and of another
    program's file, as any method does.
    """
    noun, merged = taught.class_noun, manifest.merge is not None or manifest.origin is not None
    inside = manifest.method in NOUN_INSIDE
    layered = getattr(params, "per_layer", False)
    vectors = 0 if getattr(params, "new_category", False) else getattr(params, "vectors", 1)
    counted = (
        (0 if noun.strip() else 1) <= taught.vectors <= MOST_VECTORS if merged else taught.vectors == vectors
    )
    return (
        bool(TOKEN.fullmatch(taught.token))
        and taught.token not in concepts.RESERVED_TOKENS
        and counted
        and (merged or bool(taught.layers) == layered)
        and len(noun) <= 60
        and (
            noun == "" if inside else bool(noun.strip()) or (taught.kind == "style" and vectors > 0) or merged
        )
        and not any(unicodedata.category(character)[0] == "C" or character in "<>@" for character in noun)
    )


def _check_tensors(asked: Asked) -> None:
    """Exactly the tensors that are written for this base, each of its shape."""
    try:
        expected = written(asked)
    except Unfitting as unfitting:
        raise wrong(str(unfitting)) from None
    eight_bit = in_bytes(expected)
    for taught in asked.manifest.tokens:
        if taught.vectors:
            layers = [len(taught.layers)] if taught.layers else []
            rows = [*layers, taught.vectors, asked.base.token_width]
            expected |= {f"token.{taught.token}.{part}": rows for part in ("learned", "start")}
    if asked.read.tensors.keys() != expected.keys():
        raise wrong("The file lacks tensors that its method writes for this base model, or has others.")
    for name, tensor in asked.read.tensors.items():
        if tensor.shape != expected[name]:
            raise wrong("A tensor of the file does not have the shape that this base model needs.")
        if (tensor.dtype == "I8") != (name in eight_bit):
            raise wrong("A tensor of the file is not of the type that its method writes.")
