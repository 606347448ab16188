"""`--text-file`: a text for each picture, from a captions file, from text files next to the
pictures, or by time. No torch.

``--text-file`` takes

* a captions file, as `cmmfnet captions` reads and writes it: .jsonl with name and caption, .csv
  with these columns, or lines NAME, a tab, CAPTION. A name is a picture (with or without its
  suffix, with folders where they are needed) or a folder, for all pictures in it;
* a text file of times (`cmmfnet.text.timeline`), for the frames of one folder: a picture's frame
  number is its place in it;
* the word ``beside``: NAME.txt next to NAME.png, and _folder.txt for all pictures of its folder and
  the folders in it.

A picture's own text comes before the text of the nearest folder, and both come before ``--text``.
An empty text means no text. All texts are read and checked before the first picture is coloured.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import THERMAL_FILES, is_result, list_sources
from cmmfnet.text.caption_files import read_captions
from cmmfnet.text.prompt import read_prompt
from cmmfnet.text.timeline import is_timeline, read_timeline

BESIDE, FOLDER_FILE = "beside", "_folder.txt"
MAX_FILE_BYTES, MAX_SIDECAR_BYTES, MAX_LINE = 64_000_000, 64_000, 40_000
OWN, FOLDER, COMMON, NONE = "their own", "their folder's", "--text", "none"


@dataclass
class PictureTexts:
    """The text of each picture, in the order of the pictures.

    Attributes:
        texts: None where a picture has none.
        origins: ``OWN``, ``FOLDER``, ``COMMON`` or ``NONE`` for each.
        unused: entries that fit no picture, in words, with files and line numbers.
    """

    texts: list[str | None]
    origins: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = Counter(self.origins)
        return "texts: " + ", ".join(
            f"{counts[origin]} {origin}" for origin in (OWN, FOLDER, COMMON, NONE) if counts[origin]
        )


def picture_texts(
    source: str | Path,
    inputs: Sequence[Path],
    *,
    text: str | None = None,
    text_file: str | Path | None = None,
) -> PictureTexts:
    """Find the text of each picture.

    Args:
        source: the picture, folder or glob from which the pictures were listed; names in files are
            relative to it.
        inputs: the pictures, as ``list_sources`` gives them.
        text: the text of pictures without another text.
        text_file: see the module's text; None: ``text`` for all.

    Raises:
        UserError: the file is not there, is no such file, or a line or text in it is wrong;
            nothing fits.
    """
    found: dict[Path, tuple[str, str]] = {}
    unused: list[str] = []
    if text_file is not None and str(text_file) == BESIDE:
        found, unused = _beside(_root(source, inputs), inputs)
    elif text_file is not None:
        path = Path(text_file)
        content = read_text(path, MAX_FILE_BYTES)
        if path.suffix.lower() not in (".jsonl", ".json", ".csv") and is_timeline(content):
            found, unused = _by_time(path, content, inputs)
        else:
            found, unused = _by_name(path, _captions(path), _root(source, inputs), inputs)
    common = (text, COMMON if text and text.strip() else NONE)
    chosen = [found.get(file, common) for file in inputs]
    return PictureTexts([text for text, _ in chosen], [origin for _, origin in chosen], unused)


# --- reading


def check_prompt(text: str) -> None:
    """Raises ValueError for a text that no model takes or that no picture can note."""
    if bad := next(
        (c for c in text if (ord(c) < 32 and c not in "\t\n\r") or 0xD800 <= ord(c) < 0xE000), None
    ):
        raise ValueError(f"the text has the character {bad!a}, which is no text; take it out")
    read_prompt(text)


def read_text(path: Path, limit: int) -> str:
    """The content of a UTF-8 file of at most ``limit`` bytes. Raises UserError."""
    if not path.exists():
        raise UserError(f"no file of texts {path} (looked in {path.absolute().parent})")
    if not path.is_file():
        hint = (
            f"; write {BESIDE} to read the text files beside the pictures" if path.is_dir() else ""
        )
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise UserError(f"{path} is {what}, not a file of texts{hint}")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        size = max(path.stat().st_size, len(data))
        raise UserError(f"{path} has {size:,} bytes; a file of texts has at most {limit:,}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16; save it as UTF-8")
    if (at := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise UserError(f"{path} is a binary file (a zero byte in line {line}), not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#x}); save it as UTF-8"
        ) from error
    if long := next(
        (n for n, line in enumerate(text.split("\n"), 1) if len(line) > MAX_LINE), None
    ):
        raise UserError(
            f"{path}, line {long}: over {MAX_LINE:,} characters; a text has at most 2,000"
        )
    return text


def _captions(path: Path) -> list[tuple[int, str, str]]:
    """(line, name, caption) for each entry of a captions file."""
    try:
        rows = read_captions(path)
    except UserError as error:
        raise UserError(str(error)) from error
    for number, name, caption in rows:
        if not name:
            raise UserError(f"{path}, line {number}: an empty name; expected that of a picture")
        try:
            check_prompt(caption)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    if not rows:
        raise UserError(f"{path} has no texts")
    return rows


# --- pictures and their texts


def _root(source: str | Path, inputs: Sequence[Path]) -> Path:
    """The folder that names in files are relative to."""
    return (
        Path(source)
        if Path(source).is_dir()
        else Path(os.path.commonpath([file.parent for file in inputs]))
    )


def _names(file: Path, root: Path) -> tuple[str, ...]:
    """The names that a picture may have in a file, the most exact first."""
    inside = file.relative_to(root)
    return (
        inside.as_posix(),
        file.as_posix(),
        inside.with_suffix("").as_posix(),
        file.name,
        file.stem,
    )


def _by_name(
    path: Path, rows: list[tuple[int, str, str]], root: Path, inputs: Sequence[Path]
) -> tuple[dict[Path, tuple[str, str]], list[str]]:
    pictures: list[dict[str, list[Path]]] = [{} for _ in _names(inputs[0], root)]
    folders: dict[str, list[Path]] = {}
    for file in inputs:
        for level, name in zip(pictures, _names(file, root), strict=True):
            level.setdefault(name, []).append(file)
        for parent in file.relative_to(root).parents:
            folders.setdefault(parent.as_posix(), []).append(file)
    lines: dict[Path | str, int] = {}
    own: dict[Path, str] = {}
    of_folder: list[tuple[str, str]] = []
    lost: list[tuple[int, str]] = []
    for number, written, caption in rows:
        name = written.replace("\\", "/").removeprefix("./")
        files = next((level[name] for level in pictures if name in level), [])
        folder = name.rstrip("/") or "."
        if len(files) > 1:
            some = ", ".join(file.relative_to(root).as_posix() for file in files[:3])
            raise UserError(
                f"{path}, line {number}: {written!r} may be {some}; write its folder and suffix, "
                "too"
            )
        if not files and folder not in folders:
            lost.append((number, written))
            continue
        key: Path | str = files[0] if files else folder
        if key in lines:
            raise UserError(
                f"{path}: {written!r} is there twice, in lines {lines[key]} and {number}; keep one"
            )
        lines[key] = number
        if files and caption:
            own[files[0]] = caption
        elif caption:
            of_folder.append((folder, caption))
    near = [name for level in (pictures[0], pictures[-1]) for name in level]
    near = near[:20_000]  # a hint is not worth minutes
    if not lines:
        raise UserError(
            f"{path}: none of its {len(rows)} names is a picture of {root}: {_some(lost, near)}"
        )
    found: dict[Path, tuple[str, str]] = {}
    for folder, caption in sorted(
        of_folder, key=lambda item: 0 if item[0] == "." else len(Path(item[0]).parts)
    ):
        found.update(
            (file, (caption, FOLDER)) for file in folders[folder]
        )  # the nearest comes last
    found.update((file, (caption, OWN)) for file, caption in own.items())
    return found, [
        f"{path}: {len(lost)} of its names are no picture of this command: {_some(lost, near)}"
    ] if lost else []


def _some(lost: list[tuple[int, str]], known: list[str]) -> str:
    shown = []
    for number, written in lost[:5]:
        near = difflib.get_close_matches(written, known, n=1)
        shown.append(
            f"{written[:60]!r} (line {number}{f', did you mean {near[0]}?' if near else ''})"
        )
    return "; ".join(shown) + ("; ..." if len(lost) > 5 else "")


def _by_time(
    path: Path, content: str, inputs: Sequence[Path]
) -> tuple[dict[Path, tuple[str, str]], list[str]]:
    try:
        timeline = read_timeline(content, check_prompt)
        folders = sorted({file.parent for file in inputs})
        if len(folders) > 1:
            raise UserError(
                "a file of times is for the frames of one folder, and these pictures are in "
                f"{len(folders)}: "
                f"{', '.join(map(str, folders[:3]))}; colour them one by one"
            )
        # all of the folder, also for a part of it: the frame number is the place in all of it
        every = [file for file in list_sources(folders[0]) if not is_result(file)]
        places = {file.name: place for place, file in enumerate(every)}
        spans = {file: span for file in inputs if (span := timeline.at(places.get(file.name, 0)))}
        reached = {span for place in range(len(every)) if (span := timeline.at(place))}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    unused = [span for span in timeline.spans if span not in reached]
    if len(unused) == len(timeline.spans):
        raise UserError(
            f"{path}: none of its spans is reached by the {len(every)} pictures of {folders[0]} "
            f"(frames 0 to {len(every) - 1})"
        )
    notes = []
    if unused:
        some = "; ".join(f"{span.text[:30]!r} (line {span.line})" for span in unused[:5])
        notes.append(
            f"{path}: {len(unused)} of its spans hold none of the {len(every)} pictures of "
            f"{folders[0]}: {some}" + ("; ..." if len(unused) > 5 else "")
        )
    return {file: (span.text, OWN) for file, span in spans.items()}, notes


def _beside(root: Path, inputs: Sequence[Path]) -> tuple[dict[Path, tuple[str, str]], list[str]]:
    def content(path: Path) -> str:
        text = read_text(path, MAX_SIDECAR_BYTES).strip()
        try:
            check_prompt(text)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        return text

    def folder_text(folder: Path) -> str:
        """The text of this folder or, up to the root, of the nearest folder around it."""
        if folder not in folder_texts:
            path = folder / FOLDER_FILE
            around = folder_text(folder.parent) if folder not in (root, folder.parent) else ""
            folder_texts[folder] = (content(path) if path.is_file() else "") or around
        return folder_texts[folder]

    folder_texts: dict[Path, str] = {}
    found: dict[Path, tuple[str, str]] = {}
    stray: list[Path] = []
    beside: dict[Path, dict[str, Path]] = {}
    for folder in dict.fromkeys(file.parent for file in inputs):
        files = [file for file in folder.iterdir() if file.is_file() and file.name != FOLDER_FILE]
        stems = {file.stem for file in files if file.suffix.lower() in THERMAL_FILES} | {
            file.stem for file in inputs if file.parent == folder
        }
        beside[folder] = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
        stray += sorted(file for stem, file in beside[folder].items() if stem not in stems)
    for file in inputs:
        path = beside[file.parent].get(file.stem)
        if path is not None and (text := content(path)):
            found[file] = (text, OWN)
        elif text := folder_text(file.parent):
            found[file] = (text, FOLDER)
    if not found:
        raise UserError(
            f"no texts beside the {len(inputs)} pictures of {root}: expected {inputs[0].stem}.txt "
            "beside "
            f"{inputs[0].name}, or {FOLDER_FILE} in its folder"
        )
    notes = []
    if stray:
        some = ", ".join(map(str, stray[:5])) + (", ..." if len(stray) > 5 else "")
        notes.append(f"{len(stray)} text files are beside no picture of their name: {some}")
    return found, notes
