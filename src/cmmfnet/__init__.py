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
    "Colorizer": "cmmfnet.colorizer.torch:Colorizer",
    "OnnxColorizer": "cmmfnet.colorizer.onnx:OnnxColorizer",
    "read_thermal": "cmmfnet.thermal.frame:read_thermal",
    "open_sequence": "cmmfnet.thermal.sequence:open_sequence",
    "normalise": "cmmfnet.thermal.stretch:normalise",
    "Thermal": "cmmfnet.thermal.frame:Thermal",
    "ThermalFileError": "cmmfnet.thermal.frame:ThermalFileError",
    "UserError": "cmmfnet.files.errors:UserError",
    "Pairs": "cmmfnet.data.pairs:Pairs",
    "METHODS": "cmmfnet.methods:METHODS",
    "load_model": "cmmfnet.weights.files:load_model",
    "save_model": "cmmfnet.weights.files:save_model",
    "train": "cmmfnet.training.train:train",
    "Setting": "cmmfnet.evaluation.setting:Setting",
    "evaluate": "cmmfnet.evaluation.evaluate:evaluate",
    "compare": "cmmfnet.evaluation.compare:compare",
    "export_onnx": "cmmfnet.export.export:export",  # `cmmfnet.export` is the package
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cmmfnet' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
