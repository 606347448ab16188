"""Fast twins of plain modules: the same parameters, the same state_dict, the same results up to
rounding.

``accelerate(network)`` puts the twins in place. A twin calls Triton kernels where :func:`fits` is
true, a few fused steps on a CPU, and torch.compile for transformer blocks and losses in training.
Everywhere else it calls its plain module's forward. docs/performance.md has the gain of each
kernel.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cmmfnet.nn import blocks, losses, patchgan, perceptual, transformer, unet
from cmmfnet.nn.fast.graphs import SideStream


def _has_triton() -> bool:
    """Whether Triton can be imported. Version 3.2, of torch 2.6, needs setuptools, which its
    package does not require."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        if error.name != "triton" and torch.cuda.is_available():
            warnings.warn(
                f"Triton cannot be imported ({error}), so networks run slower; "
                "pip install setuptools may help",
                stacklevel=2,
            )
        return False
    return True


TRITON = _has_triton()
if TRITON:
    from cmmfnet.nn.fast.blocks_inference import CHANNELS, enter, feed_forward
    from cmmfnet.nn.fast.blocks_inference import join as _join
    from cmmfnet.nn.fast.blocks_training import feed_forward as feed_forward_with_gradient
    from cmmfnet.nn.fast.blocks_training import large_kernel
    from cmmfnet.nn.fast.depthwise import KERNELS, depthwise
    from cmmfnet.nn.fast.enlarge import add_bilinear, bilinear, double, ordered
    from cmmfnet.nn.fast.first_layer import first_layer
    from cmmfnet.nn.fast.last_layer import last_layer, takes_last
    from cmmfnet.nn.fast.norm import instance_norm, plane_statistics, residual_norm

Network = TypeVar("Network", bound=nn.Module)
Statistics = tuple[Tensor, Tensor]

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32)
# Triton's interpreter runs kernels on the CPU, for tests
DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def accelerate(network: Network) -> Network:
    """Put the fast twins in the place of the plain modules in ``network``; returns it.

    Colorizer and training call it. An exported graph is made of the plain modules.
    """
    for module in network.modules():
        module.__class__ = FAST.get(type(module), type(module))
    return network


def fits(
    x: Tensor,
    *,
    gradient: bool | None = None,
    dtypes: Collection[torch.dtype] = HALVES,
    channels: Collection[int] | None = None,
) -> bool:
    """Whether kernels take x (B,C,...): on a GPU with Triton, of one of ``dtypes`` and
    ``channels``, with a ``gradient`` or without (None: either). Never while a compiler or exporter
    traces the network, which gets the plain modules."""
    return (
        TRITON
        and x.device.type in DEVICES
        and x.dtype in dtypes
        and (channels is None or x.shape[1] in channels)
        and gradient in (None, torch.is_grad_enabled())
        and not traced()
    )


def fits_cpu(x: Tensor) -> bool:
    """Whether the fused steps for inference on a CPU take x here."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not traced()


def fits_compiler(x: Tensor) -> bool:
    """Whether torch.compile is worth its start for x: in training on a GPU in 16 bits."""
    return x.is_cuda and fits(x, gradient=True, dtypes=FLOATS) and product_dtype(x) in HALVES


def traced() -> bool:
    """Whether a compiler or exporter traces the network."""
    # torch before 2.7 has no is_exporting
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return torch.compiler.is_compiling() or exporting()


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products of x: autocast's, or x's own."""
    return torch.get_autocast_dtype(x.device.type) if unet.autocasts(x) else x.dtype


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)


# --- convolutions in front of a norm


class _ZeroGradient(torch.autograd.Function):
    """y, with a gradient of zero for a bias that y does not depend on, since DDP needs a gradient
    of every parameter."""

    @staticmethod
    def forward(ctx, y: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        return dy, torch.zeros_like(ctx.saved_tensors[0])


def without_bias(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``layer(x)`` without the bias, which an instance norm behind the layer takes away. On a GPU
    the bias costs a pass over the whole map, and its gradient another. The gradient is rounding
    errors, of which Adam would make steps."""
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
    return _ZeroGradient.apply(y, layer.bias) if torch.is_grad_enabled() else y


def norm(x: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
    """Instance norm, then GELU if ``gelu``, then plus ``residual`` if given."""
    if fits(x, dtypes=FLOATS):
        return instance_norm(x, gelu, residual)
    y = blocks.instance_norm(x)
    y = F.gelu(y) if gelu else y
    return y if residual is None else residual + y


def folded_norms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """IN, 1x1 convolution, IN as one matrix product, for inference on the CPU, where passes over
    memory take most of the time.

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


class FastInstanceNorm(patchgan.InstanceNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not fits(x, dtypes=FLOATS):
            return super().forward(x)
        return self.scaled(instance_norm(x))


# --- blocks of the large-kernel U-Net


def fits_stage(x: Tensor) -> bool:
    """Whether the fused residual blocks, which also return their output's statistics, take x."""
    return TRITON and fits(x, channels=CHANNELS)


class FastLargeKernelBlock(blocks.LargeKernelBlock):
    def forward(self, x: Tensor) -> Tensor:
        if fits_stage(x):
            return self.with_statistics(x, plane_statistics(x))[0]
        if fits_cpu(x):
            centred, matrix = folded_norms(x, self.enter.weight)
            y = F.gelu(matrix @ centred).view_as(x)
            y = self.leave(F.gelu(self.depthwise(y)))
            return x + F.gelu(blocks.instance_norm(y))
        if traced():
            return super().forward(x)
        y = norm(without_bias(self.enter, norm(x)), gelu=True)
        return norm(without_bias(self.leave, self._large(y)), gelu=True, residual=x)

    def with_statistics(self, x: Tensor, statistics: Statistics) -> tuple[Tensor, Statistics]:
        """Where ``fits_stage``: x and its planes' statistics -> the output and its."""
        if torch.is_grad_enabled():
            enter_, large, leave = self.enter, self.depthwise, self.leave
            return large_kernel(
                x, statistics, enter_.weight, large.weight, large.bias, leave.weight, enter_.bias,
                leave.bias,
            )  # fmt: skip
        y = self._large(enter(x, self.enter.weight, statistics))
        y, _, statistics = residual_norm(without_bias(self.leave, y), x, gelu=True)
        return y, statistics

    def _large(self, y: Tensor) -> Tensor:
        """The depthwise convolution and GELU."""
        layer = self.depthwise
        if not fits(y, dtypes=FLOATS) or layer.kernel_size[0] not in KERNELS:
            return F.gelu(layer(y))
        if torch.is_grad_enabled():
            return F.gelu(depthwise(y, layer.weight, layer.bias))
        return depthwise(y, layer.weight, layer.bias, gelu=True)


class FastConvFFN(blocks.ConvFFN):
    CHUNK = 4096
    """Pixels at a time on a CPU: the wide map, four times the input, then never leaves the
    cache."""

    def forward(self, x: Tensor) -> Tensor:
        if fits_stage(x):
            return self.with_statistics(x, plane_statistics(x))[0]
        if fits_cpu(x):
            centred, matrix = folded_norms(x, self.widen.weight)
            narrow = self.narrow.weight.flatten(1)
            parts = centred.split(self.CHUNK, dim=2)
            y = torch.cat([narrow @ F.gelu(matrix @ part) for part in parts], dim=2).view_as(x)
            return x + blocks.instance_norm(y)
        if traced():
            return super().forward(x)
        y = norm(without_bias(self.widen, norm(x)), gelu=True)
        return norm(without_bias(self.narrow, y), residual=x)

    def with_statistics(self, x: Tensor, statistics: Statistics) -> tuple[Tensor, Statistics]:
        """Where ``fits_stage``: x and its planes' statistics -> the output and its."""
        widen, narrow = self.widen, self.narrow
        if torch.is_grad_enabled():
            return feed_forward_with_gradient(
                x, statistics, widen.weight, narrow.weight, widen.bias, narrow.bias
            )
        y = feed_forward(x, widen.weight, narrow.weight, narrow.bias, statistics)
        y, _, statistics = residual_norm(y, x)
        return y, statistics


class FastStage(blocks.Stage):
    def forward(self, x: Tensor) -> Tensor:
        if not fits_stage(x):
            return super().forward(x)
        statistics = plane_statistics(x)
        for block in self:
            x, statistics = block.with_statistics(x, statistics)
        return x


class FastDownsample(blocks.Downsample):
    def forward(self, x: Tensor) -> Tensor:
        if fits(x, dtypes=FLOATS):
            wide = ordered(without_bias(self.stride, self._wide(x)), last=False)
            return instance_norm(wide, gelu=True)
        if traced() or fits_cpu(x):
            return super().forward(x)
        return norm(
            without_bias(self.stride, norm(without_bias(self.widen, x), gelu=True)), gelu=True
        )

    def _wide(self, x: Tensor) -> Tensor:
        """gelu(IN(widen(x))), channels-last where that makes the next convolution faster."""
        layer, trains = self.widen, torch.is_grad_enabled()
        if x.shape[1] <= 2 and not (trains and (x.requires_grad or product_dtype(x) not in HALVES)):
            dtype = product_dtype(x) if trains else x.dtype
            return first_layer(x, layer.weight, layer.bias, dtype)
        if not trains and fits_stage(x) and layer.out_channels % 64 == 0:
            mean, _ = plane_statistics(x)
            return enter(x, layer.weight, (mean, torch.ones_like(mean)), last=True)
        y = instance_norm(without_bias(layer, x), gelu=True)
        return ordered(y, last=True) if trains and y.dtype in HALVES else y


# --- steps between the stages of a U-Net


def _double(x: Tensor) -> Tensor:
    if fits(x, gradient=False, dtypes=FLOATS) or fits(x, gradient=True):
        return double(x)
    return unet.double(x)


class FastResize(unet.Resize):
    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if tuple(x.shape[-2:]) != tuple(size):
            if fits(x, gradient=False, dtypes=FLOATS):
                return bilinear(x, tuple(size))
            if x.is_cuda and x.shape[1] >= 4:
                # else one thread of PyTorch's kernel walks through all channels of a pixel
                x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x, size)


class FastGuide(unet.Guide):
    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if y is not None and x.dtype == y.dtype and fits(x, gradient=False, dtypes=FLOATS):
            return add_bilinear(x, y, scale, shift)
        return super().forward(x, y, scale, shift)


class FastUpAndJoin(unet.UpAndJoin):
    def forward(self, up: nn.Conv2d, x: Tensor, skip: Tensor, join: nn.Conv2d | None) -> Tensor:
        if join is None or not fits(x, dtypes=FLOATS):
            return super().forward(up, x, skip, join)
        if (
            fits(skip, gradient=False, channels=CHANNELS)
            and x.dtype == skip.dtype
            and join.out_channels % 64 == 0
        ):
            y = F.conv2d(_double(x), up.weight, None, up.stride, up.padding)
            return _join(y, skip, join.weight, join.bias, up.bias)
        return join(torch.cat([ordered(up(_double(x)), last=False), skip], dim=1))


class FastUpAndPaint(unet.UpAndPaint):
    def forward(
        self,
        up: nn.Conv2d,
        x: Tensor,
        last: nn.Conv2d,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if not fits(x, dtypes=FLOATS):
            return super().forward(up, x, last, between)
        if between is None and fits(x, gradient=True) and takes_last(last):
            y = F.conv2d(_double(x), up.weight.to(x.dtype), None, up.stride, up.padding)
            return last_layer(y, up.bias, last.weight, last.bias)
        if fits(x, gradient=True, dtypes=(torch.float32,)):
            # the largest maps need not be turned for each convolution
            x = x.contiguous(memory_format=torch.channels_last)
        y = F.gelu(up(_double(x)))
        return last(y if between is None else between(y)).contiguous()


class FastSideBySide(unet.SideBySide):
    def forward(self, first: Callable, second: Callable, x: Tensor) -> tuple:
        with SideStream(x) as side:
            a = first(x)
        b = second(x)
        side.join(*tree_leaves(a))
        return a, b


# --- transformer blocks and losses


class FastTransformerBlock(transformer.TransformerBlock):
    def forward(self, x: Tensor) -> Tensor:
        if fits_compiler(x):
            return _compiled(transformer.TransformerBlock.forward)(self, x)
        return super().forward(x)


class FastCrossBlock(transformer.CrossBlock):
    def forward(self, query: Tensor, *given: Tensor | None, **more: Tensor | None) -> Tensor:
        if fits_compiler(query):
            return _compiled(transformer.CrossBlock.forward)(self, query, *given, **more)
        return super().forward(query, *given, **more)


class FastPictureLosses(losses.PictureLosses):
    def pixelwise(self, colour: Tensor, truth: Tensor) -> dict[str, Tensor]:
        if colour.is_cuda and fits(colour, gradient=True, dtypes=FLOATS):
            return _compiled(losses.PictureLosses.pixelwise)(self, colour, truth)
        return super().pixelwise(colour, truth)


class FastPerceptual(perceptual.Perceptual):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if fits_compiler(x):
            # biases, activations, pools and distances of maps in fewer passes over memory
            return _compiled(perceptual.Perceptual.forward)(self, x, y)
        return super().forward(x, y)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    twin.__base__: twin
    for twin in (
        FastInstanceNorm, FastLargeKernelBlock, FastConvFFN, FastStage, FastDownsample, FastResize,
        FastGuide, FastUpAndJoin, FastUpAndPaint, FastSideBySide, FastTransformerBlock,
        FastCrossBlock, FastPictureLosses, FastPerceptual,
    )
}  # fmt: skip
"""Plain module -> its fast twin."""
