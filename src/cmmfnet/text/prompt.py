"""`read_prompt`, the parser of `--text`: names, their colours, bare trees, corrections and unknown
words of a prompt, in one pass. No torch.

"+snow -grass" corrects the model's prediction: the predicted names, with snow and without grass. A
sign counts where it stands at the start or after a space or comma and touches the letter behind it,
so "a car-free street", "grass + trees" and "- a car" are plain text. A sign holds for all words up
to the next one. If the text before the first sign names something, it replaces the prediction: "a
street at night +snow" is street, night and snow.
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


@dataclass(frozen=True)
class Prompt:
    """What `read_prompt` found. Lists are in the order of the text and without repeats.

    Attributes:
        plain: names before the first sign; in a text without signs, all names.
        steps: (names added, names removed) for each sign.
        unknown: words without a name that should be in the picture.
        unknown_removed: words without a name that should not.
        colours: (colour, name) as in `Parsed`, without names that a later sign removes.
        loose: colours that stand with no name, so that they have no effect.
        bare: whether trees are without leaves.
    """

    plain: list[str] = field(default_factory=list)
    steps: list[tuple[list[str], list[str]]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unknown_removed: list[str] = field(default_factory=list)
    colours: list[tuple[str, str]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    bare: bool = False

    @property
    def needs_prediction(self) -> bool:
        """Whether the prompt only adds to and removes from the predicted names."""
        return bool(self.steps) and not self.plain

    def names(self, predicted: Iterable[str] = ()) -> list[str]:
        """The names for the network, without repeats. Added names come first, since a network reads
        only the first few.

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

    def colours_of(self, names: Iterable[str]) -> list[str | None]:
        """The colour of each name ("red", "dark green", "bare"), None where the prompt gives none.

        The first colour of a name counts. Leaves without a colour are green, and so is their tree:
        "a tree with leaves" alone moves a picture a fifth of the way to green, since most trees of
        the training had leaves that nobody named; "green" moves it three fifths.
        """
        names = list(names)
        first: dict[str, str] = {}
        for colour, name in self.colours:
            first.setdefault(name, colour)
        if "leaves" in names:
            first.setdefault("leaves", first.get("tree", "green"))
            first.setdefault("tree", first["leaves"])
        if self.bare:
            first["tree"] = "bare"
        return [first.get(name) for name in names]


def read_prompt(text: str, words: Sequence[str] = WORDS) -> Prompt:
    """Read a prompt, with or without corrections.

    Args:
        text: up to 2,000 characters.
        words: the vocabulary; other names are unknown words.

    Raises:
        TypeError: the text is not a string. UserError: a sign stands alone at the start ("+
            snow"). ValueError: the text is too long.
    """
    if not isinstance(text, str) or len(text) > MAX_PROMPT_CHARS:
        parse_tags(text)  # raises the error
    if alone := re.match(r"\s*\+\s+(\S+)", text):
        raise UserError(
            f"{text.strip()[:60]!r} starts with a sign that stands alone; write it next to its "
            f"word: '+{alone[1]}'"
        )
    pieces = _SIGN.split(text)  # plain, sign, words, sign, words, ...
    plain = parse_tags(pieces[0], words)
    steps, colours, unknown, unknown_removed = [], list(plain.colours), list(plain.unknown), []
    bare, loose = plain.bare, list(plain.loose)
    for sign, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        each = parse_tags(piece, words)
        if sign == "+":  # "+no cars" removes
            added, removed = each.tags, each.negated
            unknown += each.unknown
            loose += each.loose
            bare |= each.bare
        else:  # "-no cars" can only be meant to remove, too
            added, removed = [], [*each.tags, *each.negated]
            unknown_removed += each.unknown
        steps.append((added, removed))
        colours = [pair for pair in colours if pair[1] not in {*added, *removed}]
        colours += each.colours if sign == "+" else []
    if steps and plain.negated and not plain.tags:  # "no cars +snow"
        steps.insert(0, ([], plain.negated))
    return Prompt(
        plain.tags,
        steps,
        list(dict.fromkeys(unknown)),
        list(dict.fromkeys(unknown_removed)),
        colours,
        list(dict.fromkeys(loose)),
        bare,
    )


def has_corrections(text: str) -> bool:
    """Whether a prompt has a correction sign."""
    return _SIGN.search(text) is not None
