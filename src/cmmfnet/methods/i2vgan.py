"""I2V-GAN: unpaired infrared to visible video, from triplets of neighbouring frames.

Li et al., I2V-GAN: Unpaired Infrared-to-Visible Video Translation, ACM MM 2021, doi
10.1145/3474085.3475445, in the form of the official code (MIT): CycleGAN's two generators (6
blocks, 7,837,699 parameters each) and patch discriminators (2,764,737 each), Recycle-GAN's two
next-frame predictors (U-Nets of 7 levels on two frames, 41,828,739 each), and similarity of
patches. The thermal frame is read as three equal channels. A model keeps the generator from thermal
to visible, which colours frame by frame; predictors, the way back and discriminators are used in
training only.

As in the code: the generators go up by bilinear interpolation and a 3x3 convolution, their residual
blocks have dropout 0.5 in training; the predictors are as wide as the generators (its option for
their width is ignored); its default options are 9 blocks and 8 levels, but the published
sizes belong to 6 and 7; the third frame's translation is predicted from the first two's; the
patches come from the generator's layers 0, 4, 8, 12 and 16, of which 0 is the padded picture. Style
is a mean square, where the paper's family usually takes L1. Fixed: the head that projects the
patches learns (the code clears its gradient before its step), and the loss network sees pictures on
ImageNet's scale (the code feeds it [-1,1]); ``faithful`` undoes both. Gram matrices, negatives and
motion are a picture's own, so that larger batches mean the same. Fewer draws than in the code: a
frame is encoded once a step for both similarities, at one set of places for its triplet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cmmfnet.methods.method import (
    ImagePool,
    Losses,
    Method,
    StepContext,
    frozen,
    in_full_precision,
    unwrapped,
)
from cmmfnet.methods.patchnce import (
    ContentAndStyle,
    ProjectionHead,
    draw_places,
    external_similarity,
    internal_similarity,
    pixel_l1,
    take,
)
from cmmfnet.methods.pix2pix import UNetGenerator
from cmmfnet.nn.patchgan import (
    InstanceNorm,
    PatchGAN,
    ResidualBlock,
    as_channels,
    down,
    first_conv,
    gan_loss,
    init_normal,
    last_conv,
)

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch

LAYERS = (0, 4, 8, 12, 16)
"""Layers whose patches are compared: the padded picture, H/2, H/4, after the third of six blocks,
and H/2 on the way up."""


class DroppedBlock(ResidualBlock):
    """The family's residual block with dropout after its ReLU."""

    def __init__(self, channels: int, dropout: float):
        super().__init__(channels)
        self.layers.insert(4, nn.Dropout(dropout))


def smooth_up(inputs: int, outputs: int) -> list[nn.Module]:
    """Bilinear interpolation (the code's fixed filter 1, 3, 3, 1), 3x3 convolution, IN, ReLU:
    doubles H and W."""
    double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return [double, nn.Conv2d(inputs, outputs, 3, padding=1), InstanceNorm(outputs), nn.ReLU()]


class I2VGenerator(nn.Module):
    """``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W) in [-1,1]``; H and W are multiples of 8.
    A picture with three channels is taken as it is."""

    multiple_of = 8

    def __init__(self, *, width: int = 64, blocks: int = 6, dropout: float = 0.5):
        super().__init__()
        self.width, self.blocks, self.dropout = width, blocks, dropout
        self.layers = nn.Sequential(
            *first_conv(3, width),
            *down(width, 2 * width),
            *down(2 * width, 4 * width),
            *(DroppedBlock(4 * width, dropout) for _ in range(blocks)),
            *smooth_up(4 * width, 2 * width),
            *smooth_up(2 * width, width),
            *last_conv(width, 3),
        )
        init_normal(self)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        return self.layers(as_channels(thermal, 3, self.multiple_of))

    def encode(self, pictures: Tensor) -> list[Tensor]:
        """The maps (B,C,h,w) after ``LAYERS``."""
        x, maps = pictures, []
        for i, layer in enumerate(self.layers[: LAYERS[-1] + 1]):
            x = layer(x)
            if i in LAYERS:
                maps.append(x)
        return maps


class I2VGAN(Method):
    """``losses``, each over both directions: ``adversarial`` (least squares, three frames),
    ``cycle`` (two frames), ``recycle`` (the predicted third translation, back), ``prediction`` (the
    third real frame), ``identity`` (L1 between a picture of a generator's target domain and the
    generator's output for it, two frames; the code's 0.5 is relative to the cycle's 10),
    ``external`` (PatchNCE, three frames), ``internal`` (motion). Both generators, predictors and
    heads make one step together, then both discriminators on three translations and the prediction.

    ``perceptual``: loss network of cycle, recycle and prediction: "vgg19" (the paper), "vgg16", or
    "none" for pixels alone, as in Recycle-GAN. ``predictor_levels``: halvings in the predictors;
    crops are multiples of 2 to that power, 128. ``patches``: how many places of a layer are
    compared.
    """

    Network: ClassVar[type[nn.Module]] = I2VGenerator
    title: ClassVar[str] = "I2V-GAN"
    paper: ClassVar[str] = (
        "Li et al., I2V-GAN: Unpaired infrared-to-visible video translation, ACM MM 2021"
    )
    paired: ClassVar[bool] = False
    frames: ClassVar[int] = 3
    LOSSES: ClassVar[dict[str, float]] = {
        "adversarial": 1.0, "cycle": 10.0, "recycle": 10.0, "prediction": 10.0, "identity": 5.0,
        "external": 0.1,
        "internal": 40.0,
    }  # fmt: skip

    def __init__(
        self,
        network: I2VGenerator,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        perceptual: str = "vgg19",
        predictor_levels: int = 7,
        patches: int = 256,
        faithful: bool = False,
    ):
        super().__init__(network, losses, pretrained=pretrained)
        if set(self.weights) <= {"prediction"}:
            raise ValueError(
                f"losses are {losses}; the generators need at least one besides prediction"
            )
        self.predictor_levels, self.patches = predictor_levels, patches
        self.distance = pixel_l1
        if perceptual != "none" and self._has("cycle", "recycle", "prediction"):
            self.distance = ContentAndStyle(perceptual, pretrained, normalised=not faithful)
        self.networks["inverse"] = I2VGenerator(
            width=network.width, blocks=network.blocks, dropout=network.dropout
        )
        if self._has("adversarial", "recycle", "prediction", "external", "internal"):
            for kind in ("visible", "thermal"):
                self.networks[f"predictor_{kind}"] = UNetGenerator(
                    6, 3, predictor_levels, network.width, affine=False
                )
        self.heads: dict[str, ProjectionHead] = {}  # those that do not learn
        if self._has("external", "internal"):
            self._add_heads(faithful)
        self.optimisers = {"generator": tuple(self.networks)}
        if self._has("adversarial"):
            for kind in ("visible", "thermal"):
                self.networks[f"discriminator_{kind}"] = PatchGAN(3, network.width, norm="instance")
                # four pictures an entry: as long a memory as the original's, of 50 pictures, to
                # which a step adds four
                self.pools[kind] = ImagePool(12)
            self.optimisers["discriminator"] = ("discriminator_visible", "discriminator_thermal")

    def _has(self, *names: str) -> bool:
        return any(name in self.weights for name in names)

    def _add_heads(self, faithful: bool) -> None:
        encoder = self.networks["inverse"]
        with torch.no_grad():
            maps = encoder.encode(next(encoder.parameters()).new_zeros(1, 3, 16, 16))
        channels = [x.shape[1] for x in maps]
        if not faithful:
            self.networks |= {
                "head_visible": ProjectionHead(channels),
                "head_thermal": ProjectionHead(channels),
            }
            return
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                0
            )  # no checkpoint has them: a resumed run must find the same
            for kind in ("visible", "thermal"):
                self.heads[f"head_{kind}"] = ProjectionHead(channels).requires_grad_(False)

    def to(self, device: torch.device) -> None:
        for network in [*self.heads.values(), self.distance]:
            if isinstance(network, nn.Module):
                network.to(device)

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        side, multiple = batch.thermal.shape[-1], 2**self.predictor_levels
        if "predictor_visible" in self.networks and side % multiple:
            raise ValueError(
                f"crops are {side} pixels; I2V-GAN's predictors take multiples of {multiple}: "
                "change size, or make "
                f"predictor_levels (options) less than {self.predictor_levels}"
            )
        real = {"thermal": batch.thermal.expand(-1, -1, 3, -1, -1), "visible": batch.visible}
        rngs = [moment.rng(position) for position in batch.positions]
        losses: Losses = {}
        fakes: dict[str, list[Tensor]] = {"visible": [], "thermal": []}
        for source, target in (("thermal", "visible"), ("visible", "thermal")):
            for name, loss in self._direction(real[source], source, target, fakes, rngs).items():
                losses[name] = losses.get(name, 0) + self.weights[name] * loss
        yield "generator", losses
        if "adversarial" in self.weights:
            halves: Losses = {}
            for kind, made in fakes.items():
                judge = self.networks[f"discriminator_{kind}"]
                fake = self.pools[kind](torch.cat(made, dim=1), batch, moment)
                # the real third frame stands against its two imitations
                against = real[kind][:, [0, 1, 2, 2][: fake.shape[1]]]
                right = gan_loss(in_full_precision(judge, against.flatten(0, 1)), True, "lsgan")
                wrong = gan_loss(in_full_precision(judge, fake.flatten(0, 1)), False, "lsgan")
                halves[f"discriminator_{kind}"] = 0.5 * fake.shape[1] * (right + wrong)
            yield "discriminator", halves

    def _direction(
        self,
        real: Tensor,
        source: str,
        target: str,
        fakes: dict[str, list[Tensor]],
        rngs: list[np.random.Generator],
    ) -> Losses:
        """Losses of one direction, summed over frames, from real (B,3,3,H,W). Adds the pictures for
        the discriminators to ``fakes``, by kind: (B,n,3,H,W)."""
        there, back = ("generator", "inverse") if target == "visible" else ("inverse", "generator")
        first, third = real[:, :2], real[:, 2]
        losses: Losses = {}
        fake = self._each(self.networks[there], first)
        if f"predictor_{target}" in self.networks:
            predicted = self.networks[f"predictor_{target}"](fake.flatten(1, 2))
            fake = torch.cat([fake, predicted[:, None]], dim=1)
        if "adversarial" in self.weights:
            fakes[target].insert(0, fake)
            with frozen(self.networks[f"discriminator_{target}"]) as judge:
                losses["adversarial"] = 3 * gan_loss(
                    in_full_precision(judge, fake.flatten(0, 1)), True, "lsgan"
                )
        if "cycle" in self.weights:
            again = self._each(self.networks[back], fake[:, :2])
            losses["cycle"] = 2 * self.distance(again.flatten(0, 1), first.flatten(0, 1)).mean()
        if "recycle" in self.weights:
            losses["recycle"] = self.distance(self.networks[back](fake[:, 2]), third).mean()
        if "prediction" in self.weights:
            following = self.networks[f"predictor_{source}"](first.flatten(1, 2))
            fakes[source].append(following[:, None])
            losses["prediction"] = self.distance(following, third).mean()
        if "identity" in self.weights:
            losses["identity"] = 2 * pixel_l1(self._each(self.networks[back], first), first).mean()
        if self._has("external", "internal"):
            losses |= self._similarity(real, fake, there, target, rngs)
        return losses

    def _similarity(
        self, real: Tensor, fake: Tensor, there: str, target: str, rngs: list
    ) -> Losses:
        """Patches of both videos through the encoder of the generator between them (CUT). Gradients
        reach the patches of the fake video only."""
        encoder = unwrapped(self.networks[there])
        head = (self.heads or self.networks)[f"head_{target}"]
        with torch.no_grad():
            maps = encoder.encode(real.flatten(0, 1))
            places = draw_places(maps, rngs, self.patches)
            ours = in_full_precision(head, *take(maps, places))
        theirs = in_full_precision(head, *take(encoder.encode(fake.flatten(0, 1)), places))
        losses: Losses = {}
        if "external" in self.weights:
            losses["external"] = external_similarity(ours, theirs)
        if "internal" in self.weights:
            losses["internal"] = internal_similarity(ours, theirs)
        return losses

    @staticmethod
    def _each(network: nn.Module, frames: Tensor) -> Tensor:
        """A generator on (B,n,3,H,W), frame by frame."""
        return network(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
