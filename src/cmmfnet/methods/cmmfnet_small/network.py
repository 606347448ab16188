"""CMMF-Net small: a network for live colour on a CPU, taught by the released one.

Not from a paper. It keeps CMMF-Net's plan (Jiang et al., 2025): an encoder that sees the whole
frame resized to ``global_size``, so that a large frame has one context; a U-Net's decoder at the
frame's own size; text that scales and shifts the decoder. What differs is cost. The encoder is the
released model's VGG-16 stem with each convolution in two factors (factored_stem.py). There is no
ViT, and kernels are small but at stride 16: the backward pass of a large depthwise kernel is what
training on a CPU cannot afford. The decoder has no norms, which on a CPU cost as much as its
convolutions. Every level adds its share to the colours, which so are learned from coarse to fine
(skip connections to RGB, Karras et al., StyleGAN2, CVPR 2020, section 4.1).

Its training is plain regression to pictures that the released model made (training/distilled.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.cmmfnet.interaction import Modulation, resize
from cmmfnet.methods.cmmfnet_small.stem import VGG, FactoredStem
from cmmfnet.methods.matched import Matched
from cmmfnet.methods.method import Losses, Moment, unwrapped, with_factors
from cmmfnet.nn.blocks import pointwise
from cmmfnet.nn.fast import modulated
from cmmfnet.nn.perceptual import Cropped
from cmmfnet.text.sentences import WORDS, tag_ids
from cmmfnet.text.vocabulary import MAX_TAGS

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch
    from cmmfnet.training.recipe import Recipe


def tones(thermal: Tensor, window: int = 17) -> Tensor:
    """(B,1,H,W) in [-1,1], H and W even -> (B,2,H,W), like cmmfnet.tone_channels with a window of
    twice the size.

    The local mean and deviation are smooth, so they are taken at half size and brought up: a tenth
    of the time.
    """

    def mean(x: Tensor) -> Tensor:
        x = F.avg_pool2d(
            F.avg_pool2d(x, 2),
            (window, 1),
            stride=1,
            padding=(window // 2, 0),
            count_include_pad=False,
        )
        return F.avg_pool2d(
            x, (1, window), stride=1, padding=(0, window // 2), count_include_pad=False
        )

    local = mean(thermal)
    deviation = (mean(thermal.square()) - local.square()).clamp_min(0).sqrt()
    local, deviation = (
        F.interpolate(x, scale_factor=2.0, mode="bilinear") for x in (local, deviation)
    )
    return torch.cat([thermal, torch.tanh((thermal - local) / (deviation + 0.1) / 1.5)], dim=1)


class Block(nn.Module):
    """Residual block: k x k depthwise, 1x1 to three times the width, GELU, 1x1 back; starts as the
    identity."""

    def __init__(self, channels: int, kernel: int, expansion: int = 3):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.widen, self.narrow = (
            pointwise(channels, expansion * channels),
            pointwise(expansion * channels, channels),
        )
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.depthwise(x))))


def stage(channels: int, blocks: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels, kernel) for _ in range(blocks)))


class CMMFNetSmall(nn.Module):
    """``forward(thermal (B,1,H,W) in [-1,1], text (B,L,D), text_mask (B,L) bool) -> (B,3,H,W)``; H,
    W multiples of 8.

    ``ranks``: of the stem (:class:`FactoredStem`). ``channels``: of the decoder at strides 2, 4, 8
    and 16, with ``blocks`` :class:`Block` of kernels of side ``kernels`` each. ``text``:
    "clip-tags" with a table of ``words``, or "none". Only words that the teacher follows can have
    an effect; of the released model's that is "night".
    """

    multiple_of, fixed_size, predicts_tags, default_text = 8, None, False, "none"

    def __init__(
        self,
        *,
        ranks: Sequence[int] = (0, 16, 24, 32, 48, 64, 64, 64, 96, 96, 48, 48, 48),
        channels: Sequence[int] = (48, 80, 144, 192),
        blocks: Sequence[int] = (2, 2, 2, 3),
        kernels: Sequence[int] = (3, 3, 3, 7),
        tail: int = 16,
        global_size: int = 256,
        text: str = "clip-tags",
        text_width: int = 32,
        words: Sequence[str] = (),
        working_size: int = 512,
        least_size: int = 256,
    ):
        super().__init__()
        if text not in ("clip-tags", "none"):
            raise ValueError(f"text is {text!r}; expected 'clip-tags' or 'none'")
        if len(ranks) != len(VGG):
            raise ValueError(
                f"ranks has {len(ranks)} numbers; expected {len(VGG)}, one for each convolution "
                "of VGG-16"
            )
        if global_size % 16:
            raise ValueError(f"global_size is {global_size}; expected a multiple of 16")
        self.text_source, self.words, self.text_width = text, list(words), text_width
        self.working_size, self.least_size, self.global_size = working_size, least_size, global_size
        self.stem = FactoredStem(2, ranks)
        self.laterals = nn.ModuleList(
            pointwise(i, c) for i, c in zip((128, 256, 512, 512), channels, strict=True)
        )
        self.stages = nn.ModuleList(
            stage(*each) for each in zip(channels, blocks, kernels, strict=True)
        )
        self.ups = nn.ModuleList(pointwise(above, below) for below, above in pairwise(channels))
        vector = channels[3]
        if text != "none":
            vector += text_width
            self.word_vectors = nn.Parameter(torch.randn(max(len(self.words), 1), text_width))
        self.modulations = nn.ModuleList(Modulation(vector, c) for c in channels)
        self.colours = nn.ModuleList(pointwise(c, 3) for c in channels)
        self.readouts = nn.ModuleList(pointwise(i, 3) for i in (128, 256, 512, 512))
        self.detail = nn.Conv2d(8, channels[0], 3, padding=1)
        self.head = nn.Conv2d(channels[0] + 8, 4 * tail, 3, padding=1)
        self.last = nn.Conv2d(tail, 3, 3, padding=1)
        for module in (
            *self.laterals,
            *self.ups,
        ):  # no norm follows: each keeps the size of its input
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        for module in (*self.colours, *self.readouts, self.last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def embed_tags(self, ids: Tensor) -> Tensor:
        """Rows of the word table: ids (B,L) long, indices into ``words`` -> text tokens
        (B,L,text_width)."""
        return F.embedding(ids, self.word_vectors)

    def _vector(self, deepest: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """What modulates the decoder: the mean of the deepest map, and the sum of the text's
        tokens, 0 without text."""
        mean = deepest.mean(dim=(2, 3))
        if self.text_source == "none":
            return mean
        if text is None:
            return F.pad(mean, (0, self.text_width))
        if mask is not None:
            text = text.masked_fill(
                ~mask.unsqueeze(-1), 0
            )  # a product would let NaN in unset rows through
        return torch.cat([mean, text.sum(dim=1).to(mean.dtype)], dim=1)

    def forward(
        self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        if (
            thermal.ndim != 4
            or thermal.shape[1] != 1
            or thermal.shape[2] % 8
            or thermal.shape[3] % 8
        ):
            raise ValueError(
                f"thermal is {tuple(thermal.shape)}; expected (B,1,H,W) with H and W multiples of 8"
            )
        x = tones(thermal)
        maps = self.stem(resize(x, (self.global_size, self.global_size)))[1:]
        y = self.laterals[3](maps[3])
        vector = self._vector(y, text, text_mask)
        y = self.stages[3](modulated(y, *self.modulations[3](vector)))
        colour = self.colours[3](y) + self.readouts[3](maps[3])

        folded = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        for level in (2, 1, 0):
            size = [side // 2 ** (level + 1) for side in thermal.shape[-2:]]
            y = self.ups[level](y)
            # from the stem's square view to the frame's shape once, then it only doubles
            y = (
                resize(y, size)
                if level == 2
                else F.interpolate(y, scale_factor=2.0, mode="nearest")
            )
            colour = resize(colour, size) + resize(self.readouts[level](maps[level]), size)
            y = y + resize(self.laterals[level](maps[level]), size)
            if level == 0:
                y = y + self.detail(folded)
            y = self.stages[level](modulated(y, *self.modulations[level](vector)))
            colour = colour + self.colours[level](y)
        y = F.gelu(self.head(torch.cat([y, folded.to(y.dtype)], dim=1)))
        return torch.tanh(self.last(F.pixel_shuffle(y, 2)) + resize(colour, thermal.shape[-2:]))


class CMMFNetSmallMethod(Matched):
    """Regression to a teacher's pictures, with the losses of :class:`Matched`; text as in
    CMMF-Net's training.

    ``teacher``: the model whose VGG-16 stem a fresh network takes over, in factors; "" leaves it
    random. ``fit``: a folder of pairs, such as the teacher's, on whose frames the factors are
    fitted, and to whose daytime colours the readouts of the stem's maps; without it the frames are
    rendered scenes and the readouts start at 0. ``text_dropout``: share of the pictures trained
    without text; "night" is always kept. ``frozen``: so many of the stem's first convolutions stay
    as they were fitted, which spares the dearest part of the backward pass. ``stem_learning_rate``:
    factor on the learning rate of the stem and of what reads its maps. ``perceptual_crop``: side in
    pixels of the random part of each picture that the perceptual loss sees, for the same reason; 0
    = all of it.
    """

    Network = CMMFNetSmall
    title = "CMMF-Net small"
    paper = "none; a small network taught by the released CMMF-Net"

    def __init__(
        self,
        network: CMMFNetSmall,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        perceptual: str = "vgg16",
        perceptual_mode: str = "lpips",
        adversarial_start: float = 0.0,
        teacher: str = "cmmfnet",
        fit: str | None = None,
        text_dropout: float = 0.5,
        frozen: int = 4,
        stem_learning_rate: float = 0.1,
        perceptual_crop: int = 0,
    ):
        super().__init__(
            network, losses, pretrained=pretrained, perceptual=perceptual,
            perceptual_mode=perceptual_mode,
            adversarial_start=adversarial_start,
        )  # fmt: skip
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout is {text_dropout}; expected 0 to 1")
        self.fit = fit
        self.teacher, self.text_dropout, self.stem_learning_rate = (
            teacher,
            text_dropout,
            stem_learning_rate,
        )
        if perceptual_crop and self.perceptual is not None:
            self.perceptual = Cropped(self.perceptual, perceptual_crop)
        network.stem.layers[:frozen].requires_grad_(False)

    @classmethod
    def configuration(cls, model: dict) -> dict:
        """A fresh network knows all words, unless the recipe names some."""
        return (
            model | {"words": list(WORDS)}
            if model.get("text") != "none" and "words" not in model
            else model
        )

    def parameter_groups(self, optimiser: str, recipe: Recipe) -> list[dict]:
        groups = super().parameter_groups(optimiser, recipe)
        if optimiser != "generator":
            return groups
        network = self.networks["generator"]
        # what reads the stem's maps, which are large, has small weights, and Adam's steps are as
        # large for small weights
        near = [
            p
            for part in (network.stem, network.laterals, network.readouts)
            for p in part.parameters()
        ]
        return with_factors(groups, {id(p): self.stem_learning_rate for p in near})

    def colour(self, batch: Batch, moment: Moment) -> tuple[Tensor, Losses]:
        network = unwrapped(self.networks["generator"])
        tokens = mask = None
        if network.text_source != "none":
            ids, mask = tag_ids([self._told(tags, at, moment) for tags, at in zip(batch.tags, batch.positions, strict=True)],
                                network.words)  # fmt: skip
            tokens, mask = (
                network.embed_tags(ids.to(batch.thermal.device)),
                mask.to(batch.thermal.device),
            )
        return self.networks["generator"](batch.thermal, tokens, mask), {}

    def _told(self, tags: list[str], position: int, moment: Moment) -> list[str]:
        """The words of a picture: with ``text_dropout`` none, else four in five; "night" always."""
        rng, words = moment.rng(position), self.words
        kept = (
            []
            if rng.random() < self.text_dropout
            else [t for t in tags if t in words and rng.random() < 0.8]
        )
        night = [t for t in ("night",) if t in tags and t in words]
        return list(dict.fromkeys(night + kept))[:MAX_TAGS]

    @property
    def words(self) -> list[str]:
        return unwrapped(self.networks["generator"]).words
