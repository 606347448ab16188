"""pix2pix: a U-Net, a conditional patch discriminator and L1.

Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks*, CVPR 2017, in the
form of the authors' PyTorch code. Generator 54,413,955 parameters (thermal frame read as three
equal channels) or 54,411,907 (``inputs: 1``); discriminator 2,768,705 with three.

Batch normalisation. The original trains with a batch of one, so that every picture is normalised by
its own statistics. Its test script stays in training mode, so that this holds in tests too, and
dropout makes the output random; in evaluation mode the running statistics would give visibly other
pictures. Here every picture is normalised by its own statistics, with the learned scale and shift,
in training and in evaluation, for any size of batch. At batch one this is exactly the original's
training, and the result for a picture does not depend on its batch. Dropout acts in training only.
The discriminator keeps batch statistics: it is only ever used in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from cmmfnet.methods.method import Losses, Method, StepContext, frozen, in_full_precision
from cmmfnet.nn.losses import l1
from cmmfnet.nn.patchgan import InstanceNorm, PatchGAN, as_channels, gan_loss, init_normal

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch


class UNetGenerator(nn.Module):
    """U-Net of ``levels`` 4x4 convolutions of stride 2, as many transposed ones, skips by
    concatenation, tanh.

    ``forward(thermal (B,1,H,W) in [-1,1]) -> (B,outputs,H,W) in [-1,1]``; H and W are multiples of
    2^levels. A picture with ``inputs`` channels is taken as it is. Widths are ``width`` x 1, 2, 4,
    8, 8, ... LeakyReLU 0.2 on the way down, ReLU on the way up; norms but at the first, at the
    innermost and at the last convolution; dropout on the way up between levels of width 8 x
    ``width``, but not at the innermost.

    ``affine``: norms with learned scale and shift, convolutions without biases (pix2pix's batch
    normalisation, see above); otherwise instance norms without, and biases (the CycleGAN code's
    U-Net).
    """

    multiple_of = 256

    def __init__(
        self,
        inputs: int = 3,
        outputs: int = 3,
        levels: int = 8,
        width: int = 64,
        *,
        dropout: float = 0.5,
        affine: bool = True,
    ):
        super().__init__()
        self.inputs, self.multiple_of = inputs, 2**levels
        widths = [width * min(2**i, 8) for i in range(levels)]
        innermost = levels - 1
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, outside in enumerate([inputs, *widths[:-1]]):
            down = [nn.LeakyReLU(0.2)] if i else []
            down.append(nn.Conv2d(outside, widths[i], 4, stride=2, padding=1, bias=not affine))
            if 0 < i < innermost:
                down.append(InstanceNorm(widths[i], affine))
            self.downs.append(nn.Sequential(*down))
        for i in reversed(range(levels)):
            inside = widths[i] * (1 if i == innermost else 2)
            outside = widths[i - 1] if i else outputs
            up = [
                nn.ReLU(),
                nn.ConvTranspose2d(
                    inside, outside, 4, stride=2, padding=1, bias=not affine or i == 0
                ),
            ]
            if i:
                up.append(InstanceNorm(outside, affine))
            if dropout and 4 <= i < innermost:
                up.append(nn.Dropout(dropout))
            self.ups.append(nn.Sequential(*up))
        init_normal(self)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        x = as_channels(thermal, self.inputs, self.multiple_of)
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        skips.pop()
        for i, up in enumerate(self.ups):
            x = up(torch.cat([skips.pop(), x], dim=1) if i else x)
        return torch.tanh(x)


class Pix2Pix(Method):
    """``losses``: ``adversarial`` (binary cross-entropy, eq. 1), ``l1`` (eq. 3). The discriminator
    makes its step first, on half the sum of its two losses (section 3.3), and the generator's step
    uses the updated discriminator."""

    Network = UNetGenerator
    title = "pix2pix"
    paper = (
        "Isola et al., Image-to-image translation with conditional adversarial networks, CVPR 2017"
    )
    LOSSES: ClassVar[dict[str, float]] = {"adversarial": 1.0, "l1": 100.0}
    optimisers: ClassVar[dict[str, tuple[str, ...]]] = {
        "discriminator": ("discriminator",), "generator": ("generator",),
    }  # fmt: skip

    def __init__(
        self,
        network: UNetGenerator,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
    ):
        super().__init__(network, losses, pretrained=pretrained)
        self.inputs = network.inputs
        if "adversarial" in self.weights:
            self.networks["discriminator"] = PatchGAN(network.inputs + 3, norm="batch")
        else:
            self.optimisers = {"generator": ("generator",)}

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        thermal, truth = batch.thermal.expand(-1, self.inputs, -1, -1), batch.visible
        colour = self.networks["generator"](thermal)
        losses: Losses = {}
        if "adversarial" in self.weights:
            judge = self.networks["discriminator"]
            fake = gan_loss(in_full_precision(judge, thermal, colour.detach()), False, "bce")
            real = gan_loss(in_full_precision(judge, thermal, truth), True, "bce")
            yield "discriminator", {"discriminator": (fake + real) / 2}
            with frozen(self.networks["discriminator"]) as judge:
                losses["adversarial"] = gan_loss(
                    in_full_precision(judge, thermal, colour), True, "bce"
                )
        if "l1" in self.weights:
            losses["l1"] = l1(colour, truth)
        yield "generator", {name: loss * self.weights[name] for name, loss in losses.items()}
