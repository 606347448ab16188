"""Pairs inside camera files: FLIR cameras with two lenses store a visible photo beside the thermal
frame, and where the frame lies in it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from cmmfnet.data.prepare.found import FoundPair, progress, refuse
from cmmfnet.data.prepare.raw import PrepareError
from cmmfnet.thermal.frame import Thermal, read_thermal
from cmmfnet.thermal.limits import ThermalFileError

_LEAST_SIDE = 16
"""Pixels of the part that photo and frame both show: less is no picture."""


def holds_flir_frame(path: Path) -> bool:
    """Whether a picture is a radiometric JPEG of FLIR, by its first bytes."""
    if path.suffix.lower() not in (".jpg", ".jpeg") or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"FLIR\0\x01" in file.read(200_000)


def read_camera_pair(path: Path) -> Thermal:
    """A camera file with a photo whose place is known.

    Raises:
        PrepareError: any other file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # counts will do for training
            thermal = read_thermal(path)
        if thermal.visible is None:
            raise PrepareError(f"{path} holds no visible photo")
        if not thermal.visible.ratio:
            raise PrepareError(f"{path} does not say where the thermal frame lies in its photo")
        left, top, right, bottom = thermal.visible.covers(thermal.values.shape)
    except ThermalFileError as error:
        raise PrepareError(f"{path}: {error}") from error
    if min(right - left, bottom - top) < _LEAST_SIDE:
        raise PrepareError(f"{path}: its photo and its thermal frame show different things")
    return thermal


def read_camera_files(raw: Path, pictures: Sequence[Path]) -> list[FoundPair]:
    """The pairs, one in each picture; folders are sequences.

    Raises:
        PrepareError: pictures without a pair, with their names.
    """
    found, bad = [], []
    for path in progress(list(pictures)):
        try:
            read_camera_pair(path)
        except PrepareError as error:
            bad.append(str(error))
        folders = path.relative_to(raw).parts[:-1]
        found.append(FoundPair(path, path, folders, path.stem, embedded=True))
    refuse(
        bad,
        f"of {len(found)} camera files hold no pair",
        "move them away; thermal frames alone can be coloured, not trained on",
    )
    return found
