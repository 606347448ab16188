"""Pairs: the project's one layout of thermal/colour pairs, in a folder of pictures or in tar shards
(docs/shards.md).

A folder with

- ``index.jsonl``: one JSON object a line. ``name`` is needed; ``split`` ("train", "val", "test"),
  ``source``, ``sequence`` (frames of one camera position: never split, weighted as one scene),
  ``lighting`` ("day", "dusk", "night"), ``sky``, ``caption``, ``colour_caption``, ``tags``
  (COCO-Stuff names) are used where they are given.
- ``thermal/NAME.EXT``: one-channel pictures, 8 or 16 bit, anything that ``read_thermal`` takes.
- ``visible/NAME.EXT``: 8-bit RGB pictures of the same size.
- ``label/NAME.png`` (optional): uint8 class ids (``text.labels.CLASSES``), for sources that have
  them.

Labelled colour photos without thermal (for simulation) have the same layout with ``photo`` in place
of ``visible`` and no ``thermal``.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.data.decode import DECODERS
from cmmfnet.data.remote import Remote
from cmmfnet.data.shards import Shards
from cmmfnet.data.store import KINDS, Folder, PairsError, Store
from cmmfnet.files.pictures import PICTURES

TEXTS = (
    "split", "source", "sequence", "lighting", "sky", "caption", "colour_caption", "labels",
)  # fmt: skip
"""Keys of an entry that have a text or null."""
MOST_HEADERS = 5000


@dataclass(frozen=True)
class Pair:
    """One decoded item: ``thermal`` (H,W) uint8 (stretched between its 1st and 99th percentile) or
    None, ``visible`` (H,W,3) uint8, ``label`` (H,W) uint8 or None, ``meta`` the index entry."""

    name: str
    thermal: np.ndarray | None
    visible: np.ndarray
    label: np.ndarray | None
    meta: dict


@dataclass
class Pairs:
    """A data set: ``Pairs(root, split="train", lighting=("day", "dusk"))[i]`` -> Pair.

    ``root``: a folder of pictures, a folder of shards, or the URL of one (``s3://bucket/kaist``,
    ``https://...``). Files are decoded on access. ``weights`` (N,) float64 sums to 1 and gives
    every scene the same weight: frames of one sequence share one. Raises :class:`PairsError` that
    says what was found and expected.
    """

    root: Path | str
    split: str | None = None
    lighting: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    entries: list[dict] = field(init=False, repr=False)
    store: Store = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.root, read, self.store = _open(self.root)
        self.entries = [
            entry
            for entry in read
            if (self.split is None or entry.get("split") == self.split)
            and (self.lighting is None or entry.get("lighting", "day") in self.lighting)
            and (self.sources is None or entry.get("source") in self.sources)
        ]
        if not self.entries:
            raise PairsError(
                f"{self.root}/index.jsonl has no entry with split={self.split!r}, "
                f"lighting={self.lighting}, sources={self.sources} "
                f"(null or None takes all); it has {_values(read, 'split')}; "
                f"{_values(read, 'lighting')}; "
                f"{_values(read, 'source')}"
            )
        self._weigh()
        colour = {*self.store.names("visible"), *self.store.names("photo")}
        self._complain(
            [e["name"] for e in self.entries if e["name"] not in colour],
            "visible/NAME or photo/NAME",
        )
        if self.store.names("thermal"):
            self.require("thermal")
        if isinstance(self.store, Folder):
            self._check_sizes()

    def _check_sizes(self) -> None:
        """Raises :class:`PairsError` for pictures of an entry whose sizes differ by their headers.

        In large data sets ``MOST_HEADERS`` entries are looked at, evenly spaced; the others when
        they are drawn. Shards were checked when they were written.
        """
        for i in range(0, len(self), -(-len(self) // MOST_HEADERS)):
            name = self.entries[i]["name"]
            kinds = [kind for kind in KINDS if name in self.store.names(kind)]
            sizes = {_header_size(self.store.source(kind, name)) for kind in kinds} - {None}
            if len(sizes) > 1:
                self.pictures(i)  # knows of orientations and pages, and raises if they differ

    def _weigh(self) -> None:
        scenes = [e.get("sequence") or e["name"] for e in self.entries]
        counts = Counter(scenes)
        weights = np.array([1.0 / counts[s] for s in scenes])
        self.weights = weights / weights.sum()

    def require(self, kind: str) -> Pairs:
        """These pairs, if every entry has a file of ``kind`` ("thermal", "label"); else raises
        :class:`PairsError`."""
        names = self.store.names(kind)
        self._complain([e["name"] for e in self.entries if e["name"] not in names], f"{kind}/NAME")
        return self

    def _complain(self, missing: list[str], what: str) -> None:
        if missing:
            raise PairsError(
                f"{self.root}: {len(missing)} of {len(self.entries)} entries have no picture "
                f"{what} "
                f"({', '.join(PICTURES)}); the first is {missing[0]!r}"
            )

    def thinned(self, count: int) -> Pairs:
        """At most ``count`` (1 or more) of these pairs, evenly spaced over the index; weighted
        among themselves."""
        if len(self) <= count:
            return self
        fewer = copy.copy(self)
        fewer.entries = [self.entries[i * len(self) // count] for i in range(count)]
        fewer._weigh()
        return fewer

    def triplets(self) -> np.ndarray:
        """(N,3) int64: the positions of the frame before, the frame itself and the frame after it
        in its sequence.

        A sequence is ordered by names, with numbers in them by value. The first and the last frame
        of a sequence, and an entry without a sequence, are their own neighbours.
        """
        triplets = np.repeat(np.arange(len(self.entries))[:, None], 3, axis=1)
        sequences: dict[str, list[int]] = {}
        for i, entry in enumerate(self.entries):
            if entry.get("sequence"):
                sequences.setdefault(entry["sequence"], []).append(i)
        for members in sequences.values():
            members.sort(key=lambda i: _natural(self.entries[i]["name"]))
            for before, i, after in zip(members, members[1:], members[2:], strict=False):
                triplets[i] = before, i, after
        return triplets

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Pair:
        entry = self.entries[i]
        found = self.pictures(i)
        return Pair(entry["name"], found["thermal"], found["visible"], found["label"], entry)

    def pictures(
        self, i: int, kinds: Sequence[str] = ("visible", "thermal", "label")
    ) -> dict[str, np.ndarray | None]:
        """Item ``i``'s pictures of ``kinds``, decoded as in :class:`Pair`; None where the item has
        no such file.

        "visible" takes photos, too. Raises :class:`PairsError` that names the file for one that
        cannot be read or decoded, and for sizes that differ.
        """
        name = self.entries[i]["name"]
        found: dict[str, np.ndarray | None] = {}
        for kind in kinds:
            stored = (
                "photo" if kind == "visible" and name not in self.store.names("visible") else kind
            )
            if name not in self.store.names(stored):
                found[kind] = None
                continue
            source = self.store.source(stored, name)
            try:
                found[kind] = DECODERS[kind](source)
            except Exception as error:  # decoders raise almost anything on damaged bytes
                raise PairsError(
                    f"{self.store.where(stored, name)} cannot be used ({error}); copy it again, "
                    "or take its line out of "
                    "the index"
                ) from error
        self._same_size(name, found)
        return found

    def _same_size(self, name: str, found: dict[str, np.ndarray | None]) -> None:
        sizes = {kind: picture.shape[:2] for kind, picture in found.items() if picture is not None}
        for kind, size in sizes.items():
            reference = "visible" if "visible" in sizes else next(iter(sizes))
            if size != sizes[reference]:
                raise PairsError(
                    f"{self.root}, {name}: {kind} is {size}, the "
                    f"{'colour picture' if reference == 'visible' else reference} is "
                    f"{sizes[reference]} (height, "
                    "width); pairs are aligned pixel by pixel, crop or resample them to one size"
                )


def is_url(root: Path | str) -> bool:
    return isinstance(root, str) and "://" in root


def inside(data: Path | str, folder: str) -> Path | str:
    """``folder`` in the folder or URL ``data``; a URL keeps its two slashes, which ``Path`` would
    make one."""
    if is_url(folder):
        return folder
    if is_url(data):
        return str(data).rstrip("/") + ("" if folder in ("", ".") else f"/{folder}")
    return Path(data) / folder


def find(data: Path | str, folder: str) -> Path | str:
    """The data set that a recipe's ``folder`` means. ``pairs`` is DATA/pairs, or DATA itself where
    only that is a data set.

    Raises :class:`PairsError` for a folder of this machine that is none, with what else could be
    given.
    """
    root = inside(data, folder)
    if _has_index(root) or (is_url(root) and folder != "pairs"):  # opening a URL reports its faults
        return root
    if folder not in ("pairs", ".", ""):
        raise PairsError(
            f"{root}/index.jsonl does not exist; the recipe trains on {folder!r} as well "
            "(docs/training.md). Put that data set "
            "there, or take a recipe that needs pairs alone, such as --config finetune or "
            "--recipe finetune"
        )
    if folder == "pairs" and _has_index(data):
        return data
    looked = " nor ".join(f"{place}/index.jsonl" for place in dict.fromkeys((root, data)))
    raise PairsError(
        f"there is no {looked}; a data set is a folder with index.jsonl, thermal/ and visible/ "
        "(docs/data.md)"
    )


def _has_index(root: Path | str) -> bool:
    if is_url(root):
        root = Remote.open(root)
        if not isinstance(root, Path):
            return root.has("index.jsonl")
    return (Path(root) / "index.jsonl").is_file()


def _open(root: Path | str) -> tuple[Path | str, list[dict], Store]:
    """-> the root (a path for anything on this machine), the entries without what only the store
    needs, and the store."""
    if is_url(root):
        opened = Remote.open(root)
    else:
        opened = Path(root)
    if isinstance(opened, Path):
        root, index = opened, opened / "index.jsonl"
        if not index.is_file():
            raise PairsError(
                f"{index} does not exist; a data set is a folder with index.jsonl, thermal/ and "
                "visible/ (docs/data.md)"
            )
        try:
            text = index.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PairsError(f"{index} is not UTF-8 text ({error})") from error
        entries = _parse(text, str(index))
    else:
        entries = _parse(opened.text("index.jsonl"), f"{root}/index.jsonl")
    if any("shard" in entry for entry in entries):
        return root, entries, Shards(opened, entries)
    if not isinstance(opened, Path):
        raise PairsError(
            f"{root}/index.jsonl names no shards; pictures at a URL have to be packed first "
            "(docs/shards.md)"
        )
    return root, entries, Folder(opened)


def _parse(text: str, where: str) -> list[dict]:
    # not splitlines: captions may hold its other ends of lines
    lines = enumerate(text.split("\n"), 1)
    return [read_entry(line, f"{where}, line {number}") for number, line in lines if line.strip()]


def read_entry(line: str, where: str) -> dict:
    """The entry in a line of an index. Raises :class:`PairsError` that starts with ``where`` for
    anything but an object whose known keys have values of their type."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PairsError(f'{where}: expected a JSON object with "name"; {error!r:.200}') from error
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise PairsError(f'{where}: expected a JSON object with "name", a text; found {line:.200}')
    for key, value in entry.items():
        if key in TEXTS and not isinstance(value, str | None):
            raise PairsError(f"{where}: {key} is {value!r:.200}; expected a text or null")
        if key == "tags" and not (value is None or _are_texts(value)):
            raise PairsError(f"{where}: tags is {value!r:.200}; expected a list of texts or null")
        if key == "repainted" and not _is_repainted(value):
            raise PairsError(
                f"{where}: repainted is {value!r:.200}; expected given_tags, colours and removed, "
                "as cmmfnet repaint writes them"
            )
    return entry


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_repainted(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() >= {"given_tags", "colours", "removed"}:
        return False
    colours = value["colours"]
    pairs = isinstance(colours, list) and all(_are_texts(c) and len(c) == 2 for c in colours)
    return pairs and _are_texts(value["given_tags"]) and _are_texts(value["removed"])


def _header_size(source: Path) -> tuple[int, int] | None:
    """(width, height) by the header of a picture; None where Pillow does not read it."""
    try:
        with Image.open(source) as picture:
            return picture.size
    except Exception:  # Pillow raises almost anything; decoding reports the fault
        return None


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _values(entries: list[dict], key: str) -> str:
    found = Counter(str(entry.get(key)) for entry in entries)
    return f"{key}: {', '.join(f'{value} ({n})' for value, n in found.most_common(8)) or 'nothing'}"
