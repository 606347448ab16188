"""Texts that correct what the model predicts: "+snow -grass" is the predicted things, with snow and
without grass.

A sign counts where it stands at the start or after a space or comma and touches the letter behind
it, so "a car-free street", "grass + trees" and "- a car" are plain text. It holds for everything up
to the next sign. Plain text before the first sign that names something takes the place of the
prediction: "a street at night +snow" is street, night and snow. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cmmfnet.files.errors import UserError
from cmmfnet.text.parser import MAX_PROMPT_CHARS, parse_tags
from cmmfnet.text.vocabulary import EXTRA_WORDS, LIGHTINGS, SKIES, WORDS

# Of each group a picture has one: adding "night" takes "day" away.
EXCLUSIVE = (LIGHTINGS, SKIES)
_SIGN = re.compile(r"(?:^|(?<=[\s,;.]))([+−-])(?=[^\W\d_])")


class CorrectionError(UserError):
    """A text of corrections that cannot be meant as it is written; the message says what to
    write."""


@dataclass(frozen=True)
class Prompt:
    """A text as `read_prompt` understood it.

    Attributes:
        plain: names of the text before the first sign, or of the whole text where it has no sign.
        steps: (names added, names removed) for each sign, in the order of the text.
        unknown: words without a name that should be there, in the order of the text, as in
            `Parsed`.
        unknown_removed: those that should not.
        colours: (colour, name), as in `Parsed`, without those of names that a later sign removes.
    """

    plain: list[str] = field(default_factory=list)
    steps: list[tuple[list[str], list[str]]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unknown_removed: list[str] = field(default_factory=list)
    colours: list[tuple[str, str]] = field(default_factory=list)

    @property
    def needs_prediction(self) -> bool:
        """Whether the text says only what to add to and remove from the predicted tags."""
        return bool(self.steps) and not self.plain

    def tags(self, predicted: Iterable[str] = ()) -> list[str]:
        """The names that the model is told, without repeats: added names first, since a network
        reads only the first few.

        Args:
            predicted: names predicted for the frame, likeliest first; used only where
                `needs_prediction`. Light and sky are left out: a quarter of them is wrong, and
                "night" for day turns the whole picture (docs/text.md).
        """
        names = list(self.plain)
        if self.needs_prediction:
            names = [name for name in dict.fromkeys(predicted) if name not in EXTRA_WORDS]
        for added, removed in self.steps:
            rivals = {other for group in EXCLUSIVE if set(group) & set(added) for other in group}
            gone = rivals | set(removed) | set(added)
            names = [*dict.fromkeys(added), *(name for name in names if name not in gone)]
        return names


def read_prompt(text: str, words: Sequence[str] = WORDS) -> Prompt:
    """Read a text that may have corrections; one without any gives the names of `parse_tags`.

    Args:
        text: up to 2,000 characters.
        words: the vocabulary.

    Raises:
        TypeError: the text is not a string. CorrectionError: a sign stands alone at the start ("+
            snow"). ValueError: the text is too long.
    """
    if not isinstance(text, str) or len(text) > MAX_PROMPT_CHARS:
        parse_tags(text)  # raises what fits
    if alone := re.match(r"\s*\+\s+(\S+)", text):
        raise CorrectionError(
            f"{text.strip()[:60]!r} starts with a sign that stands alone; write it next to its "
            f"word: '+{alone[1]}'"
        )
    pieces = _SIGN.split(text)  # plain, sign, words, sign, words, ...
    plain = parse_tags(pieces[0], words)
    steps, colours, unknown, unknown_removed = [], list(plain.colours), list(plain.unknown), []
    for sign, said in zip(pieces[1::2], pieces[2::2], strict=True):
        each = parse_tags(said, words)
        # "+no cars" removes; "-no cars" can only be meant to remove, too
        added, removed = (
            (each.tags, each.negated) if sign == "+" else ([], [*each.tags, *each.negated])
        )
        steps.append((added, removed))
        (unknown if sign == "+" else unknown_removed).extend(each.unknown)
        colours = [pair for pair in colours if pair[1] not in {*added, *removed}] + each.colours * (
            sign == "+"
        )
    if steps and plain.negated and not plain.tags:  # "no cars +snow"
        steps.insert(0, ([], plain.negated))
    return Prompt(
        plain.tags,
        steps,
        list(dict.fromkeys(unknown)),
        list(dict.fromkeys(unknown_removed)),
        colours,
    )


def has_corrections(text: str) -> bool:
    """Whether a text has a correction sign."""
    return _SIGN.search(text) is not None
