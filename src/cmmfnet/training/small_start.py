"""The start of a fresh CMMF-Net small: its stem is factored from a teacher's, its first colours are
fitted by regression.

Both are closed forms: two passes of some hundred frames through the stem, and no gradient.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.data.fields import RecipeError
from cmmfnet.methods.cmmfnet_small.method import CMMFNetSmallMethod
from cmmfnet.methods.cmmfnet_small.network import CMMFNetSmall, tones
from cmmfnet.methods.method import Method
from cmmfnet.nn.unet import Resize

FACTOR_FRAMES = 12  # more change little, and all of a stem's maps of them are in memory


def start(method: Method) -> None:
    """Initialise the generator of a fresh CMMF-Net small from the teacher in its options; other
    methods stay as they are."""
    if isinstance(method, CMMFNetSmallMethod) and method.teacher:
        begin(method.networks["generator"], method.teacher, method.fit)


def begin(network: CMMFNetSmall, teacher: str, fit: str | None = None) -> None:
    """Fit the stem to the teacher's, bring what the decoder gets from it to about unit size, and
    fit the readouts.

    ``teacher``: a model with a VGG-16 stem. ``fit``: a folder of pairs whose frames the stem and
    whose daytime colours the readouts are fitted to; None: rendered scenes for the stem, and the
    readouts stay as they are. Raises :class:`RecipeError`.
    """
    stem, side = stem_of(teacher), network.global_size
    thermal, colour = day(fit, side) if fit else (rendered(side), None)
    some = tones(
        thermal[torch.linspace(0, len(thermal) - 1, min(FACTOR_FRAMES, len(thermal))).long()]
    )
    network.stem.fit(stem, some)
    with torch.no_grad():
        for lateral, found in zip(network.laterals, network.stem(some)[1:], strict=True):
            lateral.weight /= found.square().mean().sqrt()
    if colour is not None:
        fit_readouts(network, thermal, colour)


def stem_of(teacher: str) -> nn.Sequential:
    """The VGG-16 stem of a model. Raises :class:`RecipeError` where it has none."""
    from cmmfnet.weights.files import load_model

    encoder = getattr(load_model(teacher).network, "image_encoder", None)
    if not getattr(encoder, "hybrid", False):
        raise RecipeError(
            f"teacher is {teacher!r}, which has no VGG-16 stem; expected a model like cmmfnet, or "
            "''"
        )
    return encoder.stem


def rendered(side: int, count: int = 8) -> Tensor:
    """Stretched thermal frames (count,1,side,side) of rendered scenes, with seeds of the training
    scenes."""
    from cmmfnet.data.scenes import render
    from cmmfnet.thermal.stretch import normalise

    frames = [
        normalise(render(10_000 + i, size=(side, side)).thermal.astype(np.float32))
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(frames))[:, None].float()


def day(folder: str, side: int) -> tuple[Tensor, Tensor]:
    """The daytime pairs of a folder, centre crops: thermal (N,1,side,side) float32 and colour
    (N,3,side,side) uint8."""
    from cmmfnet.data.pairs import Pairs
    from cmmfnet.evaluation.protocol import centre_crop
    from cmmfnet.thermal.stretch import normalise

    pairs = Pairs(folder, "train", ("day",))
    thermal = np.empty((len(pairs), 1, side, side), np.float32)
    colour = np.empty((len(pairs), side, side, 3), np.uint8)
    for i in range(len(pairs)):
        pair = pairs[i]
        thermal[i, 0], colour[i] = (
            normalise(centre_crop(pair.thermal, side), find_fill=False),
            centre_crop(pair.visible, side),
        )
    return torch.from_numpy(thermal), torch.from_numpy(colour).permute(0, 3, 1, 2)


@torch.no_grad()
def fit_readouts(
    network: CMMFNetSmall, thermal: Tensor, colour: Tensor, ridge: float = 3e-2
) -> list[float]:
    """Set ``network.readouts`` by ridge regression, from coarse to fine: each level explains what
    the coarser ones left.

    thermal (N,1,S,S) in [-1,1], colour (N,3,S,S) uint8, S the network's ``global_size``. The target
    is what tanh takes to the colours. Returns the mean absolute error in [-1,1] at each level's
    resolution, finest first.
    """
    maps: list[list[Tensor]] = [[], [], [], []]
    place = thermal.device.type
    for part in thermal.split(4):
        with torch.autocast(place, torch.bfloat16):
            for level, found in enumerate(network.stem(tones(part))[1:]):
                maps[level].append(found.to(torch.bfloat16))
    target = torch.atanh((colour.float() / 127.5 - 1).clamp(-0.97, 0.97))
    generator = torch.Generator().manual_seed(0)
    guess, errors = torch.zeros(1), [0.0] * 4
    for level in (3, 2, 1, 0):
        found = torch.cat(maps[level])
        size = found.shape[-2:]
        wanted = F.interpolate(target, size, mode="area")
        guess = Resize()(guess, size) if level < 3 else torch.zeros_like(wanted)
        chosen = torch.randperm(size[0] * size[1], generator=generator)[:256]
        x = found.flatten(2)[..., chosen].transpose(0, 1).flatten(1).float()
        y = (wanted - guess).flatten(2)[..., chosen].transpose(0, 1).flatten(1)
        centre, mean = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        x, y = x - centre, y - mean
        gram = (x @ x.T).double()
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        weight = torch.linalg.solve(gram, (x @ y.T).double()).T.float()
        readout = network.readouts[level]
        readout.weight.copy_(weight[..., None, None])
        readout.bias.copy_((mean - weight @ centre).squeeze(1))
        guess = guess + torch.cat([readout(part.float()) for part in found.split(8)])
        errors[level] = float((torch.tanh(guess) - torch.tanh(wanted)).abs().mean())
    return errors
