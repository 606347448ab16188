"""Whether plain numbers lie in a file as the user says: a wrong width or type still gives a
picture, of slanted stripes or noise.

In the right layout, neighbours are alike, along a row and from row to row. Another layout that is
far smoother than the given one is the right one.
"""

from __future__ import annotations

import numpy as np

_SAMPLE = 1 << 17
"""Numbers that are looked at, next to one another in the middle of a frame."""
_LEAST_SIDE = 16
_SMOOTH = 0.05
"""Half the mean squared step between neighbours over the variance, of ranks: 1 for noise."""
_SMOOTHER = 0.4
"""Of the given layout's steps that those of the right one are, at most. Within one row or two of
the right width, other widths keep more than half of the step from row to row."""
_TWIN = 0.2
"""Of the step by a quarter of a row that the step by half a row is, at most, where the halves of
each row are rows of their own."""
_USUAL, _POSSIBLE = (1e-3, 1e5), (1e-20, 1e20)
"""Sizes of float32 numbers that are degrees, counts or radiances, and of any that a camera writes:
integers read as float32 are often smaller still."""
_LIKELY = ("u2", "f4", "i2", "u1", "u4")


def better_width(values: np.ndarray) -> int | None:
    """The width at which the rows of a frame (H, W) fit together, where they do not at W.

    Args:
        values: of any real type.

    Returns:
        A width that divides H * W; None if the frame's own is as good.
    """
    height, width = values.shape
    if min(height, width) < _LEAST_SIDE:
        return None
    ranks = _ranks(values.ravel())
    if width % 4 == 0:
        rows = _ranks(values[:: -(-values.size // _SAMPLE)].ravel()).reshape(-1, width)
        twin, other = (
            _mean_square(rows[:, lag:] - rows[:, :-lag]) for lag in (width // 2, width // 4)
        )
        if twin < _TWIN * other:
            return width // 2
    given = _step(ranks, width)
    if given < _SMOOTH:
        return None
    total = height * width
    widths = [
        other
        for other in range(width // 2 + 1, min(total // _LEAST_SIDE, len(ranks) // 2) + 1)
        if total % other == 0
    ]
    steps = {other: _step(ranks, other) for other in widths}
    best = min(steps, key=steps.__getitem__, default=width)
    return best if steps.get(best, given) < _SMOOTHER * given else None


def better_type(content: bytes, dtype: np.dtype, types: list[np.dtype]) -> np.dtype | None:
    """The type among ``types`` in which neighbours are alike, where they are not in ``dtype``; of
    those that are equally good, the likeliest. Integers that are the bits of float32 numbers are
    floats, and the reverse."""
    start = max(0, len(content) - 4 * _SAMPLE) // 8 * 4
    middle = content[start : start + 4 * _SAMPLE]
    if dtype.kind == "f":
        surely_wrong = not _floats(middle, dtype, _POSSIBLE)
    else:
        surely_wrong = dtype.itemsize == 4 and any(
            _floats(middle, each, _USUAL) for each in types if each.kind == "f"
        )
    given = _step(_ranks(_numbers(middle, dtype)), 1)
    if given < _SMOOTH and not surely_wrong:
        return None
    steps = {
        each: _step(_ranks(_numbers(middle, each)), 1)
        for each in types
        if each.kind != "f" or _floats(middle, each, _USUAL)
    }
    best = min(steps.values(), default=1.0)
    if best >= _SMOOTHER * given and not surely_wrong:
        return None
    good = [each for each, step in steps.items() if step <= 1.5 * best]
    return min(
        good,
        key=lambda each: (each.str[1:] != dtype.str[1:], _LIKELY.index(each.str[1:])),
        default=None,
    )


def _floats(content: bytes, dtype: np.dtype, bounds: tuple[float, float]) -> bool:
    """Whether nearly all of these float32 numbers, and not all of them 0, have a size within
    ``bounds``."""
    with np.errstate(invalid="ignore"):
        sizes = np.abs(_numbers(content, dtype))
        inside = (sizes >= bounds[0]) & (sizes <= bounds[1])
    empty = (sizes == 0) | ~np.isfinite(sizes)
    return bool(inside.any() and (inside | empty).mean() > 0.95)


def _numbers(content: bytes, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(content, dtype, len(content) // dtype.itemsize)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Of at most ``_SAMPLE`` values in the middle, in [0, 1]; equal values have one rank."""
    start = max(0, len(values) - _SAMPLE) // 2
    with np.errstate(invalid="ignore"):  # signalling NaN
        values = np.nan_to_num(values[start : start + _SAMPLE].astype(np.float64))
    ordered, places = np.unique(values, return_inverse=True)
    below = np.bincount(places, minlength=len(ordered)).cumsum()
    return (below / values.size)[places]


def _step(ranks: np.ndarray, lag: int) -> float:
    spread = float(ranks.var())
    return _mean_square(ranks[lag:] - ranks[:-lag]) / (2 * spread) if spread else 0.0


def _mean_square(steps: np.ndarray) -> float:
    return float(np.square(steps).mean()) if steps.size else 0.0
