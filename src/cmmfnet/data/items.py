"""The work of data workers: choose, decode, crop and resize the pictures of a step. NumPy in, uint8
tensors out.

Every picture is a function of (seed, step, position in the step's whole batch). There is no state,
so that any worker of any process can make any step, and a run can be resumed anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from cmmfnet.data.augment import Crop
from cmmfnet.data.made.lab import colours_of
from cmmfnet.data.made.recolour import Recoloured, recolour
from cmmfnet.data.made.repainted import repainted
from cmmfnet.data.simulate import level
from cmmfnet.data.source import GIVEN, Source
from cmmfnet.data.store import PairsError
from cmmfnet.text.labels import CLASSES, COCOSTUFF, IGNORE
from cmmfnet.text.parser import parse_tags


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, stream: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, turn, stream]).permutation(count)


class Items(Dataset):
    """``Items(...)[step]`` -> the decoded pictures of one process in that step, or the
    :class:`PairsError` that stopped it.

    A dict of F = ``frames`` frames for each of B pictures: ``thermal`` (B,F,H,W) uint8 (zeros where
    it is simulated), ``visible`` (B,F,H,W,3) uint8, ``label`` (B,F,H,W) uint8, ``photo``
    (K,F,H,W,3) uint8 (what simulated frames are made from; only where ``unpaired`` makes it another
    than ``visible``), ``simulated`` (K,) int64 rows, ``sensor``, ``gain_control``,
    ``tagged`` (B,) bool; lists ``tags``, ``colours``, ``given_tags``, ``captions``, ``names``,
    ``positions``, ``taught``, ``crops`` (of the colour picture). H and W are one of ``shapes``,
    drawn anew for each step.
    """

    def __init__(self, sources: Sequence[Source], *, batch_size: int,
                 shapes: Sequence[tuple[int, int]], steps: int, seed: int, rank: int, world: int,
                 unpaired: bool, frames: int, workers: int):  # fmt: skip
        self.sources, self.batch_size, self.steps, self.seed = (
            list(sources),
            batch_size,
            steps,
            seed,
        )
        self.shapes = [tuple(shape) for shape in shapes]
        self.positions = range(rank, batch_size, world)
        self.unpaired, self.frames = unpaired, frames
        # searchsorted in these, not rng.choice(p=...), which adds up all weights for every draw
        self._cumulative = [np.cumsum(s.pairs.weights) for s in self.sources]
        self._triplets = [s.pairs.triplets() if frames == 3 else None for s in self.sources]
        # for each worker its process, and the source and item it is at: names the picture that a
        # worker died of
        self.at = torch.full((max(1, workers), 3), -1, dtype=torch.int64).share_memory_()

    def shape(self, step: int) -> tuple[int, int]:
        """Height and width in pixels of all crops of a step."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        rng = np.random.default_rng([self.seed, step, 0, 4])
        return self.shapes[int(rng.integers(len(self.shapes)))]

    def choose(
        self, step: int, position: int, stream: int = 0
    ) -> tuple[int, int, np.random.Generator]:
        """Source, item, and the generator for what else is drawn for it. ``stream`` 1: the unpaired
        colour picture."""
        rng = np.random.default_rng([self.seed, step, position, stream])
        progress = min(1.0, step / max(1, self.steps - 1))
        shares = np.array([s.share[0] + (s.share[1] - s.share[0]) * progress for s in self.sources])
        if self.unpaired:
            shares *= [s.gives in ("both", GIVEN[stream]) for s in self.sources]
        source = _place(np.cumsum(shares), rng)
        count = len(self.sources[source].pairs)
        if self.sources[source].order == "scenes":
            return source, _place(self._cumulative[source], rng), rng
        turn, place = divmod(step * self.batch_size + position, count)
        return source, int(_order(self.seed, turn, stream, count)[place]), rng

    def __getitem__(self, step: int) -> dict[str, Any] | PairsError:
        try:
            return self._make(step)
        except PairsError as error:
            # not raised here: torch would put a traceback of this process into the message
            return error

    def _make(self, step: int) -> dict[str, Any]:
        size = self.shape(step)
        shape = (len(self.positions), self.frames, *size)
        thermal, visible = np.zeros(shape, np.uint8), np.empty((*shape, 3), np.uint8)
        label = np.full(shape, IGNORE, np.uint8)
        simulated, photos, sensor, tags, tagged, captions, names, places = (
            [],
            [],
            [],
            [],
            [],
            [],
            [],
            [],
        )
        colours, given_tags, taught, gains = [], [], [], []
        recolours = (
            not self.unpaired
            and self.frames == 1
            and any(source.recolour for source in self.sources)
        )
        for row, position in enumerate(self.positions):
            source, index, rng = self.choose(step, position)
            spec = self.sources[source]
            kinds = ("label",) if spec.simulate else ("thermal", "label")
            if spec.simulate or not self.unpaired:
                kinds = ("visible", *kinds)
            crops = self._crops(source, index, rng, kinds, size)
            if spec.simulate:
                simulated.append(row)
            else:
                thermal[row] = crops["thermal"]
            if crops["label"] is not None:
                label[row] = crops["label"]
            if not self.unpaired:
                visible[row] = crops["visible"]
                if spec.simulate and recolours:
                    photos.append(crops["visible"])
            else:
                if spec.simulate:
                    photos.append(crops["visible"])
                other, other_index, other_rng = self.choose(step, position, stream=1)
                crops |= self._crops(other, other_index, other_rng, ("visible",), size)
                visible[row] = crops["visible"]
            meta = spec.pairs.entries[index]
            sensor.append(spec.sensor)
            gains.append(spec.gain_control)
            own = (
                _tags(meta, label[row, self.frames // 2] if crops["label"] is not None else None),
                meta.get("caption"),
            )
            words, caption = own if spec.text == "own" else self._other_text(spec, step, position)
            has_tags = spec.text == "own" and (crops["label"] is not None or bool(meta.get("tags")))
            said = Recoloured(visible[row, 0])
            if recolours and spec.recolour and spec.text == "own":
                said = self._recoloured(
                    spec, step, position, meta, visible[row, 0], crops["label"], words
                )
            if (
                said.given_tags
            ):  # names that the thermal frame does not show: no target for a tag head
                visible[row, 0], has_tags = said.photo, False
                words = list(
                    dict.fromkeys(
                        [*said.given_tags, *(tag for tag in words if tag not in said.removed)]
                    )
                )
            tags.append(words)
            colours.append(said.colours)
            given_tags.append(said.given_tags)
            tagged.append(has_tags)
            captions.append(None if spec.text == "empty" else caption or "")
            names.append(meta["name"])
            places.append(crops["crop"])
            taught.append(spec.taught)
        arrays = {
            "thermal": thermal,
            "visible": visible,
            "label": label,
            "simulated": np.array(simulated, np.int64),
        }
        if photos:
            arrays["photo"] = np.stack(photos)
        tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}
        tensors |= {"sensor": torch.tensor(sensor), "tagged": torch.tensor(tagged)}
        tensors["gain_control"] = torch.tensor(gains)
        return tensors | {
            "tags": tags,
            "colours": colours,
            "given_tags": given_tags,
            "captions": captions,
            "names": names,
            "crops": places,
            "taught": taught,
            "positions": list(self.positions),
        }

    def _recoloured(
        self,
        spec: Source,
        step: int,
        position: int,
        meta: dict,
        photo: np.ndarray,
        label: np.ndarray | None,
        tags: list[str],
    ) -> Recoloured:
        """The picture, in other colours (rendered or painted) or unchanged, and the colours of its
        things."""
        if label is None:
            return Recoloured(photo, colours=parse_tags(meta.get("colour_caption") or "").colours)
        rng = np.random.default_rng([self.seed, step, position, 3])
        lighting = meta.get("lighting") or "day"
        made = repainted(meta, photo, tags)
        if not made.given_tags and rng.random() < spec.recolour and lighting != "night":
            made = recolour(photo, label[0], rng, lighting=lighting)
        if lighting != "night" and "night" not in made.given_tags:
            named = {name for _, name in made.colours}
            # snow and bare earth have the colour that they have
            rest = colours_of(made.photo, label[0], COCOSTUFF)
            made.colours += [(c, n) for c, n in rest if n not in named and n not in made.removed]
        return made

    def _other_text(self, spec: Source, step: int, position: int) -> tuple[list[str], str | None]:
        """Tags and caption of another picture of the source, or none: the controls of
        ``Source.text``."""
        if spec.text == "empty":
            return [], None
        index = int(np.random.default_rng([self.seed, step, position, 2]).integers(len(spec.pairs)))
        meta = spec.pairs.entries[index]
        return _tags(meta, spec.pairs.pictures(index, ("label",))["label"]), meta.get("caption")

    def _crops(
        self,
        source: int,
        index: int,
        rng: np.random.Generator,
        kinds: Sequence[str],
        shape: tuple[int, int],
    ) -> dict[str, Any]:
        """kind -> (F,H,W) or (F,H,W,3) uint8 with (H,W) = ``shape``, one geometry for all; None for
        a label map that the item does not have."""
        spec, crop, size = self.sources[source], None, None
        indices = [index] if self.frames == 1 else self._triplets[source][index].tolist()
        found: dict[int, dict[str, np.ndarray | None]] = {}
        for i in dict.fromkeys(indices):
            self._note(source, i)
            pictures = {k: p for k, p in spec.pairs.pictures(i, kinds).items() if p is not None}
            now = next(iter(pictures.values())).shape[:2]
            if crop is None:
                size = now
                if spec.zoom is None:
                    crop = Crop.draw(rng, *now, spec.scale, spec.aspect)
                else:
                    crop = Crop.draw_zoomed(rng, *now, shape, spec.zoom, spec.aspect)
            elif now != size:
                raise PairsError(
                    f"{spec.pairs.root}, {spec.pairs.entries[i]['name']}: its pictures are {now}, "
                    "those of its neighbour in "
                    f"the sequence {size} (height, width); the frames of a sequence have one size"
                )
            if "label" in pictures:
                _check_label(
                    pictures["label"], f"{spec.pairs.root}, {spec.pairs.entries[i]['name']}"
                )
            if spec.level and "visible" in pictures:
                pictures["visible"] = level(pictures["visible"])
            found[i] = {k: crop.apply(p, shape, nearest=k == "label") for k, p in pictures.items()}
        self._note(source, -1)
        return {"crop": crop} | {
            k: np.stack([found[i][k] for i in indices])
            if all(k in f for f in found.values())
            else None
            for k in kinds
        }

    def _note(self, source: int, index: int) -> None:
        if (worker := get_worker_info()) is not None:
            self.at[worker.id, 1], self.at[worker.id, 2] = source, index


def _place(cumulative: np.ndarray, rng: np.random.Generator) -> int:
    """A position, drawn with the weights that ``cumulative`` adds up."""
    return int(
        np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right").clip(
            0, len(cumulative) - 1
        )
    )


def _check_label(label: np.ndarray, what: str) -> None:
    unknown = label[(label >= len(CLASSES)) & (label != IGNORE)]
    if unknown.size:
        raise PairsError(
            f"{what}: label map with class {int(unknown.max())}; expected ids below {len(CLASSES)} "
            f"(cmmfnet.text.labels.CLASSES), 0 or {IGNORE} where there is none"
        )


def _tags(meta: dict, label: np.ndarray | None) -> list[str]:
    """Names of the things in the crop (1 % of its label map or more) or, without a label map, in
    the picture; lighting; sky.

    A predicted label map (training/found_labels.py) is incomplete, so the entry's own tags are
    added.
    """
    if label is not None:
        share = np.bincount(label.ravel(), minlength=len(CLASSES))[: len(CLASSES)] / label.size
        present = [CLASSES[i] for i in np.argsort(-share, kind="stable") if share[i] >= 0.01]
        names = [COCOSTUFF[c] for c in present if COCOSTUFF.get(c)]
        if meta.get("labels") == "predicted":
            names += meta.get("tags", ())
    else:
        names = list(meta.get("tags", ()))
    return list(dict.fromkeys(names)) + [
        w for w in (meta.get("lighting"), meta.get("sky")) if w and w != "none"
    ]
