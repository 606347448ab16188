"""Blocks that two methods or more share. Modules know tensors only.

Sources: the large-kernel block and its downsampling are those of LKAT-GAN's LK_UNet (He et al.,
    IEEE TCE 2023, from which the CMMF-Net paper takes its U-Net); the discriminator is the 70x70
    PatchGAN of pix2pix (Isola et al., 2017). Transformer blocks are in transformer.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.fast import (
    Statistics,
    depthwise_conv2d,
    enter,
    feed_forward,
    feed_forward_with_gradient,
    for_convolution,
    instance_norm,
    large_kernel,
    plain,
    plane_statistics,
    residual_norm,
    serves_pointwise,
    serves_training,
    serves_widen,
    serves_widen_with_gradient,
    widen,
    widen_with_gradient,
)


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


def folded_norms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """IN, 1x1 convolution, IN as one matrix product, for inference on the CPU, where passes over
    memory are what costs.

    The second norm's statistics follow from the first's input: with S the covariance of the centred
    x over a plane's pixels and r its channels' scale, the convolution's output W r x has the
    variances diag(W r S r W'); biases vanish in the norm. x (B,C,H,W), weight (O,C,1,1) -> centred
    x (B,C,N) and the matrix (B,O,C) to multiply it by, in x's dtype.
    """
    with torch.autocast(x.device.type, enabled=False):
        flat = x.flatten(2).float()
        centred = flat - flat.mean(dim=2, keepdim=True)
        covariance = centred @ centred.transpose(1, 2) / flat.shape[2]
        scale = torch.rsqrt(covariance.diagonal(dim1=1, dim2=2) + eps)
        matrix = weight.flatten(1).float() * scale.unsqueeze(1)
        variance = ((matrix @ covariance) * matrix).sum(dim=2, keepdim=True)
        return centred.to(x.dtype), (matrix * torch.rsqrt(variance + eps)).to(x.dtype)


def _on_cpu_without_gradient(x: Tensor) -> bool:
    # a graph is exported for any device and size, so it gets the plain layers; torch before 2.7
    # cannot tell an export
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not exporting()


class _Unfelt(torch.autograd.Function):
    """y, with a gradient of zero for a bias that y does not depend on: DDP wants one for every
    parameter."""

    @staticmethod
    def forward(ctx, y: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        return dy, torch.zeros_like(ctx.saved_tensors[0])


def _hands_statistics_on(x: Tensor) -> bool:
    """Whether kernels serve the residual blocks for x, whose norms then tell each other the
    statistics of their planes."""
    return serves_training(x) if torch.is_grad_enabled() else serves_pointwise(x, x.shape[1])


def before_norm(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``layer(x)`` for an instance norm, which takes the bias away again, without that bias: on a
    GPU it is a pass over the whole map of its own, and its gradient, which is rounding errors,
    another. (Without a gradient on the CPU it stays: there it costs nothing, and an exported graph
    is the plain one.)"""
    if not (torch.is_grad_enabled() or x.is_cuda):
        return layer(x)
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
    return _Unfelt.apply(y, layer.bias) if torch.is_grad_enabled() else y


class LargeKernelBlock(nn.Module):
    """Residual large-kernel block: IN, 1x1, IN, GELU, k x k depthwise, GELU, 1x1, IN, GELU
    (LKAT-GAN, stage block).

    ``forward(x (B,C,H,W)) -> (B,C,H,W)``; k is odd.
    """

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(
                f"kernel is {kernel}; an odd size is needed so that the output keeps its size"
            )
        self.enter = pointwise(channels, channels)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.leave = pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if _hands_statistics_on(x):
            return self.with_statistics(x, plane_statistics(x))[0]
        if _on_cpu_without_gradient(x):
            centred, matrix = folded_norms(x, self.enter.weight)
            y = F.gelu(matrix @ centred).view_as(x)
        else:
            y = instance_norm(before_norm(self.enter, instance_norm(x)), gelu=True)
        return instance_norm(self._leave(y), gelu=True, residual=x)

    def with_statistics(self, x: Tensor, statistics: Statistics) -> tuple[Tensor, Statistics]:
        """Where ``_hands_statistics_on``: x and its statistics -> the output and its."""
        if torch.is_grad_enabled():
            enters, large, leaves = self.enter, self.depthwise, self.leave
            return large_kernel(
                x,
                statistics,
                enters.weight,
                large.weight,
                large.bias,
                leaves.weight,
                enters.bias,
                leaves.bias,
            )
        y = enter(x, self.enter.weight, statistics)
        return residual_norm(self._leave(y), x, gelu=True)

    def _leave(self, y: Tensor) -> Tensor:
        return before_norm(
            self.leave, depthwise_conv2d(y, self.depthwise.weight, self.depthwise.bias, gelu=True)
        )


class ConvFFN(nn.Module):
    """Residual pointwise feed-forward: IN, 1x1 to 4C, IN, GELU, 1x1 to C, IN (LKAT-GAN)."""

    # pixels at a time on the CPU: the wide map, four times the input, then never leaves the cache
    CHUNK = 4096

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        self.widen = pointwise(channels, expansion * channels)
        self.narrow = pointwise(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if _hands_statistics_on(x):
            return self.with_statistics(x, plane_statistics(x))[0]
        if _on_cpu_without_gradient(x):
            centred, matrix = folded_norms(x, self.widen.weight)
            narrow = self.narrow.weight.flatten(1)
            y = torch.cat(
                [narrow @ F.gelu(matrix @ part) for part in centred.split(self.CHUNK, dim=2)], dim=2
            ).view_as(x)
        else:
            y = instance_norm(before_norm(self.widen, instance_norm(x)), gelu=True)
            y = before_norm(self.narrow, y)
        return instance_norm(y, residual=x)

    def with_statistics(self, x: Tensor, statistics: Statistics) -> tuple[Tensor, Statistics]:
        """Where ``_hands_statistics_on``: x and its statistics -> the output and its."""
        if torch.is_grad_enabled():
            widen, narrow = self.widen, self.narrow
            return feed_forward_with_gradient(
                x, statistics, widen.weight, narrow.weight, widen.bias, narrow.bias
            )
        y = feed_forward(x, self.widen.weight, self.narrow.weight, self.narrow.bias, statistics)
        return residual_norm(y, x)


class Downsample(nn.Module):
    """1x1 convolution to the new width, IN, GELU; 3x3 with stride 2, IN, GELU (LKAT-GAN). Halves H
    and W."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.widen = pointwise(inputs, outputs)
        self.stride = nn.Conv2d(outputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if serves_widen(x):
            x = widen(x, self.widen.weight)
        elif serves_widen_with_gradient(x):
            x = widen_with_gradient(x, self.widen.weight, self.widen.bias)
        elif serves_pointwise(x, self.widen.out_channels):
            mean, _ = plane_statistics(x)
            x = enter(x, self.widen.weight, (mean, torch.ones_like(mean)), last=True)
        else:
            x = for_convolution(instance_norm(before_norm(self.widen, x), gelu=True))
        return instance_norm(plain(before_norm(self.stride, x)), gelu=True)


class Stage(nn.Sequential):
    """Large-kernel blocks and ConvFFNs, in turns. Where kernels serve them, what the last norm of
    one knows of its output goes to the first norm of the next."""

    def forward(self, x: Tensor) -> Tensor:
        if not _hands_statistics_on(x):
            return super().forward(x)
        statistics = plane_statistics(x)
        for block in self:
            x, statistics = block.with_statistics(x, statistics)
        return x


def large_kernel_stage(channels: int, blocks: int, kernel: int) -> Stage:
    """``blocks`` pairs of a large-kernel block and a ConvFFN."""
    return Stage(
        *(m for _ in range(blocks) for m in (LargeKernelBlock(channels, kernel), ConvFFN(channels)))
    )


class PatchDiscriminator(nn.Module):
    """70x70 PatchGAN on the thermal frame and a colour picture, with spectral norm and no batch
    statistics.

    ``forward(thermal (B,1,H,W), colour (B,3,H,W)) -> (B,1,h,w)`` logits, one a patch.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        sizes = [4, width, 2 * width, 4 * width, 8 * width]
        norm = nn.utils.parametrizations.spectral_norm
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [
                norm(nn.Conv2d(a, b, 4, stride=2 if i < 3 else 1, padding=1)),
                nn.LeakyReLU(0.2),
            ]
        layers.append(norm(nn.Conv2d(sizes[-1], 1, 4, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, thermal: Tensor, colour: Tensor) -> Tensor:
        return self.layers(torch.cat([thermal, colour], dim=1))
