"""PearlGAN: thermal at night to colour by day with top-down attention and aligned gradients, from
unpaired pictures.

Luo et al., *Thermal Infrared Image Colorization for Nighttime Driving Scenes with Top-Down Guided
Attention*, IEEE TITS 2022 (arXiv 2104.14374), in the form of the authors' code: encoder 5,167,244
parameters, decoder 6,634,255 a domain, discriminator 16,698,201 a domain; a thermal frame is read
as three equal channels. Only the generator from thermal to visible is kept in a model. Skeleton,
discriminator and step are ToDayGAN's (combogan.py).

Other than the original:
- Edge maps are made on line, from the training crops, and both domains' with Canny's method
  (thresholds .1 and .2 of the largest gradient, the paper's for colour). The paper's for thermal
  frames come from MCI, a model of surround inhibition whose program was not released. A hot
  contour's texture thus counts as an edge more often.
- The attention losses work picture by picture; the original's assume a batch of one.
- The exact formulas of the two attention losses and of the gradient alignment were not at hand.
  What stands in :func:`diversity_loss`, :func:`alignment_loss` and :func:`gradient_alignment_loss`
  follows their description: scales attend to different places; a translation attends to where its
  source did; edges of the source are steep in the translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.combogan import (
    DomainTranslation,
    ResidualBlock,
    decoding_layers,
    encoding_layers,
    luma,
)
from cmmfnet.methods.method import Losses, Moment
from cmmfnet.nn.edges import gradient_maxima
from cmmfnet.nn.losses import ssim
from cmmfnet.nn.patchgan import InstanceNorm, as_channels, init_normal


def standardised(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm of a map (B,1,h,w), float32. One pixel becomes 0 and has a gradient (of 0),
    which DDP waits for."""
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + eps)


class TopDownAttention(nn.Module):
    """Top-down guided attention: coarse context decides where finer scales look (section III-B).

    1x1 convolution, IN, PReLU; the channels split into four groups, averaged by 3x3 windows at
    strides 2, 4, 8, 16. From the coarsest to the finest, a 3x3 convolution, IN and sigmoid make a
    map, by which the next finer group m is gated: m * map + m. Each map, enlarged, multiplies its
    group; the groups together are added to the input.

    ``forward(x (B,C,h,w)) -> (B,C,h,w), maps``: four of (B,1,h,w) in (0,1), strides 2 to 16. C is a
    multiple of 4.
    """

    STRIDES = (2, 4, 8, 16)

    def __init__(self, channels: int):
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(channels, channels, 1), InstanceNorm(channels), nn.PReLU()
        )
        self.look = nn.ModuleList(nn.Conv2d(channels // 4, 1, 3, padding=1) for _ in self.STRIDES)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        groups = self.enter(x).chunk(4, dim=1)
        maps: list[Tensor] = []
        above = None
        for group, stride, conv in reversed(
            list(zip(groups, self.STRIDES, self.look, strict=True))
        ):
            pooled = F.avg_pool2d(group, 3, stride=stride, padding=1)
            if above is not None:
                pooled = pooled * self._enlarged(above, pooled) + pooled
            above = torch.sigmoid(standardised(conv(pooled)))
            maps.insert(0, self._enlarged(above, x))
        return x + torch.cat(
            [group * m.to(group.dtype) for group, m in zip(groups, maps, strict=True)], dim=1
        ), maps

    @staticmethod
    def _enlarged(small: Tensor, large: Tensor) -> Tensor:
        return F.interpolate(small, large.shape[-2:], mode="bilinear", align_corners=False)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)


class AttentionTranslator(nn.Module):
    """Encoder of one domain, decoder of the other, each with top-down attention at H/4.

    ``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W) in [-1,1]``; a colour picture (B,3,H,W) is
    taken as it is. H and W are multiples of 8. ``attention=True`` also returns the attention maps
    (B,1,H/4,W/4), four of the encoder and four of the decoder. ``encoder_blocks`` and
    ``decoder_blocks``: residual blocks at H/4.
    """

    # 4 for the strides; 8 so that the smallest map has the two pixels that reflect padding needs
    multiple_of = 8

    def __init__(self, *, width: int = 64, encoder_blocks: int = 4, decoder_blocks: int = 5):
        super().__init__()
        self.keywords = {
            "width": width,
            "encoder_blocks": encoder_blocks,
            "decoder_blocks": decoder_blocks,
        }
        self.encoder = nn.ModuleList([
            nn.Sequential(*encoding_layers(3, width)), TopDownAttention(4 * width),
            nn.Sequential(*(ResidualBlock(4 * width) for _ in range(encoder_blocks))),
        ])  # fmt: skip
        self.decoder = nn.ModuleList([
            TopDownAttention(4 * width),
            nn.Sequential(*(ResidualBlock(4 * width) for _ in range(decoder_blocks))),
            nn.Sequential(*decoding_layers(width, 3, group_norm)),
        ])  # fmt: skip
        init_normal(self)

    def forward(
        self,
        thermal: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        attention: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor], list[Tensor]]:
        enter, look, encode = self.encoder
        x, encoder_maps = look(enter(as_channels(thermal, 3, self.multiple_of)))
        look, decode, leave = self.decoder
        x, decoder_maps = look(encode(x))
        colour = leave(decode(x))
        return (colour, encoder_maps, decoder_maps) if attention else colour


def diversity_loss(maps: Sequence[Tensor]) -> Tensor:
    """Scales are to attend to different places: cosine similarity of two maps (B,1,h,w), mean over
    pairs of scales."""
    flat = [m.float().flatten(1) for m in maps]
    return torch.stack(
        [F.cosine_similarity(a, b, dim=1).mean() for a, b in combinations(flat, 2)]
    ).mean()


def alignment_loss(source: Sequence[Tensor], translation: Sequence[Tensor]) -> Tensor:
    """A translation's maps are to be its source's: mean |difference|, mean over scales. The
    source's have no gradient."""
    return torch.stack(
        [(a.detach() - b).abs().mean() for a, b in zip(source, translation, strict=True)]
    ).mean()


def edge_map(picture: Tensor, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Canny edges of pictures (B,3,H,W) in [-1,1] -> (B,1,H,W) float32, 1 on an edge. Thresholds
    are shares of a picture's largest gradient, after a Gaussian of sigma sqrt(2): Matlab's way, and
    that of edges.py."""
    from scipy import ndimage

    grey = ((luma(picture.float()) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()[:, 0]
    maps = []
    for frame in grey:
        maxima = gradient_maxima(frame)
        largest = maxima.max()
        labels, count = ndimage.label(maxima > low * largest, np.ones((3, 3), bool))
        strong = np.zeros(count + 1, bool)
        strong[labels[maxima > high * largest]] = True
        maps.append(strong[labels])
    return torch.from_numpy(np.stack(maps)).float().unsqueeze(1).to(picture.device)


def gradient_alignment_loss(
    translation: Tensor, edges: Tensor, threshold: float, patch: int = 8
) -> Tensor:
    """Edges of the source are to be among the steepest places of the translation around them: at
    every edge pixel, what the grey gradient's magnitude lacks to ``threshold`` times the largest in
    its patch of ``patch`` x ``patch`` pixels, in parts of that largest (and 0.01 more, so that a
    flat patch lacks everything); mean over edge pixels. Contrast is free.

    translation (B,3,H,W), edges (B,1,H,W) in {0,1}; H and W are multiples of ``patch``.
    """
    grey = F.pad(luma(translation.float()), (1, 1, 1, 1), mode="replicate")
    across, down = (
        grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2],
        grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1],
    )
    size = (across.square() + down.square() + 1e-8).sqrt()  # the root has no gradient at 0
    largest = F.interpolate(F.max_pool2d(size, patch), scale_factor=patch, mode="nearest")
    return (F.relu(threshold - size / (largest + 0.01)) * edges).sum() / edges.sum().clamp_min(1)


def squared_variation(x: Tensor) -> Tensor:
    """Total variation with squares: mean of the squared differences of vertical neighbours, plus
    that of horizontal ones."""
    x = x.float()
    return (x[:, :, 1:] - x[:, :, :-1]).square().mean() + (x[..., 1:] - x[..., :-1]).square().mean()


class PearlGAN(DomainTranslation):
    """``losses``, all for both directions: ``adversarial`` (relativistic least squares on three
    heads), ``cycle`` (smooth L1), ``ssim`` (of the same, 3-pixel window), ``gradient`` (structured
    gradient alignment), ``tv`` (squared), ``diversity`` and ``alignment`` of attention. Both
    translators make one step together, then both discriminators.

    ``late``: part of the training before ``ssim`` and ``alignment`` begin (the paper: epoch 30 of
    120 on KAIST, 10 of 80 on FLIR). ``edge_threshold``: of the gradient alignment (the paper: .44
    on KAIST, .8 on FLIR). ``discriminator_width``: channels of the discriminators' first layer, to
    train a reduced size.
    """

    Network = AttentionTranslator
    title = "PearlGAN"
    paper = "Luo et al., Thermal infrared image colorization with top-down guided attention, IEEE TITS 2022"
    LOSSES: ClassVar[dict[str, float]] = {
        "adversarial": 1.0, "cycle": 10.0, "ssim": 1.0, "gradient": 0.5, "tv": 5.0,
        "diversity": 1.0, "alignment": 1.0,
    }  # fmt: skip
    MORE_OF_CYCLE = ("ssim", "alignment")

    def __init__(
        self,
        network: AttentionTranslator,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        late: float = 0.25,
        edge_threshold: float = 0.44,
        discriminator_width: int = 64,
    ):
        super().__init__(
            network, losses, pretrained=pretrained, discriminator_width=discriminator_width
        )
        if not 0 <= edge_threshold <= 1 or not 0 <= late <= 1:
            raise ValueError(f"edge_threshold is {edge_threshold}, late is {late}; expected 0 to 1")
        if late and not set(self.weights) - {"ssim", "alignment"}:
            raise ValueError(
                f"losses are {losses}: nothing trains before ssim and alignment begin; set late "
                "to 0"
            )
        self.late, self.edge_threshold = late, edge_threshold

    def translate(
        self, name: str, picture: Tensor
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        colour, encoder_maps, decoder_maps = self.networks[name](picture, attention=True)
        return colour, (encoder_maps, decoder_maps)

    def more(self, real: dict, fake: dict, back: dict, seen: dict, moment: Moment) -> Losses:
        losses: Losses = {}
        if "tv" in self.weights:
            losses["tv"] = squared_variation(fake["visible"]) + squared_variation(fake["thermal"])
        if "gradient" in self.weights:
            losses["gradient"] = sum(
                gradient_alignment_loss(fake[target], edge_map(real[source]), self.edge_threshold)
                for source, target in (("thermal", "visible"), ("visible", "thermal"))
            )
        if "diversity" in self.weights:
            losses["diversity"] = sum(
                diversity_loss(maps)
                for name in ("generator", "inverse")
                for maps in seen[name, "real"]
            )
        if moment.progress >= self.late:
            if "ssim" in self.weights:
                losses["ssim"] = sum(1 - ssim(back[kind], real[kind], window=3) for kind in real)
            if "alignment" in self.weights:  # the other domain's encoder reads the translation
                losses["alignment"] = sum(
                    alignment_loss(seen[name, "real"][0], seen[other, "fake"][0])
                    for name, other in (("generator", "inverse"), ("inverse", "generator"))
                )
        return losses
