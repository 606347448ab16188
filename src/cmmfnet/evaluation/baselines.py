"""Trivial baselines, which need no network. A method that does not beat them has learned little of
use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.protocol import DEFAULT_GEOMETRY, SIZE, frame, frames

Colour = Callable[[np.ndarray, dict], np.ndarray]
"""(thermal (h,w) float32 in [-1,1], index entry) -> (h,w,3) uint8."""

LEVELS = 64
THUMB = 32


def trivial_baselines(train: Pairs, geometry: str = DEFAULT_GEOMETRY) -> dict[str, Colour]:
    """Name -> baseline, made from the pictures of ``train`` cut by ``geometry``.

    - grey replicate: the thermal frame as grey
    - mean colour: one colour, the mean of all training pictures, each with the same weight
    - mean picture: the mean of the training pictures at each place (for "whole", of pictures
      resized to 256x256, and back to the frame's size)
    - mean colour of each level: a false-colour palette fitted to the truth, with 64 equal thermal
      levels; a level without a training pixel gets the colour of the nearest level with one
    - nearest training picture: the true picture of the training frame with the nearest thermal, by
      Euclidean distance between 32x32 means scaled to mean 0 and deviation 1; frames of the same
      name or sequence are skipped
    """
    total, colour = np.zeros((SIZE, SIZE, 3)), np.zeros(3)
    levels, counts = np.zeros((LEVELS, 3)), np.zeros(LEVELS)
    thumbs = np.empty((len(train), THUMB * THUMB), np.float32)
    for i, (thermal, truth, _) in enumerate(frames(train, geometry)):
        total += _fit(truth, (SIZE, SIZE))
        colour += truth.mean(axis=(0, 1))
        bins = _level(thermal).ravel()
        for c in range(3):
            levels[:, c] += np.bincount(bins, truth[..., c].ravel(), minlength=LEVELS)
        counts += np.bincount(bins, minlength=LEVELS)
        thumbs[i] = _thumb(thermal)
    colour, mean = colour / len(train), _picture(total / len(train))
    seen = np.flatnonzero(counts)
    nearest_seen = seen[np.abs(seen[None] - np.arange(LEVELS)[:, None]).argmin(axis=1)]
    palette = _picture((levels / np.maximum(counts, 1)[:, None])[nearest_seen])

    def nearest(thermal: np.ndarray, meta: dict) -> np.ndarray:
        distances = np.square(thumbs - _thumb(thermal)).sum(axis=1)
        for i, entry in enumerate(train.entries):
            if entry["name"] == meta["name"] or (
                entry.get("sequence") and entry["sequence"] == meta.get("sequence")
            ):
                distances[i] = np.inf
        if not np.isfinite(distances).any():
            return _fit(mean, thermal.shape)  # the training set has only this sequence
        return _fit(frame(train, int(distances.argmin()), geometry)[1], thermal.shape)

    return {
        "grey replicate": lambda t, _: _picture(np.repeat((t[..., None] + 1) * 127.5, 3, axis=2)),
        "mean colour": lambda t, _: np.broadcast_to(_picture(colour), (*t.shape, 3)).copy(),
        "mean picture": lambda t, _: _fit(mean, t.shape),
        "mean colour of each level": lambda t, _: palette[_level(t)],
        "nearest training picture": nearest,
    }


def _level(thermal: np.ndarray) -> np.ndarray:
    return np.clip(((thermal + 1) * (LEVELS / 2)).astype(int), 0, LEVELS - 1)


def _picture(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def _fit(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8 -> (*shape,3) uint8, bicubic if the size differs."""
    if picture.shape[:2] == tuple(shape):
        return picture
    return np.asarray(Image.fromarray(picture).resize(shape[::-1], Image.Resampling.BICUBIC))


def _thumb(thermal: np.ndarray) -> np.ndarray:
    """(h,w) -> (1024,) float32 with mean 0 and deviation 1 (all 0 for a flat frame)."""
    small = np.asarray(
        Image.fromarray(thermal).resize((THUMB, THUMB), Image.Resampling.BOX), np.float64
    ).ravel()
    small -= small.mean()
    return (small / max(small.std(), 1e-6)).astype(np.float32)
