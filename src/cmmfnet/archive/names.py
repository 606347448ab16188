"""Names of frames: text for any name of a file, and an output of its own for every input.

Names come from strangers. A name of an archive is turned into valid text, may not lead out of the
archive, and no two inputs share an output.

>>> output_name("night/0001.png"), output_name("night/0001.jpg")
('night/0001.png', 'night/0001.jpg.png')
"""

from __future__ import annotations

import hashlib

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import RAW_FILES, THERMAL_FILES

MANIFEST = "cmmfnet-manifest"
"""The folder of the manifest, in the output folder."""
LONGEST = 255
"""Bytes of one part of a path, the limit of usual file systems."""
_KNOWN = (*THERMAL_FILES, *RAW_FILES)


class NameRefused(UserError):
    """A name that leads out of the archive, or that another frame may have, too."""


def as_text(name: str) -> str:
    """A file name as valid text; different names stay different.

    Bytes that are no UTF-8, which Python reads as lone surrogates, become U+FFFD and
    their number in hexadecimal; U+FFFD itself becomes U+FFFD and ``u``.
    """
    if not any(c == "\ufffd" or "\ud800" <= c <= "\udfff" for c in name):
        return name
    return "".join(
        "\ufffdu" if c == "\ufffd" else f"\ufffd{ord(c):x}" if "\ud800" <= c <= "\udfff" else c
        for c in name
    )


def shown(name: str) -> str:
    """A name on one line of a terminal: line breaks and control characters are escaped."""
    return name if name.isprintable() else repr(name)


def checked(name: str) -> str:
    """A relative name with ``/`` between its parts, as it is.

    Raises:
        NameRefused: absolute, with a part ``..``, ``.`` or without a letter, or with a null
            character.
    """
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise NameRefused(
            f"{shown(name)} is no name inside the archive: it is absolute, or has an empty part, "
            "'.', '..' or a null character; rename it"
        )
    return name


def output_name(name: str) -> str:
    """The picture that the frame ``name`` (as text) becomes, relative to the output folder.

    PNG keeps its name, any other suffix is kept before ``.png``: no two inputs share an output. A
    part of more than 255 bytes is shortened to its start and a hash of the whole.

    Raises:
        NameRefused: the name leads out of the archive, or into the folder of the manifest.
    """
    checked(name)
    if name.split("/", 1)[0].casefold() == MANIFEST:
        raise NameRefused(f"{shown(name)}: the folder {MANIFEST} is the manifest's own; rename it")
    stem = name.removesuffix(".png")
    if stem == name or stem.lower().endswith(_KNOWN):
        name += ".png"
    return "/".join(_short(part) for part in name.split("/"))


def frame_output(container: str, index: int) -> str:
    """The picture of a frame of a video or sequence: walk.mp4/000012.png."""
    return f"{output_name(f'{container}/x')[: -len('/x.png')]}/{index:06d}.png"


def fingerprint(key: str) -> bytes:
    """16 bytes that stand for a key; the last one is never 0, so that NumPy keeps all of them."""
    return hashlib.blake2b(key.encode(), digest_size=15).digest() + b"\x01"


def in_shard(key: str, shard: tuple[int, int]) -> bool:
    """Whether a file belongs to shard ``(i, n)``, i from 0 to n - 1."""
    index, count = shard
    return int.from_bytes(fingerprint(key)[:8], "little") % count == index


def _short(part: str) -> str:
    encoded = part.encode()
    if len(encoded) <= LONGEST:
        return part
    end = f"-{hashlib.sha256(encoded).hexdigest()[:24]}.png"
    return encoded[: LONGEST - len(end)].decode(errors="ignore") + end
