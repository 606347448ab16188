"""Palette: conditional diffusion. The colour picture is denoised step by step; the thermal frame is
an input of every step. (Palettes of false colour: thermal/palettes.py.)

Saharia et al., Palette: Image-to-Image Diffusion Models, SIGGRAPH 2022, doi
10.1145/3528233.3530757; there is no official code. Network and numbers come from the community's
port (Janspiry/Palette-Image-to-Image-Diffusion-Models, its colorization configuration): the U-Net
of guided-diffusion (Dhariwal & Nichol, NeurIPS 2021) with width 64, multipliers 1, 2, 4, 8, two
residual blocks a level, 32 channels a head, dropout 0.2, conditioned on the noise level gamma
itself (WaveGrad, SR3).

As in the port: training levels, noise, mean squared error, sampling schedule. `attention` names the
levels whose blocks attend by their downsampling; the port says 16, which four levels never reach,
so that only the middle block attends (32x32 positions for 256 pixels). That stays; (8,) gives it to
the lowest level's blocks too. Not as in the port: the frame is one channel, not three equal ones (4
inputs, 62,640,195 parameters; 62,641,347 with 6). The last convolution of every block starts at
zero as in guided-diffusion, where the port's Kaiming initialisation undoes that. The level is
embedded times 1000, like guided-diffusion's time steps: the port's sines of at most gamma itself
can hardly tell the noisy levels apart, which decide on the colours (``faithful`` does as the port).

Colouring is deterministic: the first noise, and ancestral sampling's later ones, come from one
fixed seed and depend on the frame's size alone. The default sampler is DDIM (Song et al., ICLR
2021) in 20 steps along the training schedule: a fiftieth of the paper's 1000, and without random
numbers in its steps that would change colours from frame to frame. Its first noise has no low
frequencies, which DDIM would keep as the tint of every frame. ``sampler="ancestral"`` is the
paper's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.method import Losses, Method, StepContext

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch

TRAINING = (1e-6, 0.01, 2000)
SAMPLING = (1e-4, 0.09, 1000)
"""First beta, last beta, steps; the betas between are evenly spaced."""


def noise_levels(first: float, last: float, steps: int) -> np.ndarray:
    """gamma_t = product of (1 - beta) up to t: (steps,) float64, falling from almost 1. A picture
    at level gamma is sqrt(gamma) * picture + sqrt(1 - gamma) * noise."""
    return np.cumprod(1 - np.linspace(first, last, steps))


def embed_level(level: Tensor, width: int) -> Tensor:
    """(B,) -> (B,width): cosines and sines of the level times frequencies from 1 down to 1e-4."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(1e4) / half * torch.arange(half, device=level.device, dtype=torch.float32)
    )
    angles = level.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def without_low_frequencies(noise: Tensor, cell: int) -> Tensor:
    """(B,C,H,W) less the mean of every ``cell`` x ``cell`` pixels; H and W are multiples of
    ``cell``."""
    means = F.avg_pool2d(noise, cell)
    return noise - means.repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups; fewer for a width that 32 does not divide."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """GN, SiLU, (resampling,) 3x3; GN, scaled and shifted by the level; SiLU, dropout, 3x3; plus
    the input.

    ``forward(x (B,inputs,H,W), embedding (B,E)) -> (B,outputs,H',W')``; ``scale`` 2 or 0.5 doubles
    or halves H and W (nearest neighbour, mean of four), and the residual's with them.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, scale: float = 1):
        super().__init__()
        self.scale = scale
        self.norm1, self.conv1 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2, self.dropout = group_norm(outputs), nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def _resample(self, x: Tensor) -> Tensor:
        if self.scale == 2:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.scale == 0.5 else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self.conv1(self._resample(F.silu(self.norm1(x))))
        scale, shift = self.modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        y = self.conv2(self.dropout(F.silu(self.norm2(y) * (1 + scale) + shift)))
        return self.skip(self._resample(x)) + y


class AttentionBlock(nn.Module):
    """GN, self-attention over all positions, plus the input. ``forward(x (B,C,H,W)) ->
    (B,C,H,W)``."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        if channels % head_channels:
            raise ValueError(
                f"{channels} channels attend in heads of {head_channels}; expected a multiple"
            )
        self.heads = channels // head_channels
        self.norm, self.qkv = group_norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # (B,3C,H,W) -> query, key, value, each (B,heads,H*W,C/heads)
        parts = (
            self.qkv(self.norm(x))
            .flatten(2)
            .unflatten(1, (3, self.heads, -1))
            .transpose(3, 4)
            .unbind(1)
        )
        y = F.scaled_dot_product_attention(*parts)
        return x + self.out(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


class Stage(nn.ModuleList):
    """Residual and attention blocks one after the other; only the former know the level."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding) if isinstance(block, ResidualBlock) else block(x)
        return x


class PaletteNetwork(nn.Module):
    """``forward(thermal (B,1,H,W))`` samples colour (B,3,H,W) in [-1,1], without gradient, in
    evaluation mode only.

    ``forward(thermal, noisy=(B,3,H,W), level=(B,))`` is the denoiser: the noise (B,3,H,W) in
    ``noisy``, which is a picture at noise level ``level`` (gamma, in [0,1]). H and W are multiples
    of ``multiple_of``. ``text`` is not used.

    ``sampler``: "ddim" or "ancestral"; ``steps``: how often a picture is denoised, null = 20 and
    1000. Fewer ancestral steps are evenly spaced among the 1000. Raises ``ValueError`` for values
    out of range, and for a call that makes no sense.
    """

    multiple_of = 8
    capturable = False  # the host counts the steps of sampling

    def __init__(
        self,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        head_channels: int = 32,
        dropout: float = 0.2,
        sampler: str = "ddim",
        steps: int | None = None,
        faithful: bool = False,
    ):
        super().__init__()
        if sampler not in ("ddim", "ancestral"):
            raise ValueError(f"sampler is {sampler!r}; expected 'ddim' or 'ancestral'")
        usual, most = (20, TRAINING[2]) if sampler == "ddim" else (SAMPLING[2], SAMPLING[2])
        self.sampler, self.steps = sampler, usual if steps is None else steps
        if not 1 <= self.steps <= most:
            raise ValueError(f"steps is {steps}; expected 1 to {most} for sampler {sampler!r}")
        self.width, self.multiple_of = width, 2 ** (len(multipliers) - 1)
        self.level_scale = 1.0 if faithful else 1000.0
        embedding = 4 * width
        self.embed = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )

        def stage(inputs: int, outputs: int, factor: int) -> Stage:
            attends = [AttentionBlock(outputs, head_channels)] if factor in attention else []
            return Stage([ResidualBlock(inputs, outputs, embedding, dropout), *attends])

        channels = multipliers[0] * width
        self.enter = nn.Conv2d(4, channels, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        skips = [channels]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.encoder.append(stage(channels, multiplier * width, 2**level))
                channels = multiplier * width
                skips.append(channels)
            if level < len(multipliers) - 1:
                self.encoder.append(
                    Stage([ResidualBlock(channels, channels, embedding, dropout, scale=0.5)])
                )
                skips.append(channels)
        self.middle = Stage([
            ResidualBlock(channels, channels, embedding, dropout),
            AttentionBlock(channels, head_channels),
            ResidualBlock(channels, channels, embedding, dropout),
        ])  # fmt: skip
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.decoder.append(stage(channels + skips.pop(), multiplier * width, 2**level))
                channels = multiplier * width
            if level:
                self.decoder[-1].append(
                    ResidualBlock(channels, channels, embedding, dropout, scale=2)
                )
        self.leave = nn.Sequential(
            group_norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, 3, 3, padding=1))
        )

    def forward(
        self,
        thermal: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        noisy: Tensor | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        sides = thermal.shape[2:]
        if (
            thermal.ndim != 4
            or thermal.shape[1] != 1
            or any(side % self.multiple_of for side in sides)
        ):
            expected = f"expected (B,1,H,W) with H and W multiples of {self.multiple_of}"
            raise ValueError(f"thermal is {tuple(thermal.shape)}; {expected}")
        if (noisy is None) != (level is None):
            raise ValueError(
                "the denoiser takes both noisy and level; without them, pictures are sampled"
            )
        if noisy is not None:
            return self._denoise(thermal, noisy, level)
        if self.training:
            raise ValueError(
                "Palette's pictures are sampled, which passes no gradient: it learns from its own "
                "loss, noise (configs/"
                "palette.yaml), and colours in evaluation mode"
            )
        return self.sample(thermal)

    def _denoise(self, thermal: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        embedding = self.embed(embed_level(level * self.level_scale, self.width).to(thermal.dtype))
        x = self.enter(torch.cat([thermal, noisy.to(thermal.dtype)], dim=1))
        skips = [x]
        for stage in self.encoder:
            x = stage(x, embedding)
            skips.append(x)
        x = self.middle(x, embedding)
        for stage in self.decoder:
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.leave(x)

    def sampling_levels(self) -> list[float]:
        """The noise levels at which a picture is denoised, rising to the 1 that it ends with:
        ``steps`` + 1 numbers.

        DDIM uses levels of training only, so that every level was learned; ancestral sampling uses
        the paper's own, shorter schedule.
        """
        levels = noise_levels(*(TRAINING if self.sampler == "ddim" else SAMPLING))
        places = np.linspace(len(levels), 0, self.steps + 1).round().astype(int)[:-1] - 1
        return [*levels[places].tolist(), 1.0]

    @torch.no_grad()
    def sample(self, thermal: Tensor) -> Tensor:
        """thermal (B,1,H,W) in [-1,1] -> colour (B,3,H,W) in [-1,1]: the same for the same frame,
        whatever else is in the batch."""
        generator = torch.Generator().manual_seed(0)

        def noise() -> Tensor:
            return torch.randn(1, 3, *thermal.shape[2:], generator=generator).to(thermal.device)

        # float32 throughout: at the first levels the noise is taken from the picture times 1 /
        # sqrt(gamma)
        x = noise()
        if self.sampler == "ddim":
            x = without_low_frequencies(x, min(4, self.multiple_of))
        x = x.expand(len(thermal), -1, -1, -1)
        for now, after in pairwise(self.sampling_levels()):
            predicted = self._denoise(thermal, x, x.new_full((len(x),), now)).float()
            picture = ((x - math.sqrt(1 - now) * predicted) / math.sqrt(now)).clamp(-1, 1)
            if self.sampler == "ddim":  # on with the noise that belongs to the clamped picture
                left = (x - math.sqrt(now) * picture) / math.sqrt(1 - now)
                x = math.sqrt(after) * picture + math.sqrt(1 - after) * left
            # Palette, section 2: posterior of the picture one step less noisy; kept is its alpha
            else:
                kept = now / after
                x = (
                    math.sqrt(after) * (1 - kept) * picture + math.sqrt(kept) * (1 - after) * x
                ) / (1 - now)
                if after < 1:
                    x = x + math.sqrt((1 - kept) * (1 - after) / (1 - now)) * noise()
        return x.clamp(-1, 1).to(thermal.dtype)


class Palette(Method):
    """One loss, ``noise``: mean squared error of the predicted noise at a random level (Palette,
    eq. 1 with p = 2).

    The level lies evenly between two neighbours of the training schedule, which are drawn evenly
    (the port; WaveGrad).
    """

    Network: ClassVar[type[nn.Module]] = PaletteNetwork
    title: ClassVar[str] = "Palette"
    paper: ClassVar[str] = "Saharia et al., Palette: Image-to-Image Diffusion Models, SIGGRAPH 2022"
    LOSSES: ClassVar[dict[str, float]] = {"noise": 1.0}

    def draw(self, batch: Batch, moment: StepContext) -> tuple[Tensor, Tensor]:
        """Noise levels (B,) and noise (B,3,H,W) of a step, on the batch's device."""
        device, schedule, levels, noise = batch.visible.device, noise_levels(*TRAINING), [], []
        for picture, position in zip(batch.visible, batch.positions, strict=True):
            rng = moment.rng(position)
            t = int(rng.integers(1, len(schedule)))
            levels.append(schedule[t - 1] + (schedule[t] - schedule[t - 1]) * rng.random())
            # drawn where it is used: 200,000 numbers a picture would hold up the device
            generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
            noise.append(torch.randn(picture.shape, generator=generator, device=device))
        return torch.tensor(levels, dtype=torch.float32, device=device), torch.stack(noise)

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        level, noise = self.draw(batch, moment)
        gamma = level[:, None, None, None]
        noisy = gamma.sqrt() * batch.visible + (1 - gamma).sqrt() * noise
        predicted = self.networks["generator"](batch.thermal, noisy=noisy, level=level)
        yield "generator", {"noise": self.weights["noise"] * F.mse_loss(predicted.float(), noise)}
