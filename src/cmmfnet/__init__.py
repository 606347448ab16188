"""cmmfnet: thermal-infrared pictures turned into colour, guided by text.

    >>> from cmmfnet import Colorizer                                     # doctest: +SKIP
    >>> colour = Colorizer.from_pretrained()("frame.png")                 # doctest: +SKIP

Names are imported on first use, so that ``import cmmfnet`` and ``cmmfnet --help`` do not load
torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Colorizer": "cmmfnet.colorizer.torch",
    "Thermal": "cmmfnet.thermal.frame",
    "ThermalFileError": "cmmfnet.thermal.frame",
    "read_thermal": "cmmfnet.thermal.frame",
    "normalise": "cmmfnet.thermal.stretch",
    "Pairs": "cmmfnet.data.pairs",
    "METHODS": "cmmfnet.methods",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cmmfnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
