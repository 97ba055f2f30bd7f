"""A concept as a function from a prompt to text keys and values (design 1).

``K_l = W_k,l c`` and ``V_l = W_v,l c`` of every cross-attention layer ``l`` depend on the prompt and the
concept, not on the image or the time step. `text_kv` computes them, with any number of edits per prompt;
`worker.ml.attention` consumes them.

Scale ``s`` of an edit moves V* from its start row to the learned one and multiplies the change of each
matrix; at ``s = 0`` nothing of the edit is touched, so the result is the base model's to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from worker.ml.errors import InputInvalid
from worker.ml.gates import GatedChange, gated_change
from worker.ml.placeholders import placeholders
from worker.ml.regions import Regions, Size

if TYPE_CHECKING:
    from worker.ml.families.base import DiffusionModel, Site


class MatrixChange(Protocol):
    """A change ``dW`` [o, d] of one key or value matrix, however it is held."""

    def dense(self) -> Tensor:
        """``dW`` itself, [o, d], differentiable in what it is made of."""


@dataclass(frozen=True, eq=False)
class DenseChange:
    """``dW`` held as a matrix [o, d]."""

    matrix: Tensor

    def dense(self) -> Tensor:
        return self.matrix


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of the embedding table for one placeholder: ``start`` and ``learned``, [vectors, d_embedding]
    each; or [layers, vectors, d_embedding], other rows for every layer of ``model.cross_attention()`` (P+,
    Voynov et al. 2023, arXiv 2303.09522, section 3).
    """

    start: Tensor
    learned: Tensor

    @property
    def vectors(self) -> int:
        """How many ids the placeholder takes in a text."""
        return self.start.shape[-2]

    @property
    def per_layer(self) -> bool:
        return self.start.ndim == 3

    def at(self, scale: float) -> Tensor:
        """The rows at ``scale``; exact at 0 and at 1."""
        if scale == 1.0:
            return self.learned
        if scale == 0.0:
            return self.start
        return self.start + scale * (self.learned - self.start)


@dataclass(frozen=True, eq=False)
class TextEdit:
    """What a text-side concept *is*: rows per placeholder, a change per site (by module name).

    ``sites`` change matrices; ``gated`` change what they make of single text states (ADR 7). ``negative``: whether the
    sites' change acts on negative prompts as well (Custom Diffusion yes, Perfusion no). ``locked_words``: for these
    placeholders keys are read from the text with their start rows, values from the text as it is (methods.md 10.2,
    global locking).
    """

    tokens: Mapping[str, TokenRows]
    sites: Mapping[str, MatrixChange]
    negative: bool = True
    gated: Mapping[str, GatedChange] = field(default_factory=dict)
    locked_words: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Prompt:
    """One text with the edits that act on it. ``text`` is encoder text: placeholders as ``<name>``."""

    text: str
    edits: tuple[tuple[TextEdit, float], ...] = ()
    negative: bool = False


@dataclass(frozen=True, eq=False)
class TextKV:
    """Keys and values per cross-attention layer, [B, T, inner_l] each, in the order of
    ``model.cross_attention()``.

    Padding is attended, as in Stable Diffusion: there is no mask.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Rows of the batch."""
        return len(self.keys[0])

    def rows(self, index: Sequence[int]) -> TextKV:
        """Rows ``index`` of this, repeated and ordered as given."""
        chosen = torch.tensor(list(index), device=self.keys[0].device)
        return TextKV(
            tuple(key.index_select(0, chosen) for key in self.keys),
            tuple(value.index_select(0, chosen) for value in self.values),
        )

    @staticmethod
    def concatenated(parts: Sequence[TextKV]) -> TextKV:
        """The rows of ``parts`` one after another."""
        return TextKV(
            tuple(torch.cat(layer) for layer in zip(*(part.keys for part in parts), strict=True)),
            tuple(torch.cat(layer) for layer in zip(*(part.values for part in parts), strict=True)),
        )


Queries = MutableMapping[int, Tensor]
"""What cross-attention layers asked in one pass, [B, heads, n, d_head], by their place in
``model.cross_attention()``.
"""


@dataclass(frozen=True, eq=False)
class Attended:
    """What travels to the attention layers where keys and values are not all there is to say: the latents' ``size``
    [h, w] tells them which cell a position is; each puts its queries into ``queries`` where that is given.
    """

    kv: TextKV
    size: Size
    regions: Regions | None
    queries: Queries | None = None


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the denoiser needs of the text, per row of a batch. Rows may belong to different concepts and
    owners, and have different regions or none. ``queries`` is filled by the next pass, see `worker.ml.attention_maps`;
    rows that are taken out of this have none.
    """

    kv: TextKV
    regions: Regions | None = None
    queries: Queries | None = None

    def rows(self, index: Sequence[int]) -> Conditioning:
        """Rows ``index`` of this, repeated and ordered as given."""
        if list(index) == list(range(len(self.kv))):
            return self
        return Conditioning(self.kv.rows(index), self.regions and self.regions.of_rows(index))

    @staticmethod
    def concatenated(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of ``parts`` one after another."""
        if len(parts) == 1:
            return parts[0]
        regions = Regions.concatenated([(part.regions, len(part.kv)) for part in parts])
        return Conditioning(TextKV.concatenated([part.kv for part in parts]), regions)

    def at(self, progress: float) -> Conditioning:
        """The same in another step of the sampler, 0 being the first and 1 the last: base shares depend on it."""
        return self if self.regions is None else replace(self, regions=self.regions.at(progress))

    def attended(self, size: Size) -> TextKV | Attended:
        """What attention consumes while the latents are ``size``; plain keys and values where that is all."""
        if self.regions is None and self.queries is None:
            return self.kv
        return Attended(self.kv, size, self.regions, self.queries)


StatesCache = MutableMapping[str, Tensor]
"""Text states [T, d] of texts without placeholders: no text-side edit can change them."""


def text_kv(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    *,
    detach_first: bool = False,
    cache: StatesCache | None = None,
    encoder_gradient: bool = False,
) -> Conditioning:
    """Encodes ``prompts``, composes their edits and projects: one row each. The only place where edits meet.

    Differentiable in the edits' rows and matrices. ``detach_first`` cuts the gradient through key and value
    of position 0, the start token (methods.md 4); the values stay the same. ``cache`` keeps text states of
    texts without placeholders. ``encoder_gradient``: the text encoder itself is being trained, so they too get a
    gradient, and ``cache`` is not used. Raises `InputInvalid` (a placeholder no edit teaches, or two edits teach) and
    `PromptTooLong`.
    """
    layers = model.cross_attention()
    kept = None if encoder_gradient else cache
    states = _text_states(model, prompts, kept, len(layers), encoder_gradient)
    if any(edit.locked_words for prompt in prompts for edit, _ in prompt.edits):
        read = _text_states(model, [_locked(each) for each in prompts], kept, len(layers), encoder_gradient)
        states = tuple(part[at % len(part)] for part in (read, states) for at in range(len(layers)))
    sites = [layer.key for layer in layers] + [layer.value for layer in layers]
    projected = _project(sites, states, _stacks(prompts), detach_first)
    return Conditioning(TextKV(tuple(projected[: len(layers)]), tuple(projected[len(layers) :])))


def _locked(prompt: Prompt) -> Prompt:
    """The text that keys are read from: locked words are those that they started from."""
    return replace(prompt, edits=tuple((_unlearned(edit), scale) for edit, scale in prompt.edits))


def _unlearned(edit: TextEdit) -> TextEdit:
    """``edit`` with the start rows of its locked words."""
    tokens = {
        name: TokenRows(rows.start, rows.start) if name in edit.locked_words else rows
        for name, rows in edit.tokens.items()
    }
    return replace(edit, tokens=tokens)


@dataclass(frozen=True, eq=False)
class _Stack:
    """Rows whose sites are changed by the same edits at the same scales."""

    changes: tuple[tuple[TextEdit, float], ...]
    rows: list[int]


def _stacks(prompts: Sequence[Prompt]) -> list[_Stack]:
    stacks: dict[tuple[tuple[TextEdit, float], ...], _Stack] = {}
    for row, prompt in enumerate(prompts):
        acting = acting_edits(prompt)
        stacks.setdefault(acting, _Stack(acting, [])).rows.append(row)
    return list(stacks.values())


def acting_edits(prompt: Prompt) -> tuple[tuple[TextEdit, float], ...]:
    """The edits of a prompt whose changes of matrices act on it."""
    return tuple(
        (edit, scale)
        for edit, scale in prompt.edits
        if scale != 0.0 and (edit.negative or not prompt.negative)
    )


States = tuple[Tensor, ...]
"""Text states [B, T, d]: one for all layers; or one for each layer where a placeholder has rows per layer; or one for
each site, keys first, where keys are locked.
"""


def _project(
    sites: Sequence[Site], states: States, stacks: Sequence[_Stack], detach_first: bool
) -> list[Tensor]:
    """``states (W + sum of s_i dW_i)^T`` with each row's own edits: [B, T, d] -> [B, T, inner] for every
    site.
    """
    if len(stacks) == 1:
        return _projected(sites, states, stacks[0].changes, detach_first)
    whole = [states[0].new_zeros(*states[0].shape[:2], site.weight.shape[0]) for site in sites]
    for stack in stacks:
        rows = torch.tensor(stack.rows, device=states[0].device)
        chosen = tuple(each.index_select(0, rows) for each in states)
        parts = _projected(sites, chosen, stack.changes, detach_first)
        whole = [old.index_copy(0, rows, part) for old, part in zip(whole, parts, strict=True)]
    return whole


def _projected(
    sites: Sequence[Site], states: States, changes: Sequence[tuple[TextEdit, float]], detach_first: bool
) -> list[Tensor]:
    """Without changes through the base's own modules; else one matrix product with all sites' matrices
    stacked, or one a site where every layer reads states of its own; then what gates add. Sites are keys, then
    values, in the order of the layers.
    """
    read = [states[place % len(states)] for place in range(len(sites))]
    weights = [_changed(site, changes) for site in sites]
    if not any(edit.sites for edit, _ in changes):
        out = [site.apply(each) for site, each in zip(sites, read, strict=True)]
    elif len(states) > 1:
        out = [functional.linear(each, weight) for each, weight in zip(read, weights, strict=True)]
    else:
        packed = functional.linear(states[0], torch.cat(weights))
        out = list(torch.split(packed, [len(weight) for weight in weights], dim=-1))
    for place, site in enumerate(sites):
        gates = [(edit.gated[site.name], scale) for edit, scale in changes if site.name in edit.gated]
        if gates:
            out[place] = out[place] + gated_change(read[place], weights[place], gates)
    return [_first_detached(each) for each in out] if detach_first else out


def _changed(site: Site, changes: Sequence[tuple[TextEdit, float]]) -> Tensor:
    """``W + sum of s_i dW_i``, in the dtype of W."""
    weight = site.weight
    for edit, scale in changes:
        if site.name in edit.sites:
            change = edit.sites[site.name].dense()
            weight = weight + (change if scale == 1.0 else scale * change).to(weight)
    return weight


def _first_detached(projected: Tensor) -> Tensor:
    return torch.cat([projected[:, :1].detach(), projected[:, 1:]], dim=1)


def _text_states(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    cache: StatesCache | None,
    layers: int,
    encoder_gradient: bool,
) -> States:
    """Text states [B, T, d], one row per prompt; texts without placeholders go through the encoder without
    gradient, unless the encoder is being trained.
    """
    plain = [not placeholders(prompt.text) for prompt in prompts]
    known: StatesCache = {} if cache is None else cache
    missing = list(
        dict.fromkeys(
            p.text for p, is_plain in zip(prompts, plain, strict=True) if is_plain and p.text not in known
        )
    )
    if missing:
        with torch.set_grad_enabled(encoder_gradient and torch.is_grad_enabled()):
            ids = [model.token_ids(text, {}) for text in missing]
            known.update(zip(missing, model.encode_prompts(torch.tensor(ids), None).states, strict=True))
    taught = [p for p, is_plain in zip(prompts, plain, strict=True) if not is_plain]
    live = iter(_encode_with_placeholders(model, taught, layers) if taught else [])
    rows = [known[p.text] if is_plain else next(live) for p, is_plain in zip(prompts, plain, strict=True)]
    if all(row.ndim == 2 for row in rows):
        return (torch.stack(rows),)
    return tuple(torch.stack([row if row.ndim == 2 else row[at] for row in rows]) for at in range(layers))


def _encode_with_placeholders(
    model: DiffusionModel, prompts: Sequence[Prompt], layers: int
) -> Sequence[Tensor]:
    """States of each prompt: [T, d], or [layers, T, d] where a placeholder has rows per layer: then the text
    is encoded once for every layer.

    Each prompt's own rows get virtual ids of their own, so equal names of different owners never meet.
    """
    rows: list[Tensor] = []
    ids: list[list[int]] = []
    copies: list[int] = []
    next_id = model.vocabulary_size
    for prompt in prompts:
        own: dict[str, list[range]] = {}
        for name in placeholders(prompt.text):
            teachers = [edit.tokens[name].at(scale) for edit, scale in prompt.edits if name in edit.tokens]
            if len(teachers) > 1:
                raise InputInvalid(f"Two of the chosen weights teach <{name}>: choose one of them.")
            for taught in teachers:
                sets = [taught] if taught.ndim == 2 else list(taught)
                if len(sets) not in (1, layers):
                    raise InputInvalid(f"<{name}> has rows for {len(sets)} layers, not for {layers}.")
                own[name] = [
                    range(next_id + at * len(one), next_id + (at + 1) * len(one))
                    for at, one in enumerate(sets)
                ]
                next_id = own[name][-1].stop
                rows += sets
        copies.append(max((len(ranges) for ranges in own.values()), default=1))
        ids += [
            model.token_ids(prompt.text, {name: ranges[at % len(ranges)] for name, ranges in own.items()})
            for at in range(copies[-1])
        ]
    joined = torch.cat([row.to(model.device, model.dtype) for row in rows])
    states = model.encode_prompts(torch.tensor(ids), joined if len(joined) else None).states
    if len(states) == len(prompts):
        return list(states)
    parts = torch.split(states, copies)
    return [part if copy > 1 else part[0] for part, copy in zip(parts, copies, strict=True)]
