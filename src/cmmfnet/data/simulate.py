"""Pseudo-thermal frames from labelled colour photos, the lever that makes little real data enough (docs/data.md).

A thermal camera sees temperature and emissivity, which a photo does not tell; what carries over from photo to thermal
frame is shape. So every class gets a random temperature, inside a class the photo's own variation comes back with a
random sign and strength, and the sensor does the rest (augment.sensor). Half of the frames take temperatures from a
weak physical prior (sky cold, people warm), half from none at all. Everything is batched tensor code and runs where the
tensors are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmmfnet.data.augment import blur, uniform

# Class -> mean and deviation of its apparent temperature on a 0..1 scale, by day (ids: data.scenes.CLASSES).
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


def level(photo: Tensor) -> Tensor:
    """Levels of a photo (3,H,W) uint8: each channel's 0.5 % quantile to black, the largest 99.7 % quantile to white."""
    x = photo.float().flatten(1)
    low = torch.quantile(x[:, :: max(1, x.shape[1] // 20000)], 0.005, dim=1)
    high = torch.quantile(x[:, :: max(1, x.shape[1] // 20000)], 0.997, dim=1).max()
    scaled = (x - low[:, None]) / (high - low[:, None]).clamp_min(16.0) * 255
    return scaled.clamp(0, 255).round().to(torch.uint8).view_as(photo)


def _class_mean(x: Tensor, label: Tensor, classes: int) -> Tensor:
    """Mean of x (B,C,H,W) over each class of label (B,H,W), back at every pixel: (B,C,H,W)."""
    # As products with the one-hot map: adding 65,536 pixels to 25 sums by scatter would queue on 25 addresses.
    flat = label.flatten(1)
    member = (flat.unsqueeze(1) == torch.arange(classes, device=label.device).view(1, -1, 1)).to(x.dtype)
    mean = torch.einsum("bcn,bkn->bck", x.flatten(2), member) / member.sum(dim=2).clamp_min(1).unsqueeze(1)
    return mean.gather(2, flat.unsqueeze(1).expand(-1, x.shape[1], -1)).view_as(x)


def simulate_thermal(photo: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """photo (B,3,H,W) float in [0,1], label (B,H,W) long class ids -> raw pseudo-thermal (B,1,H,W) float, about 0..1.

    ``generator`` lives on the photo's device; equal states give equal frames. The frame still wants sensor effects and
    a stretch (augment.sensor).
    """
    batch, _, height, width = photo.shape
    classes = len(PRIOR)
    device = photo.device

    def per_class(low: float, high: float, *shape: int) -> Tensor:
        return uniform((batch, classes, *shape), low, high, generator, device)

    def at_pixels(table: Tensor) -> Tensor:
        """(B,K) -> (B,1,H,W): each pixel takes its class' entry."""
        return table.gather(1, label.flatten(1)).view(batch, 1, height, width)

    prior = torch.tensor(PRIOR, device=device)
    physical = prior[:, 0] + prior[:, 1] * torch.randn(batch, classes, generator=generator, device=device)
    chance = uniform((batch, 1), 0, 1, generator, device)
    temperature = torch.where(chance < 0.5, physical, per_class(0.0, 1.0))
    # real frames have as much contrast inside things as between them: classes are drawn together by up to 70 %
    frame = 0.5 + (at_pixels(temperature) - 0.5) * uniform((batch, 1, 1, 1), 0.3, 1.0, generator, device)

    # Inside a class: a random mix of the colour channels (materials differ) and fine texture of the luminance, each
    # with a random sign and strength; unlabelled pixels have nothing else, so theirs is stronger.
    mix = torch.randn(batch, classes, 3, generator=generator, device=device)
    mix = mix / mix.norm(dim=2, keepdim=True)
    deviation = photo - _class_mean(photo, label, classes)
    weights = torch.cat([at_pixels(mix[..., c]) for c in range(3)], dim=1)
    boost = torch.ones(classes, device=device)
    boost[0] = 2.0
    boost[_SKY] = 0.5
    material = (deviation * weights).sum(dim=1, keepdim=True)
    frame = frame + material * at_pixels(per_class(0.0, 0.9) * boost)
    luminance = photo.mean(dim=1, keepdim=True)
    fine = luminance - blur(luminance, uniform((batch,), 1.5, 4.0, generator, device))
    frame = frame + fine * at_pixels(per_class(-1.6, 1.6))

    # Slow drifts: every class has a gradient of its own (sky warms towards the horizon), the frame a random field.
    y = torch.linspace(-0.5, 0.5, height, device=device).view(1, 1, -1, 1)
    x = torch.linspace(-0.5, 0.5, width, device=device).view(1, 1, 1, -1)
    slope = per_class(-0.25, 0.25)
    slope[:, _SKY] = uniform((batch,), 0.0, 0.35, generator, device)
    frame = frame + at_pixels(slope) * y + at_pixels(per_class(-0.2, 0.2)) * x
    field = torch.randn(batch, 1, 6, 6, generator=generator, device=device)
    field = F.interpolate(field, (height, width), mode="bicubic", align_corners=False)
    frame = frame + field * uniform((batch, 1, 1, 1), 0.0, 0.08, generator, device)
    return blur(frame, uniform((batch,), 0.3, 1.2, generator, device))
