"""The words of a prompt, and the phrases that `cmmfnet.text.parser.parse_tags` knows, out of the
tables of `cmmfnet.text.vocabulary`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cmmfnet.text import vocabulary as table

NOTHING, NO_CLASS, _PART = "-", "?", "*"
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?|(?<=\w)-(?=\w)|[^\w\s]|\n")
# "car's" is a car; "ball-shaped" and "tent-like" describe something that is neither ball nor tent.
_DROPPED = re.compile(r"'s\b|\b[^\W_]+-(?:shaped|like|sized|styled?)\b")


@dataclass(frozen=True)
class Token:
    text: str  # a word in lower case; "," or "." for punctuation that goes on with or ends a list
    glued: bool = False  # joined by a hyphen to the token before it

    @property
    def is_word(self) -> bool:
        return self.text not in ",."


def tokenise(prompt: str) -> list[Token]:
    """Words and punctuation of a prompt, in lower case, without accents; contractions written
    out."""
    plain = prompt.lower().replace("’", "'").replace("‑", "-").replace("‐", "-")
    plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    for short, full in (
        ("can't", "can not"),
        ("won't", "will not"),
        ("n't", " not"),
        ("&", " and "),
    ):
        plain = plain.replace(short, full)
    out: list[Token] = []
    glued = False
    for text in _TOKEN.findall(_DROPPED.sub(" ", plain)):
        if text == "-" and not glued and out and out[-1].is_word:
            glued = True
            continue
        out.append(Token(text if text[0].isalnum() else "." if text in ".;:!?\n" else ",", glued))
        glued = False
    return out


def singular(word: str) -> str:
    """The singular of an English word in lower case; other words come back unchanged."""
    if word in table.IRREGULAR_PLURALS:
        return table.IRREGULAR_PLURALS[word]
    if word.endswith("men") and len(word) > 4:  # workmen, fishermen
        return word[:-2] + "an"
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "ches", "shes", "xes", "oes", "buses")):
        return word[:-2]
    return word[:-1]


def _key(phrase: str) -> tuple[str, ...]:
    return tuple(singular(t.text) for t in tokenise(phrase))


class Entry(NamedTuple):
    """The meaning of a phrase."""

    tags: tuple[str, ...]
    is_part: bool = (
        False  # a part with a colour of its own: a white crosswalk does not make a white road
    )


NO_ENTRY = Entry(())


@lru_cache(maxsize=16)
def lexicon_of(words: tuple[str, ...]) -> dict[tuple[str, ...], Entry]:
    """Phrase (words in the singular) -> entry; a phrase that holds for one form only is "!" and
    that form."""
    known = {*words, NOTHING, NO_CLASS}
    found: dict[tuple[str, ...], Entry] = {}

    def add(phrase: str, tags: Sequence[str]) -> None:
        key = (
            ("!", *(t.text for t in tokenise(phrase[1:])))
            if phrase.startswith("!")
            else _key(phrase)
        )
        kept = tuple(tag.removesuffix(_PART) for tag in tags if tag.removesuffix(_PART) in known)
        if kept:
            found.setdefault(key, Entry(kept, tags[0].endswith(_PART)))

    for word in words:
        add(word, [word])
    for line in table.SYNONYMS.strip().splitlines():
        tags, phrases = line.split(": ")
        for phrase in phrases.split(", "):
            add(phrase, tags.split("+"))
    for wall, materials in table.WALLS.items():
        for m in materials.split():
            for form in (
                "{} wall",
                "wall of {}",
                "wall made of {}",
                "wall in {}",
                "{} facade",
                "{} clad",
            ):
                add(form.format(m), [wall])
            for kind in table.WALL_KINDS:
                add(f"{m} {kind} wall", [wall])
            if wall in table.BUILT_OF:
                for key, entry in list(found.items()):
                    if len(key) == 1 and entry.tags in (("house",), ("building-other",)):
                        for form in (
                            "{m} {built}",
                            "{built} of {m}",
                            "{built} made of {m}",
                            "{built} built of {m}",
                        ):
                            add(form.format(m=m, built=key[0]), [*entry.tags, wall])
    for floor, materials in table.FLOORS.items():
        for m in materials.split():
            add(f"{m} floor", [floor])
    for word in words:  # "sky-other" is also "sky", but never against a phrase above
        for suffix in ("-other", "-stuff"):
            if word.endswith(suffix) and word not in ("solid-other", "structural-other"):
                add(word.removesuffix(suffix), [word])
    return found
