"""Operators that PyTorch runs far from what the hardware allows."""

from cmmfnet.nn.fast.bias import convolve
from cmmfnet.nn.fast.block import feed_forward_with_gradient, large_kernel, serves_training
from cmmfnet.nn.fast.depthwise import depthwise_conv2d
from cmmfnet.nn.fast.enlarge import (
    add_bilinear,
    bilinear,
    double,
    for_convolution,
    modulated,
    plain,
)
from cmmfnet.nn.fast.ffn import enter, feed_forward, join, serves_pointwise
from cmmfnet.nn.fast.join_gradient import join_with_gradient, serves_join_with_gradient
from cmmfnet.nn.fast.last import gelu_convolve, serves_last
from cmmfnet.nn.fast.norm import Statistics, instance_norm, plane_statistics, residual_norm
from cmmfnet.nn.fast.serving import autocasts
from cmmfnet.nn.fast.streams import Beside
from cmmfnet.nn.fast.token_linear import linear, linear_gelu, linear_of_three, serves_tokens
from cmmfnet.nn.fast.token_norm import add_layer_norm, layer_norm
from cmmfnet.nn.fast.up import double_convolve, double_convolve_gelu
from cmmfnet.nn.fast.widening import serves_widen, widen
from cmmfnet.nn.fast.widening_gradient import serves_widen_with_gradient, widen_with_gradient

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
