"""``cmmfnet captions``: write the captions of a data set, and check them.

Training reads captions from one place, the key ``caption`` of index.jsonl. This command writes them
there, from a file, from a template or from tags. The other keys stay as they are, and the earlier
index is kept as index.jsonl.bak, since captions written by hand cannot be made again. A captions
file is for people: ``--out`` writes one to edit, ``--file`` reads it.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cmmfnet.data.pairs import PairsError, read_entry
from cmmfnet.data.sentences import sentence
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError
from cmmfnet.text.caption_files import match_captions, read_captions, write_captions
from cmmfnet.text.parser import MAX_PROMPT_CHARS, Parsed, known_phrases, parse_tags
from cmmfnet.text.vocabulary import LIGHTINGS, SKIES

CLIP_TOKENS = 77  # that CLIP's text encoder reads, start and end of text included
_TOKENIZER = "openai/clip-vit-base-patch32"


@dataclass
class CaptionReport:
    """Result of a check: ``problems`` to correct, and ``notes`` for information."""

    frames: int
    captioned: int
    distinct: int
    changed: int = 0
    checked_only: bool = True
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        return int(self.checked_only and bool(self.problems))


def captions(
    data: Path,
    *,
    file: Path | None = None,
    from_tags: bool = False,
    template: str | None = None,
    overwrite: bool = False,
    fill_tags: bool = False,
    out: Path | None = None,
    check: bool = False,
) -> CaptionReport:
    """Write the captions of a data set into its index and check them; without options, only check.

    Captions of the file come first, then those made of tags, then the template. Exit status of a
    check: 1 if there are problems.

    Args:
        data: a data set: a folder with index.jsonl
        file: captions to take: .jsonl with name and caption, .csv with these columns, or text lines
            NAME, a tab, CAPTION
        from_tags: make a sentence of tags or label map for frames that have no caption
        template: one caption for all frames that have none: a text, or street-day for the one of
            docs/text.md
        overwrite: let --template and --from-tags replace captions that are there
        fill_tags: fill tags from captions where there are none
        out: also write a captions file, to edit and to read with --file; .jsonl, .csv or text
        check: only check, with what the other options would write
    """
    data = Path(data)
    lines, entries = _read_index(data)
    before = [dict(entry) for entry in entries]
    given, problems = (
        ({}, [])
        if file is None
        else match_captions(
            read_captions(Path(file)), {entry["name"] for entry in entries}, Path(file)
        )
    )
    if problems and not check:
        raise UserError(
            f"{problems[0]}. Put the names right or take these lines out; nothing was written"
        )
    text = None if template is None else _template(template)
    for entry in entries:
        name, has = entry["name"], bool(_caption(entry)) and not overwrite
        made = given.get(name) or (
            None if has else (sentence(data, entry) if from_tags else "") or text
        )
        if made:
            entry["caption"] = made
        if fill_tags and not entry.get("tags") and (caption := _caption(entry)):
            if len(caption) > MAX_PROMPT_CHARS:
                raise UserError(
                    f"the caption of {name} has {len(caption):,} characters; the most is "
                    f"{MAX_PROMPT_CHARS:,}"
                )
            entry["tags"] = parse_tags(caption).tags
    report = check_captions(entries)
    report.problems[:0] = problems
    report.checked_only = check or not (
        file or from_tags or template is not None or fill_tags or out
    )
    report.changed = sum(old != new for old, new in zip(before, entries, strict=True))
    if not report.checked_only and report.changed:
        _write_index(data, lines, before, entries)
    if out is not None:
        write_captions(Path(out), ((entry["name"], _caption(entry)) for entry in entries))
    _print(report, data, out)
    return report


def check_captions(entries: list[dict]) -> CaptionReport:
    """Check the captions of index entries: missing, longer than CLIP reads, against ``lighting`` or
    ``sky``, with words that the tags' vocabulary does not know, and whether they are all the
    same."""
    texts = {entry["name"]: _caption(entry) for entry in entries}
    missing = [name for name, text in texts.items() if not text]
    counts = Counter(text for text in texts.values() if text)
    report = CaptionReport(len(entries), len(entries) - len(missing), len(counts))
    if missing:
        report.problems.append(
            f"{len(missing)} of {len(entries)} frames have no caption: {_some(missing)}"
        )
    long, how = _too_long(counts)
    if long:
        names = [f"{name} ({long[text]})" for name, text in texts.items() if text in long]
        report.problems.append(
            f"{len(names)} captions have more than CLIP's {CLIP_TOKENS} tokens ({how}): "
            f"{_some(names)}"
        )
    # a longer one is no sentence, and is among the problems by its tokens
    parsed = {
        text: parse_tags(text) if len(text) <= MAX_PROMPT_CHARS else Parsed() for text in counts
    }
    against = [
        f"{entry['name']} ({why})"
        for entry in entries
        if (text := texts[entry["name"]]) and (why := _contradiction(text, parsed[text], entry))
    ]
    if against:
        report.problems.append(f"{len(against)} captions contradict the index: {_some(against)}")
    if unknown := Counter(word for text, n in counts.items() for word in parsed[text].unknown * n):
        phrases = known_phrases()
        shown = [f"{word!r} ({n}{_nearest(word, phrases)})" for word, n in unknown.most_common(12)]
        report.notes.append(
            f"{len(unknown)} words have no tag, so clip-tags models do not see them "
            "(clip-sentence models do): "
            f"{', '.join(shown)}{', ...' if len(unknown) > 12 else ''}"
        )
    if len(counts) == 1 and len(entries) > 1 and not missing:
        report.notes.append(
            "all captions are the same, as in the CMMF-Net paper: text is then a constant, and a "
            "model learns nothing from it"
        )
    return report


# ---- checks
# --------------------------------------------------------------------------------------------------


def _caption(entry: dict) -> str:
    return str(entry.get("caption") or "").strip()


def _contradiction(text: str, parsed: Parsed, entry: dict) -> str:
    """What of a caption cannot be true by the index, in words."""
    for key, words in (("lighting", LIGHTINGS), ("sky", SKIES)):
        said = [word for word in parsed.tags if word in words]
        if said and entry.get(key) in words and entry[key] not in said:
            return f"says {' and '.join(said)}, {key} is {entry[key]}"
    skies = [colour for colour, tag in parsed.colours if tag == "sky-other"]
    if entry.get("lighting") == "night":
        if sun := re.search(r"\b(sunny|sunlit|sunshine|sunlight|sun)\b", text.lower()):
            return f"says {sun[0]}, lighting is night"
        if light := [
            sky for sky in skies if "blue" in sky and "dark" not in sky and "deep" not in sky
        ]:
            return f"says {light[0]} sky, lighting is night"
    if entry.get("lighting") == "day" and "black" in skies:
        return "says black sky, lighting is day"
    return ""


def _too_long(texts: Iterable[str]) -> tuple[dict[str, int], str]:
    """The texts with more tokens than CLIP reads, and how the tokens were counted."""
    counts = {text: n for text in texts if (n := estimate_tokens(text)) > CLIP_TOKENS - 8}
    how = "estimated; CLIP's tokenizer is not on this machine"
    if counts and (tokenizer := _cached_tokenizer()) is not None:
        counts = {text: len(tokenizer(text, verbose=False).input_ids) for text in counts}
        how = "counted by CLIP's tokenizer"
    return {text: n for text, n in counts.items() if n > CLIP_TOKENS}, how


def estimate_tokens(text: str) -> int:
    """About how many tokens CLIP makes of an English text, with the two for its start and end.

    A word is one token for each 7 letters begun, a digit and a run of punctuation one each. Against
    CLIP's own tokenizer on 759 captions and lists of names (up to 61 tokens): 3 fewer to 5 more, .8
    more on average.
    """
    count = 2
    for piece in re.findall(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|(?:[^\s\w]|_)+", text.lower()):
        count += math.ceil(len(piece) / 7) if piece.isascii() else len(piece.encode())
    return count


def _cached_tokenizer():
    """CLIP's tokenizer if it is on this machine, else None; nothing is downloaded."""
    try:
        from transformers import CLIPTokenizer
    except ImportError:
        return None
    from cmmfnet.text.clip import CLIP_REVISIONS

    try:
        return CLIPTokenizer.from_pretrained(
            _TOKENIZER, revision=CLIP_REVISIONS[_TOKENIZER], local_files_only=True
        )
    except OSError:  # transformers' word for "not in the cache"
        return None


def _nearest(word: str, phrases: dict[str, tuple[str, ...]]) -> str:
    close = difflib.get_close_matches(word, phrases, n=3, cutoff=0.75)
    names = list(dict.fromkeys(name for phrase in close for name in phrases[phrase]))
    return f", did you mean {' or '.join(names)}?" if names else ""


def _some(items: list[str]) -> str:
    return "; ".join(items[:5]) + ("; ..." if len(items) > 5 else "")


def _print(report: CaptionReport, data: Path, out: Path | None) -> None:
    print(
        f"{data}: {report.captioned} of {report.frames} frames have a caption, {report.distinct} "
        "different"
    )
    for title, found in (("problem", report.problems), ("note", report.notes)):
        for line in found:
            print(f"{title}: {line}")
    if report.checked_only:
        print(
            f"{report.changed} entries would change"
            if report.changed
            else "the index stays as it is"
        )
    else:
        print(
            f"{report.changed} entries "
            f"changed{', the index before is index.jsonl.bak' if report.changed else ''}"
        )
        if report.changed and (data / "shards" / "index.jsonl").is_file():
            print(
                f"note: {data / 'shards'} still has the old captions; delete it and write it "
                "again (docs/shards.md)"
            )
    if out is not None:
        print(f"captions file: {out}")


def _template(text: str) -> str:
    from cmmfnet.text.sentences import TEMPLATES_BY_DATASET

    text = TEMPLATES_BY_DATASET.get(text.strip(), text.strip())
    if not text:
        raise UserError(
            f"--template is empty; expected a sentence or one of {', '.join(TEMPLATES_BY_DATASET)}"
        )
    if re.fullmatch(r"[\w-]+-(day|dusk|night)", text):
        raise UserError(
            f"no template {text!r}; there are {', '.join(TEMPLATES_BY_DATASET)}, or write a "
            "sentence"
        )
    return text


# ---- the index
# --------------------------------------------------------------------------------------------------


def _read_index(data: Path) -> tuple[list[str], list[dict]]:
    """The lines of the index, and the entries of the lines that are not empty."""
    index = data / "index.jsonl"
    if not index.is_file():
        raise PairsError(
            f"{index} does not exist; a data set is a folder with index.jsonl (docs/data.md)"
        )
    lines = [line for line in index.read_text(encoding="utf-8").split("\n") if line.strip()]
    entries = []
    for number, line in enumerate(lines, 1):
        entries.append(read_entry(line, f"{index}, line {number}"))
    if not entries:
        raise PairsError(f"{index} has no entries")
    return lines, entries


def _write_index(data: Path, lines: list[str], before: list[dict], entries: list[dict]) -> None:
    """Lines of entries that did not change stay as they are, byte for byte."""
    index = data / "index.jsonl"
    with atomic_write(data / "index.jsonl.bak") as copy:
        copy.write(index.read_bytes())
    with atomic_write(index, text=True) as stream:
        for line, old, new in zip(lines, before, entries, strict=True):
            stream.write((line if old == new else json.dumps(new, ensure_ascii=False)) + "\n")
