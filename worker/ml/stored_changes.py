"""How the change of one weight is held in a file: as a matrix, as two factors, or as two factors of 8-bit numbers.

Parts of a site (`worker.ml.concept_weights`), for a weight [o, i] or [o, i, kh, kw]:

- ``delta``: dW itself, in the weight's shape;
- ``down`` [r, i(, kh, kw)] and ``up`` [o, r(, 1, 1)], perhaps ``alpha`` []: ``dW = (alpha / r) up down``; no ``alpha``
  means alpha = r;
- ``down`` and ``up`` of int8 with ``scale`` [r]: ``dW = sum over k of scale_k up_k down_k``. A component of an SVD has
  a size of its own, so each has a scale of its own; both of its vectors use the whole range -127..127.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.ml.conditioning import DenseChange
from worker.ml.errors import WeightsInvalid
from worker.ml.low_rank import LowRankChange, factor_shapes

_FORMS = ({"delta"}, {"down", "up"}, {"down", "up", "alpha"}, {"down", "up", "scale"})


def is_matrix(parts: Mapping[str, Tensor]) -> bool:
    """Whether the parts hold the change of a matrix or a convolution in a form that is known here."""
    return set(parts) in _FORMS and ("delta" not in parts or parts["delta"].ndim >= 2)


def shape_of(parts: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Shape of the weight that the parts change."""
    if "delta" in parts:
        return tuple(parts["delta"].shape)
    return (parts["up"].shape[0], *parts["down"].shape[1:])


def read_change(
    name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...], device: torch.device | None = None
) -> DenseChange | LowRankChange:
    """The change of a weight of ``shape``; a dense one keeps its dtype, factors become fp32. Raises `WeightsInvalid`
    where the parts are not a change of such a weight.
    """
    if set(parts) not in _FORMS:
        raise WeightsInvalid(f"The change of {name} is not one that this base model could use.")
    if "delta" in parts:
        delta = parts["delta"]
        if tuple(delta.shape) != tuple(shape):
            raise WeightsInvalid(f"The change of {name} has shape {list(delta.shape)}, not {list(shape)}.")
        return DenseChange(delta.to(device))
    down, up, scale, alpha = (parts.get(part) for part in ("down", "up", "scale", "alpha"))
    assert down is not None
    assert up is not None
    rank = len(down)
    wanted = factor_shapes(torch.empty(shape, device="meta"), rank)
    if not rank or (tuple(down.shape), tuple(up.shape)) != wanted:
        raise WeightsInvalid(
            f"The change of {name} has shapes {list(down.shape)} and {list(up.shape)}, "
            f"which do not fit {list(shape)}."
        )
    kinds = {down.dtype, up.dtype}
    if (
        (kinds == {torch.int8}) != (scale is not None)
        or (torch.int8 in kinds and len(kinds) > 1)
        or (scale is not None and tuple(scale.shape) != (rank,))
        or (alpha is not None and alpha.ndim)
    ):
        raise WeightsInvalid(f"The change of {name} is not one that this base model could use.")
    wide = up.to(device).float()
    if scale is not None:
        wide = wide * scale.to(device).float().reshape(-1, *(1,) * (up.ndim - 2))
    return LowRankChange(down.to(device).float(), wide, float(alpha) / rank if alpha is not None else 1.0)
