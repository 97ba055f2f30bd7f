"""The attention processor that consumes ready keys and values (design 1).

`TextKV` travels as the denoiser's ``encoder_hidden_states``: diffusers hands that argument through to every
cross-attention layer untouched, so there is no state on the model, calls may interleave, and the processor is
set once when a base model is loaded. Given a tensor instead, it does what diffusers' own processor does: the
model stays usable as a plain pipeline.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional

from worker.ml.conditioning import Attended, TextKV
from worker.ml.errors import BaseUnusable
from worker.ml.regions import Regions, Size, grid


class TextKVProcessor:
    """Cross-attention of layer ``layer`` (its place in ``model.cross_attention()``) with keys and values
    given.

    ``softmax(Q K^T / sqrt(d_head)) V`` and the output projection; the same operations in the same order as
    diffusers' ``AttnProcessor2_0``, less the two projections, so results are bit-equal where K and V are.
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.plain = AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | TextKV | Attended | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [B, positions, channels] -> the same shape."""
        if encoder_hidden_states is None or isinstance(encoder_hidden_states, Tensor):
            plain: Tensor = self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        given = encoder_hidden_states
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        merged = self._attended(query, given if isinstance(given, TextKV) else given.kv)
        if isinstance(given, Attended) and given.queries is not None:
            given.queries[self.layer] = query
        if isinstance(given, Attended) and given.regions is not None:
            merged = self._with_regions(query, merged, given.regions, given.size)
        projected: Tensor = attn.to_out[1](attn.to_out[0](merged))
        return projected

    def _attended(self, query: Tensor, kv: TextKV) -> Tensor:
        """[B, heads, n, d_head] -> [B, n, inner]."""
        heads = query.shape[1]
        key = _split_heads(kv.keys[self.layer], heads)
        value = _split_heads(kv.values[self.layer], heads)
        attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=0.0, is_causal=False)
        return attended.transpose(1, 2).reshape(len(query), -1, heads * attended.shape[-1]).to(query.dtype)

    def _with_regions(self, query: Tensor, merged: Tensor, regions: Regions, size: Size) -> Tensor:
        """``(1 - sum w_r) attn(q; K_glob) + sum w_r attn(q; K_r)`` with ``w_r = (1-a) m_r``, see
        `worker.ml.regions`; rows of ``merged`` [B, n, inner] without a region are not touched.
        """
        rows = torch.tensor(regions.rows, device=query.device)
        weight = regions.weights(grid(size, query.shape[2])).to(merged.dtype)
        inside = self._attended(query.index_select(0, rows), regions.kv)
        taken = torch.zeros_like(merged[..., :1]).index_add(0, rows, weight)
        return (merged * (1.0 - taken)).index_add(0, rows, weight * inside)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """[B, n, inner] -> [B, heads, n, inner / heads]."""
    batch, _, inner = projected.shape
    return projected.view(batch, -1, heads, inner // heads).transpose(1, 2)


def cross_attention_modules(denoiser: torch.nn.Module) -> list[tuple[str, Any]]:
    """(name, module) of every cross-attention, in the order of ``named_modules``: down, up, middle
    (methods.md 0.5).
    """
    return [
        (name, module)
        for name, module in denoiser.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    ]


def install_processors(denoiser: torch.nn.Module) -> None:
    """Sets a `TextKVProcessor` on every cross-attention. No weight is touched.

    Raises `BaseUnusable` for an attention with parts the processor does not have.
    """
    for layer, (name, attn) in enumerate(cross_attention_modules(denoiser)):
        extras = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
        if (
            any(extra is not None for extra in extras)
            or attn.residual_connection
            or attn.rescale_output_factor != 1.0
        ):
            raise BaseUnusable(
                f"The attention {name} of this base model has normalisations that are not supported."
            )
        attn.set_processor(TextKVProcessor(layer))
