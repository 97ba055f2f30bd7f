"""What goes into a merge: weights of one base whose words have different names, as edits of text or as sums of
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from backend.schemas.merges.card import MergeCard
from backend.schemas.merges.closed_form import CARD as CLOSED_FORM
from backend.schemas.merges.requests import MergedInput
from backend.schemas.merges.taking import Contents, cannot_take
from backend.schemas.methods.lora import LoraParams
from backend.schemas.weights import Side, TaughtToken, WeightsManifest
from worker.ml.concept_weights import CODE_VERSION
from worker.ml.conditioning import MatrixChange, TextEdit
from worker.ml.constraint_rows import read_sites
from worker.ml.errors import InputInvalid, MethodUnsupported
from worker.ml.families.base import DiffusionModel
from worker.ml.installation import WeightEdit
from worker.ml.merges.base import MergeInput
from worker.ml.orthogonal_basis import Columns
from worker.ml.readers import reader_of
from worker.ml.training.provenance import check_base


def check_inputs(model: DiffusionModel, card: MergeCard, inputs: Sequence[MergeInput]) -> None:
    """Raises `InputInvalid` (nothing to merge, two words of one name, a renaming of what is not there),
    `WeightsInvalid` (another base) and `MethodUnsupported` (weights that the merge cannot take).
    """
    if not inputs:
        raise InputInvalid("There is nothing to merge.")
    seen: set[str] = set()
    for each in inputs:
        check_base(model, each.weights)
        check_taken(model, card, each)
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


def check_taken(model: DiffusionModel, card: MergeCard, each: MergeInput) -> None:
    """Raises `MethodUnsupported` where the merge cannot take the weights."""
    tensors, ready = each.weights.tensors, {site.name for site in read_sites(model)}
    held = Contents(
        words_of(each),
        each.weights.manifest,
        lambda: {name: tensor.shape for name, tensor in tensors.items()},
        ready,
    )
    if reason := cannot_take(card, held):
        raise MethodUnsupported(reason)


def as_text_edit(model: DiffusionModel, each: MergeInput) -> TextEdit:
    """The input as an edit of keys and values, words under their own names; weight-side weights too where keys and
    values are all that they change. Raises `MethodUnsupported` and what reading raises.
    """
    check_taken(model, CLOSED_FORM, each)
    reader = reader_of(each.weights)
    edit = reader.edit(model, each.weights)
    installation = reader.installation(model, each.weights) or WeightEdit()
    sites: dict[str, MatrixChange] = {
        path.removesuffix(".weight"): change for path, change in installation.denoiser.items()
    }
    return TextEdit(edit.tokens, {**edit.sites, **sites}, edit.negative, edit.gated, edit.locked_words)


def as_changes(model: DiffusionModel, each: MergeInput) -> dict[str, MatrixChange]:
    """{path of the denoiser's parameter: its change} of one input at scale 1, which a merge of changes can take. Raises
    what reading raises.
    """
    reader = reader_of(each.weights)
    edit, installation = reader.edit(model, each.weights), reader.installation(model, each.weights)
    changes: dict[str, MatrixChange] = {f"{name}.weight": change for name, change in edit.sites.items()}
    return changes if installation is None else {**changes, **installation.denoiser}


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
