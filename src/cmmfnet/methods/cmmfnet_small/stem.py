"""VGG-16's convolutions in two factors each: a network that was trained as a whole becomes one that
costs a fifth.

A 3x3 convolution of rank r is a 3x3 to r channels and a 1x1 to the outputs (Zhang et al.,
"Accelerating very deep convolutional networks for classification and detection", TPAMI 2016,
section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Outputs of VGG-16's convolutions, and halvings before each.
VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
LEVELS = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)


def factored(inputs: int, outputs: int, rank: int) -> nn.Sequential:
    """A 3x3 convolution and ReLU; with a ``rank`` above 0 as a 3x3 to so many channels, without
    bias, and a 1x1."""
    if not rank:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))
    narrow = nn.Conv2d(inputs, rank, 3, padding=1, bias=False)
    return nn.Sequential(narrow, nn.Conv2d(rank, outputs, 1), nn.ReLU(inplace=True))


class FactoredStem(nn.Module):
    """VGG-16's convolutions in factors: (B,C,G,G) -> the last map before each halving, and the last
    of all.

    ``ranks``: one for each of the 13 convolutions; 0 leaves that one whole.
    """

    def __init__(self, channels: int, ranks: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList()
        for outputs, rank in zip(VGG, ranks, strict=True):
            self.layers.append(factored(channels, outputs, rank))
            channels = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = x.contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self.layers):
            if i and LEVELS[i] > LEVELS[i - 1]:
                maps.append(x)
                x = F.max_pool2d(x, 2)
            x = layer(x)
        return [*maps, x]

    @torch.no_grad()
    def fit(self, stem: nn.Sequential, frames: Tensor) -> list[float]:
        """Take over the weights of a whole stem (``feature_layers("vgg16")``), factor by factor, on
        frames (N,C,G,G).

        The 3x3 factor gives the principal components of the whole layer's outputs. The 1x1 factor
        is the regression from the 3x3 factor's outputs, behind the factored layers before it, to
        the whole layer's outputs, so that it corrects errors of earlier layers. Returns the lost
        share of the variance of each layer's outputs (before ReLU).
        """
        wholes = [layer for layer in stem if isinstance(layer, nn.Conv2d)]
        theirs = mine = frames
        lost = []
        for i, (layer, whole) in enumerate(zip(self.layers, wholes, strict=True)):
            if i and LEVELS[i] > LEVELS[i - 1]:
                theirs, mine = F.max_pool2d(theirs, 2), F.max_pool2d(mine, 2)
            target = whole(theirs)
            if len(layer) == 3:
                _factor(layer, whole, mine, target)
            else:
                layer[0].load_state_dict(whole.state_dict())
            found = layer[:-1](mine)
            lost.append(float((found - target).var() / target.var()))
            theirs, mine = F.relu(target), F.relu(found)
        return lost


def _factor(layer: nn.Sequential, whole: nn.Conv2d, inputs: Tensor, target: Tensor) -> None:
    def rows(x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.transpose(0, 1).flatten(1)
        mean = flat.mean(dim=1, keepdim=True)
        return flat - mean, mean

    values, mean = rows(target)
    _, vectors = torch.linalg.eigh((values @ values.T).double())
    basis = vectors[:, -layer[0].out_channels :].float()  # (outputs, rank), orthonormal
    layer[0].weight.copy_((basis.T @ whole.weight.flatten(1)).view_as(layer[0].weight))
    narrow, centre = rows(layer[0](inputs))
    gram = (narrow @ narrow.T).double()
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    mix = torch.linalg.solve(gram, (narrow @ values.T).double()).T.float()  # (outputs, rank)
    layer[1].weight.copy_(mix.view_as(layer[1].weight))
    layer[1].bias.copy_((mean - mix @ centre).squeeze(1))
