"""The "l1" distance of perceptual.py and its gradient by hand, on a CUDA device: what training
waits for beside the generator.

Both pictures go through the frozen network as one batch, whose weights are cast once. Around the
convolutions, which stay cuDNN's, each map is read once: ops/taps.py where maps are compared,
ops/bias.py between. Autograd would keep every intermediate map and pass over each of them six times
more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.fast.entry import Entry
from cmmfnet.nn.fast.taps import compare, compare_backward, triton


def serves_distance(x: Tensor) -> bool:
    """Whether :class:`FeatureDistance` can run where ``x`` lies."""
    return triton is not None and x.is_cuda


class Convolutions:
    """The frozen 3x3 convolutions of a VGG up to its last tap, in ``dtype``, each followed by a
    ReLU, for pictures less ``shift`` over ``scale``.

    ``steps``: of each, its weight (channels last), its bias (float32), whether it is a tap, and
    whether a pool follows, which only does behind taps. ``entry`` is the first one, where a kernel
    of ours runs it.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        taps: Sequence[int],
        shift: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
    ):
        layers = layers[: max(taps) + 2]
        self.dtype, self.shift, self.scale = dtype, shift, scale
        self.steps: list[tuple[Tensor, Tensor, bool, bool]] = []
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                weight = layer.weight.to(dtype, memory_format=torch.channels_last)
                pools = i + 2 < len(layers) - 1 and isinstance(layers[i + 2], nn.MaxPool2d)
                self.steps.append((weight, layer.bias.float(), i + 1 in taps, pools))
        self.entry = None
        if dtype != torch.float32 and len(layers[0].weight) == 64 and 1 not in taps:
            self.entry = Entry(layers[0].weight, layers[0].bias, shift, scale, dtype)


class FeatureDistance(torch.autograd.Function):
    """``apply(x, y, convolutions)`` of pictures (B,3,H,W) in [-1,1]: mean absolute difference of
    their maps, summed over the taps, (B,) float32. Gradients are of x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, network: Convolutions) -> Tensor:
        total, kept, count = 0, [], len(x)
        ctx.network, ctx.like = network, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            steps = network.steps
            if network.entry is None:
                z = (torch.cat([x, y]) - network.shift) / network.scale
                z = z.to(network.dtype, memory_format=torch.channels_last)
            else:
                shape, steps = (2 * count, len(steps[0][0]), *x.shape[2:]), steps[1:]
                z = torch.empty(
                    shape, dtype=network.dtype, device=x.device, memory_format=torch.channels_last
                )
                network.entry(x, z[:count])
                network.entry(y, z[count:])
                kept = [z[:count]]
            for weight, bias, tap, pools in steps:
                given, raw = z[:count], F.conv2d(z, weight, None, padding=1)
                if tap:
                    found, z, codes = compare(raw, bias, pools)
                    total = total + found
                    kept += [given, codes]
                else:
                    z = torch.ops.cmmfnet.bias_activation(raw, bias, False)
                    kept += [given, z[:count]]
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradients: Tensor) -> tuple[Tensor, None, None]:
        kept, dz, network = list(ctx.saved_tensors), None, ctx.network
        for weight, _, tap, _ in reversed(
            network.steps if network.entry is None else network.steps[1:]
        ):
            passed, given = kept.pop(), kept.pop()
            if tap:
                dz = compare_backward(passed, gradients, dz, network.dtype)
            else:
                dz = torch.ops.aten.threshold_backward(dz, passed, 0)
            dz = torch.ops.aten.convolution_backward(
                dz,
                given,
                weight,
                None,
                [1, 1],
                [1, 1],
                [1, 1],
                False,
                [0, 0],
                1,
                (True, False, False),
            )[0]
        dx = (
            dz.float() / network.scale
            if network.entry is None
            else network.entry.backward(dz, *kept)
        )
        return dx.to(ctx.like), None, None
