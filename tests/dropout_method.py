"""A method that is hard to resume: dropout in both networks, a pool of old pictures, a
discriminator that goes first."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from cmmfnet.methods.method import ImagePool, Method, frozen


class Colours(nn.Module):
    multiple_of, fixed_size = 8, None

    def __init__(self, *, width: int = 8, dropout: float = 0.3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(self, thermal, text=None, text_mask=None):
        return torch.tanh(self.layers(thermal))


class DropoutMethod(Method):
    Network = Colours
    title = paper = "dropout"
    LOSSES: ClassVar = {"l1": 1.0, "adversarial": 0.1}
    optimisers: ClassVar = {"discriminator": ("discriminator",), "generator": ("generator",)}

    def __init__(self, network, losses, *, pretrained=None, dropout: float = 0.3, pool: int = 5):
        super().__init__(network, losses, pretrained=pretrained)
        self.networks["discriminator"] = nn.Sequential(
            nn.Conv2d(4, 8, 4, stride=2), nn.LeakyReLU(0.2), nn.Dropout(dropout), nn.Conv2d(8, 1, 4)
        )
        self.pools["colour"] = ImagePool(pool)

    def training_step(self, batch, moment):
        colour = self.networks["generator"](batch.thermal)
        shown = self.pools["colour"](colour, batch, moment)
        judge = self.networks["discriminator"]
        real, fake = (judge(torch.cat([batch.thermal, c], dim=1)) for c in (batch.visible, shown))
        yield "discriminator", {"discriminator": F.softplus(-real).mean() + F.softplus(fake).mean()}
        with frozen(judge) as still:
            score = still(torch.cat([batch.thermal, colour], dim=1))
        yield (
            "generator",
            {
                "l1": F.l1_loss(colour, batch.visible),
                "adversarial": 0.1 * F.softplus(-score).mean(),
            },
        )
