"""``cmmfnet models``: the known weights, and the methods that can be trained."""

from __future__ import annotations

import inspect
import json as jsonlib
import warnings
from typing import Any

# options that avoid loading a pre-trained loss network, which is no part of a method's size
WITHOUT_LOSS_NETWORKS: dict[str, dict] = {"i2vgan": {"perceptual": "none"}}


def models(name: str | None = None, *, json: bool = False) -> None:
    """List the known models and the methods that can be trained, or describe a model.

    Args:
        name: a known name, a .safetensors file, or hf:OWNER/REPO@COMMIT; without it, all known
            names
        json: as JSON, with paper, sizes and training data of every method
    """
    from cmmfnet.methods import METHODS
    from cmmfnet.weights.files import describe
    from cmmfnet.weights.known import KNOWN

    found = [describe(each) for each in ([name] if name is not None else KNOWN)]
    if json:
        everything = (
            found[0] if name is not None else {"models": found, "methods": describe_methods()}
        )
        print(jsonlib.dumps(everything, indent=1))
        return
    if name is None and not found:
        print("no bundled models in this installation")
    for each in found:
        print(_summary(each))
    if name is None:
        print(f"\nmethods for `cmmfnet train --config NAME`: {', '.join(METHODS)}")
        print("their papers and sizes: cmmfnet models --json, docs/methods.md")


def _summary(model: dict[str, Any]) -> str:
    """At most ten lines on a model; ``--json`` has everything, the recipe among it."""
    training = model["training"] or {}
    size = f"{model['parameters'] / 1e6:.1f} M parameters, {model['bytes'] / 1e6:.1f} MB"
    rows = {"method": model["method"], "size": f"{size} as {model['storage']}"}
    rows |= {key: model[key] for key in ("licence", "sha256", "path")}
    rows |= {key: training[key] for key in ("steps", "data", "hardware", "text") if key in training}
    lines = [f"{model['name']}: {model['summary'] or model['method']}"]
    lines += [f"  {key:9} {' '.join(str(value).split())}" for key, value in rows.items()]
    return "\n".join(line if len(line) <= 300 else f"{line[:297]}..." for line in lines)


def describe_methods() -> list[dict[str, Any]]:
    """One dict for each method, and for the paper's CMMF-Net, from ``configs/NAME.yaml``.

    Keys:
        name: of the configuration; method, title, paper.
        paired: whether it needs aligned pairs.
        frames: of a training item; 3 are neighbours in time.
        generator, discriminator: parameters, counted as in the paper's code; the discriminator of
            colour pictures, null for none.
        original_generator: parameters of the network with ``faithful``, as in the authors' code.
        trained: network -> parameters, for all networks of its training.
        multiple_of, fixed_size: sides in pixels that the network takes.
        training_size: side of its training crops in pixels.
        weights: names of known weights, [] for none.
    """
    from cmmfnet.methods import METHODS
    from cmmfnet.weights.files import describe
    from cmmfnet.weights.known import KNOWN

    weights = {known: describe(known)["method"] for known in KNOWN}
    return [
        _describe(name, weights)
        for name in ("cmmfnet", "cmmfnet-paper", *(m for m in METHODS if m != "cmmfnet"))
    ]


def _describe(name: str, weights: dict[str, str]) -> dict[str, Any]:
    import torch

    from cmmfnet.methods import build_network, method_class
    from cmmfnet.methods.traits import traits_of
    from cmmfnet.training.recipe import find_config, read_recipe

    recipe = read_recipe(find_config(name))
    key = recipe.model["method"]
    cls = method_class(key)
    losses = {loss: weight for loss, weight in recipe.losses.items() if loss != "perceptual"}
    with torch.device("meta"), warnings.catch_warnings():  # shapes without numbers
        warnings.simplefilter("ignore")  # such as SCGAN's, that its saliency is an estimate
        network = build_network(cls.configuration(dict(recipe.model)))
        method = cls(network, losses, **WITHOUT_LOSS_NETWORKS.get(key, {}))
        original = network
        if "faithful" in inspect.signature(cls.Network).parameters:
            original = build_network(cls.configuration(recipe.model | {"faithful": True}))
    traits = traits_of(network)
    trained = {part: cls.size(net) for part, net in method.networks.items()}
    judges = [part for part in ("discriminator", "discriminator_visible") if part in trained]
    return {
        "name": name,
        "method": key,
        "title": cls.title,
        "paper": cls.paper,
        "paired": cls.paired,
        "frames": cls.frames,
        "generator": trained["generator"],
        "original_generator": cls.size(original),
        "discriminator": trained[judges[0]] if judges else None,
        "trained": trained,
        "multiple_of": traits.multiple_of,
        "fixed_size": traits.fixed_size,
        "training_size": recipe.size,
        # the paper's network has no known weights: the known ones are of the released recipe
        "weights": [known for known, of in weights.items() if of == name],
    }
