"""Rows of placeholders: where they start, what they became, and whether they fit a base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.ml.concept_weights import ConceptWeights
from worker.ml.conditioning import TokenRows
from worker.ml.errors import WeightsInvalid
from worker.ml.families.base import DiffusionModel


def spread(pieces: Tensor, vectors: int) -> Tensor:
    """Rows of a word's pieces [k, d] as a start for ``vectors`` rows [vectors, d].

    As many vectors as pieces: the word itself. More: pieces repeat, in order. Fewer: each is the mean of
    neighbouring pieces (the paper has one piece and one vector).
    """
    count = len(pieces)
    bounds = [(at * count // vectors, max((at + 1) * count // vectors, at * count // vectors + 1))
              for at in range(vectors)]  # fmt: skip
    return torch.stack([pieces[low:high].mean(dim=0) for low, high in bounds])


def rare_rows(model: DiffusionModel, tokens: Sequence[str]) -> dict[str, TokenRows]:
    """A rare token's row for each placeholder, another one for each; [1, d], fp32 on the device."""
    starts = model.initial_rows(len(tokens)).float()[:, None]
    return {token: TokenRows(row.clone(), row.clone()) for token, row in zip(tokens, starts, strict=True)}


def wordless(model: DiffusionModel, tokens: Sequence[str]) -> dict[str, TokenRows]:
    """No row for any of the placeholders, [0, d]: in a text the class noun behind them stands alone."""
    none = model.initial_rows(1).float()[:0]
    return {token: TokenRows(none, none) for token in tokens}


def token_tensors(rows: Mapping[str, TokenRows]) -> dict[str, Tensor]:
    """Tensors of the weights file, fp32 on the CPU: ``token.<name>.start`` and ``.learned``."""
    parts = {
        f"token.{name}.{part}": tensor
        for name, each in rows.items()
        for part, tensor in (("start", each.start), ("learned", each.learned))
        if each.vectors
    }
    return {name: tensor.detach().cpu().float().clone() for name, tensor in parts.items()}


def taught_rows(model: DiffusionModel, weights: ConceptWeights) -> dict[str, TokenRows]:
    """Inverse of `token_tensors`. Raises `WeightsInvalid` where rows do not fit the base model's table or
    layers.
    """
    width = model.initial_rows(1).shape[1]
    layers = [layer.name for layer in model.cross_attention()]
    rows: dict[str, TokenRows] = {}
    for taught in weights.manifest.tokens:
        if not taught.vectors:
            rows |= wordless(model, [taught.token])
            continue
        start, learned = (weights.tensors[f"token.{taught.token}.{part}"] for part in ("start", "learned"))
        if start.shape[-1] != width or learned.shape[-1] != width:
            raise WeightsInvalid(
                f"The placeholder's vectors do not have the {width} numbers of this base model."
            )
        if taught.layers and taught.layers != layers:
            raise WeightsInvalid(
                "The placeholder's vectors are for other cross-attention layers than this base model has."
            )
        rows[taught.token] = TokenRows(start.float(), learned.float())
    return rows
