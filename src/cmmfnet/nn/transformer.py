"""Transformer blocks: the pre-norm block of ViT (Dosovitskiy et al., 2021), and the attention and
MLP that it is made of.

In training in 16 bits on CUDA what surrounds the products - additions, norms, GELU, biases and
their gradients - is done by kernels (ops/token_norm.py, ops/token_linear.py), which join what
PyTorch does one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.fast import (
    add_layer_norm,
    autocasts,
    layer_norm,
    linear,
    linear_gelu,
    linear_of_three,
    serves_tokens,
)


def projected(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` of tokens x (...,K)."""
    return linear(x, layer.weight, layer.bias) if serves_tokens(x) else layer(x)


def normed(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """``layer(x)`` of tokens x (...,D) for a linear layer; where kernels serve, at once in the
    dtype of its product."""
    return layer_norm(x, layer.weight, layer.bias, layer.eps) if serves_tokens(x) else layer(x)


class Attention(nn.Module):
    """Multi-head attention of queries (B,Lq,D) over keys (B,Lk,D) and values (B,Lk,D).

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
        return projected(self.out, self._mixed(query, key, value, mask))

    def before_bias(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """What ``forward`` gives less the bias of ``out``."""
        return F.linear(self._mixed(query, key, value, mask), self.out.weight)

    def _mixed(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        layers = self.query, self.key, self.value
        if query is key is value and serves_tokens(query):
            given = linear_of_three(
                query, tuple(m.weight for m in layers), tuple(m.bias for m in layers)
            )
        else:
            given = [projected(m, x) for m, x in zip(layers, (query, key, value), strict=True)]
        allowed = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(*(split(x) for x in given), attn_mask=allowed)
        return y.transpose(1, 2).flatten(2)


class MLP(nn.Sequential):
    def __init__(self, width: int, expansion: int = 4):
        super().__init__(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return projected(self[2], self._wide(x)) if serves_tokens(x) else super().forward(x)

    def before_bias(self, x: Tensor) -> Tensor:
        """Where ``serves_tokens``: what ``forward`` gives less the last layer's bias."""
        return F.linear(self._wide(x), self[2].weight)

    def _wide(self, x: Tensor) -> Tensor:
        return linear_gelu(x, self[0].weight, self[0].bias)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention block of ViT. ``forward(x (B,N,D)) -> (B,N,D)``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        if serves_tokens(x):
            x, y = self.attended(x, normed(self.norm1, x))
            return x + self.mlp(y)
        y = self.norm1(x)
        x = x + self.attention(y, y, y)
        return x + self.mlp(self.norm2(x))

    def attended(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where ``serves_tokens``: x and y, its first norm -> x + attention, and the second norm of
        that."""
        return added(x, self.attention.before_bias(y, y, y), self.attention.out, self.norm2)


def added(
    x: Tensor, branch: Tensor, last: nn.Linear, norm: nn.LayerNorm, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Where ``serves_tokens``: x + branch, which is still without the bias of its ``last`` layer,
    and the norm of that (in ``dtype``, else that of products)."""
    return add_layer_norm(x, branch, last.bias, norm.weight, norm.bias, norm.eps, dtype)


def transformed(blocks: Sequence[TransformerBlock], norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """x (B,N,D) through the blocks and the norm. Where kernels serve, an addition goes together
    with the norm behind it, if that is the next block's, too."""
    if not (len(blocks) and serves_tokens(x)):
        for block in blocks:
            x = block(x)
        return norm(x)
    y, wide = normed(blocks[0].norm1, x), torch.float32 if autocasts(x) else x.dtype
    following = [*((block.norm1, None) for block in blocks[1:]), (norm, wide)]
    for block, (behind, dtype) in zip(blocks, following, strict=True):
        x, y = block.attended(x, y)
        x, y = added(x, block.mlp.before_bias(y), block.mlp[2], behind, dtype)
    return y
