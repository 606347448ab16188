"""One file a paper. The registry is a dict literal: name -> "module:class of the network"."""

from __future__ import annotations

import importlib

METHODS: dict[str, str] = {
    "cmmfnet": "cmmfnet.methods.cmmfnet:CMMFNet",
}


def build_network(config: dict):
    """The network that ``config`` describes: {"method": name, ...constructor keywords}. A fresh ``torch.nn.Module``.

    Raises ``ValueError`` for an unknown method or keyword.
    """
    options = dict(config)
    method = options.pop("method", None)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(sorted(METHODS))}")
    module, name = METHODS[method].split(":")
    try:
        return getattr(importlib.import_module(module), name)(**options)
    except TypeError as error:
        raise ValueError(f"method {method!r} does not take this configuration: {error}") from error
