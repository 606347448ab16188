"""The training recipe: what a YAML file under configs/ says. Fields are documented in place, unknown keys an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


class RecipeError(ValueError):
    """A recipe that cannot be trained; the message names the field, what it is and what was expected."""


@dataclass
class SourceRecipe:
    folder: str
    """Folder in the project's layout (data/pairs.py), relative to the data folder given to the command."""
    share: tuple[float, float] = (1.0, 1.0)
    """Part of a batch at the start and at the end of training, relative to the other sources."""
    split: str | None = None
    lighting: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    """Only entries with this split, one of these lightings, one of these sources; null takes all."""
    simulate: bool = False
    """Make the thermal frame from the photo and its label map (data/simulate.py)."""
    level: bool = False
    """Level photos first: darkest 0.5 % to black, 99.7 % of the brightest channel to white."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Side of the random crop, in parts of the picture's short side."""


@dataclass
class Recipe:
    model: dict
    """Method and constructor keywords of the network, for example {"method": "cmmfnet", "ci": "image_query"}."""
    losses: dict[str, float]
    """Loss name -> weight."""
    sources: list[SourceRecipe]
    steps: int
    batch_size: int = 1
    size: int = 256
    """Side of the square training crops in pixels, a multiple of 8."""
    validation: SourceRecipe | None = None
    """Pictures for sample sheets and for the scores in the log; centre crops."""
    perceptual: str = "vgg19"
    perceptual_mode: str = "l1"
    """Network and distance of the perceptual loss: vgg16 or vgg19; l1 (the paper), unit, lpips (vgg16 only)."""
    imagenet: bool = False
    """Start a vgg16 stem from ImageNet weights."""
    text_dropout: float = 0.0
    """Share of pictures that are trained without text."""
    adversarial_start: float = 0.0
    """Part of the training before the discriminator's loss reaches the generator; it learns from the start."""
    learning_rate: float = 5e-4
    stem_learning_rate: float = 1.0
    """Factor on the learning rate of a pre-trained stem."""
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.01
    schedule: str = "linear"
    """After the warm-up: constant, linear (flat for the first half, then to 0) or cosine."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "no"
    """Mixed precision: bf16 or no. Not fp16: its loss scaling would have to go through both optimisers."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is validated and saved as the model; 0 saves the plain weights."""
    seed: int = 0
    save_every: int = 1000
    sheet_every: int = 1000
    log_every: int = 50
    notes: dict = field(default_factory=dict)
    """Go with the saved model as they are: data, licence, summary, anything that `cmmfnet models FILE` should say."""

    def __post_init__(self) -> None:
        """Raises :class:`RecipeError`. What only the network or the losses know is checked when they are built."""
        for name, allowed in [
            ("schedule", ("constant", "linear", "cosine")),
            ("precision", ("no", "bf16")),
            ("perceptual", ("vgg16", "vgg19")),
            ("perceptual_mode", ("l1", "unit", "lpips")),
        ]:
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.perceptual == "vgg19" and self.perceptual_mode == "lpips":
            raise RecipeError("perceptual_mode lpips has no learned heads for vgg19; set perceptual: vgg16")
        for name in ("steps", "batch_size", "save_every", "sheet_every", "log_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.size < 16 or self.size % 8:
            raise RecipeError(f"size is {self.size}; expected a multiple of 8 from 16 on")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not (0 <= self.ema < 1 and 0 <= self.text_dropout <= 1):
            raise RecipeError(
                f"ema is {self.ema}, text_dropout is {self.text_dropout}; expected 0 <= ema < 1, 0 <= text_dropout <= 1"
            )
        if not any(self.losses.values()):
            raise RecipeError(
                f"losses are {self.losses}; at least one needs a weight other than 0, for example l1: 1.0"
            )
        if not self.sources:
            raise RecipeError(
                "sources is empty; name at least one folder of pairs, for example {folder: pairs, split: train}"
            )
        shares = [source.share for source in self.sources]
        if min(map(min, shares)) < 0 or not all(sum(end) > 0 for end in zip(*shares, strict=True)):
            raise RecipeError(
                f"the sources' shares are {shares}; none may be negative, nor all 0 at the start or the end"
            )
        for source in self.sources:
            if not 0 < source.scale[0] <= source.scale[1] <= 1:
                raise RecipeError(f"scale of {source.folder} is {source.scale}; expected 0 < smallest <= largest <= 1")

    def learning_rate_at(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (0-based), in [0, 1]."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        progress = min(1.0, step / self.steps)
        if self.schedule == "cosine":
            return rise * (0.5 + 0.5 * math.cos(math.pi * progress))
        if self.schedule == "linear":
            return rise * min(1.0, 2 * (1 - progress))
        return rise
