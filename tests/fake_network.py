"""A network small enough to read: it keeps the contract of ``cmmfnet.methods`` and says what it was
given.

Red is the thermal value, green the first number of the mean text token (-1 without text), blue is
0.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fake(nn.Module):
    multiple_of, fixed_size, text_width = 16, None, 4

    def __init__(
        self,
        *,
        text: str = "clip-tags",
        words: tuple[str, ...] = ("car", "road", "tree"),
        default_text: str = "none",
        default_prompt: str = "",
        working_size: int = 64,
        fixed_size: int | None = None,
        width: int = 80,
        delay: float = 0,
    ):
        super().__init__()
        self.text_source, self.words, self.default_text = text, list(words), default_text
        self.default_prompt = default_prompt
        self.working_size, self.fixed_size = working_size, fixed_size
        self.predicts_tags, self.tag_threshold = bool(words), 0.5
        self.table = nn.Parameter(torch.linspace(-0.5, 1.0, len(words) * 4).reshape(len(words), 4))
        self.big = nn.Conv2d(width, width, 1)  # 6,400 weights: enough to be stored as int8
        self.register_buffer("steps", torch.tensor(7))
        self.delay = delay
        self.seen: list[tuple[int, ...]] = []

    def embed_tags(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table)

    def predict_tags(self, thermal: Tensor) -> Tensor:
        """The hotter the frame, the more of the words."""
        heat = thermal.mean(dim=(1, 2, 3))[:, None]
        return torch.sigmoid(4 * heat + torch.arange(len(self.words), device=thermal.device) - 1)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        time.sleep(self.delay)
        batch, _, height, width = thermal.shape
        if height % self.multiple_of or width % self.multiple_of:
            raise AssertionError(f"{height} x {width} is not padded")
        if self.fixed_size and (height, width) != (self.fixed_size, self.fixed_size):
            raise AssertionError(f"{height} x {width} is not {self.fixed_size}")
        self.seen.append((batch, height, width, 0 if text is None else text.shape[1]))
        if text is None:
            green = thermal.new_full((batch,), -1.0)
        else:
            weight = text_mask.to(text.dtype)
            green = (text[..., 0] * weight).sum(1) / weight.sum(1)
        return torch.cat(
            [thermal, green[:, None, None, None].expand_as(thermal), torch.zeros_like(thermal)],
            dim=1,
        )


class FakeWithHeads(Fake):
    """The same with the tags' logits out of the colouring pass."""

    def forward(self, thermal, text=None, text_mask=None, *, heads: bool = False):
        colour = super().forward(thermal, text, text_mask)
        return (colour, torch.logit(self.predict_tags(thermal)), None) if heads else colour


class FakeMethod:
    """What the registry wants of a method for inference: its network."""

    Network = Fake


class FakeWithHeadsMethod:
    Network = FakeWithHeads


def colorize(model: str, *arguments: object) -> int:
    """`cmmfnet colorize` with a model file, on the CPU; its exit status."""
    from cmmfnet.cli import main

    return main(["colorize", *map(str, arguments), "--model", model, "--device", "cpu"])
