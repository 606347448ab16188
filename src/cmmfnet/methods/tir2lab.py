"""TIR2Lab: a small U-Net that predicts the Lab colour of a thermal frame, without a discriminator.

Berg et al., *Generating visible spectrum images from thermal infrared*, CVPR workshops 2018.
Written from the description of the published system alone. The network predicts Lab in [0,1];
``forward`` turns it into RGB, differentiably.

Fixed: the original's batch normalisation runs over the rows of the map in place of its channels, so
    that a network takes one height only. Here it is ordinary batch normalisation over channels,
    with 1,462,275 parameters; ``faithful`` normalises rows and has the original's 1,462,339. In
    evaluation both use running statistics: a picture's result does not depend on its batch.

Not known, and chosen as usual for its time: nearest-neighbour upsampling before the 4x4
convolutions of the way up; LeakyReLU 0.2 on the way down; dropout at the three layers that a skip
joins; Glorot initialisation; patches of 4 rows by 16 columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.method import Losses, Method, StepContext
from cmmfnet.nn.losses import l1

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch

# sRGB (IEC 61966-2-1) to CIE XYZ for D65 and 2 degrees, rows divided by the white point
_XYZ = torch.tensor([
    [0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047],
    [0.212671, 0.715160, 0.072169],
    [0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883],
])  # fmt: skip
_RGB = torch.linalg.inv(_XYZ.double()).float()
# Lab in [0,1]: L / 100, (a + 87) / 185, (b + 108) / 203
_RANGE, _LEAST = torch.tensor([100.0, 185.0, 203.0]), torch.tensor([0.0, -87.0, -108.0])


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB (B,3,H,W) in [-1,1] -> CIE Lab (B,3,H,W), float32: L in [0,100], a about [-86,98], b
    about [-108,94]."""
    with torch.autocast(rgb.device.type, enabled=False):
        x = (rgb.float() * 0.5 + 0.5).clamp(0, 1)
        linear = torch.where(
            x > 0.04045, ((x.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, x / 12.92
        )
        xyz = torch.einsum("ij,bjhw->bihw", _XYZ.to(x.device), linear)
        f = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
        x, y, z = f.unbind(dim=1)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE Lab (B,3,H,W) -> sRGB (B,3,H,W) float32 in [-1,1], clipped where Lab has no such colour.

    Gradients are finite everywhere; a clipped component has none.
    """
    with torch.autocast(lab.device.type, enabled=False):
        lightness, a, b = lab.float().unbind(dim=1)
        y = (lightness + 16) / 116
        f = torch.stack([y + a / 500, y, y - b / 200], dim=1)
        xyz = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
        linear = torch.einsum("ij,bjhw->bihw", _RGB.to(f.device), xyz)
        # the clamp inside keeps the root's gradient finite on the side that is not taken
        root = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
        rgb = torch.where(linear > 0.0031308, root, 12.92 * linear)
        return rgb.clamp(0, 1) * 2 - 1


def scaled_lab(rgb: Tensor) -> Tensor:
    """sRGB (B,3,H,W) in [-1,1] -> Lab (B,3,H,W) in [0,1], as the network predicts it."""
    column = (-1, 1, 1)
    return (rgb_to_lab(rgb) - _LEAST.to(rgb.device).view(column)) / _RANGE.to(rgb.device).view(
        column
    )


class RowNorm(nn.BatchNorm2d):
    """Batch normalisation with one scale, shift and statistic for every row: (B,C,H,W), H =
    ``rows``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SameConv2d(nn.Conv2d):
    """4x4 convolution that keeps H and W: one row and column of padding before, two after."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 2, 1, 2)))


class LabUNet(nn.Module):
    """``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W) in [-1,1]``; with ``lab``, Lab in [0,1]
    instead of RGB.

    H and W are multiples of 4; with ``faithful`` H is ``rows``. ``widths``: of the four
    convolutions on the way down.
    """

    multiple_of, fixed_size = 4, None
    capturable = False  # tables of colours come from the host

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 128),
        *,
        dropout: float = 0.5,
        faithful: bool = False,
        rows: int = 256,
    ):
        super().__init__()
        if faithful:
            self.fixed_size = rows
        w1, w2, w3, w4 = widths

        def norm(channels: int, stride: int) -> nn.Module:
            return RowNorm(rows // stride) if faithful else nn.BatchNorm2d(channels)

        self.down1 = nn.Sequential(nn.Conv2d(1, w1, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        self.down2 = nn.Sequential(
            nn.Conv2d(w1, w2, 4, stride=2, padding=1), nn.LeakyReLU(0.2), norm(w2, 4)
        )
        self.down3 = nn.Sequential(SameConv2d(w2, w3), nn.LeakyReLU(0.2), norm(w3, 4))
        self.down4 = nn.Sequential(SameConv2d(w3, w4), nn.LeakyReLU(0.2), norm(w4, 4))
        self.up4 = nn.Sequential(SameConv2d(w4, w3), nn.ReLU(), norm(w3, 4), nn.Dropout(dropout))
        self.up3 = nn.Sequential(
            SameConv2d(2 * w3, w3), nn.ReLU(), norm(w3, 4), nn.Dropout(dropout)
        )
        self.up2 = nn.Sequential(
            nn.Upsample(scale_factor=2),
            SameConv2d(w3 + w2, w2),
            nn.ReLU(),
            norm(w2, 2),
            nn.Dropout(dropout),
        )
        self.up1 = nn.Sequential(
            nn.Upsample(scale_factor=2), SameConv2d(w2 + w1, w1), nn.ReLU(), norm(w1, 1)
        )
        self.last = SameConv2d(w1, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        thermal: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        lab: bool = False,
    ) -> Tensor:
        height, width = thermal.shape[-2:]
        if thermal.ndim != 4 or thermal.shape[1] != 1 or height % 4 or width % 4:
            raise ValueError(
                f"thermal is {tuple(thermal.shape)}; expected (B,1,H,W) with H and W multiples of 4"
            )
        if self.fixed_size and height != self.fixed_size:
            raise ValueError(
                f"thermal is {tuple(thermal.shape)}; this network normalises {self.fixed_size} "
                "rows, so H is that"
            )
        d1 = self.down1(thermal * 0.5 + 0.5)
        d2 = self.down2(d1)
        d3 = self.down3(d2)
        x = torch.cat([self.up4(self.down4(d3)), d3], dim=1)
        x = torch.cat([self.up3(x), d2], dim=1)
        x = torch.cat([self.up2(x), d1], dim=1)
        scaled = torch.sigmoid(self.last(self.up1(x)).float())
        if lab:
            return scaled
        column = (-1, 1, 1)
        return lab_to_rgb(
            scaled * _RANGE.to(scaled.device).view(column) + _LEAST.to(scaled.device).view(column)
        )


def patch_dssim(x: Tensor, y: Tensor, patch: tuple[int, int] = (4, 16)) -> Tensor:
    """(1 - SSIM) / 2 over patches that do not overlap, each with equal weights, mean over patches
    and channels.

    x, y (B,C,H,W) in [0,1], C1 = .01^2, C2 = .03^2; rows and columns that fill no patch are left
    out. Raises ``ValueError`` for pictures smaller than a patch.
    """
    if x.shape[-2] < patch[0] or x.shape[-1] < patch[1]:
        raise ValueError(
            f"pictures are {tuple(x.shape[-2:])}; patches of {patch[0]} x {patch[1]} need at "
            "least that size"
        )

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, patch)

    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        mx, my = mean(x), mean(y)
        xx, yy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        luminance = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
        structure = (2 * xy + 9e-4) / (xx + yy + 9e-4)
        return (1 - luminance * structure).mean() / 2


class TIR2Lab(Method):
    """``losses``: ``ab`` (mean of |difference| of the two colour channels), ``dssim`` (of
    lightness), on Lab in [0,1]."""

    Network = LabUNet
    title = "TIR2Lab"
    paper = (
        "Berg et al., Generating visible spectrum images from thermal infrared, CVPR workshops 2018"
    )
    LOSSES: ClassVar[dict[str, float]] = {"ab": 0.5, "dssim": 0.5}

    def __init__(
        self, network: LabUNet, losses: dict[str, float], *, pretrained: str | Path | None = None
    ):
        super().__init__(network, losses, pretrained=pretrained)

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        found, truth = (
            self.networks["generator"](batch.thermal, lab=True),
            scaled_lab(batch.visible),
        )
        losses: Losses = {}
        if "ab" in self.weights:
            losses["ab"] = l1(found[:, 1:], truth[:, 1:])
        if "dssim" in self.weights:
            losses["dssim"] = patch_dssim(found[:, :1], truth[:, :1])
        yield "generator", {name: loss * self.weights[name] for name, loss in losses.items()}
