"""LKAT-GAN: a large-kernel U-Net, then an attention U-Net and a vision transformer side by side.

He et al., *LKAT-GAN: a GAN for thermal infrared image colorization based on large kernel and
attentionunet-transformer*, IEEE TCE 2023, doi 10.1109/TCE.2023.3280165. Written from the
description of the published system alone. CMMF-Net takes its U-Net from here.

The generator has 74,192,355 parameters, all trained. ``faithful`` has the original's 83,635,241
(without its fixed positions): the frame is read as three equal channels, and there are the layers
that no output of the original reaches, untrained and only for the count (9,438,915 of the attention
U-Net; the transformer's mask token; 3,587 of the large-kernel U-Net, of which only the number is
known). Both compute the same family of functions. Discriminator 2,767,809.

Kept: the transformer's tokens become channels of the picture, not places, so the network takes one
    size, 256x256. The output has no activation; evaluation clips it to [-1,1], as writing a picture
    does, training does not. Fixed: VGG-16 is fed ImageNet-normalised pictures and total variation
    is a mean over the batch (``faithful`` of the method: neither). Not known, and chosen as the
    family does: initialisation N(0, 0.02), a pool of 50 pairs for the discriminator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.mugan import MUGAN
from cmmfnet.nn.blocks import ConvFFN, Downsample, LargeKernelBlock, Stage
from cmmfnet.nn.patchgan import InstanceNorm, init_normal
from cmmfnet.nn.transformer import TransformerBlock


class LargeKernelUNet(nn.Module):
    """(B,inputs,H,W) -> (B,width,H/2,W/2). Skips are added; the two last blocks share their
    feed-forward."""

    def __init__(self, inputs: int, width: int, blocks: Sequence[int], kernel: int):
        super().__init__()
        w1, w2, w3 = width, 2 * width, 4 * width
        self.down1, self.encode1 = Downsample(inputs, w1), Stage(w1, blocks[0], kernel)
        self.down2, self.encode2 = Downsample(w1, w2), Stage(w2, blocks[1], kernel)
        self.down3, self.encode3 = Downsample(w2, w3), Stage(w3, blocks[2], kernel)
        self.up2, self.decode2 = (
            nn.Conv2d(w3, w2, 3, padding=1),
            Stage(w2, blocks[0], kernel),
        )
        self.up1, self.decode1 = (
            nn.Conv2d(w2, w1, 3, padding=1),
            Stage(w1, blocks[1], kernel),
        )
        self.close1, self.close2 = LargeKernelBlock(w1, kernel), LargeKernelBlock(w1, kernel)
        self.close = ConvFFN(w1)

    def forward(self, x: Tensor) -> Tensor:
        e1 = self.encode1(self.down1(x))
        e2 = self.encode2(self.down2(e1))
        x = self.encode3(self.down3(e2))
        x = self.decode2(self.up2(_double(x))) + e2
        x = self.decode1(self.up1(_double(x))) + e1
        return self.close(self.close2(self.close(self.close1(x))))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class AttentionResidual(nn.Module):
    """x + x * channel gate * spatial gate: a squeeze-and-excitation gate (ratio 4, GELU), then the
    sigmoid of the largest channel at every place."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.sigmoid(self.excite(F.gelu(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))))
        return x + y * torch.sigmoid(y.amax(dim=1, keepdim=True))


class AttentionUNet(nn.Module):
    """(B,width,h,w) -> (B,width,2h,2w) over h/2 and h/4; attention after each layer on the way
    down, skips are added."""

    def __init__(self, width: int):
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
            return nn.Sequential(conv, InstanceNorm(outputs), nn.GELU())

        w1, w2, w3 = 2 * width, 4 * width, 8 * width
        self.down1 = nn.Sequential(layer(width, w1, 1), AttentionResidual(w1))
        self.down2 = nn.Sequential(layer(w1, w2, 2), AttentionResidual(w2))
        self.down3 = nn.Sequential(layer(w2, w3, 2), AttentionResidual(w3))
        self.up3, self.up2, self.up1 = layer(w3, w2, 1), layer(w2, w1, 1), layer(w1, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        d1 = self.down1(x)
        d2 = self.down2(d1)
        x = self.up3(_double(self.down3(d2))) + d2
        x = self.up2(_double(x)) + d1
        return self.up1(_double(x))


def _sinusoids(tokens: int, width: int) -> Tensor:
    """Fixed two-dimensional positions (1,tokens,width) of a square grid: half of the channels for
    the row, half for the column, sines then cosines of 10000^(-4k/width) times the index (He et
    al., CVPR 2022, after Vaswani et al., 2017)."""
    side = round(tokens**0.5)
    frequency = 10000 ** (-4 * torch.arange(width // 4) / width)
    angle = torch.arange(side)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, tokens, width)


class TokenPainter(nn.Module):
    """The masked autoencoder of He et al. (CVPR 2022) without masks, as it is used here: each token
    paints one channel.

    (B,channels,side,side) -> (B,tokens,outputs,outputs), tokens = (side/patch)^2.
    """

    def __init__(
        self, channels: int, side: int, outputs: int, patch: int,
        width: int, depth: int, heads: int, decoder_width: int, decoder_depth: int,
        decoder_heads: int,
    ):  # fmt: skip
        super().__init__()
        tokens, self.outputs = (side // patch) ** 2, outputs
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.register_buffer("positions", _sinusoids(tokens, width), persistent=False)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.narrow = nn.Linear(width, decoder_width)
        self.register_buffer(
            "decoder_positions", _sinusoids(tokens, decoder_width), persistent=False
        )
        self.decoder = nn.Sequential(
            *(TransformerBlock(decoder_width, decoder_heads) for _ in range(decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.paint = nn.Linear(decoder_width, outputs * outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        x = self.norm(self.blocks(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)))
        x = self.decoder(self.narrow(x[:, 1:]) + self.decoder_positions)
        return self.paint(self.decoder_norm(x)).unflatten(2, (self.outputs, self.outputs))


class LKATGenerator(nn.Module):
    """``forward(thermal (B,1,S,S) in [-1,1]) -> (B,3,S,S)``, S = ``size``: in [-1,1] in evaluation,
    unbounded in training.

    ``size`` is a multiple of twice ``patch`` and of 8. ``blocks``: pairs of large-kernel block and
    feed-forward at H/2, H/4 and H/8 (and, on the way back, the first two of them at H/4 and H/2).
    ``vit`` and ``decoder``: width, depth and heads.
    """

    multiple_of, fixed_size = 8, 256

    def __init__(
        self,
        size: int = 256,
        width: int = 64,
        *,
        blocks: Sequence[int] = (2, 6, 2),
        kernel: int = 13,
        patch: int = 16,
        vit: Sequence[int] = (512, 12, 8),
        decoder: Sequence[int] = (256, 4, 16),
        faithful: bool = False,
    ):
        super().__init__()
        if size % 8 or size % (2 * patch):
            raise ValueError(
                f"size is {size}, patch is {patch}; expected a size that is a multiple of 8 and "
                "of 2 x patch"
            )
        self.fixed_size, self.inputs = size, 3  # channels of the frame as the discriminator sees it
        self.channels = 3 if faithful else 1
        self.unet = LargeKernelUNet(self.channels, width, blocks, kernel)
        self.attention = AttentionUNet(width)
        self.painter = TokenPainter(width, size // 2, size, patch, *vit, *decoder)
        self.last = nn.Conv2d(width + (size // 2 // patch) ** 2, 3, 1)
        if faithful:
            self.unused = nn.ModuleDict({
                "level": nn.Conv2d(8 * width, 16 * width, 3),
                "level_back": nn.Conv2d(16 * width, 8 * width, 3),
                "head": nn.Conv2d(width, 3, 1), "unet_head": nn.Conv2d(2 * width, 3, 3),
                "unet_norm": InstanceNorm(width, affine=True), "mask": nn.Embedding(1, decoder[0]),
            }).requires_grad_(False)  # fmt: skip
        init_normal(self)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        size = self.fixed_size
        if (
            thermal.ndim != 4
            or thermal.shape[1] not in (1, 3)
            or tuple(thermal.shape[2:]) != (size, size)
        ):
            raise ValueError(f"thermal is {tuple(thermal.shape)}; expected (B,1,{size},{size})")
        x = self.unet(thermal[:, :1].expand(-1, self.channels, -1, -1))
        y = self.last(torch.cat([self.attention(x), self.painter(x)], dim=1))
        return y if self.training else y.clamp(-1, 1)


class LKATGAN(MUGAN):
    """``losses``: ``adversarial`` (binary cross-entropy), ``l1``, ``perceptual`` (L1 of VGG-16's
    relu1_2, 2_2, 3_3 and 4_3, summed), ``tv``. The step is the family's (mugan.py); the
    paper has no ``ssim``, which is for comparing its network under CMMF-Net's losses."""

    Network = LKATGenerator
    title = "LKAT-GAN"
    paper = "He et al., LKAT-GAN: a GAN for thermal infrared image colorization, IEEE TCE 2023"
    LOSSES: ClassVar[dict[str, float]] = {
        "adversarial": 0.03,
        "l1": 1.0,
        "perceptual": 1.0,
        "tv": 1.0,
        "ssim": 0.0,
    }
    discriminator_width: ClassVar[int] = 64
