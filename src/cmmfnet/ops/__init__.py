"""Operators that PyTorch runs far from what the hardware allows."""

from cmmfnet.ops.bias import convolve
from cmmfnet.ops.depthwise import depthwise_conv2d
from cmmfnet.ops.ffn import feed_forward, serves_feed_forward
from cmmfnet.ops.norm import instance_norm

__all__ = ["convolve", "depthwise_conv2d", "feed_forward", "instance_norm", "serves_feed_forward"]
