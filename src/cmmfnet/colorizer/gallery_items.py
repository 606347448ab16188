"""What the page of ``cmmfnet colorize --gallery`` shows of each picture."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.colorizer.report import Report, tags_line
from cmmfnet.files.errors import UserError
from cmmfnet.files.gallery import Item
from cmmfnet.files.page import as_grey
from cmmfnet.thermal.frame import read_thermal
from cmmfnet.thermal.stretch import normalise, parse_span

GALLERY_LIMIT = 200


def gallery_items(
    pairs: list[tuple[Path, Path]],
    report: Report,
    texts: dict[Path, str | None],
    span: str | None,
    reading: dict,
) -> Iterator[Item]:
    """The pictures of a page, read again from disk, because thousands do not fit into memory.

    A picture that cannot be read (any more) is left out and noted in ``report.not_shown``.
    """
    if len(pairs) > GALLERY_LIMIT:
        print(
            f"cmmfnet: the page shows {GALLERY_LIMIT} of {len(pairs)} pictures, evenly spaced",
            file=sys.stderr,
        )
        pairs = [pairs[i * len(pairs) // GALLERY_LIMIT] for i in range(GALLERY_LIMIT)]
    for file, result in pairs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were shown when the picture was coloured
                item = _item(file, result, report, texts[file], span, reading)
        except (UserError, OSError) as error:
            report.not_shown[file] = str(error)
            continue
        yield item


def _item(
    file: Path,
    result: Path,
    report: Report,
    text: str | None,
    span: str | None,
    reading: dict,
) -> Item:
    thermal = normalise(read_thermal(file, **reading), parse_span(span) if span else None)
    try:
        with Image.open(result) as picture:
            noted = picture.info.get("Text")  # of an earlier run, or drawn for a variant
            rgb = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"its result {result} cannot be read ({error}); delete it") from error
    text = text if noted is None else noted
    seen = report.seen.get(file)
    lines = [f"text: {text}"] if text else []
    if seen is not None and (not text or seen.given_tags is not None):
        lines.append(f"seen: {tags_line(seen)}")
    return Item(file.name, as_grey(thermal), rgb, "; ".join(lines))
