"""Files of captions (JSON lines, CSV or text): reading, matching with the frames of a data set,
writing."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterable
from pathlib import Path

from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError


def read_captions(path: Path) -> list[tuple[int, str, str]]:
    """(line, name, caption) of a captions file; a caption may be empty, for "none yet"."""
    if not path.is_file():
        raise UserError(
            f"--file {path} does not exist; cmmfnet captions DATA --out {path} makes one to fill in"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    rows: list[tuple[int, str, str]] = []
    if path.suffix.lower() == ".csv":
        head = text.partition("\n")[0]
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count)
        )
        if not {"name", "caption"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path}: found the columns {reader.fieldnames}; expected name and caption"
            )
        try:
            table = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: {error}; expected a CSV table"
            ) from error
        for number, row in table:
            if None in row:
                raise UserError(
                    f'{path}, line {number}: more cells than in the first line; write "..." '
                    "around a caption with commas"
                )
            rows.append((number, row["name"] or "", row["caption"] or ""))
        return [(number, name.strip(), caption.strip()) for number, name, caption in rows]
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        if path.suffix.lower() in (".jsonl", ".json"):
            try:
                row = json.loads(line)
                name, caption = row["name"], row["caption"]
                if not isinstance(name, str) or not isinstance(caption, str | None):
                    raise TypeError("name and caption must be strings")
            except (
                KeyError,
                TypeError,
                ValueError,
                RecursionError,
            ) as error:  # hostile: deep brackets, endless digits
                raise UserError(
                    f'{path}, line {number}: expected {{"name": ..., "caption": ...}}; {error!r}'
                ) from error
        else:
            name, tab, caption = line.partition("\t")
            if not tab:
                raise UserError(
                    f"{path}, line {number}: no tab in {line[:60]!r}; expected NAME, a tab and "
                    "CAPTION"
                )
            if number == 1 and (name, caption) == ("name", "caption"):
                continue
        rows.append((number, name.strip(), (caption or "").strip()))
    return rows


def match_captions(
    rows: list[tuple[int, str, str]], known: set[str], path: Path
) -> tuple[dict[str, str], list[str]]:
    """Name -> caption, and a list of problems in words. A name may have the suffix of its
    picture."""
    given: dict[str, str] = {}
    lines: dict[str, int] = {}
    unknown = []
    for number, written, caption in rows:
        name = (
            written
            if written in known
            else str(Path(written).with_suffix(""))
            if "." in written
            else written
        )
        if name not in known:
            unknown.append((number, written))
        elif name in lines:
            raise UserError(
                f"{path}: {name} is there twice, in lines {lines[name]} and {number}; keep one"
            )
        else:
            lines[name] = number
            given[name] = caption
    if not unknown:
        return given, []
    shown = []
    for number, written in unknown[:5]:
        near = difflib.get_close_matches(written, known, n=1)
        shown.append(f"{written!r} (line {number}{f', did you mean {near[0]}?' if near else ''})")
    more = "; ..." if len(unknown) > 5 else ""
    return given, [
        f"{path} has captions for {len(unknown)} frames that are not in the data set: "
        f"{'; '.join(shown)}{more}"
    ]


def write_captions(path: Path, captions: Iterable[tuple[str, str]]) -> None:
    """(name, caption) pairs; a caption becomes one line."""
    rows = [(name, " ".join(caption.split())) for name, caption in captions]
    with atomic_write(path, text=True, durable=False) as stream:
        if path.suffix.lower() == ".csv":
            csv.writer(stream, lineterminator="\n").writerows([("name", "caption"), *rows])
        elif path.suffix.lower() in (".jsonl", ".json"):
            stream.writelines(
                json.dumps({"name": n, "caption": c}, ensure_ascii=False) + "\n" for n, c in rows
            )
        else:
            stream.writelines(f"{name}\t{caption}\n" for name, caption in rows)
