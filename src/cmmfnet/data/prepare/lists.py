"""Lists of pairs, CSV or JSON lines, with the columns source, target, prompt, split, sequence and
lighting."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from cmmfnet.data.prepare.found import EXPECTED, FoundPair, refuse
from cmmfnet.data.prepare.raw import PrepareError
from cmmfnet.text.vocabulary import LIGHTINGS

LISTS = (".csv", ".jsonl", ".json")  # .json: ControlNet's prompt.json has an object a line, too
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test",
    "testing": "test",
}  # fmt: skip
COLUMNS = ("source", "target", "prompt", "split", "sequence", "lighting")


def _rows(path: Path) -> Iterable[tuple[int, dict]]:
    """(line, row) of a CSV (comma, semicolon or tab) or JSONL list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PrepareError(f"{path} is not UTF-8 ({error}); save it as CSV UTF-8") from error
    if path.suffix.lower() == ".csv":
        head = text.partition("\n")[0]
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count)
        )
        for row in reader:
            if None in row:
                raise PrepareError(
                    f"{path}, line {reader.line_num}: more cells than in the first line; write "
                    '"..." around a prompt with commas'
                )
            yield reader.line_num, {str(key).strip().lower(): value for key, value in row.items()}
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise PrepareError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise PrepareError(
                    f"{path}, line {number}: found {line[:60]}; expected an object with source "
                    "and target"
                )
            yield number, row


def columns(path: Path) -> set[str]:
    """The columns of the first row; none if the file is no list."""
    try:
        return set(next(iter(_rows(path)), (0, {}))[1])
    except PrepareError as error:  # some other file; given as RAW itself, it is an error
        warnings.warn(f"not used as a list of pairs: {error}", stacklevel=2)
        return set()


def read_list(path: Path) -> list[FoundPair]:
    if path.suffix.lower() not in LISTS:
        raise PrepareError(f"{path} is a file; {EXPECTED}")
    found, missing, twice, used = [], [], [], {}
    rows = list(_rows(path))
    unused = dict.fromkeys(key for _, row in rows for key in row if key not in COLUMNS)
    for number, row in rows:
        values = {key: str(row.get(key) or "").strip() for key in COLUMNS}
        if not values["source"] or not values["target"]:
            raise PrepareError(
                f"{path}, line {number}: no {'source' if not values['source'] else 'target'}; "
                f"found {', '.join(row)}. Expected the columns source (thermal file), target "
                "(colour file) and optionally prompt, split, sequence, lighting"
            )
        split, lighting = SPLITS.get(values["split"].lower()), values["lighting"].lower()
        if values["split"] and split is None:
            raise PrepareError(
                f"{path}, line {number}: split {values['split']!r}; expected train, val or test"
            )
        if lighting and lighting not in LIGHTINGS:
            raise PrepareError(
                f"{path}, line {number}: lighting {lighting!r}; expected one of "
                f"{', '.join(LIGHTINGS)}"
            )
        files = [_file(path.parent, values[key]) for key in ("source", "target")]
        missing += [f"{file} (line {number})" for file in files if not file.is_file()]
        if (first := used.setdefault(files[0], number)) != number:
            twice.append(f"{values['source']} (lines {first} and {number})")
        meta = {"caption": values["prompt"], "lighting": lighting}
        folders = (values["sequence"],) if values["sequence"] else ()
        meta = {key: value for key, value in meta.items() if value}
        found.append(FoundPair(*files, folders, files[0].stem, split, None, meta))
    if not found:
        raise PrepareError(f"{path} has no pairs; {EXPECTED}")
    refuse(
        missing,
        f"of {2 * len(found)} files that {path} names do not exist",
        f"paths are relative to {path.parent}",
    )
    refuse(twice, f"frames are in {path} twice", "keep one line of each")
    if unused:
        near = {key: difflib.get_close_matches(key, COLUMNS, 1) for key in unused}
        guesses = [
            f"{key!r} (did you mean {close[0]}?)" if close else repr(key)
            for key, close in near.items()
        ]
        warnings.warn(
            f"{path}: not used: {', '.join(guesses)}; used are {', '.join(COLUMNS)}", stacklevel=3
        )
    if len({pair.split is None for pair in found}) == 2:
        raise PrepareError(
            f"{path}: {sum(pair.split is None for pair in found)} of {len(found)} lines have no "
            "split; name it in all or none"
        )
    return _with_folders(found)


def _file(root: Path, name: str) -> Path:
    """The file that a list names. A list from Windows separates folders by backslashes."""
    path = root / name
    if "\\" in name and not path.exists():
        return root / PureWindowsPath(name).as_posix()
    return path


def _with_folders(found: list[FoundPair]) -> list[FoundPair]:
    """If files in several folders have one name, the folders become part of the names."""
    if len({pair.name.lower() for pair in found}) == len(found):
        return found
    common = Path(os.path.commonpath([pair.thermal.parent.resolve() for pair in found]))
    return [
        replace(
            pair,
            stem="_".join([*pair.thermal.parent.resolve().relative_to(common).parts, pair.stem]),
        )
        for pair in found
    ]
