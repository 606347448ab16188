"""CycleGAN: two residual generators, there and back, from unpaired pictures.

Zhu et al., *Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks*, ICCV
2017, in the form of the authors' PyTorch code. 11,378,179 parameters a generator, 2,764,737 a
discriminator, with the thermal frame read as three equal channels; only the generator from thermal
to visible is kept in a model.

The CMMF-Net paper's row "CycleGAN" cites Recycle-GAN; this is CycleGAN. Nothing of the original is
changed: its norms keep no running statistics and it has no dropout, so that evaluation is training
without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from cmmfnet.methods.method import ImagePool, Losses, Method, StepContext, frozen, in_full_precision
from cmmfnet.nn.losses import l1
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

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch


class ResnetGenerator(nn.Module):
    """Two convolutions of stride 2, ``blocks`` residual blocks at H/4, two transposed convolutions
    (appendix), tanh.

    ``forward(thermal (B,1,H,W) in [-1,1]) -> (B,outputs,H,W) in [-1,1]``; H and W are multiples of
    8. A picture with ``inputs`` channels is taken as it is. ``layers`` counts as the original does:
    0 pads, 1 to 9 are the three convolutions with norm and ReLU, 10 is the first residual block.
    """

    # 4 for the strides; 8 so that the smallest map has the two pixels that reflect padding needs
    multiple_of = 8

    def __init__(self, inputs: int = 3, outputs: int = 3, width: int = 64, blocks: int = 9):
        super().__init__()
        self.inputs, self.outputs, self.width, self.blocks = inputs, outputs, width, blocks
        self.layers = nn.Sequential(
            *first_conv(inputs, width),
            *down(width, 2 * width),
            *down(2 * width, 4 * width),
            *(ResidualBlock(4 * width) for _ in range(blocks)),
            *up(4 * width, 2 * width),
            *up(2 * width, width),
            *last_conv(width, outputs),
        )
        init_normal(self)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        return self.layers(as_channels(thermal, self.inputs, self.multiple_of))


class CycleGAN(Method):
    """``losses``: ``adversarial`` (least squares, both directions), ``cycle`` (L1, both directions,
    eq. 2), ``identity`` (L1 between a picture of a generator's target domain and the generator's
    output for it, section 5.2; the original's 0.5 is relative to the cycle's 10, so 5 here). Both
    generators make one step together, then both discriminators."""

    Network = ResnetGenerator
    title = "CycleGAN"
    paper = (
        "Zhu et al., Unpaired image-to-image translation using cycle-consistent adversarial "
        "networks, ICCV 2017"
    )
    paired = False
    LOSSES: ClassVar[dict[str, float]] = {"adversarial": 1.0, "cycle": 10.0, "identity": 5.0}
    optimisers: ClassVar[dict[str, tuple[str, ...]]] = {
        "generator": ("generator", "inverse"),
        "discriminator": ("discriminator_visible", "discriminator_thermal"),
    }

    def __init__(
        self,
        network: ResnetGenerator,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
    ):
        super().__init__(network, losses, pretrained=pretrained)
        if "identity" in self.weights and network.inputs != network.outputs:
            raise ValueError(
                f"inputs is {network.inputs}, outputs is {network.outputs}; the identity loss "
                "shows each generator the "
                "other's pictures: set inputs to the same number, or identity to 0"
            )
        self.inputs = network.inputs
        self.networks["inverse"] = ResnetGenerator(
            network.outputs, network.inputs, network.width, network.blocks
        )
        if "adversarial" in self.weights:
            self.networks["discriminator_visible"] = PatchGAN(network.outputs, norm="instance")
            self.networks["discriminator_thermal"] = PatchGAN(network.inputs, norm="instance")
            self.pools = {"visible": ImagePool(), "thermal": ImagePool()}
        else:
            self.optimisers = {"generator": ("generator", "inverse")}

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        forth, back = self.networks["generator"], self.networks["inverse"]
        thermal, visible = batch.thermal.expand(-1, self.inputs, -1, -1), batch.visible
        losses: Losses = {}
        fakes: dict[str, Tensor] = {}
        if "adversarial" in self.weights or "cycle" in self.weights:
            fakes = {"visible": forth(thermal), "thermal": back(visible)}
        if "adversarial" in self.weights:
            losses["adversarial"] = thermal.new_zeros(())
            for kind, fake in fakes.items():
                with frozen(self.networks[f"discriminator_{kind}"]) as judge:
                    losses["adversarial"] = losses["adversarial"] + gan_loss(
                        in_full_precision(judge, fake), True, "lsgan"
                    )
        if "cycle" in self.weights:
            losses["cycle"] = l1(back(fakes["visible"]), thermal) + l1(
                forth(fakes["thermal"]), visible
            )
        if "identity" in self.weights:
            losses["identity"] = l1(forth(visible), visible) + l1(back(thermal), thermal)
        yield "generator", {name: loss * self.weights[name] for name, loss in losses.items()}
        if "adversarial" in self.weights:
            halves: Losses = {}
            for kind, real in (("visible", visible), ("thermal", thermal)):
                judge = self.networks[f"discriminator_{kind}"]
                fake = self.pools[kind](fakes[kind], batch, moment)
                halves[f"discriminator_{kind}"] = 0.5 * (
                    gan_loss(in_full_precision(judge, real), True, "lsgan")
                    + gan_loss(in_full_precision(judge, fake), False, "lsgan")
                )
            yield "discriminator", halves
