"""The parts that ToDayGAN and PearlGAN share: encoder and decoder of a domain, three-headed
discriminator, relativistic GAN, training step.

Anoosheh et al., *ComboGAN: Unrestrained scalability for image domain translation*, CVPR workshops
2018 (encoders and decoders that belong to domains); Anoosheh et al., ICRA 2019 (ToDayGAN:
discriminator); Jolicoeur-Martineau, ICLR 2019 (relativistic GAN); Miyato et al., ICLR 2018
(spectral norm).

Every domain has an encoder and a decoder; a translator is the encoder of one domain and the decoder
of the other. Neither paper trains an encoder with the decoder of its own domain, so there are two
translators: "generator" (thermal to visible) and "inverse".

Sources: models/networks.py and models/combogan_model.py of FuyaLuo/PearlGAN at ce221ad, which also
has ToDayGAN's discriminator, and models/combogan_model.py of AAnoosheh/ToDayGAN at
1399700 (step, losses).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.method import ImagePool, Losses, Method, StepContext, frozen, in_full_precision
from cmmfnet.nn.patchgan import InstanceNorm, last_conv

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch


class ResidualBlock(nn.Module):
    """x + IN(conv(PReLU(IN(conv(x))))): 3x3, reflect padding. ``forward(x (B,C,H,W)) ->
    (B,C,H,W)``; H and W are 2 at least."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm(channels),
            nn.PReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), InstanceNorm(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def encoding_layers(inputs: int, width: int) -> list[nn.Module]:
    """7x7 to ``width``, then two 3x3 of stride 2 that double it; IN and PReLU behind each.
    (B,inputs,H,W) -> (B,4w,H/4,W/4)."""
    return [
        nn.ReflectionPad2d(3), nn.Conv2d(inputs, width, 7), InstanceNorm(width), nn.PReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), InstanceNorm(2 * width), nn.PReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), InstanceNorm(4 * width),
        nn.PReLU(),
    ]  # fmt: skip


def decoding_layers(
    width: int, outputs: int, norm: type[nn.Module] = InstanceNorm
) -> list[nn.Module]:
    """Two 4x4 transposed convolutions of stride 2, each with ``norm(channels)`` and PReLU; 7x7,
    tanh. The inverse shape."""
    return [
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1), norm(2 * width),
        nn.PReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), norm(width), nn.PReLU(),
        *last_conv(width, outputs),
    ]  # fmt: skip


class Head(nn.Module):
    """Patch discriminator that answers at several depths: 4x4 convolutions, PReLU.

    ``forward(x (B,C,H,W)) -> [(B,h,w), ...]``, one map of logits for each of ``layers`` depths, the
    deepest last. A layer in the middle has a channel more than the next one takes: that channel is
    its answer. Padding is 2. ``norm``: "spectral", of every convolution (PearlGAN), or "instance",
    behind every convolution but the first and the last (ToDayGAN).
    """

    def __init__(self, inputs: int, width: int, layers: int, norm: str = "spectral"):
        super().__init__()
        if norm not in ("spectral", "instance"):
            raise ValueError(f"norm is {norm!r}; expected 'spectral' or 'instance'")

        def conv(a: int, b: int, stride: int) -> nn.Module:
            layer = nn.Conv2d(a, b, 4, stride=stride, padding=2)
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)
            return nn.utils.parametrizations.spectral_norm(layer) if norm == "spectral" else layer

        def inner(a: int, b: int, stride: int) -> list[nn.Module]:
            norms = [InstanceNorm(b)] if norm == "instance" else []
            return [conv(a, b, stride), *norms, nn.PReLU()]

        sizes = [width * min(2**i, 8) for i in range(layers + 1)]
        self.enter = nn.Sequential(conv(inputs, width, 2), nn.PReLU())
        self.middle = nn.ModuleList(
            nn.Sequential(*inner(a, b + 1, 2)) for a, b in pairwise(sizes[:-1])
        )
        self.leave = nn.Sequential(*inner(sizes[-2], sizes[-1], 1), conv(sizes[-1], 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, answers = self.enter(x), []
        for layer in self.middle:
            x = layer(x)
            answers.append(x[:, -1])
            x = x[:, :-1]
        return [*answers, self.leave(x)[:, 0]]


def luma(picture: Tensor) -> Tensor:
    """(B,3,H,W) -> (B,1,H,W): ITU-R 601."""
    return (picture * picture.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(
        dim=1, keepdim=True
    )


class ThreeHeadedDiscriminator(nn.Module):
    """Colour, texture and gradient are judged apart (ToDayGAN, section III-B): blurred colours (5x5
    Gaussian, sigma 3), grey, and the two central differences of grey at half size (every second
    pixel). 16,698,201 parameters at the paper's width.

    ``forward(picture (B,3,H,W) in [-1,1]) -> three lists`` of logits (B,h,w), see :class:`Head`,
    which also explains ``norm``. H and W are 16 at least.
    """

    def __init__(self, width: int = 64, layers: int = 4, norm: str = "spectral"):
        super().__init__()
        self.colour = Head(3, width, layers, norm)
        self.grey = Head(1, width, layers, norm)
        self.gradient = Head(2, width, layers - 1, norm)
        offsets = torch.arange(-2.0, 3.0)
        line = torch.exp(-offsets.square() / (2 * 3**2))
        self.register_buffer(
            "blur",
            (line[:, None] * line / line.sum() ** 2).expand(3, 1, 5, 5).clone(),
            persistent=False,
        )

    def forward(self, picture: Tensor) -> list[list[Tensor]]:
        blurred = F.conv2d(picture, self.blur, groups=3, padding=2)
        grey = luma(picture)
        half = grey[:, :, ::2, ::2]
        across = half[:, :, 1:-1, 2:] - half[:, :, 1:-1, :-2]
        down = half[:, :, 2:, 1:-1] - half[:, :, :-2, 1:-1]
        return [
            self.colour(blurred),
            self.grey(grey),
            self.gradient(torch.cat([across, down], dim=1)),
        ]


def relativistic_loss(real: list[list[Tensor]], fake: list[list[Tensor]], judge: bool) -> Tensor:
    """Relativistic least squares: mean of (real - fake - 1)^2 for the discriminator (``judge``), of
    (fake - real - 1)^2 for the generator.

    A head's answers weigh 1, 2, ... with depth, and the deepest one more; their weighted mean is
    divided by their number. The mean over the heads is returned.
    """
    heads = []
    for real_head, fake_head in zip(real, fake, strict=True):
        weights = list(range(1, len(real_head) + 1))
        weights[-1] += 1
        total = torch.zeros((), device=real_head[0].device)
        for weight, r, f in zip(weights, real_head, fake_head, strict=True):
            lead = r.float() - f.float() if judge else f.float() - r.float()
            total = total + weight * (lead - 1).square().mean()
        heads.append(total / (sum(weights) * len(weights)))
    return torch.stack(heads).mean()


class DomainTranslation(Method):
    """The training step of ToDayGAN and PearlGAN: both translators, then both discriminators on
    half of their loss, with fakes out of a pool of 50. ``losses``: ``adversarial`` (relativistic,
    both domains) and ``cycle`` (smooth L1, both directions); a subclass adds its own in
    :meth:`more`."""

    paired = False
    optimisers: ClassVar[dict[str, tuple[str, ...]]] = {
        "generator": ("generator", "inverse"),
        "discriminator": ("discriminator_visible", "discriminator_thermal"),
    }
    MORE_OF_CYCLE: ClassVar[Sequence[str]] = ()  # losses of a subclass that need ``back``
    discriminator_norm: ClassVar[str] = "spectral"

    def __init__(
        self,
        network: nn.Module,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        discriminator_width: int = 64,
    ):
        super().__init__(network, losses, pretrained=pretrained)
        self.networks["inverse"] = type(network)(**network.keywords)
        if "adversarial" in self.weights:
            for kind in ("visible", "thermal"):
                self.networks[f"discriminator_{kind}"] = ThreeHeadedDiscriminator(
                    discriminator_width, norm=self.discriminator_norm
                )
                self.pools[kind] = ImagePool()
        else:
            self.optimisers = {"generator": ("generator", "inverse")}

    def translate(self, name: str, picture: Tensor) -> tuple[Tensor, object]:
        """The output of the translator ``name``, and further results for :meth:`more`."""
        return self.networks[name](picture), None

    def more(
        self, batch: Batch, real: dict, fake: dict, back: dict, seen: dict, moment: StepContext
    ) -> Losses:
        """Losses of a subclass, without weights.

        ``real``, ``fake``, ``back``: domain -> picture (B,3,H,W). ``back`` is ``real`` after both
        translators; it is empty where no loss needs it. ``seen``: (translator, "real" or "fake") ->
        the second result of :meth:`translate` for that input.
        """
        return {}

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        real = {"thermal": batch.thermal.expand(-1, 3, -1, -1), "visible": batch.visible}
        routes = {"generator": ("thermal", "visible"), "inverse": ("visible", "thermal")}
        fake, back, seen = {}, {}, {}
        for name, (source, target) in routes.items():
            fake[target], seen[name, "real"] = self.translate(name, real[source])
        if any(loss in self.weights for loss in ("cycle", *self.MORE_OF_CYCLE)):
            for name, (source, target) in routes.items():
                back[target], seen[name, "fake"] = self.translate(name, fake[source])
        losses: Losses = {}
        if "adversarial" in self.weights:
            losses["adversarial"] = batch.thermal.new_zeros(())
            for kind in fake:
                with frozen(self.networks[f"discriminator_{kind}"]) as judge:
                    with torch.no_grad():
                        truth = in_full_precision(judge, real[kind])
                    answer = in_full_precision(judge, fake[kind])
                    losses["adversarial"] = losses["adversarial"] + relativistic_loss(
                        truth, answer, judge=False
                    )
        if "cycle" in self.weights:
            losses["cycle"] = sum(
                F.smooth_l1_loss(back[kind].float(), real[kind].float()) for kind in real
            )
        losses |= self.more(batch, real, fake, back, seen, moment)
        yield "generator", {name: loss * self.weights[name] for name, loss in losses.items()}
        if "adversarial" in self.weights:
            judged: Losses = {}
            for kind in real:
                judge = self.networks[f"discriminator_{kind}"]
                old = self.pools[kind](fake[kind], batch, moment)
                truth, answer = in_full_precision(judge, real[kind]), in_full_precision(judge, old)
                judged[f"discriminator_{kind}"] = relativistic_loss(truth, answer, judge=True) / 2
            yield "discriminator", judged
