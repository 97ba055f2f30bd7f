"""Names and shapes of the tensors that a sound weights file has beside the rows of its words, told without tensor
libraries: from the manifest, from the shapes of the base model that it names, and, where a method or merge has a choice
(weights that were made smaller, results of merges), from the names that are there.

A file is compared with what is told here, so that a tensor too many, too few or of another shape is found. What raises
`Unfitting` could not have been written at all. Names and parts are those of ``worker.ml.concept_weights``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from backend.schemas.bases import BaseDescription
from backend.schemas.methods import CARDS
from backend.schemas.methods.attention_adapter import AttentionAdapterParams
from backend.schemas.methods.custom_diffusion import CustomDiffusionParams
from backend.schemas.methods.dreambooth import DreamBoothParams
from backend.schemas.methods.lokr import LokrParams, split
from backend.schemas.methods.lora import LoraParams
from backend.schemas.methods.svdiff import SVDiffParams
from backend.schemas.weights import ReadWeights, WeightsManifest
from backend.services.base_layers import Shapes, attention, encoder_layers, gains, sites

SHARED_ROWS, SHARED_SCALE = "merge.rows", "merge.scale"
ENCODER_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
BETWEEN_ATTENTION = (".resnets.", ".downsamplers.", ".upsamplers.")
AROUND = (".attn2.to_q", ".attn2.to_out.0")


class Unfitting(Exception):
    """No method or merge writes such a file; ``str`` is a sentence."""


@dataclass(frozen=True)
class Asked:
    """A file to tell the tensors of. ``params``: the validated parameters of its method, or of its merge."""

    read: ReadWeights
    params: Any
    base: BaseDescription

    @property
    def manifest(self) -> WeightsManifest:
        return self.read.manifest

    @property
    def text_side(self) -> bool:
        return self.manifest.side == "text"


def written(asked: Asked) -> Shapes:
    """Every tensor but the rows of words, with its shape. Raises `Unfitting`."""
    manifest = asked.manifest
    own = CARDS.get(manifest.method)
    if manifest.compression is not None and own is not None and own.small_already:
        raise Unfitting(own.small_already)
    if manifest.origin is not None:
        return _stored(asked, _foreign_changes(asked))
    if manifest.merge is not None:
        return MERGED[manifest.merge](asked)
    whole = WRITES[manifest.method](asked)
    return whole if manifest.compression is None else _smaller(asked, whole)


# ---- what methods write


def _custom_diffusion(asked: Asked) -> Shapes:
    params: CustomDiffusionParams = asked.params
    changed = {f"site.{site}.delta": shape for site, shape in asked.base.text_sites.items()}
    if params.train == "crossattn":
        changed |= {
            _change(f"site.{path}"): shape
            for path, shape in asked.base.denoiser_shapes.items()
            if path.rpartition(".")[0].endswith(AROUND)
        }
    return changed


def _dreambooth(asked: Asked) -> Shapes:
    params: DreamBoothParams = asked.params
    changed = {_change(f"site.{path}"): shape for path, shape in asked.base.denoiser_shapes.items()}
    if params.text_encoder:
        changed |= {_change(f"encoder.{path}"): shape for path, shape in asked.base.encoder_shapes.items()}
    return changed


def _lora(asked: Asked) -> Shapes:
    params: LoraParams = asked.params
    found: Shapes = {}
    for module, shape in _lora_layers(asked).items():
        found |= {f"{module}.{part}": each for part, each in _factors(shape, params.rank).items()}
        found[f"{module}.alpha"] = []
        if params.use_dora:
            found[f"{module}.magnitude"] = shape[:1]
    return found


def _lora_layers(asked: Asked) -> Shapes:
    """{"site.<module>" or "encoder.<module>": shape} of the layers that its parameters choose."""
    params: LoraParams = asked.params
    chosen = dict(attention(asked.base, params.attention))
    for site, shape in sites(asked.base).items():
        between = len(shape) == 4 and any(mark in site for mark in BETWEEN_ATTENTION)
        if (params.feed_forward and ".ff." in site) or (params.convolution and between):
            chosen[site] = shape
    changed = {f"site.{site}": shape for site, shape in chosen.items()}
    if params.text_encoder:
        for module, shape in encoder_layers(asked.base).items():
            if module.rpartition(".")[2] in ENCODER_ATTENTION:
                changed[f"encoder.{module}"] = shape
    return changed


def _loha(asked: Asked) -> Shapes:
    params: AttentionAdapterParams = asked.params
    found: Shapes = {}
    for site, (out, width) in attention(asked.base, params.attention).items():
        for part in ("first", "second"):
            found[f"site.{site}.{part}_down"] = [params.rank, width]
            found[f"site.{site}.{part}_up"] = [out, params.rank]
        found[f"site.{site}.alpha"] = []
    return found


def _lokr(asked: Asked) -> Shapes:
    params: LokrParams = asked.params
    found: Shapes = {}
    for site, shape in attention(asked.base, params.attention).items():
        (above, k), (across, n) = (split(size, params.factor) for size in shape)
        found[f"site.{site}.first"] = [above, across]
        if 2 * params.rank >= max(k, n):
            found[f"site.{site}.second"] = [k, n]
        else:
            found[f"site.{site}.second_up"], found[f"site.{site}.second_down"] = (
                [k, params.rank],
                [params.rank, n],
            )
            found[f"site.{site}.alpha"] = []
    return found


def _svdiff(asked: Asked) -> Shapes:
    return _shifts(_svdiff_modules(asked))


def _svdiff_modules(asked: Asked) -> Shapes:
    """{"site.<module>" or "encoder.<module>": shape} of the weights and gains that are shifted."""
    params: SVDiffParams = asked.params
    base, every = asked.base, sites(asked.base)
    chosen = {
        "all": every | gains(base.denoiser_shapes),
        "linear": {site: shape for site, shape in every.items() if len(shape) == 2},
        "cross": {site: shape for site, shape in every.items() if ".attn2." in site},
        "key-value": base.text_sites,
    }[params.layers]
    modules = {f"site.{site}": shape for site, shape in chosen.items()}
    if params.text_encoder:
        encoder = encoder_layers(base) | gains(base.encoder_shapes)
        modules |= {f"encoder.{module}": shape for module, shape in encoder.items()}
    return modules


def _shifts(modules: Mapping[str, Sequence[int]]) -> Shapes:
    """A shift for each singular value, or each element of a gain, and a checksum of what they belong to."""
    shifts = {f"{module}.shift": [_full_rank(shape)] for module, shape in modules.items()}
    return shifts | {f"{module}.checksum": [] for module in modules}


def _textual_inversion(asked: Asked) -> Shapes:
    return {}


def _perfusion(asked: Asked) -> Shapes:
    return _rank_one_parts(asked, "target", ("key", "dual", "class_state"))


def _rank_one(asked: Asked) -> Shapes:
    return _rank_one_parts(asked, "change", ("key", "dual"))


def _rank_one_parts(asked: Asked, site_part: str, token_parts: Sequence[str]) -> Shapes:
    """A row a token for every value matrix, and text states, as wide as those matrices, for every token."""
    tokens = asked.manifest.tokens
    values = {site: shape for site, shape in asked.base.text_sites.items() if site.endswith(".to_v")}
    width = next(iter(values.values()))[1] if values else 0
    rows = {f"site.{site}.{site_part}": [len(tokens), shape[0]] for site, shape in values.items()}
    return rows | {f"token.{taught.token}.{part}": [1, width] for taught in tokens for part in token_parts}


# ---- what merges write


def _closed_form(asked: Asked) -> Shapes:
    """Rows that all changes share, and what they do at some of the key and value matrices; or nothing."""
    there = asked.read.tensors.get(SHARED_ROWS)
    if there is None:
        return {}
    values = {
        f"site.{site}.values": shape
        for site, shape in asked.base.text_sites.items()
        if f"site.{site}.values" in asked.read.tensors
    }
    if not values or not there.shape:
        raise Unfitting("The rows of the merge belong to no matrix of this base model.")
    rank, width = there.shape[0], next(iter(values.values()))[1]
    if rank > width:
        raise Unfitting("The merge has more rows than a matrix of this base model has columns.")
    scale = {SHARED_SCALE: [rank]} if SHARED_SCALE in asked.read.tensors else {}
    return {SHARED_ROWS: [rank, width], **scale} | {name: [shape[0], rank] for name, shape in values.items()}


def _sum(asked: Asked) -> Shapes:
    return _stored(asked, _sum_changes(asked))


def _sum_changes(asked: Asked) -> Shapes:
    """{path: shape} of what a sum may change: keys and values on the text side, else the whole denoiser."""
    if asked.text_side:
        return {f"{site}.weight": shape for site, shape in asked.base.text_sites.items()}
    return asked.base.denoiser_shapes


def _lora_sum(asked: Asked) -> Shapes:
    return _stored(asked, _lora_sum_changes(asked))


def _lora_sum_changes(asked: Asked) -> Shapes:
    changed = asked.base.text_sites if asked.text_side else sites(asked.base)
    return {f"{site}.weight": shape for site, shape in changed.items()}


def _foreign_changes(asked: Asked) -> Shapes:
    """Any linear layers and convolutions: another program chose them."""
    if asked.text_side:
        return _lora_sum_changes(asked)
    changed = {f"site.{site}.weight": shape for site, shape in sites(asked.base).items()}
    return changed | {
        f"encoder.{module}.weight": shape for module, shape in encoder_layers(asked.base).items()
    }


def _shift_sum(asked: Asked) -> Shapes:
    """Shifts of some of the layers that its words' own weights chose."""
    base = asked.base
    known = base.text_sites if asked.text_side else sites(base) | gains(base.denoiser_shapes)
    there = {site: shape for site, shape in known.items() if f"site.{site}.shift" in asked.read.tensors}
    return _shifts({f"site.{site}": shape for site, shape in _some(there).items()})


# ---- how changes are stored


def _smaller(asked: Asked, whole: Shapes) -> Shapes:
    """Of weights that would have the tensors ``whole``: each change as it was, or its factors, or nothing of it."""
    places: dict[str, Shapes] = {}
    for name, shape in whole.items():
        module, _, part = name.rpartition(".")
        places.setdefault(name if part.endswith("_delta") else module, {})[name] = shape
    found: Shapes = {}
    for place, own in places.items():
        if all(name in asked.read.tensors for name in own):
            found |= own
        else:
            found |= _as_factors(asked, place, _weight(asked.base, place))
    return found


def _weight(base: BaseDescription, module: str) -> Sequence[int]:
    """Shape of a module's weight; of anything else that of one number."""
    part, _, path = module.partition(".")
    known = base.denoiser_shapes if part == "site" else base.encoder_shapes
    return base.text_sites.get(path) or known.get(f"{path}.weight") or [1]


def _as_factors(asked: Asked, module: str, shape: Sequence[int]) -> Shapes:
    """``down`` and ``up`` of a rank that the matrix can have, with a scale for each component or an alpha; nothing
    where they are not there.
    """
    down = asked.read.tensors.get(f"{module}.down")
    if len(shape) < 2 or down is None:
        return {}
    if not down.shape or down.shape[0] > _full_rank(shape):
        raise Unfitting("A change has a larger rank than its matrix.")
    found = {f"{module}.{part}": each for part, each in _factors(shape, down.shape[0]).items()}
    beside = {"scale": [down.shape[0]], "alpha": list[int]()}
    there = [part for part in beside if f"{module}.{part}" in asked.read.tensors]
    return found | {f"{module}.{part}": beside[part] for part in there[:1]}


def _stored(asked: Asked, changed: Mapping[str, Sequence[int]]) -> Shapes:
    """Of the parameters ``changed``, by path, those of which something is there: a matrix as such, or its factors with
    or without alpha or a scale for each component; anything else as such. LoRA has factors alone.
    """
    found: Shapes = {}
    thin = asked.manifest.method == "lora"
    for key, shape in changed.items():
        path = key if key.startswith(("site.", "encoder.")) else f"site.{key}"
        name, module = _change(path), path.removesuffix(".weight")
        if name in asked.read.tensors and not thin:
            found[name] = list(shape)
        else:
            found |= _as_factors(asked, module, shape)
    if asked.manifest.compression is None:
        _some(found)
    return found


def _change(path: str) -> str:
    """ "site.conv_in.weight" is ``site.conv_in.delta``, "site.conv_in.bias" ``site.conv_in.bias_delta``."""
    module, _, leaf = path.rpartition(".")
    return f"{module}.{'delta' if leaf == 'weight' else f'{leaf}_delta'}"


def _factors(shape: Sequence[int], rank: int) -> Shapes:
    return {"down": [rank, *shape[1:]], "up": [shape[0], rank, *(1,) * (len(shape) - 2)]}


def _full_rank(shape: Sequence[int]) -> int:
    """Singular values of a weight [out, in, ...]; elements of a gain."""
    return shape[0] if len(shape) == 1 else min(shape[0], prod(shape[1:]))


def _some(found: Shapes) -> Shapes:
    if not found:
        raise Unfitting("The file changes no layer of this base model.")
    return found


WRITES: dict[str, Callable[[Asked], Shapes]] = {
    "custom-diffusion": _custom_diffusion,
    "textual-inversion": _textual_inversion,
    "lora": _lora,
    "dreambooth": _dreambooth,
    "perfusion": _perfusion,
    "rank-one": _rank_one,
    "svdiff": _svdiff,
    "loha": _loha,
    "lokr": _lokr,
}
"""By method; the same names as ``backend.schemas.methods.CARDS`` (a test holds it)."""
MERGED: dict[str, Callable[[Asked], Shapes]] = {
    "closed-form": _closed_form,
    "linear": _sum,
    "ties": _sum,
    "dare": _sum,
    "gradient-fusion": _sum,
    "lora-svd": _lora_sum,
    "svdiff-sum": _shift_sum,
    "perfusion-gates": _perfusion,
}
"""By merge; the same names as ``backend.schemas.merges.MERGE_CARDS``."""


def in_bytes(expected: Shapes) -> set[str]:
    """Which tensors hold 8-bit numbers: those with a scale for each component beside them."""
    modules = {name.removesuffix(".scale") for name in expected if name.endswith(".scale")}
    shared = [SHARED_ROWS, *(name for name in expected if name.endswith(".values"))]
    cut = {f"{module}.{part}" for module in modules - {"merge"} for part in ("down", "up")}
    return cut | (set(shared) if SHARED_SCALE in expected else set())
