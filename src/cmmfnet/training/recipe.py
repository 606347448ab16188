"""The training recipe: the fields of a YAML file under configs/, each documented in place. Unknown
keys are an error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cmmfnet.data.fields import Range, RecipeError, bounded, build, check
from cmmfnet.data.source import Source, check_mix

MOST_STEPS = 1_000_000_000
MOST_BYTES = 1_000_000


@dataclass
class Recipe:
    model: dict
    """Method and constructor keywords of the network, for example {"method": "cmmfnet", "ci":
    "image_query"}."""
    losses: dict[str, float] = field(metadata={"range": Range(0, 1e9)})
    """Loss name -> weight."""
    sources: list[Source]
    steps: int | None = bounded(None, 1, MOST_STEPS)
    epochs: float | None = bounded(None, 0, 1e6, above=True)
    """Length of the training: one of the two. An epoch is as many pictures as the sources have;
    where an unpaired method gets thermal frames and colour pictures from different ones, as many as
    the larger of the two sets."""
    batch_size: int = bounded(1, 1, 65_536)
    """Pictures a step, over all processes."""
    accumulate: int = bounded(1, 1, 65_536)
    """Parts in which a process works through its pictures of a step, where they do not fit its
    memory at once."""
    size: int = bounded(256, 16, 4096)
    """Side of the square training crops in pixels, a multiple of 8."""
    shapes: tuple[tuple[int, int], ...] = bounded((), 16, 4096)
    """In place of ``size``: [height, width] of training crops, multiples of 8. Each step draws one
    of them for its whole batch. The ``zoom`` of each source gives the size of things in them."""
    validation: Source | None = None
    """Pictures for sample sheets and for the scores in the log; centre crops."""
    validation_pictures: int = bounded(200, 1, 1_000_000)
    """The largest number of validation pictures; they are evenly spaced."""
    training: Literal[None, "matched"] = None
    """Whose losses and step train the network: null = its own method's; matched = ours, for any
    network."""
    options: dict = field(default_factory=dict)
    """Further keywords of the method's training (its class under methods/), for example
    {"text_dropout": 0.5}."""
    optimiser: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = bounded(5e-4, 0, 10, above=True)
    betas: tuple[float, float] = bounded((0.5, 0.999), 0, 1, below=True)
    weight_decay: float = bounded(0.01, 0, 10)
    schedule: Literal["constant", "linear", "cosine", "halving"] = "linear"
    """After the warm-up: constant, linear (flat for the first half, then to 0), cosine or halving
    (at the milestones)."""
    milestones: tuple[float, ...] = bounded((0.25, 0.5, 0.75), 0, 1, above=True, below=True)
    """Parts of the training at which halving halves the learning rate."""
    warmup: int = bounded(0, 0, MOST_STEPS)
    """Steps over which the learning rate rises from 0."""
    clip_norm: float = bounded(1.0, 0, 1e6)
    """Largest norm of the gradient of the generator's optimiser; the others are not clipped. 0
    clips nothing."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; fp16 on CUDA only."""
    ema: float = bounded(0.999, 0, 1, below=True)
    """Decay of the averaged weights, which are validated and saved as the model; 0 saves the plain
    weights."""
    seed: int = bounded(0, 0, 2**63 - 1)
    save_every: int = bounded(1000, 1, MOST_STEPS)
    sheet_every: int = bounded(1000, 1, MOST_STEPS)
    log_every: int = bounded(50, 1, MOST_STEPS)
    notes: dict = field(default_factory=dict)
    """Notes that are saved with the model as they are: data, licence, summary, anything that
    `cmmfnet models FILE` should print."""

    def __post_init__(self) -> None:
        """Raises :class:`RecipeError`. What only the network or the losses know is checked when
        they are built."""
        check(self)
        if not isinstance(self.model.get("method"), str):
            raise RecipeError(
                f"method of model is {self.model.get('method')!r}; expected a name, such as cmmfnet"
            )
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError(
                f"steps is {self.steps}, epochs is {self.epochs}; give one of the two"
            )
        if self.size % 8:
            raise RecipeError(f"size is {self.size}; expected a multiple of 8")
        if any(side % 8 for shape in self.shapes for side in shape):
            raise RecipeError(f"shapes are {self.shapes}; expected multiples of 8")
        for source in self.sources:
            if (source.zoom is None) == bool(self.shapes):
                has, other = ("no zoom", "shapes") if self.shapes else ("a zoom", "no shapes")
                raise RecipeError(
                    f"{source.folder} has {has} and the recipe has {other}; expected both or "
                    "neither, for example shapes: [[256, 448]] and zoom: [0.7, 1.2]"
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
        """This recipe's data, losses and budget for the network of any method, as for `--recipe`.
        Losses and options of CMMF-Net alone (text, tags, labels) are left out."""
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
    # in the package when installed, at the root in a checkout
    folder = here / "configs" if (here / "configs").is_dir() else here.parents[1] / "configs"
    known = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name not in known:
        raise RecipeError(f"no file and no configuration {name!r}; there are {', '.join(known)}")
    return known[name]


def read_recipe(file: Path, changes: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a YAML file.

    Args:
        file: keys are the fields of :class:`Recipe`. Aliases (``*name``) are not allowed.
        changes: fields that override the file's, dots between a key and one inside of it, values in
            YAML: ``{"steps": "200", "model.text": "none"}``.

    Raises:
        RecipeError: no YAML, an unknown key, a value of another type or out of range. OSError.
    """
    if file.stat().st_size > MOST_BYTES:
        raise RecipeError(
            f"{file} has {file.stat().st_size:,} bytes; a recipe has {MOST_BYTES:,} at most"
        )
    try:
        values = _parsed(file.read_bytes(), "the recipe")
        for key, text in (changes or {}).items():
            _put(values, key, _parsed(text, key))
        return build(Recipe, values)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from error


def _parsed(text: str | bytes, what: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{what} is no YAML ({first:.300})") from error


@cache
def _loader() -> type:
    """Plain values only. Numbers and truth values as in YAML 1.2: ``no`` is a text, ``1e-4`` a
    number."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"alias *{self.peek_event().anchor}; write the value out")
            return super().compose_node(parent, index)

    kept = ("bool", "float", "timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] not in kept]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
         "-+.0123456789"),
    ):  # fmt: skip
        Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(f"^({pattern})$"), [*first]
        )
    return Loader


def _put(values: Any, key: str, value: Any) -> None:
    """``values[a][b] = value`` for the key "a.b"; groups that are not there are made."""
    *groups, last = key.split(".")
    for group in groups:
        if not isinstance(values, dict) or not isinstance(values.setdefault(group, {}) or {}, dict):
            raise RecipeError(f"{key}: {group} is no group of keys")
        values[group] = values = values[group] or {}
    if not isinstance(values, dict):
        raise RecipeError(f"{key}: the recipe has no keys")
    values[last] = value
