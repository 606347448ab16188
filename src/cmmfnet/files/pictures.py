"""Where pictures come from and go to: a file, a folder or a glob in, one picture file out."""

from __future__ import annotations

import glob
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from cmmfnet import __version__
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
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


class SourceError(UserError):
    """Pictures that were asked for are not there, or their results have nowhere to go; the message
    says which."""


def list_sources(source: str | Path, patterns: Sequence[str] = PICTURES) -> list[Path]:
    """The picture files that ``source`` names, in natural order (frame2 before frame10).

    Args:
        source: a file (taken whatever its suffix), a folder (its own files, not those of its
            sub-folders), or a glob such as ``"set00/**/lwir/*.jpg"`` (``**`` enters sub-folders).
        patterns: suffixes that count as pictures in a folder or glob, in lower case, with the dot.

    Raises:
        SourceError: nothing there; the message says what was looked for and what was found instead.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    wanted = " ".join(suffix.lstrip(".") for suffix in patterns)
    if path.is_dir():
        found, where = [file for file in path.iterdir() if file.is_file()], f"folder {path}"
    elif glob.has_magic(str(source)):
        # Path.glob takes no absolute pattern before Python 3.13
        found = [Path(name) for name in glob.glob(str(source), recursive=True)]  # noqa: PTH207
        found, where = [file for file in found if file.is_file()], f"glob {source}"
    else:
        raise SourceError(f"no file or folder {path} (looked in {path.absolute().parent})")
    found = [file for file in found if not file.name.startswith(".")]
    pictures = [file for file in found if file.suffix.lower() in patterns]
    if not pictures:
        others = Counter(file.suffix.lower() or "no suffix" for file in found).most_common(4)
        instead = ", ".join(f"{count} x {suffix}" for suffix, count in others)
        raise SourceError(
            f"no pictures in {where}: looked for {wanted}; found "
            + (
                f"only {instead}"
                if instead
                else "no files" + (" (sub-folders are not entered)" if path.is_dir() else "")
            )
        )
    return sorted(pictures, key=natural_key)


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
        notes: written into the file beside ``Software``: text chunks in PNG, the EXIF description
            of JPEG, WebP and TIFF. BMP has no place for them.

    Raises:
        SourceError: a suffix that cannot be written.
        OSError: the disk is full, the folder cannot be written to, the picture is too large for the
            format.
    """
    path = Path(path)
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise SourceError(
            f"cannot write {path.name!r}; choose a name that ends in {' '.join(sorted(_FORMATS))}"
        )
    options = dict(_OPTIONS[form])
    notes = {"Software": f"cmmfnet {__version__}", **(notes or {})}
    if form == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in notes.items():
            options["pnginfo"].add_itxt(key, value)
    elif form != "BMP":
        exif = Image.Exif()
        exif[_EXIF_SOFTWARE] = notes["Software"]
        exif[_EXIF_DESCRIPTION] = "; ".join(
            f"{k}: {v}" for k, v in notes.items() if k != "Software"
        ).encode("ascii", "replace")
        options["exif"] = exif
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, format=form, **options)

    with atomic_write(
        path, durable=False
    ) as file:  # a picture can be made again; waiting for the disk costs more
        file.write(buffer.getbuffer())
    return path


def plan_outputs(source: str | Path, inputs: Sequence[Path], out: str | Path) -> list[Path]:
    """The file that each input's result goes to.

    One explicit input file and an ``out`` that ends in a picture suffix: that file. Otherwise
    ``out`` is a folder and results are named NAME.png after their input; inputs of a glob keep the
    sub-folders in which they differ. Inputs of one folder that differ in their suffix alone keep it
    in the name: a.png and a.jpg become a-png.png and a-jpg.png.

    Raises:
        SourceError: a result would replace one of the inputs, or two results would have the same
            name.
    """
    out = Path(out)
    if not out.is_dir() and out.suffix.lower() in _FORMATS:
        if not Path(source).is_file():
            raise SourceError(
                f"{out} names one picture, but {source} can be many; give a folder, such as "
                f"{out.stem}"
            )
        outputs = [out]
    elif out.is_file():
        raise SourceError(
            f"{out} is a file; results go into a folder, or into a file that ends in "
            f"{' '.join(_FORMATS)}"
        )
    else:
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
            raise SourceError(
                f"the result of {file} would replace the input {originals[resolved]}; choose "
                "another output"
            )
        other = taken.setdefault(Path(str(resolved).lower()), file)
        if other is not file:
            raise SourceError(
                f"{other} and {file} would both become {output}; colour them into two folders"
            )
    return outputs
