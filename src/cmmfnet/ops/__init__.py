"""Operators that PyTorch runs far from what the hardware allows."""

from cmmfnet.ops.bias import convolve
from cmmfnet.ops.block import feed_forward_with_gradient, large_kernel, serves_training
from cmmfnet.ops.depthwise import depthwise_conv2d
from cmmfnet.ops.enlarge import add_bilinear, bilinear, double, for_convolution, modulated, plain
from cmmfnet.ops.ffn import enter, feed_forward, join, serves_pointwise
from cmmfnet.ops.join_gradient import join_with_gradient, serves_join_with_gradient
from cmmfnet.ops.last import gelu_convolve, serves_last
from cmmfnet.ops.norm import Statistics, instance_norm, plane_statistics, residual_norm
from cmmfnet.ops.serving import autocasts
from cmmfnet.ops.streams import Beside
from cmmfnet.ops.token_linear import linear, linear_gelu, linear_of_three, serves_tokens
from cmmfnet.ops.token_norm import add_layer_norm, layer_norm
from cmmfnet.ops.up import double_convolve, double_convolve_gelu
from cmmfnet.ops.widening import serves_widen, widen
from cmmfnet.ops.widening_gradient import serves_widen_with_gradient, widen_with_gradient

__all__ = [
    "Beside",
    "Statistics",
    "add_bilinear",
    "add_layer_norm",
    "autocasts",
    "bilinear",
    "convolve",
    "depthwise_conv2d",
    "double",
    "double_convolve",
    "double_convolve_gelu",
    "enter",
    "feed_forward",
    "feed_forward_with_gradient",
    "for_convolution",
    "gelu_convolve",
    "instance_norm",
    "join",
    "join_with_gradient",
    "large_kernel",
    "layer_norm",
    "linear",
    "linear_gelu",
    "linear_of_three",
    "modulated",
    "plain",
    "plane_statistics",
    "residual_norm",
    "serves_join_with_gradient",
    "serves_last",
    "serves_pointwise",
    "serves_tokens",
    "serves_training",
    "serves_widen",
    "serves_widen_with_gradient",
    "widen",
    "widen_with_gradient",
]
