"""PearlGAN: thermal at night to colour by day with top-down attention and aligned gradients, from
unpaired pictures.

Luo et al., *Thermal Infrared Image Colorization for Nighttime Driving Scenes with Top-Down Guided
Attention*, IEEE TITS 2022 (arXiv 2104.14374), in the form of the authors' code: encoder 5,167,244
parameters, decoder 6,634,255 a domain, discriminator 16,698,201 a domain; a thermal frame is read
as three equal channels. Only the generator from thermal to visible is kept in a model. Skeleton,
discriminator and step are ToDayGAN's (combogan.py).

Attention and losses follow models/networks.py and models/combogan_model.py of FuyaLuo/PearlGAN at
ce221ad. Other than the original:

- Edge maps of both domains are made during training, from the training crops, by Canny's method
  (thresholds .1 and .2 of the largest gradient, the paper's for colour). The paper takes edge maps
  of thermal frames from MCI, a model of surround inhibition whose program was not released. So the
  texture of a hot contour counts as an edge more often here.
- The original's attention losses and its gradient alignment take a batch of one picture; here they
  are the mean over pictures.
- Small frames: where a pooled map has a single row or column, its border repeats it, since a
  reflection needs two. Average pooling of a map of two pixels takes a window of two.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

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
from cmmfnet.methods.method import Losses, StepContext
from cmmfnet.nn.edges import gradient_maxima
from cmmfnet.nn.losses import ssim
from cmmfnet.nn.patchgan import InstanceNorm, as_channels, init_normal

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch

CELLS = 8
"""The gradient alignment looks at one cell of a grid of 8 x 8."""


def standardised(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Instance norm of a map (B,1,h,w), float32. One pixel becomes 0 and has a gradient (of 0),
    which DDP waits for."""
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + eps)


class TopDownAttention(nn.Module):
    """Top-down guided attention: coarse context decides where finer scales look (section III-B).

    1x1 convolution, IN, PReLU; the channels split into four groups, averaged by 3x3 windows at
    strides 2, 4, 8, 16, without padding. From the coarsest to the finest, a 3x3 convolution with
    reflected borders, IN and sigmoid make a map, by which the next finer group m is gated: m * map
    + m. Each map, enlarged, multiplies its group; the groups together are added to the input.

    ``forward(x (B,C,h,w)) -> (B,C,h,w), maps (B,4,h,w)`` in (0,1), of strides 2, 4, 8, 16. C is a
    multiple of 4.
    """

    STRIDES = (2, 4, 8, 16)

    def __init__(self, channels: int):
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(channels, channels, 1), InstanceNorm(channels), nn.PReLU()
        )
        self.look = nn.ModuleList(nn.Conv2d(channels // 4, 1, 3) for _ in self.STRIDES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        groups = self.enter(x).chunk(4, dim=1)
        window = [min(3, side) for side in x.shape[2:]]
        maps: list[Tensor] = []
        above = None
        for group, stride, conv in reversed(
            list(zip(groups, self.STRIDES, self.look, strict=True))
        ):
            pooled = F.avg_pool2d(group, window, stride=stride)
            if above is not None:
                pooled = pooled * self._enlarged(above, pooled) + pooled
            border = "reflect" if min(pooled.shape[2:]) > 1 else "replicate"
            above = torch.sigmoid(standardised(conv(F.pad(pooled, (1, 1, 1, 1), mode=border))))
            maps.insert(0, self._enlarged(above, x))
        gated = [group * m.to(group.dtype) for group, m in zip(groups, maps, strict=True)]
        return x + torch.cat(gated, dim=1), torch.cat(maps, dim=1)

    @staticmethod
    def _enlarged(small: Tensor, large: Tensor) -> Tensor:
        return F.interpolate(small, large.shape[-2:], mode="bilinear", align_corners=False)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels), channels)


class AttentionTranslator(nn.Module):
    """Encoder of one domain, decoder of the other, each with top-down attention at H/4.

    ``forward(thermal (B,1,H,W) in [-1,1]) -> (B,3,H,W) in [-1,1]``; a colour picture (B,3,H,W) is
    taken as it is. H and W are multiples of 8. ``attention=True`` also returns the encoder's
    attention maps (B,4,H/4,W/4) and its output (B,C,H/4,W/4). ``encoder_blocks`` and
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
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        enter, look, encode = self.encoder
        x, maps = look(enter(as_channels(thermal, 3, self.multiple_of)))
        encoded = encode(x)
        look, decode, leave = self.decoder
        x, _ = look(encoded)
        colour = leave(decode(x))
        return (colour, maps, encoded) if attention else colour


def attention_loss(maps: Tensor) -> Tensor:
    """Every place should be attended to by one scale: half of a quarter of (sum over scales - 1)^2
    plus 1 - the largest, means over places and pictures. maps (B,S,h,w) in (0,1)."""
    maps = maps.float()
    total = (maps.sum(dim=1) - 1).square().mean() / 4
    return (total + 1 - maps.amax(dim=1).mean()) / 2


def attended(features: Tensor, maps: Tensor) -> Tensor:
    """Mean of the features (B,C,h,w) where each map (B,S,h,w) looks, scaled to unit length:
    (B,S,C) float32."""
    flat, weights = features.float().flatten(2), maps.float().flatten(2)
    means = weights @ flat.transpose(1, 2) / weights.sum(dim=2, keepdim=True)
    return F.normalize(means, dim=2)


def likeness_loss(features: Tensor) -> Tensor:
    """Difference of scales, which should attend to different things: mean product of the unit
    vectors (B,S,C) of different scales, where it is positive; its zeros on the diagonal count. Mean
    over pictures."""
    products = features @ features.transpose(1, 2)
    own = torch.eye(products.shape[1], device=products.device)
    return F.relu((products * (1 - own)).mean(dim=(1, 2))).mean()


def alignment_loss(source: Tensor, other: Tensor, maps: Tensor, other_maps: Tensor) -> Tensor:
    """Alignment of attention: a scale should attend to the same things in both pictures.

    For each scale of ``source``: the largest similarity of its feature to any scale of ``other``
    less its similarity to the same scale, mean over scales weighted by the smaller of both maps'
    maxima; plus a quarter of both pictures' :func:`likeness_loss`. Mean over pictures.

    Features ``source``, ``other`` (B,C,h,w), of one encoder, have no gradient; their maps
    (B,S,h,w) do.
    """
    a, b = attended(source.detach(), maps), attended(other.detach(), other_maps)
    products = a @ b.transpose(1, 2)
    lead = products.amax(dim=2) - products.diagonal(dim1=1, dim2=2)
    weights = torch.minimum(maps.amax(dim=(2, 3)), other_maps.amax(dim=(2, 3))).float()
    aligned = (weights * lead).sum(dim=1) / (weights.sum(dim=1) + 1e-6)
    return aligned.mean() + (likeness_loss(a) + likeness_loss(b)) / 4


def edge_map(picture: Tensor, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Canny edges of pictures (B,3,H,W) in [-1,1] -> (B,1,H,W) float32, 1 on an edge. Thresholds
    are shares of a picture's largest gradient, after a Gaussian of sigma sqrt(2), as in Matlab and
    nn/edges.py."""
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
    translation: Tensor, edges: Tensor, threshold: float, draws: list[np.random.Generator]
) -> Tensor:
    """Gradient alignment: the translation should be steep where the source has edges.

    The loss looks at one cell of a grid of ``CELLS`` x ``CELLS``, drawn among the cells with an
    edge. At each edge pixel it is max(0, ``threshold`` - m / M), with m the magnitude of the grey
    gradient and M the largest m in the cell; the sum over the cell is divided by the number of its
    edge pixels plus 1. 0 for a picture without edges. Mean over pictures.

    translation (B,3,H,W) in [-1,1], edges (B,1,H,W) in {0,1}; H and W are multiples of ``CELLS``.
    ``draws``: the random generator of each picture. Beyond the border the picture is 0.
    """
    grey = F.pad((luma(translation.float()) + 1) / 2, (1, 1, 1, 1))
    across, down = (
        grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2],
        grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1],
    )
    size = (across.square() + down.square() + 1e-6).sqrt()[:, 0]
    height, width = (side // CELLS for side in size.shape[1:])
    # The cells are drawn by the host: edge_map made the edges there a moment ago.
    filled = F.max_pool2d(edges, (height, width))[:, 0].cpu().numpy()
    each = [size.sum() * 0]  # a gradient (of 0) for pictures without edges, which DDP waits for
    for picture, marks, cells, rng in zip(size, edges[:, 0], filled, draws, strict=True):
        rows, columns = np.nonzero(cells)
        if not len(rows):
            continue
        chosen = int(rng.integers(len(rows)))
        top, left = int(rows[chosen]) * height, int(columns[chosen]) * width
        window = (slice(top, top + height), slice(left, left + width))
        steepness = picture[window] / picture[window].max()
        lack = F.relu(threshold * marks[window] - steepness).sum()
        each.append(lack / (marks[window].sum() + 1))
    return torch.stack(each).sum() / len(size)


def squared_variation(x: Tensor) -> Tensor:
    """Total variation with squares: twice the mean of the squared differences of vertical
    neighbours, plus twice the mean for horizontal neighbours."""
    x = x.float()
    down, right = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
    return 2 * (down.square().mean() + right.square().mean())


class PearlGAN(DomainTranslation):
    """``losses``, all for both directions: ``adversarial`` (relativistic least squares on three
    heads), ``cycle`` (smooth L1), ``ssim`` (of the same, 3-pixel window), ``gradient`` (structured
    gradient alignment), ``tv`` (squared), ``diversity`` (:func:`attention_loss`) and ``alignment``
    of the encoders' attention. The last two look at three scales, not at the coarsest. Both
    translators make one step together, then both discriminators.

    ``late``: part of the training before ``ssim`` and ``alignment`` begin (the paper: epoch 30 of
    120 on KAIST, 10 of 80 on FLIR). ``edge_threshold``: of the gradient alignment (the paper: .44
    on KAIST, .8 on FLIR). ``discriminator_width``: channels of the discriminators' first layer, to
    train a reduced size.
    """

    Network = AttentionTranslator
    title = "PearlGAN"
    paper = (
        "Luo et al., Thermal infrared image colorization with top-down guided attention, "
        "IEEE TITS 2022"
    )
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

    def translate(self, name: str, picture: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        colour, maps, encoded = self.networks[name](picture, attention=True)
        return colour, (maps[:, :3], encoded)

    def more(
        self, batch: Batch, real: dict, fake: dict, back: dict, seen: dict, moment: StepContext
    ) -> Losses:
        losses: Losses = {}
        if "tv" in self.weights:
            losses["tv"] = squared_variation(fake["visible"]) + squared_variation(fake["thermal"])
        if "gradient" in self.weights:
            draws = [moment.rng(position) for position in batch.positions]
            losses["gradient"] = sum(
                gradient_alignment_loss(
                    fake[target], edge_map(real[source]), self.edge_threshold, draws
                )
                for source, target in (("thermal", "visible"), ("visible", "thermal"))
            )
        if "diversity" in self.weights:
            losses["diversity"] = sum(
                attention_loss(seen[name, "real"][0]) for name in ("generator", "inverse")
            )
        if moment.progress >= self.late:
            if "ssim" in self.weights:
                losses["ssim"] = sum(1 - ssim(back[kind], real[kind], window=3) for kind in real)
            if "alignment" in self.weights:
                # one encoder reads a domain's real picture and the translation into that domain,
                # which is looked at where its source was
                losses["alignment"] = sum(
                    alignment_loss(
                        seen[name, "real"][1], seen[name, "fake"][1],
                        seen[name, "real"][0], seen[other, "real"][0],
                    )
                    for name, other in (("generator", "inverse"), ("inverse", "generator"))
                )  # fmt: skip
        return losses
