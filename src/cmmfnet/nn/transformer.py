"""Transformer blocks: the pre-norm block of ViT (Dosovitskiy et al., 2021), the attention and MLP
that it is made of, and its form with cross-attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention, softmax(Q K^T / sqrt(d)) V, of queries (B,Lq,D) over keys (B,Lk,D) and
    values (B,Lk,D); d = D / heads. -> (B,Lq,D).

    ``mask`` (B,Lk) bool, True = may be attended. Every row of the mask must allow at least one key.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(query)), split(self.key(key)), split(self.value(value))
        allowed = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Sequential):
    """(...,D) -> (...,D) by way of ``expansion`` times the width and GELU."""

    def __init__(self, width: int, expansion: int = 4):
        super().__init__(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )


class TransformerBlock(nn.Module):
    """Pre-norm self-attention block of ViT. ``forward(x (B,N,D)) -> (B,N,D)``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP (docs/architecture.md, rows 3 and 4).

    ``forward(query (B,Lq,D), key (B,Lk,D), value (B,Lk,D), mask (B,Lk), stream (B,Lq,D)) ->
    (B,Lq,D)``. The attention's output is added to ``stream``: in a usual transformer block the
    query; None, so that nothing but the values reaches the output.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.attention = Attention(width, heads)
        self.norm, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        stream: Tensor | None = None,
    ) -> Tensor:
        x = self.attention(self.norm_q(query), self.norm_k(key), self.norm_v(value), mask)
        if stream is not None:
            x = stream + x
        return x + self.mlp(self.norm(x))
