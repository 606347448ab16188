"""Parts that the pix2pix family shares: patch discriminator, its losses, initialisation, blocks of
the residual generators.

Isola et al., CVPR 2017 (patch discriminator, section 3.2.2); Mao et al., ICCV 2017 (least squares);
Johnson et al., ECCV 2016 (residual generator). pix2pix, CycleGAN, TIC-CGAN, MUGAN, LKAT-GAN and
I2V-GAN are built of these.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.blocks import instance_norm


class InstanceNorm(nn.Module):
    """Every plane (picture, channel) by its own mean and deviation, in training and in evaluation;
    ``affine`` then scales and shifts every channel. Biases of a convolution before it would vanish,
    but have a gradient (of 0).

    ``forward(x (B,C,H,W)) -> (B,C,H,W)`` in x's dtype. With ``affine`` it is batch normalisation of
    a batch of one.
    """

    def __init__(self, channels: int, affine: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(instance_norm(x))

    def scaled(self, y: Tensor) -> Tensor:
        """The normalised y, scaled and shifted where the norm is ``affine``."""
        if self.weight is None:
            return y
        return torch.addcmul(
            self.bias.to(y.dtype).view(-1, 1, 1), y, self.weight.to(y.dtype).view(-1, 1, 1)
        )


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """The family's initialisation of every layer inside ``module``: convolutions and linear layers
    N(0, std), affine norms N(1, std), biases 0. Call it at the end of a constructor."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, std)
        elif (
            isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d | InstanceNorm)
            and layer.weight is not None
        ):
            nn.init.normal_(layer.weight, 1.0, std)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class PatchGAN(nn.Module):
    """N-layer patch discriminator: 4x4 convolutions, strides 2 (``layers`` times), 1, 1, LeakyReLU
    0.2; 70x70 for 3 layers.

    ``forward(*pictures (B,Ci,H,W)) -> (B,1,h,w)`` logits, one a patch; the pictures are joined
    along their channels, ``inputs`` in all, so a conditional discriminator is called as
    ``D(thermal, colour)``. For 3 layers H and W are 24 at least.

    ``norm`` after every convolution but the first and the last: "batch" (affine; without biases in
    these convolutions and without running statistics, which nothing would read), "instance" (not
    affine) or "none".
    """

    def __init__(self, inputs: int, width: int = 64, layers: int = 3, norm: str = "batch"):
        super().__init__()
        if norm not in ("batch", "instance", "none"):
            raise ValueError(f"norm is {norm!r}; expected 'batch', 'instance' or 'none'")
        sizes = [width * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [
            nn.Conv2d(inputs, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for i, (a, b) in enumerate(pairwise(sizes), start=1):
            parts.append(
                nn.Conv2d(a, b, 4, stride=2 if i < layers else 1, padding=1, bias=norm != "batch")
            )
            if norm == "batch":
                parts.append(nn.BatchNorm2d(b, track_running_stats=False))
            elif norm == "instance":
                parts.append(InstanceNorm(b))
            parts.append(nn.LeakyReLU(0.2))
        parts.append(nn.Conv2d(sizes[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*parts)
        init_normal(self)

    def forward(self, *pictures: Tensor) -> Tensor:
        return self.layers(torch.cat(pictures, dim=1))


def gan_loss(logits: Tensor, real: bool, mode: str) -> Tensor:
    """GAN loss of ``logits`` (any shape) for the target "real" or "not real": mean over all
    patches, a float32 scalar.

    ``mode``: "bce" = binary cross-entropy, -log sigmoid(x) or -log(1 - sigmoid(x)) (Isola et al.,
    eq. 1; the generator asks for "real" instead of minimising log(1 - D)); "lsgan" = squared
    distance to 1 or 0 (Mao et al., eq. 2).
    """
    logits = logits.float()
    if mode == "bce":
        return F.softplus(-logits if real else logits).mean()
    if mode == "lsgan":
        return (logits - float(real)).square().mean()
    raise ValueError(f"mode is {mode!r}; expected 'bce' or 'lsgan'")


class ResidualBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))): 3x3, reflect padding, no ReLU after the sum.

    ``forward(x (B,C,H,W)) -> (B,C,H,W)``; H and W are 2 at least.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def first_conv(inputs: int, outputs: int) -> list[nn.Module]:
    """7x7 convolution with reflect padding, IN, ReLU: keeps H and W, which are 4 at least."""
    return [nn.ReflectionPad2d(3), nn.Conv2d(inputs, outputs, 7), InstanceNorm(outputs), nn.ReLU()]


def down(inputs: int, outputs: int) -> list[nn.Module]:
    """3x3 convolution of stride 2, IN, ReLU: halves H and W."""
    return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), InstanceNorm(outputs), nn.ReLU()]


def up(inputs: int, outputs: int) -> list[nn.Module]:
    """3x3 transposed convolution of stride 2, IN, ReLU: doubles H and W."""
    conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return [conv, InstanceNorm(outputs), nn.ReLU()]


def last_conv(inputs: int, outputs: int) -> list[nn.Module]:
    """7x7 convolution with reflect padding, tanh."""
    return [nn.ReflectionPad2d(3), nn.Conv2d(inputs, outputs, 7), nn.Tanh()]


def as_channels(frame: Tensor, channels: int, multiple_of: int) -> Tensor:
    """(B,1,H,W) -> (B,channels,H,W), equal channels, as the family's loaders read a thermal frame:
    as an RGB file.

    A picture that has ``channels`` already passes. Raises ``ValueError`` for another shape, or for
    H or W that are no multiples of ``multiple_of``.
    """
    if (
        frame.ndim != 4
        or frame.shape[1] not in (1, channels)
        or any(n % multiple_of for n in frame.shape[2:])
    ):
        raise ValueError(
            f"thermal is {tuple(frame.shape)}; expected (B,1,H,W) with H and W multiples of "
            f"{multiple_of}"
        )
    return frame.expand(-1, channels, -1, -1)
