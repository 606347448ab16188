"""Networks of configurations that come from files: nothing is allocated before the sizes are known.

A file of a few bytes can ask for terabytes, or for millions of layers. So a network is first built
on PyTorch's meta device, which has shapes but no memory, with an end to the number of parameters.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cmmfnet.weights.known import ModelError

if TYPE_CHECKING:
    from torch import nn

LARGEST_NUMBER = 16_384
LARGEST_SIZE = 4_096  # of a side in pixels: keys that end in "size"
LONGEST_LIST = 10_000
MOST_PARAMETERS = 2_000_000_000
MOST_TENSORS = 20_000


def check_values(config: dict[str, Any]) -> None:
    """Raises :class:`ModelError` for keywords of networks and trainings that are larger than any of
    them needs."""
    waiting: list[tuple[str, Any, int]] = [(str(key), value, 0) for key, value in config.items()]
    while waiting:
        key, value, depth = waiting.pop()
        most = LARGEST_SIZE if key.endswith("size") else LARGEST_NUMBER
        if isinstance(value, list | tuple | dict):
            if len(value) > LONGEST_LIST or depth > 4:
                raise ModelError(
                    f"{key} has {len(value):,} entries on level {depth + 1}; expected at most "
                    f"{LONGEST_LIST:,} on 5 levels"
                )
            inside = value.values() if isinstance(value, dict) else value
            waiting += [(key, each, depth + 1) for each in inside]
        elif isinstance(value, int | float) and not abs(value) <= most:
            raise ModelError(
                f"{key} is {value if abs(value) < 1e30 else 'a huge number'}; expected {most:,} at "
                "most"
            )
        elif isinstance(value, str) and len(value) > 10_000:
            raise ModelError(f"{key} is a text of {len(value):,} characters")


def shapes_of(config: dict[str, Any], most_tensors: int = MOST_TENSORS) -> dict[str, Any]:
    """The ``state_dict`` of the network of a configuration, with shapes and dtypes but no memory.

    Raises :class:`ModelError` where there is no such network, or it has more than
    ``MOST_PARAMETERS`` parameters, or parameters in more than ``most_tensors`` tensors.
    """
    import torch

    from cmmfnet.methods import build_network

    check_values(config)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            _without_normal_draws(),
            _limited(most_tensors),
        ):
            network = build_network(config)
        buffers = sum(buffer.numel() for buffer in network.buffers())
    except ModelError:
        raise
    except Exception as error:  # constructors raise almost anything for wrong keywords
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ModelError(
            f"no network can be built from its configuration {repr(config)[:500]}: {reason:.500}"
        ) from error
    if buffers > MOST_PARAMETERS:
        raise ModelError(f"its network has {buffers:,} numbers in buffers")
    return network.state_dict()


def build_fitting(config: dict[str, Any], shapes: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration, built only if its tensors have the names and shapes of
    ``shapes``: name -> tensor, or anything with ``shape`` and ``is_floating_point()``.

    Raises :class:`ModelError`.
    """
    from cmmfnet.methods import build_network

    # modules that a constructor replaces by others count, too
    compare(shapes, shapes_of(config, 2 * len(shapes) + 1000))
    return build_network(config)


def compare(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises :class:`ModelError` that names the tensors by which ``stored`` and ``expected``
    differ."""
    missing = sorted(expected.keys() - stored.keys())
    extra = sorted(stored.keys() - expected.keys())
    shared = sorted(expected.keys() & stored.keys())
    shapes = [
        f"{key} is {tuple(stored[key].shape)}, the network has {tuple(expected[key].shape)}"
        for key in shared
        if tuple(stored[key].shape) != tuple(expected[key].shape)
    ]
    kinds = [
        f"{key} is {stored[key].dtype}, the network has {expected[key].dtype}"
        for key in shared
        if stored[key].is_floating_point() != expected[key].is_floating_point()
    ]
    found = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in [
            ("missing", missing),
            ("not in the network", extra),
            ("misshapen", shapes + kinds),
        ]
        if names
    ]
    if found:
        raise ModelError(
            "its tensors are not those of the network its configuration describes; "
            f"{'; '.join(found)}"
        )


def _without_normal_draws() -> Any:
    """A mode in which tensors do not take normal values. For them PyTorch imports its compiler on
    the meta device, where tensors have no values anyway; that is .7 s of a start."""
    import torch
    from torch.overrides import TorchFunctionMode

    draws = torch.nn.init.normal_, torch.nn.init.trunc_normal_, torch.Tensor.normal_

    class WithoutNormalDraws(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in draws:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    return WithoutNormalDraws()


@contextmanager
def _limited(most_tensors: int) -> Iterator[None]:
    """Raises :class:`ModelError` inside of a constructor that makes too many parameters."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread, tensors, numbers = threading.get_ident(), 0, 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal tensors, numbers
        if parameter is None or threading.get_ident() != thread:
            return
        tensors, numbers = tensors + 1, numbers + math.prod(parameter.shape)
        if numbers > MOST_PARAMETERS or tensors > most_tensors:
            raise ModelError(
                f"its configuration asks for more than {numbers:,} parameters in {tensors:,} "
                "tensors"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
