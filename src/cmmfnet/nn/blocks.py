"""Blocks of the large-kernel U-Net, and the patch discriminator of CMMF-Net's training.

Sources: the large-kernel block, the feed-forward and the downsampling come from LKAT-GAN's LK_UNet
(He et al., IEEE TCE 2023), from which the CMMF-Net paper takes its U-Net; the discriminator is the
70x70 PatchGAN of pix2pix (Isola et al., 2017). Transformer blocks are in transformer.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def instance_norm(x: Tensor) -> Tensor:
    """(B,C,H,W) -> the same shape: (x - mean) / sqrt(variance + 1e-5) over each plane."""
    if x.shape[2] * x.shape[3] == 1:
        return torch.zeros_like(x)  # one value has no variance, which PyTorch refuses
    # Flat, because for a batch of one and a channels-last gradient PyTorch 2.13 on the CPU returns
    # a wrong gradient.
    return F.instance_norm(x.flatten(2), eps=1e-5).reshape(x.shape)


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1)


class LargeKernelBlock(nn.Module):
    """Residual large-kernel block: IN, 1x1, IN, GELU, k x k depthwise, GELU, 1x1, IN, GELU
    (LKAT-GAN, stage block).

    ``forward(x (B,C,H,W)) -> (B,C,H,W)``; k is odd.
    """

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(
                f"kernel is {kernel}; an odd size is needed so that the output keeps its size"
            )
        self.enter = pointwise(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.leave = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(instance_norm(self.enter(instance_norm(x))))
        y = F.gelu(self.depthwise(y))
        return x + F.gelu(instance_norm(self.leave(y)))


class ConvFFN(nn.Module):
    """Residual pointwise feed-forward: IN, 1x1 to 4C, IN, GELU, 1x1 to C, IN (LKAT-GAN).

    ``forward(x (B,C,H,W)) -> (B,C,H,W)``.
    """

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        self.widen = pointwise(channels, expansion * channels)
        self.narrow = pointwise(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(instance_norm(self.widen(instance_norm(x))))
        return x + instance_norm(self.narrow(y))


class Downsample(nn.Module):
    """1x1 convolution to the new width, IN, GELU; 3x3 with stride 2, IN, GELU (LKAT-GAN).

    ``forward(x (B,inputs,H,W)) -> (B,outputs,H/2,W/2)``.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.widen = pointwise(inputs, outputs)
        self.stride = nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(instance_norm(self.widen(x)))
        return F.gelu(instance_norm(self.stride(x)))


class Stage(nn.Sequential):
    """``blocks`` pairs of a large-kernel block and a feed-forward: (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int, blocks: int, kernel: int):
        super().__init__()
        for _ in range(blocks):
            self.append(LargeKernelBlock(channels, kernel)).append(ConvFFN(channels))


class PatchDiscriminator(nn.Module):
    """70x70 PatchGAN on the thermal frame and a colour picture, with spectral norm and no batch
    statistics.

    ``forward(thermal (B,1,H,W), colour (B,3,H,W)) -> (B,1,h,w)`` logits, one a patch.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        sizes = [4, width, 2 * width, 4 * width, 8 * width]
        norm = nn.utils.parametrizations.spectral_norm
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [
                norm(nn.Conv2d(a, b, 4, stride=2 if i < 3 else 1, padding=1)),
                nn.LeakyReLU(0.2),
            ]
        layers.append(norm(nn.Conv2d(sizes[-1], 1, 4, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, thermal: Tensor, colour: Tensor) -> Tensor:
        return self.layers(torch.cat([thermal, colour], dim=1))
