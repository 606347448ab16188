"""Self-contained HTML pages: one template for all, and pictures inside the page."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import cmmfnet
from cmmfnet.files.atomic import atomic_write, clear_parts

LONGEST_SIDE = 640
"""Width or height, in pixels, to which larger pictures are reduced in a page."""


def write_page(path: str | Path, template: str, **values) -> Path:
    """Write a page, completely or not at all.

    The page loads nothing from anywhere else, and its content security policy forbids it to.
    Values are plain text and are escaped. A template that loops over a generator holds one item at
    a time in memory. Characters that UTF-8 does not have (of file names) are written as \\udcXX.

    Args:
        path: the .html file.
        template: path of the template, from this package's folder; it extends files/base.html.
        values: the variables of the template; all need ``title``.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    clear_parts(path.parent)
    pieces = _environment().get_template(template).generate(version=cmmfnet.__version__, **values)
    with atomic_write(path, durable=False) as file:
        for piece in pieces:
            file.write(piece.encode("utf-8", "backslashreplace"))
    return path


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(cmmfnet.__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = data_url
    return environment


def as_grey(thermal: np.ndarray) -> np.ndarray:
    """A normalised frame (H, W) in [-1, 1] as (H, W) uint8."""
    return np.clip((thermal + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def data_url(pixels: np.ndarray, longest_side: int = LONGEST_SIDE, quality: int = 88) -> Markup:
    """(H, W) or (H, W, 3) uint8 as a JPEG in the form of a URL, reduced to ``longest_side``."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
