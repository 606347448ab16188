"""Traits: the properties of a network that its callers need. No torch.

The structure (sizes that fit, kind of text, heads) comes from the network's class; the settings
(``SETTINGS``) come from the model file's configuration, where any method may have them. An exported
graph has its traits as strings in its metadata.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

TEXT_SOURCES = ("none", "clip-tags", "clip-sentence")
DEFAULT_TEXTS = ("none", "predicted")
SETTINGS = ("working_size", "least_size", "default_text", "default_prompt", "tag_threshold")
LARGEST_SIDE = 8192
LONGEST_PROMPT = 2000


@dataclass(frozen=True)
class Traits:
    """Inputs and outputs of a network. Every field has the default of a plain image network.

    Attributes:
        multiple_of: height and width in pixels must be multiples of it.
        fixed_size: the only side in pixels that the network takes; None: any.
        least_size, working_size: range of the short side, in pixels, of frames that it colours
            well, 0 to 8192. Smaller frames are enlarged first, larger frames are reduced;
            ``working_size`` wins where it is the smaller.
        text_source: "none", "clip-tags" (names out of ``words``) or "clip-sentence" (a sentence).
        words: the names that it knows, in the order of its table and of its tags.
        text_length: the largest number of tokens of one text.
        text_width: numbers of one token.
        takes_colours: whether a name may have a colour.
        predicts_tags: whether it predicts which of ``words`` are in a frame.
        tag_threshold: probability, 0 to 1, above which a word counts as predicted.
        default_text: text of a frame without a text: "none", or "predicted" (its tags).
        default_prompt: prompt of a frame without a text, for a model that was trained with one
            sentence for all frames; "": none. Only one of the two defaults can be given.
        takes_float32: frames are passed in float32, whatever the dtype of the weights.
        heads: whether ``forward(..., heads=True)`` also gives the tags' logits.
        capturable: whether a forward pass can become a CUDA graph.

    Raises:
        ValueError: a value of another type, or out of its range.
    """

    multiple_of: int = 8
    fixed_size: int | None = None
    least_size: int = 0
    working_size: int = 512
    text_source: str = "none"
    words: tuple[str, ...] = ()
    text_length: int = 77
    text_width: int = 512
    takes_colours: bool = False
    predicts_tags: bool = False
    tag_threshold: float = 0.5
    default_text: str = "none"
    default_prompt: str = ""
    takes_float32: bool = False
    heads: bool = False
    capturable: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("multiple_of", 1, LARGEST_SIDE), ("least_size", 0, LARGEST_SIDE),
            ("working_size", 1, LARGEST_SIDE), ("text_length", 1, 4096), ("text_width", 1, 65536),
        ):  # fmt: skip
            _check_integer(name, getattr(self, name), low, high)
        if self.fixed_size is not None:
            _check_integer("fixed_size", self.fixed_size, 1, LARGEST_SIDE)
        for name, allowed in (("text_source", TEXT_SOURCES), ("default_text", DEFAULT_TEXTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )
        if isinstance(self.words, str) or not all(isinstance(word, str) for word in self.words):
            raise ValueError("words is not a list of strings")
        object.__setattr__(self, "words", tuple(self.words))
        for name in ("takes_colours", "predicts_tags", "takes_float32", "heads", "capturable"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected true or false")
        threshold = self.tag_threshold
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not 0 <= threshold <= 1:
            raise ValueError(f"tag_threshold is {threshold!r}; expected a number from 0 to 1")
        if not isinstance(self.default_prompt, str) or len(self.default_prompt) > LONGEST_PROMPT:
            raise ValueError(
                f"default_prompt is no text of at most {LONGEST_PROMPT:,} characters: "
                f"{str(self.default_prompt)[:60]!r}"
            )
        if self.default_prompt and self.default_text != "none":
            raise ValueError(
                f"default_text is {self.default_text!r} and default_prompt is given, too; a frame "
                "without text can have one of them"
            )
        if self.default_prompt and self.text_source == "none":
            raise ValueError("default_prompt is given, and the network takes no text")

    @property
    def step(self) -> int:
        """Side in pixels that heights and widths are multiples of: ``fixed_size`` where given."""
        return self.fixed_size or self.multiple_of

    @property
    def takes_names(self) -> bool:
        return self.text_source == "clip-tags"

    @property
    def takes_text(self) -> bool:
        return self.text_source != "none"

    @property
    def can_correct(self) -> bool:
        """Whether "+snow -grass" has predicted names to start from."""
        return self.takes_names and self.predicts_tags

    # --- in the metadata of an exported graph

    def to_strings(self) -> dict[str, str]:
        """The traits that callers of an exported graph need, as strings: text as it is, the rest as
        JSON."""
        values = {name: getattr(self, name) for name in _IN_A_GRAPH}
        values["words"] = list(self.words)
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> Traits:
        """The traits in a graph's metadata. Keys that older files lack have their defaults.

        Raises:
            ValueError: a key is missing, is no JSON, or has a value of another type.
        """
        if missing := [name for name in _REQUIRED if name not in strings]:
            raise ValueError(f"{', '.join(missing)} missing")
        found: dict[str, Any] = {}
        for name in _IN_A_GRAPH:
            if name not in strings:
                continue
            if name in _TEXTS:
                found[name] = strings[name]
                continue
            try:
                found[name] = json.loads(strings[name])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name} is no JSON: {error}") from error
        if not isinstance(found["words"], list):
            raise ValueError("words is not a list of strings")
        return cls(**found)


_TEXTS = ("text_source", "default_text", "default_prompt")
_REQUIRED = (
    "text_source", "words", "multiple_of", "fixed_size", "least_size", "working_size",
    "predicts_tags", "default_text", "tag_threshold",
)  # fmt: skip
_IN_A_GRAPH = (*_REQUIRED, "takes_colours", "default_prompt", "text_length")
_ON_THE_NETWORK = tuple(field.name for field in fields(Traits) if field.name != "heads")


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(
            f"{name} is {str(value)[:40]}; expected a whole number from {low} to {high}"
        )


def traits_of(network: Any) -> Traits:
    """The traits of a PyTorch network.

    Attributes of the network with a trait's name give the structure, ``network.settings`` (which
    ``build_network`` sets) the rest. Others have their default.

    Raises:
        ValueError: a value of another type, or out of its range.
    """
    found = {name: getattr(network, name) for name in _ON_THE_NETWORK if hasattr(network, name)}
    heads = "heads" in inspect.signature(network.forward).parameters
    return Traits(**found | {"heads": heads} | getattr(network, "settings", {}))
