"""MUGAN: a U-Net with nested and full-scale skips, two-path residual blocks and mixed attention.

Liao et al., *MUGAN: thermal infrared image colorization using mixed-skipping UNet and generative
adversarial network*, IEEE TIV 2023. Generator 37,741,816 parameters (thermal frame read as three
equal channels), discriminator 695,777.

The parts and the size of the original are known. Where the parts leave a choice, the choice that
gives the exact size is taken: the two branches of a block share their second and third convolution;
convolutions in a block have no biases; a block has a shortcut convolution only where its width
changes; a node of the nested U-Net joins the map from below with the map of its left neighbour
only (UNet++, Zhou et al., 2018, joins all); the lowest node has no attention. Chosen freely:
the full-scale skips enter a node before its attention.

Fixed. Batch normalisation: as in pix2pix.py, every picture is normalised by its own statistics, in
training and in evaluation, for any size of batch. At batch one, the original was trained with
exactly this. Its running statistics would mix the two branches that share a convolution. NaN: where
one hot pixel stands out, a normalised plane reaches sqrt(H*W), and the product of two branches H*W:
65,536 for 256x256, 81,920 for 320x256. Float16 ends at 65,504, and infinity is NaN behind the next
norm. The product and its convolution are therefore in float32 where the rest is in float16; float32
and bfloat16 hold it. The way up has no norms and the output no bound, but neither overflowed when
tried (float32, 130 steps at the paper's rate; 150 steps at 50 times that, half the widths).
Training gets the paper's leaky ReLU as it is; evaluation clips it to [-1,1], as writing a picture
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.ticcgan import TICCGAN
from cmmfnet.nn.patchgan import InstanceNorm, as_channels, init_normal


def _conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """3x3 convolution without bias, norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, InstanceNorm(outputs, affine=True), nn.ReLU())


class TwoPathBlock(nn.Module):
    """Residual block of two branches, one with a wider view, and a third of their product.
    (B,inputs,H,W) -> (B,outputs,H,W)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.near, self.far = _conv(inputs, outputs), _conv(inputs, outputs, dilation=2)
        self.shared = nn.Sequential(_conv(outputs, outputs), _conv(outputs, outputs))
        self.both = _conv(outputs, outputs)
        self.join = nn.Conv2d(3 * outputs, outputs, 1, bias=False)
        self.shortcut = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), InstanceNorm(outputs, affine=True)
            )

    def forward(self, x: Tensor) -> Tensor:
        near, far = (
            self.shared(torch.cat([self.near(x), self.far(x)])).unflatten(0, (2, -1)).unbind()
        )
        return F.relu(
            self.join(torch.cat([near, far, self._product(near, far)], dim=1)) + self.shortcut(x)
        )

    def _product(self, near: Tensor, far: Tensor) -> Tensor:
        if near.dtype != torch.float16:
            return self.both(near * far)
        conv, norm, relu = self.both
        with torch.autocast(
            near.device.type, enabled=False
        ):  # up to H*W, which float16 does not hold
            y = F.conv2d(near.float() * far.float(), conv.weight.float(), padding=1)
            return relu(norm(y)).to(near.dtype)


class Rise(nn.Module):
    """A node on the way up: (B,inputs,H/2,W/2) and (B,outputs,H,W) -> (B,outputs,H,W). No norms."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        self.layers = nn.Sequential(
            nn.Conv2d(2 * outputs, outputs, 3, padding=1), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, below: Tensor, left: Tensor) -> Tensor:
        return self.layers(torch.cat([self.up(below), left], dim=1))


class MixedAttention(nn.Module):
    """Channel attention (squeeze and excitation) plus channel-then-spatial attention (CBAM, Woo et
    al., ECCV 2018)."""

    def __init__(self, channels: int, ratio: int = 8):
        super().__init__()

        def gate() -> nn.Sequential:
            inner = max(1, channels // ratio)
            return nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(inner, channels, 1, bias=False),
            )

        self.squeeze, self.channel = gate(), gate()
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        y = x * torch.sigmoid(self.channel(mean) + self.channel(largest))
        places = torch.cat([y.mean(dim=1, keepdim=True), y.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.squeeze(mean)) + y * torch.sigmoid(self.spatial(places))


class FullScaleSkip(nn.Module):
    """Joins every finer map of the encoder, max-pooled, to a node's map (UNet 3+, Huang et al.,
    ICASSP 2020)."""

    def __init__(self, finer: Sequence[int], channels: int, width: int):
        super().__init__()
        self.finer = nn.ModuleList(self._layer(c, width, 3) for c in finer)
        self.join = self._layer(len(finer) * width + channels, channels, 1)

    @staticmethod
    def _layer(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        return nn.Sequential(conv, InstanceNorm(outputs, affine=True), nn.ReLU())

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        pooled = [F.max_pool2d(m, m.shape[-1] // x.shape[-1]) for m in maps]
        return self.join(
            torch.cat([*(layer(m) for layer, m in zip(self.finer, pooled, strict=True)), x], dim=1)
        )


class MixedSkippingUNet(nn.Module):
    """``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W)``: in [-1,1] in evaluation, unbounded in
    training.

    H and W are multiples of 32. ``widths``: channels at H, H/2, ..., H/16; ``skip_width``: of a
    full-scale skip. Node (i, j) of the nested U-Net is at H/2^i, in column j; column 0 is the
    encoder. The picture is the mean of the outputs of row 0.
    """

    multiple_of = 32  # 16 for the pooling; 32 so that the smallest map has something to normalise

    def __init__(
        self, inputs: int = 3, widths: Sequence[int] = (32, 64, 128, 256, 512), *,
        skip_width: int = 64
    ):  # fmt: skip
        super().__init__()
        self.inputs, self.lowest = inputs, len(widths) - 1
        self.encoder = nn.ModuleList(
            nn.Sequential(TwoPathBlock(a, b), TwoPathBlock(b, b))
            for a, b in zip([inputs, *widths[:-1]], widths, strict=True)
        )
        self.rises = nn.ModuleDict({
            f"{i},{j}": Rise(widths[i + 1], widths[i])
            for j in range(1, self.lowest + 1) for i in range(self.lowest + 1 - j)
        })  # fmt: skip
        self.skips = nn.ModuleList(
            FullScaleSkip(widths[:i], widths[i], skip_width) for i in range(1, self.lowest)
        )
        self.attention = nn.ModuleList(MixedAttention(w) for w in widths[:-1])
        self.pictures = nn.ModuleList(nn.Conv2d(widths[0], 3, 1) for _ in range(self.lowest))
        init_normal(self)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        x = as_channels(thermal, self.inputs, self.multiple_of)
        column = []
        for i, node in enumerate(self.encoder):
            x = node(F.max_pool2d(x, 2) if i else x)
            column.append(x)
        encoded, answers = column, []
        for j in range(1, self.lowest + 1):
            column = [
                self.rises[f"{i},{j}"](column[i + 1], column[i]) for i in range(len(column) - 1)
            ]
            last = len(column) - 1
            if last:
                column[last] = self.skips[last - 1](column[last], encoded[:last])
            column[last] = self.attention[last](column[last])
            answers.append(self.pictures[j - 1](column[0]))
        y = F.leaky_relu(torch.stack(answers).mean(dim=0), 0.2)
        return y if self.training else y.clamp(-1, 1)


class MUGAN(TICCGAN):
    """The step of TIC-CGAN (ticcgan.py), from whose code MUGAN grew. ``losses``: ``adversarial``
    (binary cross-entropy), ``l1``, ``perceptual`` (L1 of VGG-16's relu1_2, 2_2, 3_3 and 4_3,
    summed), ``tv``, ``ssim`` (Gaussian window of 11 pixels).

    ``faithful``: VGG-16 is fed pictures in [-1,1] as they are, and ``tv`` is summed over the batch.
    """

    Network: ClassVar[type[nn.Module]] = MixedSkippingUNet
    title = "MUGAN"
    paper = (
        "Liao et al., MUGAN: thermal infrared image colorization using mixed-skipping UNet and "
        "GAN, IEEE TIV 2023"
    )
    LOSSES: ClassVar[dict[str, float]] = {
        "adversarial": 0.03,
        "l1": 1.0,
        "perceptual": 1.0,
        "tv": 1.25,
        "ssim": 1.25,
    }
    gan: ClassVar[str] = "bce"
