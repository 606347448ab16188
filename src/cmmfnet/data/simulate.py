"""Pseudo-thermal frames from labelled colour photos, which make up for the small number of real
pairs (docs/data.md).

A thermal camera measures temperature and emissivity, which a photo does not have; the two share
shapes. So every class gets a random temperature, inside a class the photo's own variation is added
with a random sign and strength, and sensor effects follow (augment.sensor). Half of the frames take
temperatures from a weak physical prior (sky cold, people warm), half take them at random.
Everything but ``level`` is batched tensor code and runs where the tensors are; as in augment.py,
drawing and applying are apart.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmmfnet.data.augment import Draws, normal, uniform
from cmmfnet.nn.blur import blur
from cmmfnet.thermal.stretch import quantiles_of_counts

# Class -> mean and deviation of its apparent temperature on a 0..1 scale, by day (ids:
# text.labels.CLASSES).
PRIOR: tuple[tuple[float, float], ...] = (
    (0.50, 0.25),  # unlabelled
    (0.05, 0.10),  # sky
    (0.48, 0.20),  # building
    (0.50, 0.20),  # wall
    (0.45, 0.20),  # fence
    (0.50, 0.25),  # pole
    (0.60, 0.18),  # road
    (0.60, 0.18),  # pavement
    (0.42, 0.15),  # vegetation
    (0.50, 0.15),  # grass
    (0.55, 0.15),  # terrain
    (0.40, 0.15),  # mountain
    (0.25, 0.15),  # water
    (0.20, 0.10),  # snow
    (0.55, 0.25),  # car
    (0.55, 0.25),  # truck
    (0.55, 0.25),  # bus
    (0.90, 0.12),  # person
    (0.50, 0.20),  # bicycle
    (0.50, 0.20),  # sign
    (0.60, 0.20),  # traffic light
    (0.32, 0.20),  # window
    (0.50, 0.20),  # door
    (0.70, 0.20),  # roof
    (0.50, 0.25),  # other
)
_SKY = 1


def level(photo: np.ndarray) -> np.ndarray:
    """Levels of a photo (H,W,3) uint8: each channel's 0.5 % quantile to black, the largest 99.7 %
    quantile to white."""
    sample = photo.reshape(-1, 3)[:: max(1, photo.size // 3 // 20000)]
    counts = [np.bincount(sample[:, c], minlength=256) for c in range(3)]
    ends = [quantiles_of_counts(n, 0.005, 0.997) for n in counts]
    low, high = [dark for dark, _ in ends], max(bright for _, bright in ends)
    levelled = np.empty_like(photo)
    for c in range(3):
        table = (np.arange(256) - low[c]) / max(high - low[c], 16.0) * 255
        levelled[..., c] = table.clip(0, 255).round().astype(np.uint8)[photo[..., c]]
    return levelled


def _class_mean(x: Tensor, label: Tensor, classes: int) -> Tensor:
    """Mean of x (B,C,H,W) over each class of label (B,H,W), back at every pixel: (B,C,H,W)."""
    # As products with the one-hot map: adding 65,536 pixels to 25 sums by scatter would queue on 25
    # addresses.
    flat = label.flatten(1)
    member = (flat.unsqueeze(1) == torch.arange(classes, device=label.device).view(1, -1, 1)).to(
        x.dtype
    )
    mean = torch.einsum("bcn,bkn->bck", x.flatten(2), member) / member.sum(dim=2).clamp_min(
        1
    ).unsqueeze(1)
    return mean.gather(2, flat.unsqueeze(1).expand(-1, x.shape[1], -1)).view_as(x)


@lru_cache(maxsize=16)
def _prior(device: torch.device) -> Tensor:
    return torch.tensor(
        PRIOR, device=device
    )  # kept: to send it anew for every batch would make the host wait


def simulation_draws(count: int, generator: torch.Generator) -> Draws:
    """Random numbers of :func:`simulate_thermal` for ``count`` pictures, on the generator's
    device."""
    classes = len(PRIOR)

    def per_class(low: float, high: float) -> Tensor:
        return uniform((count, classes), low, high, generator)

    def one(low: float, high: float) -> Tensor:
        return uniform((count, 1, 1, 1), low, high, generator)

    prior = _prior(generator.device)
    physical = prior[:, 0] + prior[:, 1] * normal((count, classes), generator)
    temperature = torch.where(
        uniform((count, 1), 0, 1, generator) < 0.5, physical, per_class(0.0, 1.0)
    )
    # a random direction in RGB (materials differ)
    mix = normal((count, classes, 3), generator)
    material = per_class(0.0, 0.9)
    material[:, 0] *= 2.0  # unlabelled pixels have nothing else
    material[:, _SKY] *= 0.5
    vertical = per_class(-0.25, 0.25)
    vertical[:, _SKY] = uniform((count,), 0.0, 0.35, generator)  # it warms towards the horizon
    return {
        "temperature": temperature,
        "contrast": one(0.3, 1.0),
        "mix": mix / mix.norm(dim=2, keepdim=True),
        "material": material,
        "scale": one(1.5, 4.0),
        "texture": per_class(-1.6, 1.6),
        "vertical": vertical,
        "horizontal": per_class(-0.2, 0.2),
        "field": normal((count, 1, 6, 6), generator) * one(0.0, 0.08),
        "optics": one(0.3, 1.2),
    }


def simulate_thermal(photo: Tensor, label: Tensor, draws: Draws) -> Tensor:
    """photo (B,3,H,W) float in [0,1], label (B,H,W) long class ids -> raw pseudo-thermal (B,1,H,W)
    float, about 0..1.

    The frame still wants sensor effects and a stretch (augment.sensor).
    """
    batch, _, height, width = photo.shape
    device = photo.device

    def at_pixels(table: Tensor) -> Tensor:
        """(B,K) -> (B,1,H,W): each pixel takes its class' entry."""
        return table.gather(1, label.flatten(1)).view(batch, 1, height, width)

    # real frames have as much contrast inside things as between them: classes are drawn together by
    # up to 70 %
    frame = 0.5 + (at_pixels(draws["temperature"]) - 0.5) * draws["contrast"]

    # inside a class: a mix of the colour channels and fine texture of the luminance, each with a
    # random sign and strength
    deviation = photo - _class_mean(photo, label, len(PRIOR))
    weights = torch.cat([at_pixels(draws["mix"][..., c]) for c in range(3)], dim=1)
    frame = frame + (deviation * weights).sum(dim=1, keepdim=True) * at_pixels(draws["material"])
    luminance = photo.mean(dim=1, keepdim=True)
    fine = luminance - blur(luminance, draws["scale"].flatten())
    frame = frame + fine * at_pixels(draws["texture"])

    # slow drifts: every class has a gradient of its own, the frame a random field
    y = torch.linspace(-0.5, 0.5, height, device=device).view(1, 1, -1, 1)
    x = torch.linspace(-0.5, 0.5, width, device=device).view(1, 1, 1, -1)
    frame = frame + at_pixels(draws["vertical"]) * y + at_pixels(draws["horizontal"]) * x
    frame = frame + F.interpolate(
        draws["field"], (height, width), mode="bicubic", align_corners=False
    )
    return blur(frame, draws["optics"].flatten())
