"""Pictures on disk: those that a file, a folder or a glob names, and the ones that are written."""

from __future__ import annotations

import glob
import io
import mimetypes
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from cmmfnet import __version__
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError
from cmmfnet.files.video import VIDEOS

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
CAMERA_FILES = (".fff", ".seq", ".csq", ".cptv", ".npy", ".npz")
"""Suffixes of thermal files that are no pictures; thermal/decode.py reads them."""
THERMAL_FILES = (*PICTURES, *CAMERA_FILES)
RAW_FILES = (".raw", ".bin", ".dat", ".y16", ".gray16")
"""Suffixes of plain numbers, in folders that are read with a layout for them."""
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
}
_OPTIONS = {
    "PNG": {"compress_level": 4},  # a third of the time of the default, for files 3 % larger
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 92},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "BMP": {},
}
_EXIF_SOFTWARE, _EXIF_DESCRIPTION = 0x0131, 0x010E
OWN_SPAN = "1st to 99th percentile of the frame"
"""The note ``Span`` of a result that was coloured without a span."""


def list_sources(source: str | Path, patterns: Sequence[str] = PICTURES) -> list[Path]:
    """The picture files that ``source`` names, in natural order (frame2 before frame10).

    Links that lead nowhere (a git-annex file that is not fetched, for example) are listed, too:
    they were asked for, and reading them fails with a message. A folder that is reached several
    times through links counts once.

    Args:
        source: a file (with any suffix), a folder (only the files in it, not in its sub-folders),
            or a glob such as ``"set00/**/lwir/*.jpg"`` (``**`` enters sub-folders). Parts of a glob
            that exist as they are written are taken so: ``"runs [2024]/*.png"``.
        patterns: suffixes that count as pictures in a folder or glob, in lower case, with the dot.

    Raises:
        UserError: there is no picture; the message says what was looked for and what was found.

    Warns:
        UserWarning: there are videos, or pictures of other kinds, beside the pictures.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    wanted = " ".join(suffix.lstrip(".") for suffix in patterns)
    if path.is_dir():
        found, where = list(path.iterdir()), f"folder {path}"
    elif path.exists():
        raise UserError(
            f"{path} is a pipe or device; expected a file or folder: write it to a file first"
        )
    elif path.is_symlink():
        raise UserError(dangling(path))
    elif glob.has_magic(str(source)):
        # Path.glob takes no absolute pattern before Python 3.13
        pattern = _with_literal_folders(path)
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        found, where = _once(found), f"glob {source}"
    elif "://" in str(source):
        raise UserError(
            f"{source} is an address; cmmfnet archive takes object stores (s3://...), cmmfnet live "
            "takes cameras (rtsp://, http://); for others, fetch the file first"
        )
    else:
        raise UserError(f"no file or folder {path} (looked in {path.absolute().parent})")
    found = [file for file in found if file.is_file() or (file.is_symlink() and not file.exists())]
    found = [file for file in found if not file.name.startswith(".")]
    pictures = [file for file in found if file.suffix.lower() in patterns]
    videos = [file for file in found if file.suffix.lower() in VIDEOS]
    alone = (
        f"; a video is coloured by itself (cmmfnet colorize {videos[0]} -o colour.mp4), the frames "
        "of all by cmmfnet archive"
        if videos
        else ""
    )
    if pictures and videos:
        warnings.warn(f"{where}: {len(videos)} videos are left out{alone}", stacklevel=2)
    suffixes = {file.suffix.lower() for file in found} - set(patterns)
    odd = {suffix for suffix in suffixes if _is_of_other_pictures(suffix)}
    others = [file for file in found if file.suffix.lower() in odd]
    if pictures and others:
        warnings.warn(f"{where}: left out {_by_suffix(others)}; looked for {wanted}", stacklevel=2)
    if not pictures:
        instead = _by_suffix(found)
        hint = " (sub-folders are not entered)" if path.is_dir() else ""
        if "[" in str(source) and not path.is_dir():
            hint = " ([...] stands for one character; write [[] for a bracket)"
        raise UserError(
            f"no pictures in {where}: looked for {wanted}; found "
            + (f"only {instead}" if instead else f"no files{hint}")
            + alone
        )
    return sorted(pictures, key=natural_key)


def _by_suffix(files: Sequence[Path]) -> str:
    """How many files there are of the most frequent suffixes: "3 x .gif, 1 x .heic"."""
    counts = Counter(sorted(file.suffix.lower() or "no suffix" for file in files))
    return ", ".join(f"{count} x {suffix}" for suffix, count in counts.most_common(4))


def _is_of_other_pictures(suffix: str) -> bool:
    """Whether files with this suffix are pictures or plain numbers, so that their absence among the
    results would surprise."""
    kind = mimetypes.MimeTypes().guess_type(f"x{suffix}")[0] or ""
    return suffix in (*THERMAL_FILES, *RAW_FILES, ".jp2", ".dng") or kind.startswith("image/")


def dangling(path: Path) -> str:
    """The message for a link that leads nowhere."""
    target = str(path.readlink())
    fetch = "; git annex get fetches it" if ".git/annex" in target else ""
    return f"{path} is a link to {target}, which is not there{fetch}"


def _with_literal_folders(path: Path) -> str:
    """``path`` as a glob in which the leading parts that exist as written stand for themselves."""
    literal, rest = Path(), list(path.parts)
    while rest and (literal / rest[0]).exists():
        literal /= rest.pop(0)
    return str(Path(glob.escape(str(literal)), *rest))


def _once(files: list[Path]) -> list[Path]:
    """``files`` without those in a folder that a shorter path reached, too."""
    folders: dict[Path, Path] = {}
    for folder in sorted({file.parent for file in files}, key=lambda f: (len(f.parts), str(f))):
        folders.setdefault(folder.resolve(), folder)
    chosen = set(folders.values())
    return [file for file in files if file.parent in chosen]


def is_result(source: Path | bytes) -> bool:
    """Whether a picture was made by ``cmmfnet colorize``, or another command that notes its model.

    Reads the notes that :func:`write_picture` leaves in the file, given by its path or content.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            head = file.read(4096)
            if head.startswith(b"\x89PNG") and b"cmmfnet" not in head:
                return False  # the common case, without Pillow
            file.seek(0)
            with Image.open(file) as picture:
                if isinstance(picture, PngImagePlugin.PngImageFile):
                    notes = dict(picture.info)
                    return (
                        str(notes.get("Software", "")).startswith("cmmfnet ") and "Model" in notes
                    )
                exif = picture.getexif()
                software, about = exif.get(_EXIF_SOFTWARE, ""), exif.get(_EXIF_DESCRIPTION, "")
                return str(software).startswith("cmmfnet ") and "Model: " in str(about)
    except Exception:  # whatever is wrong with the file, it is reported when it is read
        return False


def option_notes(
    span: str | None = None,
    palette: str | None = None,
    raw: str | None = None,
    kelvin_per_count: float | None = None,
    guidance: float = 1.0,
) -> dict[str, str]:
    """The notes of a result on the options that shaped it, for :func:`write_picture`."""
    return {
        "Span": span or OWN_SPAN,
        "Palette": palette or "",
        "Raw": raw or "",
        "Kelvin per count": "" if kelvin_per_count is None else f"{kelvin_per_count:g}",
        "Guidance": f"{guidance:g}",
    }


def read_notes(path: Path) -> dict[str, str]:
    """The notes that :func:`write_picture` left in a PNG; empty for any other file."""
    try:
        with Image.open(path) as picture:
            if isinstance(picture, PngImagePlugin.PngImageFile):
                return {key: str(value) for key, value in picture.info.items()}
    except (OSError, SyntaxError, ValueError):  # whoever reads the picture reports it
        pass
    return {}


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key under which runs of digits compare as numbers: frame2 < frame10."""
    parts = re.split(r"([0-9]+)", str(path))
    # The text itself breaks ties (frame01 and frame1, A and a), so that the order never depends on
    # the file system.
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts]
    return [*key, (2, 0, str(path))]


def write_picture(
    path: str | Path, rgb: np.ndarray, notes: Mapping[str, str] | None = None
) -> Path:
    """Write an (H, W, 3) uint8 RGB or (H, W) uint8 or uint16 grey picture, completely or not at
    all.

    The format follows the suffix: png, jpg, jpeg, webp, tif, tiff or bmp; uint16 goes into PNG and
    TIFF only.

    Args:
        path: an older file of that name is replaced.
        rgb: the pixels.
        notes: written into the file in addition to ``Software``: text chunks in PNG, the EXIF
        description
            of JPEG, WebP and TIFF. BMP has no place for them.

    Raises:
        UserError: a suffix that cannot be written.
        OSError: the disk is full, the folder cannot be written to, the picture is too large for the
            format.
    """
    path = Path(path)
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise UserError(
            f"cannot write {path.name!r}; choose a name that ends in {' '.join(sorted(_FORMATS))}"
        )
    content = encode_picture(rgb, form, notes)
    with atomic_write(
        path, durable=False
    ) as file:  # a picture can be made again; waiting for the disk costs more
        file.write(content)
    return path


def encode_picture(rgb: np.ndarray, form: str, notes: Mapping[str, str] | None = None) -> bytes:
    """The file's content that :func:`write_picture` writes; ``form``: PNG, JPEG, WEBP, TIFF, BMP.

    Raises:
        OSError: the picture is too large for the format.
    """
    options = dict(_OPTIONS[form])
    notes = {"Software": f"cmmfnet {__version__}", **(notes or {})}
    if form == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in notes.items():
            # bytes: a text that was typed in another encoding cannot be encoded strictly
            options["pnginfo"].add_itxt(key, value.encode("utf-8", "backslashreplace"))
    elif form != "BMP":
        exif = Image.Exif()
        exif[_EXIF_SOFTWARE] = notes["Software"]
        exif[_EXIF_DESCRIPTION] = "; ".join(
            f"{k}: {v}" for k, v in notes.items() if k != "Software"
        ).encode("ascii", "replace")
        options["exif"] = exif
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, format=form, **options)
    return buffer.getvalue()


def plan_outputs(source: str | Path, inputs: Sequence[Path], out: str | Path) -> list[Path]:
    """The file that each input's result goes to.

    If ``source`` is one file and ``out`` ends in a picture suffix, the result is that file.
    Otherwise ``out`` is a folder and results are named NAME.png after their input; inputs of a glob
    keep the sub-folders in which they differ. Inputs of one folder that differ only in their suffix
    keep it in the name: a.png and a.jpg become a-png.png and a-jpg.png.

    Raises:
        UserError: a result would replace one of the inputs, two results would have the same name,
            or ``out`` is a file, or is named like a file that cannot be written.
    """
    out = Path(out)
    if not out.is_dir() and out.suffix.lower() in _FORMATS:
        if not Path(source).is_file():
            raise UserError(
                f"{out} names one picture, but {source} can be many; give a folder, such as "
                f"{out.stem}"
            )
        outputs = [out]
    elif out.is_file():
        raise UserError(
            f"{out} is a file; results go into a folder, or into a file that ends in "
            f"{' '.join(_FORMATS)}"
        )
    else:
        check_folder_name(out)
        root = Path(os.path.commonpath([file.parent for file in inputs]))
        stems = [file.parent.relative_to(root) / file.stem for file in inputs]
        shared = Counter(str(stem).lower() for stem in stems)  # a file system may ignore case
        outputs = []
        for file, stem in zip(inputs, stems, strict=True):
            name = (
                stem.name
                if shared[str(stem).lower()] == 1
                else f"{stem.name}-{file.suffix.lstrip('.')}"
            )
            outputs.append(out / stem.with_name(f"{name}.png"))
    taken: dict[Path, Path] = {}
    originals = {file.resolve(): file for file in inputs}
    for file, output in zip(inputs, outputs, strict=True):
        resolved = output.resolve()
        if resolved in originals:
            raise UserError(
                f"the result of {file} would replace the input {originals[resolved]}; choose "
                "another output"
            )
        other = taken.setdefault(Path(str(resolved).lower()), file)
        if other is not file:
            raise UserError(
                f"{other} and {file} would both become {output}; colour them into two folders"
            )
    return outputs


def check_folder_name(out: Path) -> None:
    """Refuse a folder to be made that is named like a file, such as colour.gif.

    Raises:
        UserError: ``out`` is no folder and has such a name.
    """
    if str(out) == "-" or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is no folder and no file's name; results are written to files")
    if not out.is_dir() and _is_file_name(out.name):
        raise UserError(
            f"{out} is named like a file of a kind that cannot be written; give a folder, such as "
            f"{out.stem}, or a picture that ends in {' '.join(_FORMATS)}"
        )


def _is_file_name(name: str) -> bool:
    """Whether a name ends like a file: colour.gif, o.txt; but not run.v2 or frames.2024."""
    # The table that comes with Python: the system's may have suffixes such as .1 for manuals.
    suffix = Path(name).suffix.lower()
    known = mimetypes.MimeTypes().guess_type(name)[0] is not None
    return known or (suffix != "" and suffix in Image.registered_extensions())
