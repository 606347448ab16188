"""Losses of I2V-GAN alone: PatchNCE, similarity of motion, and a distance of content and style.

PatchNCE: Park et al., Contrastive Learning for Unpaired Image-to-Image Translation, ECCV 2020
    (CUT). Gram matrices: Gatys et al., CVPR 2016. Their use here: Li et al., I2V-GAN, ACM MM 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.patchgan import init_normal
from cmmfnet.nn.perceptual import Perceptual

TEMPERATURE = 0.07

# the first ReLU of each of the five levels; content is compared at the fourth
STYLE_TAPS = {"vgg16": (1, 6, 11, 18, 25), "vgg19": (1, 6, 11, 20, 29)}
STYLE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1.0, 1.0)


class ProjectionHead(nn.Module):
    """A two-layer MLP for every layer of an encoder, from its channels to unit vectors of ``width``
    (CUT, section 3.2).

    ``forward(*patches (...,Ci)) -> [(...,width), ...]``.
    """

    def __init__(self, channels: Sequence[int], width: int = 256):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)) for c in channels
        )
        init_normal(self)

    def forward(self, *patches: Tensor) -> list[Tensor]:
        return [
            F.normalize(mlp(x), dim=-1, eps=1e-7)
            for mlp, x in zip(self.layers, patches, strict=True)
        ]


def draw_places(
    features: Sequence[Tensor], rngs: Sequence[np.random.Generator], count: int
) -> list[Tensor]:
    """For every layer's map (...,H,W) ``count`` different places in it, or all, for each picture:
    (B,N) long, y * W + x."""
    drawn = []
    for x in features:
        size = x.shape[-2] * x.shape[-1]
        rows = [rng.choice(size, min(count, size), replace=False) for rng in rngs]
        drawn.append(torch.from_numpy(np.stack(rows)).to(x.device))
    return drawn


def take(features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
    """The features at the places (B,N): (B*frames,C,H,W), a picture's frames in a row ->
    (B,frames,N,C), for every layer."""
    taken = []
    for x, at in zip(features, places, strict=True):
        x = x.unflatten(0, (len(at), -1)).flatten(3)
        taken.append(x.gather(3, at[:, None, None].expand(*x.shape[:3], -1)).transpose(2, 3))
    return taken


def patch_nce(query: Tensor, key: Tensor) -> Tensor:
    """PatchNCE (CUT, eq. 3): which of a picture's keys (B,N,C) belongs to each query (B,N,C)? Unit
    vectors; (B,) float32.

    The cross-entropy of query . key / 0.07 over the N keys, mean over the queries. No gradient
    reaches the keys.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = query.float() @ key.detach().float().transpose(1, 2) / TEMPERATURE
        target = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(dim=1)


def external_similarity(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """PatchNCE between each frame and its translation, mean over layers, sum over frames, mean over
    pictures.

    Both are a layer's projected patches (B,frames,N,C), for every layer.
    """
    each = [patch_nce(f.flatten(0, 1), r.flatten(0, 1)) for r, f in zip(real, fake, strict=True)]
    return torch.stack(each).mean(dim=0).mean() * real[0].shape[1]


def motion(patches: Sequence[Tensor]) -> Tensor:
    """PatchNCE between frames 2 and 3 over PatchNCE between frames 1 and 2: (B,3,N,C) for every
    layer -> (B,layers)."""
    # equal frames may have a PatchNCE of 0
    pairs = [[patch_nce(x[:, i], x[:, i + 1]).clamp_min(1e-6) for i in (0, 1)] for x in patches]
    return torch.stack([second / first for first, second in pairs], dim=1)


def internal_similarity(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """1 - cosine, over layers, of the motion in the real frames (no gradient) and in the translated
    ones; mean over pictures."""
    return (1 - F.cosine_similarity(motion(real).detach(), motion(fake), dim=1)).mean()


class ContentAndStyle(Perceptual):
    """L1 of the pixels + L1 of the fourth level + 100 * sum of weights * mean square difference of
    Gram matrices.

    ``forward(x, y (B,3,H,W) in [-1,1]) -> (B,)``; no gradient reaches ``y``. ``network``: "vgg16"
    or "vgg19". ``normalised``: features of pictures on ImageNet's scale; otherwise [-1,1] goes in
    as it is, as in the official code. Raises what :class:`~cmmfnet.nn.perceptual.Perceptual`
    raises, and ``ValueError`` for another network.
    """

    def __init__(
        self, network: str = "vgg19", folder: str | Path | None = None, normalised: bool = True
    ):
        if network not in STYLE_TAPS:
            raise ValueError(
                f"perceptual is {network!r}; expected one of {', '.join(STYLE_TAPS)}, or none"
            )
        super().__init__(network, "l1", folder, imagenet=normalised)
        self.taps = STYLE_TAPS[network]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = self.features(y)
        total = pixel_l1(x, y.detach())
        for i, (a, b) in enumerate(zip(self.features(x), theirs, strict=True)):
            if i == 3:
                total = total + pixel_l1(a, b)
            total = total + 100 * STYLE_WEIGHTS[i] * (gram(a) - gram(b)).square().mean(dim=(1, 2))
        return total


def pixel_l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of each picture or map: (B,C,H,W) -> (B,) float32."""
    return (x.float() - y.float()).abs().mean(dim=(1, 2, 3))


def gram(x: Tensor) -> Tensor:
    """Products of a picture's channels, mean over C*H*W: (B,C,H,W) -> (B,C,C) float32."""
    with torch.autocast(x.device.type, enabled=False):
        flat = x.float().flatten(2)
        return flat @ flat.transpose(1, 2) / flat[0].numel()
