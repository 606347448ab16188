"""Alignment of the pairs of a data set: the shift between thermal and colour picture of each.

Grey levels of the two have no fixed relation: a bright thing in one may be dark in the other. Edges
run in the same direction in both, but with either sign. So each picture becomes a field of edge
directions at twice their angle, for which opposite gradients are equal (Granlund, CGIP 1978),
normalised so that faint edges count nearly as much as strong ones (normalised gradient fields:
Haber and Modersitzki, MICCAI 2006). The correlation of such fields by FFT is orientation
correlation (Fitch et al., BMVC 2002); its peak is the shift. It is computed in 4 x 4 tiles: their
sum at equal shifts is the correlation of the pictures; their sum at shifts that grow from the
centre is the correlation with an enlarged picture; and the agreement of the tiles says whether the
peak can be trusted. docs/folder.md has measurements on real pairs.

scipy and scikit-image come with ``pip install 'cmmfnet[train]'``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError
from cmmfnet.files.gallery import Item, write_gallery
from cmmfnet.thermal.frame import ThermalFileError

MOST_PAIRS = 60  # on the page
LONGEST_SIDE = 640  # larger pictures are measured at this size
REACH = 48  # pixels at this size: larger shifts are not found
SCALES = np.arange(-12, 13) / 200  # of the colour picture, minus 1
TOLERANCE = 2.0  # pixels at this size: smaller shifts count as none
TOLERANCE_SCALE = 0.0149  # 1.5 %: 4.8 pixels at the borders of 640
ALIKE = 6.0  # least similarity; one in a hundred wrong pairs reaches it
TRUSTED = 1.0  # least confidence
_TILES = 4


@dataclass(frozen=True)
class Shift:
    """Position of the content of the colour picture relative to the thermal one.

    Attributes:
        dx, dy: pixels to the right and down; moving the colour picture by (-dx, -dy) aligns it.
        scale: size of things in the colour picture over their size in the thermal one.
        confidence: by how many standard errors over the tiles the best shift is better than any
            other; 0 or more.
        similarity: height of the peak above the correlation elsewhere, in robust deviations.
    """

    dx: float
    dy: float
    scale: float
    confidence: float
    similarity: float


@dataclass(frozen=True)
class PairShift:
    """A pair's :class:`Shift` (None if a picture cannot be read) and the faults of the pair.

    ``group``: its sequence, else its source. ``reason``: "" (in place), "shifted", "scaled",
    "unlike" (hardly an edge in common within reach), "uncertain" (its edges do not decide), or
    "unreadable: ..."; all but "" and "uncertain" are flagged.
    """

    name: str
    group: str
    shift: Shift | None
    reason: str

    @property
    def flagged(self) -> bool:
        return self.reason not in ("", "uncertain")

    @property
    def trusted(self) -> bool:
        return self.shift is not None and self.reason not in ("unlike", "uncertain")


def check_alignment(out: Path, *, jobs: int = 0, limit: int | None = None) -> list[PairShift]:
    """Estimate the shift of every pair of a prepared data set, print a summary and write the
    results.

    OUT/alignment.jsonl has a line for each pair: name, dx, dy, scale, confidence, similarity (see
    :class:`Shift`), flagged, reason. OUT/alignment.html shows the worst pairs. The pictures are not
    changed.

    Args:
        out: a folder in the layout of data/pairs.py.
        jobs: threads; 0 is one for each CPU.
        limit: check only this many pairs, spread evenly over the index.

    Returns:
        One result for each pair, in the order of the index.

    Raises:
        UserError: ``out`` is no data set, it has no thermal frames, or ``jobs`` or ``limit`` make
            no sense. ImportError: scipy is missing.
    """
    from tqdm import tqdm

    _scipy()
    if jobs < 0 or (limit is not None and limit < 1):
        raise UserError(
            f"jobs is {jobs}, limit is {limit}; expected jobs of 0 or more and a limit of 1 or more"
        )
    out = Path(out)
    pairs = Pairs(out).require("thermal")
    count = len(pairs) if limit is None else min(limit, len(pairs))
    chosen = [i * len(pairs) // count for i in range(count)]
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        measured = pool.map(lambda i: _measure(pairs, i), chosen)
        results = list(tqdm(measured, total=count, desc="alignment", unit="pair", disable=None))
    with atomic_write(out / "alignment.jsonl", text=True, durable=False) as file:
        file.writelines(json.dumps(_row(result), ensure_ascii=False) + "\n" for result in results)
    page = write_worst(out / "alignment.html", pairs, dict(zip(chosen, results, strict=True)))
    print(summary(results))
    print(f"{page}: the worst pairs")
    return results


def write_worst(path: Path, pairs: Pairs, results: dict[int, PairShift]) -> Path:
    """Write one page with the summary and the worst 60 pairs, thermal over colour with a slider.

    ``results``: index in ``pairs`` -> result. Edges that do not meet at the slider are not aligned.
    """
    readable = [i for i in results if results[i].shift is not None]
    worst = sorted(readable, key=lambda i: _badness(results[i]))[:MOST_PAIRS]
    lost = [f"{r.name}: {r.reason}" for r in results.values() if r.shift is None]
    lines = [
        summary(list(results.values())),
        *lost[:5],
        *([f"and {len(lost) - 5} more unreadable pairs"] if len(lost) > 5 else []),
        f"Below: {len(worst)} of {len(results)} pairs, the worst first. Where edges of the two "
        "pictures do not meet, they are not aligned.",
    ]
    items = (_card(pairs, index, results[index]) for index in worst)
    return write_gallery(path, items, f"Alignment of {path.parent.name}", "\n".join(lines))


def _badness(result: PairShift) -> tuple[int, float]:
    """Sort key, the worst first: certainly wrong pairs, then the largest shifts, then the least
    certain."""
    rank = ["unlike", "scaled", "shifted", "uncertain", ""].index(result.reason)
    if result.reason in ("unlike", "uncertain"):
        return rank, result.shift.confidence
    # a scale of 1 % moves the borders of a picture by some pixels
    size = float(np.hypot(result.shift.dx, result.shift.dy)) + 300 * abs(result.shift.scale - 1)
    return rank if rank > 2 else 1, -size


def _card(pairs: Pairs, index: int, result: PairShift) -> Item:
    pair, shift = pairs[index], result.shift
    return Item(
        result.name,
        pair.thermal,
        pair.visible,
        f"{result.reason or 'in place'}: dx {shift.dx:+.1f}, dy {shift.dy:+.1f} px, scale "
        f"{shift.scale:.3f}, confidence {shift.confidence:.1f}, similarity {shift.similarity:.0f}; "
        f"{result.group}",
    )


def estimate_shift(thermal: np.ndarray, visible: np.ndarray) -> Shift:
    """The shift of one pair.

    Args:
        thermal: (H, W) numbers. visible: (H, W, 3) or (H, W) numbers of the same size. Larger
            pictures are scaled down to a longest side of 640 pixels; the result is in pixels of the
            pictures given. Shifts up to 48 of 640 pixels, or a quarter of the short side if that is
            less, and scales of .94 to 1.06 are looked for.

    Raises:
        UserError: sizes differ, or are below 32 pixels. ImportError: scipy is missing.
    """
    if thermal.shape != visible.shape[:2] or min(thermal.shape) < 32:
        raise UserError(
            f"thermal is {thermal.shape}, visible {visible.shape[:2]} (height, width); expected "
            "one size of 32 or more"
        )
    grey = visible if visible.ndim == 2 else visible @ np.array([0.299, 0.587, 0.114])
    factor = max(1.0, max(thermal.shape) / LONGEST_SIDE)
    fields = [_edge_directions(_shrink(picture, factor)) for picture in (thermal, grey)]
    reach = min(REACH, min(fields[0].shape) // 4)
    tiles, centres = _correlate_tiles(*fields, reach)

    unscaled = tiles.sum(0)
    scale, votes = 0.0, tiles
    # a scale must be better by a tenth: tiles are small, and one of 25 is always a little better
    best = _smooth(unscaled).max() * 1.1
    for candidate in SCALES:
        moved = _at_scale(tiles, centres, candidate)
        if candidate and (peak := _smooth(moved.sum(0)).max()) > best:
            scale, votes, best = float(candidate), moved, peak
    total = votes.sum(0)
    y, x = np.unravel_index(total.argmax(), total.shape)
    if not total[y, x] > 0:  # no edge at all in one of the two
        return Shift(0.0, 0.0, 1.0, 0.0, 0.0)

    rows, columns = np.ogrid[: total.shape[0], : total.shape[1]]
    elsewhere = (rows - y) ** 2 + (columns - x) ** 2 > 4**2
    lead = votes[:, y, x, None, None] - votes
    error = lead.std(0, ddof=1) / np.sqrt(len(votes))
    confidence = (lead.mean(0) / (error + 1e-6 * total[y, x]))[elsewhere].min()
    middle = np.median(total)
    deviation = 1.4826 * np.median(np.abs(total - middle))
    return Shift(
        dx=float((x - reach + _vertex(total[y], x)) * factor),
        dy=float((y - reach + _vertex(total[:, x], y)) * factor),
        scale=1 + scale,
        confidence=max(0.0, float(confidence)),
        similarity=float((total[y, x] - middle) / (deviation + 1e-6 * total[y, x])),
    )


def summary(results: list[PairShift]) -> str:
    """The results as lines of plain text: all pairs, then each sequence with a constant shift."""
    trusted, flagged = [r for r in results if r.trusted], [r for r in results if r.flagged]
    lines = [
        f"alignment of {len(results)} pairs: {len(flagged)} flagged "
        f"({len(flagged) / len(results):.0%})"
    ]
    for reason, meaning in _MEANING.items():
        if n := sum(r.reason.partition(":")[0] == reason for r in results):
            lines.append(f"  {n} {reason}: {meaning}")
    if trusted:
        dx, dy = np.median([(r.shift.dx, r.shift.dy) for r in trusted], axis=0)
        sizes = [np.hypot(r.shift.dx, r.shift.dy) for r in trusted]
        lines.append(
            f"median shift {_where(dx, dy)}; 9 of 10 pairs within {np.quantile(sizes, 0.9):.1f} px "
            f"(of the {len(trusted)} that can be judged)"
        )
    if len(trusted) < len(results) / 2:
        lines.append(
            "most pairs could not be judged: either both pictures show little, or they are apart "
            f"by more than {REACH} of {LONGEST_SIDE} pixels, differ in field of view, or show "
            "different moments. Look at the page"
        )
    for group, members in _groups(results).items():
        shifts = np.array([(r.shift.dx, r.shift.dy) for r in members if r.trusted])
        if len(shifts) < 5:
            continue
        dx, dy = np.median(shifts, axis=0)
        spread = 1.4826 * np.median(np.abs(shifts - (dx, dy)), axis=0).max()
        if np.hypot(dx, dy) > TOLERANCE and spread < 0.3 * np.hypot(dx, dy):
            lines.append(
                f"{group}: a constant shift of dx {dx:+.1f}, dy {dy:+.1f} (spread {spread:.1f} "
                f"px, {len(shifts)} pairs). The cause is how the cameras are mounted; to correct "
                f"it, move its colour pictures {_where(-dx, -dy)}"
            )
        scales = np.array([r.shift.scale for r in members if r.trusted])
        if (
            abs(np.median(scales) - 1) >= TOLERANCE_SCALE
            and np.quantile(np.abs(scales - np.median(scales)), 0.7) <= 0.01
        ):
            lines.append(
                f"{group}: a constant scale of {np.median(scales):.3f} ({len(scales)} pairs). The "
                "cameras' fields of view differ: enlarge its colour pictures "
                f"{1 / np.median(scales):.3f} times, and crop both to one size"
            )
    return "\n".join(lines)


_MEANING = {
    "shifted": "the colour picture lies elsewhere",
    "scaled": "things are larger or smaller in the colour picture by 1.5 % or more (field of view)",
    "unlike": "hardly an edge in common: another scene, another moment, or too far apart",
    "unreadable": "a picture cannot be decoded",
    "uncertain": "edges do not decide, so not flagged",
}


def _where(dx: float, dy: float) -> str:
    across = f"{abs(dx):.1f} px to the {'right' if dx >= 0 else 'left'}"
    return f"{across} and {abs(dy):.1f} px {'down' if dy >= 0 else 'up'}"


def _groups(results: Iterable[PairShift]) -> dict[str, list[PairShift]]:
    groups: dict[str, list[PairShift]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return groups


def _measure(pairs: Pairs, index: int) -> PairShift:
    entry = pairs.entries[index]
    group = str(entry.get("sequence") or entry.get("source") or "all pairs")
    try:
        pair = pairs[index]
        shift = estimate_shift(pair.thermal, pair.visible)
    except (
        PairsError,
        ThermalFileError,
        UserError,
        UnidentifiedImageError,
        OSError,
        SyntaxError,
    ) as error:
        return PairShift(entry["name"], group, None, f"unreadable: {error}")
    tolerance = TOLERANCE * max(1.0, max(pair.thermal.shape) / LONGEST_SIDE)
    reason = ""
    if shift.similarity < ALIKE:
        reason = "unlike"
    elif shift.confidence < TRUSTED:
        reason = "uncertain"
    elif abs(shift.scale - 1) >= TOLERANCE_SCALE:
        reason = "scaled"
    elif np.hypot(shift.dx, shift.dy) > tolerance:
        reason = "shifted"
    return PairShift(entry["name"], group, shift, reason)


def _row(result: PairShift) -> dict:
    numbers = (
        dict.fromkeys(Shift.__dataclass_fields__) if result.shift is None else asdict(result.shift)
    )
    rounded = {key: None if value is None else round(value, 3) for key, value in numbers.items()}
    return {"name": result.name, **rounded, "flagged": result.flagged, "reason": result.reason}


def _scipy():
    try:
        from scipy import fft, ndimage
    except ImportError as error:
        raise ImportError(
            "checking the alignment needs scipy: pip install 'cmmfnet[train]'"
        ) from error
    return fft, ndimage


def _shrink(picture: np.ndarray, factor: float) -> np.ndarray:
    picture = np.asarray(picture, np.float32)
    if factor == 1:
        return picture
    size = [round(side / factor) for side in picture.shape[::-1]]
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _edge_directions(picture: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W) complex64: the angle is twice the gradient's, the length 0 to 1 its
    strength."""
    _, ndimage = _scipy()
    gx, gy = (ndimage.gaussian_filter(picture, 1.0, order=order) for order in ((0, 1), (1, 0)))
    doubled = (gx + 1j * gy) ** 2
    strength = np.abs(doubled)
    doubled /= strength + np.median(strength) + 1e-3 * strength.mean() + 1e-12
    # minus the mean of a neighbourhood: in streets most edges are upright, and those fit at any
    # shift
    doubled -= ndimage.uniform_filter(doubled.real, 27) + 1j * ndimage.uniform_filter(
        doubled.imag, 27
    )
    return doubled.astype(np.complex64)


def _correlate_tiles(
    thermal: np.ndarray, visible: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of each thermal tile with the colour picture: (T, 2 reach + 1, 2 reach + 1), zero
    shift in the middle, and the tiles' centres (T, 2) from the picture's, as (y, x)."""
    fft, _ = _scipy()
    edges = [np.linspace(0, side, _TILES + 1).astype(int) for side in thermal.shape]
    padded = np.pad(visible, reach)
    surfaces, centres = [], []
    for top, bottom in zip(edges[0][:-1], edges[0][1:], strict=True):
        for left, right in zip(edges[1][:-1], edges[1][1:], strict=True):
            tile = thermal[top:bottom, left:right]
            around = padded[top : bottom + 2 * reach, left : right + 2 * reach]
            size = [fft.next_fast_len(side) for side in around.shape]
            product = np.conj(fft.fft2(tile, size)) * fft.fft2(around, size)
            surfaces.append(fft.ifft2(product).real[: 2 * reach + 1, : 2 * reach + 1])
            centres.append(
                (
                    (top + bottom) / 2 - thermal.shape[0] / 2,
                    (left + right) / 2 - thermal.shape[1] / 2,
                )
            )
    return np.stack(surfaces), np.array(centres)


def _at_scale(tiles: np.ndarray, centres: np.ndarray, scale: float) -> np.ndarray:
    """The tiles' correlation with a colour picture that is ``1 + scale`` times as large: each
    farther out by its centre's growth."""
    size = tiles.shape[-1]
    growth = np.rint(scale * centres).astype(int)
    margin = int(np.abs(growth).max())
    padded = np.pad(tiles, ((0, 0), (margin, margin), (margin, margin)))
    corners = growth + margin
    return np.stack(
        [t[y : y + size, x : x + size] for t, (y, x) in zip(padded, corners, strict=True)]
    )


def _smooth(surface: np.ndarray) -> np.ndarray:
    _, ndimage = _scipy()
    return ndimage.gaussian_filter(surface, 1.0)


def _vertex(values: np.ndarray, at: int) -> float:
    """Vertex of the parabola through the largest value and its two neighbours, as an offset of
    -0.5 to 0.5 from ``at``."""
    if not 0 < at < len(values) - 1:
        return 0.0
    before, here, after = (float(value) for value in values[at - 1 : at + 2])
    bend = before - 2 * here + after
    return 0.0 if bend == 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))
