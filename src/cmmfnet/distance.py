"""The "l1" distance of perceptual.py and its gradient by hand, on a CUDA device: what training waits for beside the generator.

Both pictures go through the frozen network as one batch, whose weights are cast once. Around the convolutions, which stay
cuDNN's, each map is read once: ops/taps.py where maps are compared, ops/bias.py between. Autograd would keep every
intermediate map and pass over each of them six times more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.ops.taps import compare, compare_backward, triton


def serves_distance(x: Tensor) -> bool:
    """Whether :class:`FeatureDistance` can run where ``x`` lies."""
    return triton is not None and x.is_cuda


class Convolutions:
    """The frozen 3x3 convolutions of a VGG up to its last tap, in ``dtype``, each followed by a ReLU.

    ``steps``: of each, its weight (channels last), its bias (float32), whether it is a tap, and whether a pool follows, which
    only does behind taps.
    """

    def __init__(self, layers: nn.Sequential, taps: Sequence[int], dtype: torch.dtype):
        layers = layers[: max(taps) + 2]
        self.dtype = dtype
        self.steps: list[tuple[Tensor, Tensor, bool, bool]] = []
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                weight = layer.weight.to(dtype, memory_format=torch.channels_last)
                pools = i + 2 < len(layers) - 1 and isinstance(layers[i + 2], nn.MaxPool2d)
                self.steps.append((weight, layer.bias.float(), i + 1 in taps, pools))


class FeatureDistance(torch.autograd.Function):
    """``apply(x, y, convolutions)`` of normalised pictures (B,3,H,W) float: mean absolute difference of their maps, summed over
    the taps, (B,) float32. Gradients are of x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, network: Convolutions) -> Tensor:
        total, kept = 0, []
        with torch.autocast(x.device.type, enabled=False):
            z = torch.cat([x, y]).to(network.dtype, memory_format=torch.channels_last)
            for weight, bias, tap, pools in network.steps:
                given, raw = z[: len(x)], F.conv2d(z, weight, None, padding=1)
                if tap:
                    found, z, codes = compare(raw, bias, pools)
                    total = total + found
                    kept += [given, codes]
                else:
                    z = torch.ops.cmmfnet.bias_activation(raw, bias, False)
                    kept += [given, z[: len(x)]]
        ctx.network = network
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradients: Tensor) -> tuple[Tensor, None, None]:
        kept, dz = ctx.saved_tensors, None
        for n, (weight, _, tap, _) in reversed(list(enumerate(ctx.network.steps))):
            given, passed = kept[2 * n : 2 * n + 2]
            if tap:
                dz = compare_backward(passed, gradients, dz, ctx.network.dtype)
            else:
                dz = torch.ops.aten.threshold_backward(dz, passed, 0)
            dz = torch.ops.aten.convolution_backward(
                dz, given, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, (True, False, False)
            )[0]
        return dz.float(), None, None
