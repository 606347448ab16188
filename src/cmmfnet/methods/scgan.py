"""SCGAN: saliency map-guided colourisation, in two stages, with a global feature network and a
Wasserstein critic.

Zhao et al., *SCGAN: Saliency Map-Guided Colorization With Generative Adversarial Network*, IEEE
TCSVT 2021 (arXiv 2011.11377), in the form of the authors' code for KAIST. Counted with the vectors
of spectral norm, as there: generator 57,270,525 (the global feature network 17,120,713 of them),
saliency branch 1,638,913, for training only and so a network of its own here, critic 5,788,229.
Thermal frames have one channel. The sizes fix the layers and their norms. Our choices: the places
of the global network's strides, the joins of the saliency branch's layers, the critic's padding by
reflection.

Not available: the pre-training of the global feature network on gray ImageNet (it starts at random
and learns with the rest) and PFAN's saliency maps (``saliency`` of the method takes a folder of any
maps; without one, saliency.frequency_tuned estimates them).

Fixed: the original's targets are in [0,1], its output in [-1,1], so that half of tanh's range is
    wrong for every pixel. Here the output is in [-1,1], and the losses and the critic see it in
    [0,1], where the paper's weights belong. In the original's multi-GPU script the perceptual
    network wraps the generator by mistake. Its validation frames are of the training videos: a
    matter of the data set's splits here. Batch norm uses its running statistics in evaluation, so
    that a picture's colours do not depend on what else is in the batch. Kept: batch norm in a
    critic that is penalised for its gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.method import Losses, Method, StepContext, frozen, in_full_precision, unwrapped
from cmmfnet.methods.saliency import SaliencyMaps, frequency_tuned
from cmmfnet.nn.losses import l1
from cmmfnet.nn.perceptual import Perceptual

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch

JOIN = 5  # level at which the global features are concatenated: stride 32
PENALTY = 10.0  # weight of the gradient penalty (Gulrajani et al., NeurIPS 2017)


class Convolution(nn.Module):
    """Reflect padding, convolution with spectral norm and without bias, batch norm where ``norm``,
    LeakyReLU 0.2 where ``active``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        norm: bool = True,
        active: bool = True,
    ):
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, stride, bias=False)
        nn.init.normal_(conv.weight, 0.0, 0.02)
        self.conv = nn.utils.parametrizations.spectral_norm(conv)
        self.norm = nn.BatchNorm2d(outputs) if norm else None
        self.active = active
        self.padding = ((kernel - 1) // 2,) * 4

    def forward(self, x: Tensor) -> Tensor:
        # a map of one pixel has nothing to mirror
        x = F.pad(
            x, self.padding, mode="reflect" if min(x.shape[-2:]) > self.padding[0] else "replicate"
        )
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.leaky_relu(x, 0.2) if self.active else x


def global_features(width: int) -> nn.Sequential:
    """VGG-16 with batch norm, with convolutions of stride 2 in the place of pooling: the first of
    each level after the first, and a fourteenth for the last pool. (B,1,H,W) ->
    (B,8*width,H/32,W/32)."""
    layers: list[nn.Module] = [Convolution(1, width, norm=False), Convolution(width, width)]
    for a, b, count in ((1, 2, 2), (2, 4, 3), (4, 8, 3), (8, 8, 3)):
        layers.append(Convolution(a * width, b * width, stride=2))
        layers += [Convolution(b * width, b * width) for _ in range(count - 1)]
    return nn.Sequential(*layers, Convolution(8 * width, 8 * width, stride=2))


class SCGANGenerator(nn.Module):
    """U-Net of nine levels whose sixth is joined by global features.

    ``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W) in [-1,1]``; H and W are multiples of 32
    (the paper: 256, where the smallest map has one pixel). ``maps=True`` also returns the decoder's
    maps at H/8, H/4 and H/2, which :class:`SaliencyBranch` reads. ``levels`` is 7 at least.
    """

    multiple_of = 32  # the global features meet the encoder at this stride

    def __init__(self, *, width: int = 64, levels: int = 9, global_width: int = 64):
        super().__init__()
        if levels < JOIN + 2:
            raise ValueError(f"levels is {levels}; expected {JOIN + 2} or more")
        self.width = width
        widths = [width * min(2**i, 8) for i in range(levels)]
        self.features = global_features(global_width)
        self.encode = nn.ModuleList([Convolution(1, width, 7, norm=False)])
        for i in range(1, levels):
            inputs = widths[i - 1] + (8 * global_width if i == JOIN + 1 else 0)
            # the last map has one pixel at the paper's size: no statistics
            self.encode.append(Convolution(inputs, widths[i], stride=2, norm=i < levels - 1))
        self.decode = nn.ModuleList(
            Convolution(widths[i + 1] * (1 if i == levels - 2 else 2), widths[i])
            for i in range(levels - 1)
        )
        self.last = Convolution(2 * width, 3, norm=False, active=False)

    def forward(
        self,
        thermal: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        maps: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        if (
            thermal.ndim != 4
            or thermal.shape[1] != 1
            or any(n % self.multiple_of for n in thermal.shape[2:])
        ):
            raise ValueError(
                f"thermal is {tuple(thermal.shape)}; expected (B,1,H,W) with H and W multiples of "
                "32"
            )
        x, skips = thermal, []
        for i, layer in enumerate(self.encode):
            x = layer(x)
            skips.append(x)
            if i == JOIN:
                x = torch.cat([x, self.features(thermal)], dim=1)
        seen: dict[int, Tensor] = {}
        for i in reversed(range(len(self.decode))):
            seen[i] = self.decode[i](F.interpolate(x, skips[i].shape[-2:], mode="nearest"))
            x = torch.cat([seen[i], skips[i]], dim=1)
        colour = torch.tanh(self.last(x))
        return (colour, [seen[3], seen[2], seen[1]]) if maps else colour


class SaliencyBranch(nn.Module):
    """Predicts the saliency of the output from the generator's decoder maps: (B,8w,H/8,W/8),
    (B,4w,H/4,W/4), (B,2w,H/2,W/2) -> (B,1,H,W) in (0,1)."""

    def __init__(self, width: int = 64):
        super().__init__()
        w = 2 * width
        self.reduce = nn.ModuleList(Convolution(k * width, w) for k in (8, 4, 2))
        self.join = nn.Sequential(Convolution(3 * w, w))
        self.leave = nn.Sequential(
            Convolution(w, w), Convolution(w, 1, norm=False, active=False), nn.Sigmoid()
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[-1].shape[-2:]
        parts = [
            F.interpolate(conv(m), size, mode="nearest")
            for conv, m in zip(self.reduce, maps, strict=True)
        ]
        return self.leave(
            F.interpolate(self.join(torch.cat(parts, dim=1)), scale_factor=2.0, mode="nearest")
        )


class Critic(nn.Module):
    """Patch critic on thermal and colour, spectral norm and batch norm. ``forward(thermal
    (B,1,H,W), colour (B,3,H,W)) -> (B,1,H/8-2,W/8-2)``, without bounds; H and W are multiples of 8,
    32 at least."""

    def __init__(self, width: int = 64):
        super().__init__()
        w = width
        self.layers = nn.Sequential(
            Convolution(4, w, 7, norm=False), Convolution(w, 2 * w, stride=2),
            Convolution(2 * w, 4 * w, stride=2),
            Convolution(4 * w, 8 * w, stride=2), Convolution(8 * w, 8 * w, 4),
            Convolution(8 * w, 1, 4, norm=False, active=False),
        )  # fmt: skip

    def forward(self, thermal: Tensor, colour: Tensor) -> Tensor:
        return self.layers(torch.cat([thermal, colour], dim=1))


def gradient_penalty(
    critic: nn.Module, thermal: Tensor, real: Tensor, fake: Tensor, share: Tensor
) -> Tensor:
    """Mean over pictures of (norm of the critic's gradient - 1)^2, at a point between real and fake
    colour (Gulrajani et al., eq. 3). ``share`` (B,1,1,1) in [0,1] is the real one's. The critic's
    answer is the sum of its patches."""
    between = torch.lerp(fake.detach().float(), real.float(), share).requires_grad_(True)
    answer = critic(thermal.float(), between)
    (gradient,) = torch.autograd.grad(answer.sum(), between, create_graph=True)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


class SCGAN(Method):
    """``losses``: ``l1``, ``attention`` (L1 of output times predicted saliency against target times
    reference saliency), ``perceptual`` (L1 of VGG-16's conv3_3, ImageNet-normalised),
    ``adversarial`` (Wasserstein critic with gradient penalty 10). The first two make stage 1, all
    of them stage 2. The critic makes its step first, once for each of the generator's.

    ``stage_two``: part of the training at which stage 2 begins (the paper: 10 of 40 epochs); until
    then the critic waits. ``saliency``: a folder of saliency maps named like the frames
    (saliency.SaliencyMaps). ``discriminator_width``: channels of the critic's first layer, to train
    a reduced size.
    """

    Network = SCGANGenerator
    title = "SCGAN"
    paper = "Zhao et al., Saliency map-guided colorization with GAN, IEEE TCSVT 2021"
    LOSSES: ClassVar[dict[str, float]] = {
        "l1": 1.0,
        "attention": 0.5,
        "perceptual": 5.0,
        "adversarial": 0.05,
    }
    optimisers: ClassVar[dict[str, tuple[str, ...]]] = {
        "discriminator": ("discriminator",), "generator": ("generator", "saliency"),
    }  # fmt: skip

    def __init__(
        self,
        network: SCGANGenerator,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        stage_two: float = 0.25,
        saliency: str | None = None,
        discriminator_width: int = 64,
    ):
        super().__init__(network, losses, pretrained=pretrained)
        if not 0 <= stage_two <= 1:
            raise ValueError(
                f"stage_two is {stage_two}; expected 0 to 1, the part of the training where it "
                "begins"
            )
        if stage_two and not {"l1", "attention"} & set(self.weights):
            raise ValueError(
                f"losses are {losses}: stage 1 needs l1 or attention; set stage_two to 0 to go "
                "without it"
            )
        self.stage_two = stage_two
        self.perceptual = None
        if "perceptual" in self.weights:
            self.perceptual = Perceptual("vgg16", "l1", pretrained, layers=("conv3_3",))
        self.optimisers = {}  # without what no loss needs
        if "adversarial" in self.weights:
            self.networks["discriminator"] = Critic(discriminator_width)
            self.optimisers["discriminator"] = ("discriminator",)
        self.optimisers["generator"] = ("generator",)
        if "attention" in self.weights:
            self.networks["saliency"] = SaliencyBranch(network.width)
            self.optimisers["generator"] = ("generator", "saliency")
            self.maps = SaliencyMaps(saliency) if saliency is not None else None
            if self.maps is None:
                warnings.warn(
                    "SCGAN's reference saliency is the frequency-tuned estimate of Achanta et al. "
                    "(CVPR 2009) from the "
                    "colour crops, not the paper's PFAN; a folder of maps is taken with options: "
                    "{saliency: FOLDER}",
                    stacklevel=2,
                )

    def to(self, device: torch.device) -> None:
        if self.perceptual is not None:
            self.perceptual.to(device)

    @classmethod
    def size(cls, network: nn.Module) -> int:
        """With the vectors of spectral norm, which the authors' code keeps as parameters without a
        gradient."""
        vectors = sum(
            b.numel() for name, b in network.named_buffers() if name.endswith(("._u", "._v"))
        )
        return super().size(network) + vectors

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        thermal, truth = batch.thermal * 0.5 + 0.5, batch.visible * 0.5 + 0.5
        output, maps = self.networks["generator"](batch.thermal, maps=True)
        colour = output * 0.5 + 0.5
        second = moment.progress >= self.stage_two
        losses: Losses = {}
        if "adversarial" in self.weights:
            if second:
                critic = self.networks["discriminator"]
                fake = in_full_precision(critic, thermal, colour.detach())
                real = in_full_precision(critic, thermal, truth)
                draws = [moment.rng(position).random() for position in batch.positions]
                share = torch.tensor(draws, device=truth.device, dtype=torch.float32).view(
                    -1, 1, 1, 1
                )
                with torch.autocast(truth.device.type, enabled=False):
                    penalty = gradient_penalty(unwrapped(critic), thermal, truth, colour, share)
                distance = real.mean() - fake.mean()
                yield (
                    "discriminator",
                    {"discriminator": -distance, "gradient_penalty": PENALTY * penalty},
                )
                with frozen(critic) as judge:
                    losses["adversarial"] = -in_full_precision(judge, thermal, colour).mean()
            # reaches none of the critic's weights, so that Adam leaves them and its moments as they
            # are
            else:
                yield (
                    "discriminator",
                    {"discriminator": torch.zeros((), device=truth.device, requires_grad=True)},
                )
        if "l1" in self.weights:
            losses["l1"] = l1(colour, truth)
        if "attention" in self.weights:
            looked = self.networks["saliency"](maps)
            reference = (
                self.maps(batch) if self.maps is not None else frequency_tuned(batch.visible)
            )
            losses["attention"] = l1(colour * looked, truth * reference)
        if self.perceptual is not None and second:
            losses["perceptual"] = self.perceptual(output, batch.visible).mean()
        yield "generator", {name: loss * self.weights[name] for name, loss in losses.items()}
