"""LoRA of other programs (kohya's scripts, web UIs, diffusers) becomes a native file before it is imported: the same
numbers under our names (decision 12). What the file does not say is asked for: the base model, and the concept, whose
class noun is the words that the file was taught with.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from backend.errors import Invalid
from backend.models import Concept
from backend.schemas.bases import BaseDescription
from backend.schemas.foreign_names import (
    DIFFUSERS_SPELLINGS,
    KOHYA_PARTS,
    diffusers_component,
    diffusers_modules,
    kohya_modules,
)
from backend.schemas.version import VERSION
from backend.schemas.weights import ReadForeign, ReadWeights, TaughtToken, TensorShape, WeightsManifest
from backend.schemas.weights_layout import WIDTH_BYTES, file_metadata
from backend.services import bases, owned
from backend.services.base_layers import encoder_layers, sites
from backend.services.exports import Export, Part
from backend.services.import_checks import require_described, wrong
from backend.uploads import Shelf
from backend.weights_upload import ReceivedForeign, ReceivedWeights

Modules = dict[str, dict[str, str]]
"""{"site.<path>" or "encoder.<path>": {part: name of the tensor in the file}}."""
_KOHYA = {theirs: ours for ours, theirs in KOHYA_PARTS["lora"].items()}
_OTHERS = ("hada_", "lokr_", "dora_scale", "lora_mid", "oft_", "diff", "boft_")


def native(
    session: Session,
    shelf: Shelf,
    owner_id: str,
    received: ReceivedWeights | ReceivedForeign,
    *,
    concept_ids: Sequence[str],
    base_id: str | None = None,
) -> ReceivedWeights:
    """A staged native file with the numbers of a foreign one; a native one as it is. Invalid, NotFound; then nothing is
    kept.
    """
    if isinstance(received, ReceivedWeights):
        return received
    try:
        named = _named(received.read)
        concept = _concept(session, owner_id, concept_ids)
        base = bases.with_tokenizer(session, bases.choose(session, base_id).id)
        require_described(base)
        export, read = _translated(received, named, concept, base)
        shelf.require_space()
        path = shelf.stage()
        try:
            with path.open("xb") as file:
                file.writelines(export.pieces())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return ReceivedWeights(path, read)
    finally:
        received.discard()


def _concept(session: Session, owner_id: str, concept_ids: Sequence[str]) -> Concept:
    if len(concept_ids) != 1:
        raise Invalid.at(
            "/concept",
            "This file of another program names no concept. Make one, and import the file into it.",
        )
    concept = owned.get(session, Concept, owner_id, concept_ids[0])
    if not concept.class_noun:
        raise Invalid.at(
            "/concept", "Give the concept a class noun first: the words that the file was taught with."
        )
    return concept


def _translated(
    received: ReceivedForeign,
    named: Mapping[str, tuple[str, str]],
    concept: Concept,
    base: BaseDescription,
) -> tuple[Export, ReadWeights]:
    read = received.read
    shapes = {f"site.{site}": shape for site, shape in sites(base).items()}
    shapes |= {f"encoder.{module}": shape for module, shape in encoder_layers(base).items()}
    kohya = _is_kohya(read)
    modules = _modules(named, kohya_modules(shapes) if kohya else diffusers_modules(shapes))
    parts: dict[str, Part] = {}
    for module, held in modules.items():
        if not {"down", "up"} <= held.keys():
            raise wrong("A change of the file lacks one of its two factors.")
        for part, name in held.items():
            tensor, start = read.tensors[name], read.starts[name]
            shape = [] if part == "alpha" and tensor.shape == [1] else tensor.shape
            parts[f"{module}.{part}"] = Part(tensor.dtype, shape, (start, start + _bytes(tensor)))
        alpha = None if kohya else _adapter_alpha(read.adapter, module)
        if alpha is not None:
            parts[f"{module}.alpha"] = Part("F32", [], struct.pack("<f", alpha))
    text_side = modules.keys() <= {f"site.{site}" for site in base.text_sites}
    assert base.prediction_type
    taught = TaughtToken(token=concept.token, class_noun=concept.class_noun, kind=concept.kind, vectors=0)
    manifest = WeightsManifest(
        method="lora", side="text" if text_side else "weights", base=base.id, base_family=base.family,
        base_hash=base.hash, prediction_type=base.prediction_type, tokens=[taught], params={}, seed=0, steps=0,
        origin="kohya" if kohya else "diffusers", code_version=VERSION,
    )  # fmt: skip
    found = {
        name: TensorShape.model_validate({"dtype": part.dtype, "shape": part.shape})
        for name, part in parts.items()
    }
    return Export(received.path, file_metadata(manifest), parts), ReadWeights(
        manifest=manifest, tensors=found
    )


def _named(read: ReadForeign) -> dict[str, tuple[str, str]]:
    """{tensor: (their name of the module, our name of the part)} of a LoRA, whatever base it is for."""
    kohya = _is_kohya(read)
    found: dict[str, tuple[str, str]] = {}
    for name in read.tensors:
        theirs, part = _split(name, kohya=kohya)
        if part is None:
            raise wrong(_unknown(name), "weights-foreign")
        found[name] = theirs, part
    return found


def _is_kohya(read: ReadForeign) -> bool:
    return all(name.startswith("lora_") for name in read.tensors)


def _modules(named: Mapping[str, tuple[str, str]], known: Mapping[str, str]) -> Modules:
    """The file's tensors by module. ``known``: {their name of a module: ours}."""
    found: Modules = {}
    for name, (theirs, part) in named.items():
        module = known.get(theirs)
        if module is None:
            raise wrong(_unknown(name), "weights-foreign")
        if part in found.setdefault(module, {}):
            raise wrong("The file changes a layer twice.")
        found[module][part] = name
    return found


def _split(name: str, *, kohya: bool) -> tuple[str, str | None]:
    """Their name of the module, and our name of the part."""
    if kohya:
        theirs, _, tail = name.partition(".")
        return theirs, _KOHYA.get(tail)
    for tail, part in DIFFUSERS_SPELLINGS.items():
        if name.endswith(f".{tail}"):
            return name.removesuffix(f".{tail}"), part
    return name, None


def _unknown(name: str) -> str:
    if any(mark in name for mark in _OTHERS):
        return "Of other programs' files LoRA alone is read, not its relatives (LoHa, LoKr, DoRA and others)."
    return "This file is neither one of Moongate's nor a LoRA for this base model: it has tensors of other layers."


def _adapter_alpha(adapter: Mapping[str, Any], module: str) -> float | None:
    """What diffusers' header says of a module; None, which is the rank, where it says nothing."""
    component, path = diffusers_component(module)
    said = {
        key.removeprefix(f"{component}."): value
        for key, value in adapter.items()
        if key.startswith(f"{component}.")
    }
    if said.get("use_dora") or said.get("use_rslora"):
        raise wrong(
            "The adapter is of a kind of LoRA that is not read (DoRA, or scaled by the root of its rank)."
        )
    patterns = said.get("alpha_pattern")
    own = patterns if isinstance(patterns, dict) else {}
    found = next(
        (alpha for key, alpha in own.items() if path == key or path.endswith(f".{key}")),
        said.get("lora_alpha"),
    )
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1e4:
        raise wrong("The adapter's alpha is not a number that could be meant.")
    return float(found)


def _bytes(tensor: TensorShape) -> int:
    count = WIDTH_BYTES[tensor.dtype]
    for side in tensor.shape:
        count *= side
    return count
