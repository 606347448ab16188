"""The methods: one module for each paper, and packages for CMMF-Net and CMMF-Net small.

``METHODS`` maps a name to "module:class" of its Method (method.py). CONTRIBUTING.md says how to add
one.
"""

from __future__ import annotations

import importlib

from cmmfnet.methods.traits import SETTINGS, traits_of

METHODS: dict[str, str] = {
    "cmmfnet": "cmmfnet.methods.cmmfnet.method:CMMFNetMethod",
    "cmmfnet-small": "cmmfnet.methods.cmmfnet_small.method:CMMFNetSmallMethod",
    "pix2pix": "cmmfnet.methods.pix2pix:Pix2Pix",
    "cyclegan": "cmmfnet.methods.cyclegan:CycleGAN",
    "ticcgan": "cmmfnet.methods.ticcgan:TICCGAN",
    "scgan": "cmmfnet.methods.scgan:SCGAN",
    "pearlgan": "cmmfnet.methods.pearlgan:PearlGAN",
    "todaygan": "cmmfnet.methods.todaygan:ToDayGAN",
    "mugan": "cmmfnet.methods.mugan:MUGAN",
    "lkatgan": "cmmfnet.methods.lkatgan:LKATGAN",
    "tir2lab": "cmmfnet.methods.tir2lab:TIR2Lab",
    "i2vgan": "cmmfnet.methods.i2vgan:I2VGAN",
    "palette": "cmmfnet.methods.palette:Palette",
}


def method_class(name: str):
    """The :class:`~cmmfnet.methods.method.Method` of a name. Raises ``ValueError`` for an unknown
    one."""
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; expected one of {', '.join(sorted(METHODS))}")
    module, cls = METHODS[name].split(":")
    return getattr(importlib.import_module(module), cls)


def build_network(config: dict):
    """The network that ``config`` describes: {"method": name, ...constructor keywords, ...settings
    of any network (``traits.SETTINGS``)}. A fresh ``torch.nn.Module``.

    Raises ``ValueError`` for an unknown method or keyword, or a value out of its range.
    """
    options = dict(config)
    method = options.pop("method", None)
    settings = {name: options.pop(name) for name in SETTINGS if name in options}
    try:
        network = method_class(method).Network(**options)
    except TypeError as error:
        raise ValueError(f"method {method!r} does not take this configuration: {error}") from error
    network.settings = settings
    traits_of(network)  # refuses values that are out of range
    return network
