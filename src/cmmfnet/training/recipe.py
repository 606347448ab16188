"""The training recipe: what a YAML file under configs/ says. Fields are documented in place,
unknown keys an error."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from cmmfnet.data.source import RecipeError, Source, check_mix


@dataclass
class Recipe:
    model: dict
    """Method and constructor keywords of the network, for example {"method": "cmmfnet", "ci":
    "image_query"}."""
    losses: dict[str, float]
    """Loss name -> weight."""
    sources: list[Source]
    steps: int | None = None
    epochs: float | None = None
    """Length of the training: one of the two. An epoch is as many pictures as the sources have;
    where an unpaired method gets thermal frames and colour pictures from different ones, as many as
    the larger of the two sets."""
    batch_size: int = 1
    """Pictures a step, over all processes."""
    accumulate: int = 1
    """Parts in which a process works through its pictures of a step, where they do not fit its
    memory at once."""
    size: int = 256
    """Side of the square training crops in pixels, a multiple of 8."""
    validation: Source | None = None
    """Pictures for sample sheets and for the scores in the log; centre crops."""
    validation_pictures: int = 200
    """At most so many of them, evenly spaced."""
    training: str | None = None
    """Whose losses and step train the network: null = its own method's; matched = ours, for any
    network."""
    options: dict = field(default_factory=dict)
    """Further keywords of the method's training (its class under methods/), for example
    {"text_dropout": 0.5}."""
    optimiser: str = "adamw"
    """adam or adamw."""
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.01
    schedule: str = "linear"
    """After the warm-up: constant, linear (flat for the first half, then to 0), cosine or halving
    (at the milestones)."""
    milestones: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Parts of the training at which halving halves the learning rate."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of the generator's optimiser; the others are not clipped. 0
    clips nothing."""
    precision: str = "no"
    """Mixed precision: bf16, fp16 (CUDA only) or no."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is validated and saved as the model; 0 saves
    the plain weights."""
    seed: int = 0
    save_every: int = 1000
    sheet_every: int = 1000
    log_every: int = 50
    notes: dict = field(default_factory=dict)
    """Go with the saved model as they are: data, licence, summary, anything that `cmmfnet models
    FILE` should say."""

    def __post_init__(self) -> None:
        """Raises :class:`RecipeError`. What only the network or the losses know is checked when
        they are built."""
        for name, allowed in [
            ("schedule", ("constant", "linear", "cosine", "halving")),
            ("precision", ("no", "bf16", "fp16")),
            ("optimiser", ("adam", "adamw")),
            ("training", (None, "matched")),
        ]:
            if getattr(self, name) not in allowed:
                expected = ", ".join(str(a) for a in allowed)
                raise RecipeError(f"{name} is {getattr(self, name)!r}; expected one of {expected}")
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError(
                f"steps is {self.steps}, epochs is {self.epochs}; give one of the two"
            )
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "save_every",
            "sheet_every",
            "log_every",
            "validation_pictures",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.size < 16 or self.size % 8:
            raise RecipeError(f"size is {self.size}; expected a multiple of 8 from 16 on")
        for name in ("learning_rate", "epochs"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.clip_norm < 0 or not 0 <= self.ema < 1:
            raise RecipeError(
                f"clip_norm is {self.clip_norm}, ema is {self.ema}; expected 0 <= clip_norm, 0 <= "
                "ema < 1"
            )
        if any(not 0 < m < 1 for m in self.milestones):
            raise RecipeError(
                f"milestones are {self.milestones}; expected parts of the training between 0 and 1"
            )
        if not any(self.losses.values()):
            raise RecipeError(
                f"losses are {self.losses}; at least one needs a weight other than 0, for example "
                "l1: 1.0"
            )
        check_mix(self.sources)

    def with_steps(self, pictures: int) -> Recipe:
        """The same with ``steps``, from ``epochs`` over ``pictures`` where it has them."""
        if self.steps is not None:
            return self
        return replace(
            self, steps=max(1, round(self.epochs * pictures / self.batch_size)), epochs=None
        )

    def learning_rate_at(self, step: int) -> float:
        """Factor on the learning rate at ``step`` (0-based), in [0, 1]."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        progress = min(1.0, step / self.steps)
        if self.schedule == "cosine":
            return rise * (0.5 + 0.5 * math.cos(math.pi * progress))
        if self.schedule == "linear":
            return rise * min(1.0, 2 * (1 - progress))
        if self.schedule == "halving":
            return rise * 0.5 ** sum(progress >= m for m in self.milestones)
        return rise

    def matched(self) -> Recipe:
        """This recipe's data, losses and budget for the network of any method: what `--recipe`
        makes of a file.

        Losses and options that only CMMF-Net has (text, tags, labels) fall away.
        """
        from cmmfnet.methods.matched import Matched

        return replace(
            self,
            training="matched",
            losses={k: w for k, w in self.losses.items() if k in Matched.LOSSES},
            options={k: v for k, v in self.options.items() if k in Matched.OPTIONS},
        )


def find_config(name: str) -> Path:
    """The file of a configuration: a path, or the name of one that comes with the package, such as
    ``tiny``.

    Raises :class:`RecipeError` that lists the names.
    """
    if Path(name).is_file():
        return Path(name)
    here = Path(__file__).parents[1]
    # in an installed package beside the code, in a checkout at its root
    folder = here / "configs" if (here / "configs").is_dir() else here.parents[1] / "configs"
    known = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name not in known:
        raise RecipeError(f"no file and no configuration {name!r}; there are {', '.join(known)}")
    return known[name]


def read_recipe(file: Path) -> Recipe:
    """The recipe in a YAML file. Raises :class:`RecipeError` for keys and values it does not
    take."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=Recipe, required=True)
    # renamed in jsonargparse 4.49
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        return instantiate(parser.parse_args([f"--config={file}"])).config
    except argparse.ArgumentError as error:
        raise RecipeError(f"{file}: {error}") from error
