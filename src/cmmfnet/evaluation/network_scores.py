"""Scores of a network in memory, for training and benchmarks: no file, protocol or intervals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.baselines import Colour
from cmmfnet.evaluation.predictors import baseline, takes, to_picture
from cmmfnet.evaluation.protocol import DEFAULT_GEOMETRY, SIZE, centre_crop
from cmmfnet.evaluation.scoring import Rows, Scorer, default_metrics, measure, summary
from cmmfnet.thermal.stretch import normalise

if TYPE_CHECKING:
    import torch


def centre_crops(
    pairs: Pairs, size: int = SIZE, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, dict]]:
    """For each pair: thermal (size,size) float32 in [-1,1], stretched after the crop; truth
    (size,size,3) uint8; the index entry."""
    for i in range(min(len(pairs), limit or len(pairs))):
        pair = pairs[i]
        thermal = normalise(centre_crop(pair.thermal, size), find_fill=False)
        yield thermal, centre_crop(pair.visible, size), pair.meta


def score_all(
    methods: dict[str, Colour],
    pairs: Pairs,
    pretrained: str | Path | None = None,
    geometry: str = DEFAULT_GEOMETRY,
) -> dict[str, Rows]:
    """Method -> one row per picture, cut by ``geometry``. Decodes every picture once.

    A row has name, source, lighting, sequence, psnr, ssim, colourfulness, truth (the colourfulness
    of the truth), and lpips if its files are found.
    """
    scorer = Scorer(default_metrics(pretrained), pretrained=pretrained)
    predictors = [baseline(name, colour) for name, colour in methods.items()]
    return measure(predictors, pairs, scorer, geometry)[0]


def score(
    colour: Colour,
    pairs: Pairs,
    pretrained: str | Path | None = None,
    geometry: str = DEFAULT_GEOMETRY,
) -> Rows:
    """The rows of :func:`score_all` for one method."""
    return score_all({"": colour}, pairs, pretrained, geometry)[""]


def by_default(network: torch.nn.Module) -> Colour:
    """A function that colours square frames with ``network`` and its default text, mostly none.

    The network is in evaluation mode, in float32, on its device. A frame of a size that the network
    does not take is resized to one that it takes, and its picture is resized back, as
    ``cmmfnet colorize`` does.
    """
    import torch

    from cmmfnet.colorizer.torch import Colorizer

    device = next(network.parameters()).device
    colorizer = Colorizer(network, device=device, dtype=torch.float32)
    if not takes(colorizer.traits, SIZE) or colorizer.traits.default_text == "predicted":
        return lambda thermal, _: colorizer(thermal, span=(-1, 1))
    given = colorizer.text_input(None)
    text = [part[None] for part in given.tokens] if given is not None else []

    def colour(thermal: np.ndarray, _: dict) -> np.ndarray:
        with torch.inference_mode():
            return to_picture(network(torch.from_numpy(thermal)[None, None].to(device), *text)[0])

    return colour


def score_network(
    network: torch.nn.Module,
    pairs: Pairs,
    pretrained: str | Path | None = None,
    geometry: str = DEFAULT_GEOMETRY,
) -> dict[str, float]:
    """Means over ``pairs``, cut by ``geometry``, for a network with its default text."""
    return summary(score(by_default(network), pairs, pretrained, geometry))
