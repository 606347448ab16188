"""`parse_tags`: the known names in a prompt, by longest-match look-up. No grammar, no network, no
torch."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from cmmfnet.text import vocabulary as table
from cmmfnet.text.lexicon import (
    NO_CLASS,
    NO_ENTRY,
    NOTHING,
    Entry,
    Token,
    lexicon_of,
    singular,
    tokenise,
)
from cmmfnet.text.vocabulary import COLOURS, EXTRA_WORDS, WORDS

MAX_PROMPT_CHARS = 2000


@dataclass(frozen=True)
class Parsed:
    """What `parse_tags` found; every list is in the order of the text and without repeats.

    Attributes:
        tags: names out of the vocabulary.
        unknown: content words in lower case that have no name, so that the model cannot use them
            (see `warn_unknown`).
        negated: names that the text rules out ("no cars"); in `tags` only if the text also names
            them elsewhere.
        colours: (colour, tag) where a colour stands with a noun. The colour is a basic one (a value
            of `COLOURS`) or several with hyphens ("blue-grey"), after an optional shade ("dark
            green").
        loose: colours that stand with no noun ("cars (red)"), so that they have no effect.
        bare: whether trees are without leaves ("a bare tree", "trees without leaves").
    """

    tags: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    negated: list[str] = field(default_factory=list)
    colours: list[tuple[str, str]] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    bare: bool = False


_BARE = re.compile(
    r"\b(?:bare|leafless) (?:\w+ )?trees?\b|\btrees? (?:is|are|stands?) (?:bare|leafless)\b"
    r"|\btrees?(?: \w+)? (?:without|with no) (?:any )?(?:leaves|foliage)\b",
    re.IGNORECASE,
)


def parse_tags(prompt: str, words: Sequence[str] = WORDS) -> Parsed:
    """Find the names of `words` in a prompt: a list ("car, wall-brick") or sentences ("two cars by
    a brick wall").

    Understands plurals, compounds ("wall of bricks"), everyday synonyms (text/vocabulary.py) and
    simple negation ("no cars or people", "without trees"). The longest phrase wins. It does not
    understand grammar: see docs/text.md.

    Args:
        prompt: up to 2,000 characters, English; may be empty.
        words: the vocabulary; other tags are not returned. Names that are not in `WORDS` match as
            they are written.

    Raises:
        TypeError: the prompt is not a string.
        ValueError: the prompt is too long.
    """
    if not isinstance(prompt, str):
        raise TypeError(
            f"a prompt is one string, got {type(prompt).__name__}; for several prompts call once "
            "for each"
        )
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ValueError(
            f"the prompt has {len(prompt):,} characters, the most is {MAX_PROMPT_CHARS:,}: name "
            "what is in the picture "
            "in a sentence or two, or as a list such as 'car, road, tree, sky'"
        )
    bare = _BARE.search(prompt) is not None
    return _Scan(tokenise(prompt), lexicon_of(tuple(words)), Parsed(bare=bare)).run()


def known_phrases(words: Sequence[str] = WORDS) -> dict[str, tuple[str, ...]]:
    """Every phrase (words in the singular) that `parse_tags` knows -> its tags."""
    entries = lexicon_of(tuple(words)).items()
    marks = {(NOTHING,), (NO_CLASS,)}
    return {
        " ".join(key).removeprefix("! "): entry.tags
        for key, entry in entries
        if entry.tags not in marks
    }


def warn_unknown(unknown: Sequence[str], words: Sequence[str] = WORDS, stacklevel: int = 2) -> None:
    """Warn once (UserWarning) about words of a prompt that the model does not know, with the
    nearest known names; silent where there are none.

    `stacklevel` as in `warnings.warn`: 2 points at the caller.
    """
    if not unknown:
        return
    phrases = known_phrases(words)
    hints = []
    for word in unknown:
        close = difflib.get_close_matches(word, phrases, n=3, cutoff=0.75)
        near = list(dict.fromkeys(name for phrase in close for name in phrases[phrase]))
        hints.append(f"'{word}'" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    warnings.warn(
        f"the model does not know and leaves out: {', '.join(hints)}. Known are {len(words)} names "
        "(cmmfnet.text.vocabulary.WORDS) and their everyday synonyms",
        stacklevel=stacklevel,
    )


def _is_verb(word: str) -> bool:
    if word in table.VERBS or word in table.IRREGULAR_VERBS:
        return True
    if word.endswith(("ies", "ied")) and word[:-3] + "y" in table.VERBS:
        return True
    for ending in ("ing", "ed", "es", "s", "d"):
        stem = word.removesuffix(ending)
        if stem != word and (stem in table.VERBS or stem + "e" in table.VERBS):
            return True
        if (
            ending != "s" and len(stem) > 3 and stem[-1] == stem[-2] and stem[:-1] in table.VERBS
        ):  # stopped, running
            return True
    return False


class _Scan:
    """One pass over the tokens. State: the colours that wait for a noun, and whether a negation is
    open."""

    def __init__(
        self, tokens: list[Token], lexicon: dict[tuple[str, ...], Entry], out: Parsed
    ) -> None:
        self.tokens, self.lexicon, self.out = tokens, lexicon, out
        self.longest = max(map(len, lexicon), default=0)
        self.waiting: list[str] = []  # colours before their noun
        self.last_tag: str | None = None
        self.last_end = -1  # the index after the noun of `last_tag`
        self.link = (
            False  # "the car is ...", "a man in ...": a colour now belongs to the noun before
        )
        self.negated_from: int | None = None
        self.negated_any = False

    def run(self) -> Parsed:
        i = 0
        while i < len(self.tokens):
            i = self.step(i)
        self.end_of_group()
        return self.out

    def word(self, i: int) -> str:
        return self.tokens[i].text if 0 <= i < len(self.tokens) else "."

    def match(self, i: int) -> tuple[int, Entry]:
        """The longest phrase at token i: its length in tokens (0: none) and its entry."""
        for n in range(min(self.longest, len(self.tokens) - i), 0, -1):
            texts = [t.text for t in self.tokens[i : i + n]]
            if "," in texts or "." in texts:
                continue
            for key in (("!", *texts), tuple(map(singular, texts))):
                if key in self.lexicon:
                    return n, self.lexicon[key]
            if n <= 2 and (entry := self.respaced(texts)):
                return n, entry
        return 0, NO_ENTRY

    def respaced(self, texts: list[str]) -> Entry | None:
        """The entry of two words that are one in the table ("side walks"), or of one that is two
        ("trafficlights")."""
        if len(texts) == 2:
            if (
                min(map(len, texts)) < 3
                or texts[0] in table.PREPOSITIONS
                or texts[0] in table.ARTICLES
            ):
                return None
            return self.lexicon.get((singular("".join(texts)),))
        word = singular(texts[0])
        splits = ((word[:i], word[i:]) for i in range(3, len(word) - 2))
        return next((self.lexicon[split] for split in splits if split in self.lexicon), None)

    def step(self, i: int) -> int:
        """Read the phrase or word that starts at token i; returns the index after it."""
        word = self.word(i)
        if not self.tokens[i].is_word:
            self.punctuation(i)
            return i + 1
        for phrase in table.NEGATOR_PHRASES:
            if tuple(self.word(i + k) for k in range(len(phrase))) == phrase:
                return self.negate(i, len(phrase))
        n, entry = self.match(i)
        if (
            n == 1 and self.word(i + 1) in ("free", "less") and self.tokens[i + 1].glued
        ):  # "car-free"
            self.put(
                self.out.negated, [tag for tag in entry.tags if tag not in (NOTHING, NO_CLASS)]
            )
            return i + 2
        if n > 1:
            return self.noun(i, n, entry)
        if word in table.NEGATORS:
            return self.negate(i, 1)
        if (length := self.colour(i)) > 0:
            return i + length
        if n == 1 and self.is_noun(i):
            return self.noun(i, n, entry)
        return self.other(i)

    def noun(self, i: int, n: int, entry: Entry) -> int:
        tags = entry.tags
        if tags == (NOTHING,):
            return i + n
        if tags == (NO_CLASS,):
            self.put(self.out.unknown, [" ".join(t.text for t in self.tokens[i : i + n])])
            return i + n
        if n == 1 and self.word(i) in table.MATERIALS and self.describes(i):
            return i + 1
        if self.negated_from is not None:
            self.put(self.out.negated, tags)
            self.negated_any = True
            self.waiting.clear()
            return i + n
        self.put(self.out.tags, tags)
        if tags[0] not in EXTRA_WORDS:
            if not entry.is_part:
                self.put(self.out.colours, [(colour, tags[0]) for colour in self.waiting])
            self.waiting.clear()
            self.last_tag, self.last_end, self.link = tags[0], i + n, False
        return i + n

    def describes(self, i: int) -> bool:
        """Whether a material at token i only describes the noun after it: "stone railing", but not
        "plastic by day"."""
        tags = self.match(i + 1)[1].tags
        return bool(tags) and tags != (NOTHING,) and tags[0] not in EXTRA_WORDS

    def is_noun(self, i: int) -> bool:
        """Whether a single known word is meant as the thing: not "cars park here", not "a square
        white house"."""
        word = self.word(i)
        if word in table.ADJECTIVES_TOO:
            return self.word(i + 1) not in COLOURS
        if singular(word) not in table.NOUN_AFTER_ARTICLE:
            return True
        if len(self.tokens) == 1 or not (self.is_text(i - 1) or self.is_text(i + 1)):
            return True
        before = i - 1
        while (
            self.word(before) in COLOURS
            or self.word(before) in table.SHADES
            or self.word(before) in table.SIZES
        ):
            before -= 1
        return self.word(before) in table.ARTICLES

    def is_text(self, i: int) -> bool:
        return self.word(i) not in ",."

    def colour(self, i: int) -> int:
        """Take a colour at token i ("dark blue-grey"): how many tokens it has, 0 where there is
        none."""
        j = i + (self.word(i) in table.SHADES and self.word(i + 1) in COLOURS)
        if self.word(j) not in COLOURS or (self.match(j)[0] == 1 and self.is_fruit(j)):
            return 0
        basics = [COLOURS[self.word(j)]]
        end = j + 1
        while end < len(self.tokens) and self.tokens[end].glued and self.word(end) in COLOURS:
            basics.append(COLOURS[self.word(end)])
            end += 1
        self.link = self.link or i == self.last_end  # "make the sky blue"
        name = "-".join(dict.fromkeys(basics))
        self.waiting.append(f"{self.word(i)} {name}" if j > i else name)
        return end - i

    def is_fruit(self, i: int) -> bool:
        """A colour word that is a class too: "an orange on a table" and the list item "orange", not
        "an orange car"."""
        around = {self.word(k) for k in (i - 1, i + 1)} | {self.word(i - 2), self.word(i + 2)}
        after, before = self.word(i + 1), self.word(i - 1)
        alone = not self.is_text(i + 1) or after in table.PREPOSITIONS
        return (
            alone
            and (before in table.ARTICLES or not self.is_text(i - 1))
            and not around & COLOURS.keys()
        )

    def other(self, i: int) -> int:
        """A word that is no name: it may end a group of colours or a negation, and is unknown if in
        no table."""
        word = self.word(i)
        if word == "and":
            if (
                self.negated_any and not self.match(i + 1)[0]
            ):  # "no cars and a tree", but "no cars and people"
                self.end_of_negation()
        elif word in table.SOFT or not word.isalpha() or (len(word) == 1 and word not in "ai"):
            pass
        elif word in table.ARTICLES:
            colour_next = self.word(i + 1) in COLOURS or self.word(i + 1) in table.SHADES
            if self.link or not (
                self.word(i - 1) in ("and", "or", ",") and colour_next
            ):  # "a black and a red car"
                self.end_of_group()
            if self.negated_any:
                self.end_of_negation()
        elif word in table.PREPOSITIONS or _is_verb(word):
            preposition = word in table.PREPOSITIONS
            if not preposition and word.endswith(("ed", "ing")):  # "a white parked car"
                return i + 1
            self.end_of_group()
            self.link = self.last_tag is not None and (
                word in ("is", "are", "was", "were", "be")
                or (word == "in" and self.last_tag == "person")
            )
            if self.negated_from is not None and (
                self.negated_any or (preposition and i > self.negated_from)
            ):
                self.end_of_negation()
        elif word.endswith("less") and (
            entry := self.lexicon.get((singular(word[:-4]),))
        ):  # "treeless"
            self.put(
                self.out.negated, [tag for tag in entry.tags if tag not in (NOTHING, NO_CLASS)]
            )
        elif self.negated_from is not None:
            self.negated_any = True
        else:
            self.put(self.out.unknown, [word])
        return i + 1

    def punctuation(self, i: int) -> None:
        is_list = self.word(i) == ","
        if not (is_list and (self.word(i + 1) in COLOURS or self.word(i + 1) in table.SHADES)):
            self.end_of_group()
        if not (is_list and self.negated_any and self.or_follows(i + 1)):
            self.end_of_negation()

    def or_follows(self, i: int) -> bool:
        """Whether "..., people or trees" follows, so that "no cars, people or trees" rules out all
        three."""
        while i < len(self.tokens) and self.word(i) != ".":
            word = self.word(i)
            if word in ("or", "nor"):
                return True
            if (
                word == "and"
                or word in table.PREPOSITIONS
                or word in table.NEGATORS
                or _is_verb(word)
            ):
                return False
            i += 1
        return False

    def negate(self, i: int, length: int) -> int:
        self.end_of_group()
        self.negated_from, self.negated_any = i + length, False
        return i + length

    def end_of_negation(self) -> None:
        self.negated_from, self.negated_any = None, False

    def end_of_group(self) -> None:
        """Colours with no noun after them belong to the one before ("the car is red", "a man in
        black"), or to none."""
        if self.link and self.last_tag is not None:
            self.put(self.out.colours, [(colour, self.last_tag) for colour in self.waiting])
        else:
            self.put(self.out.loose, self.waiting)
        self.waiting.clear()
        self.link = False

    @staticmethod
    def put(into: list, items: Sequence) -> None:
        into.extend(item for item in dict.fromkeys(items) if item not in into)
