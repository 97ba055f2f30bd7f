"""What goes into a merge: weights of one base whose words have different names, as edits of text or as sums of
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from backend.schemas.merges.requests import MergedInput
from backend.schemas.methods.lora import LoraParams
from backend.schemas.weights import Side, TaughtToken, WeightsManifest
from worker.ml.concept_weights import CODE_VERSION
from worker.ml.conditioning import MatrixChange, TextEdit
from worker.ml.errors import InputInvalid, MethodUnsupported
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.merges.base import MergeInput
from worker.ml.methods.base import NotAdditive
from worker.ml.orthogonal_basis import Columns
from worker.ml.readers import reader_of
from worker.ml.training.provenance import check_base


def check_inputs(model: DiffusionModel, inputs: Sequence[MergeInput]) -> None:
    """Raises `InputInvalid` (nothing to merge, two words of one name, a renaming of what is not there) and
    `WeightsInvalid` (another base).
    """
    if not inputs:
        raise InputInvalid("There is nothing to merge.")
    seen: set[str] = set()
    for each in inputs:
        check_base(model, each.weights)
        own = {taught.token for taught in each.weights.manifest.tokens}
        if strange := sorted(each.renames.keys() - own):
            raise InputInvalid(f"<{strange[0]}> was to be renamed, but the weights do not teach it.")
        for token in merged_tokens([each]):
            if token.token in seen:
                raise InputInvalid(
                    f"Two of the weights call a word <{token.token}>: one of them must be renamed."
                )
            seen.add(token.token)


def merged_tokens(inputs: Sequence[MergeInput]) -> list[TaughtToken]:
    """All words as the result calls them."""
    return [
        taught.model_copy(update={"token": each.renames.get(taught.token, taught.token)})
        for each in inputs
        for taught in each.weights.manifest.tokens
    ]


def described(inputs: Sequence[MergeInput]) -> list[MergedInput]:
    """As the report names them."""
    return [
        MergedInput(
            id=each.id,
            scale=each.scale,
            tokens=[token.token for token in merged_tokens([each])],
            renamed={old: new for old, new in each.renames.items() if old != new},
        )
        for each in inputs
    ]


def renaming_notes(inputs: Sequence[MergeInput]) -> list[str]:
    """A sentence for each word that has another name in the result."""
    return [
        f"<{old}> of one of the weights is called <{new}> here, because another word has that name."
        for each in described(inputs)
        for old, new in each.renamed.items()
    ]


def merged_manifest(
    model: DiffusionModel, merge: str, side: Side, inputs: Sequence[MergeInput], params: Mapping[str, object]
) -> WeightsManifest:
    """The header of what a merge makes. ``scales`` are kept among the parameters, in the order of the parents."""
    description = model.description
    return WeightsManifest(
        method=merge,
        side=side,
        base=description.id,
        base_family=description.family,
        base_hash=description.hash,
        prediction_type=model.prediction_type,
        tokens=merged_tokens(inputs),
        params={**params, "scales": [each.scale for each in inputs]},
        seed=0,
        steps=0,
        parents=list(dict.fromkeys(each.id for each in inputs)),
        merge=merge,
        code_version=CODE_VERSION,
    )


def renamed_words(each: MergeInput, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with the ``token.<name>.*`` of one input under the names of the result."""

    def name(key: str) -> str:
        if not key.startswith("token."):
            return key
        _, token, part = key.split(".", 2)
        return f"token.{each.renames.get(token, token)}.{part}"

    return {name(key): tensor for key, tensor in tensors.items()}


def as_text_edit(model: DiffusionModel, each: MergeInput) -> TextEdit:
    """The input as an edit of keys and values, words under their own names; weight-side weights too where keys and
    values are all that they change. Raises `MethodUnsupported` and what reading raises.
    """
    reader = reader_of(each.weights)
    edit = reader.edit(model, each.weights)
    if each.weights.manifest.side == "text":
        return edit
    installation = reader.installation(model, each.weights) or WeightEdit()
    named = words_of(each)
    check_encoder(installation, named)
    ready = {site.name for layer in model.cross_attention() for site in (layer.key, layer.value)}
    sites: dict[str, MatrixChange] = {
        path.removesuffix(".weight"): change for path, change in installation.denoiser.items()
    }
    if further := sorted(sites.keys() - ready):
        raise MethodUnsupported(
            f"The weights of {named} change {len(further)} parameters beside keys and values of the text, "
            f"{further[0]} among them. Their input is the picture, so no text can hold them: the closed form "
            "cannot take them."
        )
    return TextEdit(edit.tokens, {**edit.sites, **sites}, edit.negative, edit.gated, edit.locked_words)


def as_changes(model: DiffusionModel, each: MergeInput) -> dict[str, MatrixChange]:
    """{path of the denoiser's parameter: its change} of one input at scale 1. Raises `MethodUnsupported` where the
    weights are no sum of changes, and what reading raises.
    """
    reader, named = reader_of(each.weights), words_of(each)
    edit, installation = reader.edit(model, each.weights), reader.installation(model, each.weights)
    if edit.gated or edit.locked_words or isinstance(reader.deltas(model, each.weights), NotAdditive):
        raise MethodUnsupported(
            f"The weights of {named} open a gate at their word and are no change of matrices: they cannot be added. "
            "The closed form takes them."
        )
    changes: dict[str, MatrixChange] = {f"{name}.weight": change for name, change in edit.sites.items()}
    if installation is not None:
        check_encoder(installation, named)
        changes |= installation.denoiser
    return changes


def columns_of(each: MergeInput) -> Columns | None:
    """The columns of the orthogonal basis along which LoRA weights were learned; None for all others."""
    manifest = each.weights.manifest
    if manifest.method != "lora" or manifest.params.get("basis") != "orthogonal":
        return None
    params = LoraParams.model_validate(manifest.params)
    return Columns(words_of(each), params.basis_seed, params.first_column, params.rank)


def words_of(each: MergeInput) -> str:
    """What a sentence calls an input."""
    return ", ".join(f"<{token.token}>" for token in merged_tokens([each])) or each.id


def check_encoder(installation: WeightEdit, named: str) -> None:
    """Raises `MethodUnsupported` where the text encoder is changed."""
    if installation.text_encoder:
        raise MethodUnsupported(
            f"The weights of {named} change the text encoder: every word would read differently to the others, so "
            "they cannot be merged."
        )
