"""The training recipe: what a YAML file under configs/ says. Fields are documented in place; unknown keys are an error."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """Network and distance of the perceptual loss: vgg16 or vgg19; l1 (the paper), unit, lpips."""
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
    """Mixed precision: bf16, fp16 or no."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is validated and saved as the model."""
    seed: int = 0
    save_every: int = 1000
    sheet_every: int = 1000
    log_every: int = 50
    weights: dict = field(default_factory=dict)
    """Free notes that go with the saved model: data, licence, anything a model card needs."""

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; expected constant, linear or cosine")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision is {self.precision!r}; expected no, bf16 or fp16")
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps is {self.steps}, batch_size is {self.batch_size}; both must be at least 1")

    def learning_rate_at(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (0-based), in [0, 1]."""
        import math

        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        progress = min(1.0, step / self.steps)
        if self.schedule == "cosine":
            return rise * (0.5 + 0.5 * math.cos(math.pi * progress))
        if self.schedule == "linear":
            return rise * min(1.0, 2 * (1 - progress))
        return rise
