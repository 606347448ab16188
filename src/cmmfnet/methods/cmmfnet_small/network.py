"""CMMF-Net small: a network for live colour on a CPU, distilled from the released CMMF-Net.

Not from a paper. It keeps CMMF-Net's plan (Jiang et al., 2025): an encoder that sees the whole
frame resized to ``global_size``, so that a large frame has one context; a U-Net's decoder at the
frame's own size; text that scales and shifts the decoder. It differs in cost. The encoder is the
released model's VGG-16 stem with each convolution in two factors (stem.py). There is no ViT, and
kernels are small except at stride 16: training on a CPU cannot afford the backward pass of a large
depthwise kernel. The decoder has no norms, which on a CPU cost as much as its convolutions. Every
level adds its share to the colours, so that colours are learned from coarse to fine (skip
connections to RGB, Karras et al., StyleGAN2, CVPR 2020, section 4.1).

Its training is plain regression to pictures that the released model made (training/distilled.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.cmmfnet.interaction import Modulation
from cmmfnet.methods.cmmfnet_small.stem import VGG, FactoredStem
from cmmfnet.nn.blocks import pointwise
from cmmfnet.nn.unet import Resize, modulated


def tones(thermal: Tensor, window: int = 17) -> Tensor:
    """(B,1,H,W) in [-1,1], H and W even -> (B,2,H,W): tone_channels of cmmfnet/interaction.py, with
    a window of twice the size.

    The local mean and deviation are smooth, so they are taken at half size and brought up: a tenth
    of the time.
    """

    def mean(x: Tensor) -> Tensor:
        x = F.avg_pool2d(
            F.avg_pool2d(x, 2),
            (window, 1),
            stride=1,
            padding=(window // 2, 0),
            count_include_pad=False,
        )
        return F.avg_pool2d(
            x, (1, window), stride=1, padding=(0, window // 2), count_include_pad=False
        )

    local = mean(thermal)
    deviation = (mean(thermal.square()) - local.square()).clamp_min(0).sqrt()
    local, deviation = (
        F.interpolate(x, scale_factor=2.0, mode="bilinear") for x in (local, deviation)
    )
    return torch.cat([thermal, torch.tanh((thermal - local) / (deviation + 0.1) / 1.5)], dim=1)


class Block(nn.Module):
    """Residual block: k x k depthwise, 1x1 to three times the width, GELU, 1x1 back; starts as the
    identity."""

    def __init__(self, channels: int, kernel: int, expansion: int = 3):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.widen, self.narrow = (
            pointwise(channels, expansion * channels),
            pointwise(expansion * channels, channels),
        )
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.depthwise(x))))


def stage(channels: int, blocks: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels, kernel) for _ in range(blocks)))


class CMMFNetSmall(nn.Module):
    """``forward(thermal (B,1,H,W) in [-1,1], text (B,L,D), text_mask (B,L) bool) -> (B,3,H,W)``; H,
    W multiples of 8.

    ``ranks``: of the stem (:class:`FactoredStem`). ``channels``: of the decoder at strides 2, 4, 8
    and 16, with ``blocks`` :class:`Block` of kernels of side ``kernels`` each. ``text``:
    "clip-tags" with a table of ``words``, or "none". Only words that the teacher follows can have
    an effect; of the released model's that is "night".
    """

    multiple_of, fixed_size, least_size = 8, None, 256

    def __init__(
        self,
        *,
        ranks: Sequence[int] = (0, 16, 24, 32, 48, 64, 64, 64, 96, 96, 48, 48, 48),
        channels: Sequence[int] = (48, 80, 144, 192),
        blocks: Sequence[int] = (2, 2, 2, 3),
        kernels: Sequence[int] = (3, 3, 3, 7),
        tail: int = 16,
        global_size: int = 256,
        text: str = "clip-tags",
        text_width: int = 32,
        words: Sequence[str] = (),
    ):
        super().__init__()
        if text not in ("clip-tags", "none"):
            raise ValueError(f"text is {text!r}; expected 'clip-tags' or 'none'")
        if len(ranks) != len(VGG):
            raise ValueError(
                f"ranks has {len(ranks)} numbers; expected {len(VGG)}, one for each convolution "
                "of VGG-16"
            )
        if global_size % 16:
            raise ValueError(f"global_size is {global_size}; expected a multiple of 16")
        self.text_source, self.words, self.text_width = text, list(words), text_width
        self.global_size = global_size
        self.stem, self.resize = FactoredStem(2, ranks), Resize()
        self.laterals = nn.ModuleList(
            pointwise(i, c) for i, c in zip((128, 256, 512, 512), channels, strict=True)
        )
        self.stages = nn.ModuleList(
            stage(*each) for each in zip(channels, blocks, kernels, strict=True)
        )
        self.ups = nn.ModuleList(pointwise(above, below) for below, above in pairwise(channels))
        vector = channels[3]
        if text != "none":
            vector += text_width
            self.word_vectors = nn.Parameter(
                nn.init.normal_(torch.empty(max(len(self.words), 1), text_width))
            )
        self.modulations = nn.ModuleList(Modulation(vector, c) for c in channels)
        self.colours = nn.ModuleList(pointwise(c, 3) for c in channels)
        self.readouts = nn.ModuleList(pointwise(i, 3) for i in (128, 256, 512, 512))
        self.detail = nn.Conv2d(8, channels[0], 3, padding=1)
        self.head = nn.Conv2d(channels[0] + 8, 4 * tail, 3, padding=1)
        self.last = nn.Conv2d(tail, 3, 3, padding=1)
        for module in (
            *self.laterals,
            *self.ups,
        ):  # no norm follows: each keeps the size of its input
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        for module in (*self.colours, *self.readouts, self.last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def embed_tags(self, ids: Tensor) -> Tensor:
        """Rows of the word table: ids (B,L) long, indices into ``words`` -> text tokens
        (B,L,text_width)."""
        return F.embedding(ids, self.word_vectors)

    def _vector(self, deepest: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """The vector that modulates the decoder: the mean of the deepest map, and the sum of the
        text's tokens, 0 without text."""
        mean = deepest.mean(dim=(2, 3))
        if self.text_source == "none":
            return mean
        if text is None:
            return F.pad(mean, (0, self.text_width))
        if mask is not None:
            text = text.masked_fill(
                ~mask.unsqueeze(-1), 0
            )  # a product would let NaN in unset rows through
        return torch.cat([mean, text.sum(dim=1).to(mean.dtype)], dim=1)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        if (
            thermal.ndim != 4
            or thermal.shape[1] != 1
            or thermal.shape[2] % 8
            or thermal.shape[3] % 8
        ):
            raise ValueError(
                f"thermal is {tuple(thermal.shape)}; expected (B,1,H,W) with H and W multiples of 8"
            )
        x = tones(thermal)
        maps = self.stem(self.resize(x, (self.global_size, self.global_size)))[1:]
        y = self.laterals[3](maps[3])
        vector = self._vector(y, text, text_mask)
        y = self.stages[3](modulated(y, *self.modulations[3](vector)))
        colour = self.colours[3](y) + self.readouts[3](maps[3])

        folded = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        for level in (2, 1, 0):
            size = [side // 2 ** (level + 1) for side in thermal.shape[-2:]]
            y = self.ups[level](y)
            # from the stem's square view to the frame's shape once, then it only doubles
            y = (
                self.resize(y, size)
                if level == 2
                else F.interpolate(y, scale_factor=2.0, mode="nearest")
            )
            colour = self.resize(colour, size) + self.resize(
                self.readouts[level](maps[level]), size
            )
            y = y + self.resize(self.laterals[level](maps[level]), size)
            if level == 0:
                y = y + self.detail(folded)
            y = self.stages[level](modulated(y, *self.modulations[level](vector)))
            colour = colour + self.colours[level](y)
        y = F.gelu(self.head(torch.cat([y, folded.to(y.dtype)], dim=1)))
        return torch.tanh(
            self.last(F.pixel_shuffle(y, 2)) + self.resize(colour, thermal.shape[-2:])
        )
