"""Matched: the released recipe's losses for the network of any method, so that architecture and
recipe can be told apart.

No paper: L1, a perceptual distance, SSIM, TV and a light hinge PatchGAN, as configs/cmmfnet.yaml
weighs them. CMMF-Net's own training (cmmfnet/method.py) adds text and its auxiliary heads to the
same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from cmmfnet.methods.method import (
    Losses,
    Method,
    StepContext,
    frozen,
    in_full_precision,
    sent,
)
from cmmfnet.nn.blocks import PatchDiscriminator
from cmmfnet.nn.fast.graphed import GraphedTraining
from cmmfnet.nn.losses import PictureLosses, hinge_discriminator, hinge_generator
from cmmfnet.nn.perceptual import Cropped, Perceptual

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch
    from cmmfnet.training.recipe import Recipe


class Matched(Method):
    """The losses of configs/cmmfnet.yaml, for any network.

    ``adversarial_start``: part of the training, 0 to 1, before the discriminator's loss reaches the
    generator; the discriminator learns from the start. ``perceptual``, ``perceptual_mode``,
    ``perceptual_layers``, ``perceptual_weights``, ``perceptual_imagenet``: network, mode, layers,
    layer weights and normalisation of the perceptual loss (perceptual.Perceptual).
    """

    title: ClassVar[str] = "matched"
    paper: ClassVar[str] = "the losses of configs/cmmfnet.yaml"
    LOSSES: ClassVar[dict[str, float]] = {
        "l1": 2.0, "perceptual": 1.0, "ssim": 0.5, "tv": 0.0, "adversarial": 0.015,
    }  # fmt: skip
    captured: ClassVar[tuple[str, ...]] = ("generator",)
    OPTIONS: ClassVar[tuple[str, ...]] = (
        "perceptual",
        "perceptual_mode",
        "perceptual_layers",
        "perceptual_weights",
        "perceptual_imagenet",
        "adversarial_start",
    )

    def __init__(
        self,
        network: nn.Module,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        perceptual: str = "vgg16",
        perceptual_mode: str = "lpips",
        perceptual_layers: Sequence[str] | str | None = None,
        perceptual_weights: Sequence[float] | None = None,
        perceptual_imagenet: bool = True,
        adversarial_start: float = 0.0,
    ):
        super().__init__(network, losses, pretrained=pretrained)
        self.adversarial_start = adversarial_start
        self._graphed: GraphedTraining | None = None
        self._losses: PictureLosses | GraphedTraining | None = None
        self.perceptual = None
        if "perceptual" in self.weights:
            self.perceptual = Perceptual(
                perceptual,
                perceptual_mode,
                pretrained,
                layers=perceptual_layers,
                layer_weights=perceptual_weights,
                imagenet=perceptual_imagenet,
            )
        if "adversarial" in self.weights:
            self.networks["discriminator"] = PatchDiscriminator()
            self.optimisers = {"generator": ("generator",), "discriminator": ("discriminator",)}

    def to(self, device: torch.device) -> None:
        if self.perceptual is not None:
            self.perceptual.to(device)

    def parameter_groups(self, optimiser: str, recipe: Recipe) -> list[dict]:
        """Weight decay on the generator's matrices only; the discriminator has Adam's moments of
        the GAN papers."""
        if optimiser == "discriminator":
            return [
                {"params": list(self.networks["discriminator"].parameters()), "betas": (0.5, 0.999)}
            ]
        parameters = [p for p in self.networks["generator"].parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def colour(self, batch: Batch, moment: StepContext) -> tuple[Tensor, Losses]:
        """The pictures (B,3,H,W) of a batch, and losses that only this network has."""
        return self.generate(batch.thermal), {}

    def generate(self, *inputs: Tensor | None, **options: bool) -> Any:
        """The generator's output, by CUDA graphs where ``graphs`` allows; once a step, with the
        same options."""
        network = self.networks["generator"]
        if not self.graphs or not getattr(network, "capturable", True):
            return network(*inputs, **options)
        if self._graphed is None:
            self._graphed = GraphedTraining(network, **options)
        return self._graphed(*inputs)

    def against(self, colour: Tensor, truth: Tensor) -> Losses:
        """The losses of pictures against their truth, by CUDA graphs where ``graphs`` allows; once
        a step."""
        cropped = isinstance(self.perceptual, Cropped)
        if self._losses is None:
            names = self.weights.keys() & {"l1", "perceptual", "tv", "ssim"}
            distance = self.perceptual.distance if cropped else self.perceptual
            self._losses = PictureLosses(names, distance)
            self.accelerate()
            if self.graphs and names:
                self._losses = GraphedTraining(self._losses)
        # the host draws the place of the square, which a CUDA graph would not repeat
        part = self.perceptual.cut(colour, truth) if cropped else ()
        return self._losses(colour, truth, *part)

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        colour, losses = self.colour(batch, moment)
        truth = batch.visible
        losses |= self.against(colour, truth)
        if "adversarial" in self.weights and moment.progress >= self.adversarial_start:
            with frozen(self.networks["discriminator"]) as judge:
                losses["adversarial"] = hinge_generator(
                    in_full_precision(judge, batch.thermal, colour)
                )
        yield "generator", {name: loss * self.weights[name] for name, loss in losses.items()}
        if "adversarial" in self.weights:
            judge = self.networks["discriminator"]
            real = in_full_precision(judge, batch.thermal, truth)
            fake = in_full_precision(judge, batch.thermal, colour.detach())
            counted = None
            if any(batch.taught):  # a model's colours are not real
                counted = sent(
                    torch.tensor([float(not made) for made in batch.taught]), fake.device
                )
            yield "discriminator", {"discriminator": hinge_discriminator(real, fake, counted)}
