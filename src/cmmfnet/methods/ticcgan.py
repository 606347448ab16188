"""TIC-CGAN: a coarse-to-fine generator, a light conditional GAN and a content loss.

Kuang et al., *Thermal infrared colorization via conditional generative adversarial network*,
Infrared Physics & Technology 2020, arXiv 1810.05399, in the form of the authors' code. Generator
45,851,907 parameters and discriminator 695,777, with the thermal frame read as three equal
channels.

Fixed: the original's instance norms collect running statistics, which evaluation mode would use in
    place of a picture's own; here there are none, so that evaluation computes the same as training.
    Its VGG-16 is fed pictures in [-1,1], but was trained on ImageNet-normalised ones, and its total
    variation grows with the batch: ``faithful`` of the method brings both back (at the paper's
    batch of one only the first makes a difference).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.method import ImagePool, Losses, Method, StepContext, frozen, in_full_precision
from cmmfnet.nn.losses import l1, ssim_loss, total_variation
from cmmfnet.nn.patchgan import (
    PatchGAN,
    ResidualBlock,
    as_channels,
    down,
    first_conv,
    gan_loss,
    init_normal,
    last_conv,
    up,
)
from cmmfnet.nn.perceptual import Perceptual

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch


class CoarseToFineGenerator(nn.Module):
    """A global network on the frame at half size, whose last map is added into a local network at
    full size (pix2pixHD's generator with one enhancer, Wang et al., CVPR 2018).

    ``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W) in [-1,1]``; H and W are multiples of 32.
    ``width``: channels of the local network; the global network starts with twice as many and has
    16 times as many at its smallest map, at H/16.
    """

    # 16 for the strides; 32 so that the smallest map has the two pixels that reflect padding needs
    multiple_of = 32

    def __init__(
        self, inputs: int = 3, width: int = 32, global_blocks: int = 9, local_blocks: int = 3
    ):
        super().__init__()
        self.inputs = inputs
        w = 2 * width
        self.coarse = nn.Sequential(
            *first_conv(inputs, w), *down(w, 2 * w), *down(2 * w, 4 * w), *down(4 * w, 8 * w),
            *(ResidualBlock(8 * w) for _ in range(global_blocks)),
            *up(8 * w, 4 * w), *up(4 * w, 2 * w), *up(2 * w, w),
        )  # fmt: skip
        self.fine_in = nn.Sequential(*first_conv(inputs, width), *down(width, w))
        self.fine_out = nn.Sequential(
            *(ResidualBlock(w) for _ in range(local_blocks)), *up(w, width), *last_conv(width, 3)
        )  # fmt: skip
        init_normal(self)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        x = as_channels(thermal, self.inputs, self.multiple_of)
        half = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return self.fine_out(self.fine_in(x) + self.coarse(half))


class TICCGAN(Method):
    """``losses``: ``adversarial`` (least squares), ``l1`` (content), ``perceptual`` (L1 of VGG-16's
    relu1_2, 2_2, 3_3 and 4_3, summed), ``tv``. The discriminator makes its step first, as in the
    pix2pix code that the original grew from, against pairs out of a pool of 50.

    ``faithful``: VGG-16 is fed pictures in [-1,1] as they are, and ``tv`` is summed over the batch
    (see above).

    MUGAN and LKAT-GAN differ in ``gan``, the kind of the adversarial loss (patchgan.gan_loss), in
    the discriminator's width, and in ``ssim`` where their losses have it.
    """

    Network: ClassVar[type[nn.Module]] = CoarseToFineGenerator
    title = "TIC-CGAN"
    paper = (
        "Kuang et al., Thermal infrared colorization via conditional GAN, "
        "Infrared Physics & Technology 2020"
    )
    LOSSES: ClassVar[dict[str, float]] = {
        "adversarial": 0.03,
        "l1": 1.0,
        "perceptual": 1.0,
        "tv": 1.0,
    }
    gan: ClassVar[str] = "lsgan"
    discriminator_width: ClassVar[int] = 32
    optimisers: ClassVar[dict[str, tuple[str, ...]]] = {
        "discriminator": ("discriminator",), "generator": ("generator",),
    }  # fmt: skip

    def __init__(
        self,
        network: nn.Module,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        faithful: bool = False,
    ):
        super().__init__(network, losses, pretrained=pretrained)
        self.inputs, self.faithful = network.inputs, faithful
        self.perceptual = (
            Perceptual("vgg16", "l1", pretrained, imagenet=not faithful)
            if "perceptual" in self.weights
            else None
        )
        if "adversarial" in self.weights:
            self.networks["discriminator"] = PatchGAN(
                network.inputs + 3, width=self.discriminator_width, norm="instance"
            )
            self.pools = {"pairs": ImagePool()}
        else:
            self.optimisers = {"generator": ("generator",)}

    def to(self, device: torch.device) -> None:
        if self.perceptual is not None:
            self.perceptual.to(device)

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        thermal, truth = batch.thermal.expand(-1, self.inputs, -1, -1), batch.visible
        colour = self.networks["generator"](batch.thermal)
        losses: Losses = {}
        if "adversarial" in self.weights:
            judge = self.networks["discriminator"]
            pairs = self.pools["pairs"](torch.cat([thermal, colour], dim=1), batch, moment)
            fake = gan_loss(in_full_precision(judge, pairs), False, self.gan)
            real = gan_loss(in_full_precision(judge, thermal, truth), True, self.gan)
            yield "discriminator", {"discriminator": (fake + real) / 2}
            with frozen(self.networks["discriminator"]) as judge:
                losses["adversarial"] = gan_loss(
                    in_full_precision(judge, thermal, colour), True, self.gan
                )
        if "l1" in self.weights:
            losses["l1"] = l1(colour, truth)
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(colour, truth).mean()
        if "tv" in self.weights:
            losses["tv"] = total_variation(colour, legacy=self.faithful)
        if "ssim" in self.weights:
            losses["ssim"] = ssim_loss(colour, truth)
        yield "generator", {name: loss * self.weights[name] for name, loss in losses.items()}
