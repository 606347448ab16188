"""Batches for training: which items, which crops, simulated or real, as tensors on the training device.

A batch is a function of (seed, step): the draws come from generators seeded with both, so resuming at a step and the
number of decoding threads change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmmfnet.data.augment import Crop, sensor
from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.scenes import CLASSES, COCOSTUFF
from cmmfnet.data.simulate import level, simulate_thermal

IGNORE = 255  # label of pixels that have none


@dataclass
class Source:
    """One data set in the mix. ``share`` = (first, last) part of a batch at the start and the end of training.

    ``simulate``: the thermal frame is made from the photo and its label map. ``level``: photos are levelled first.
    Raises :class:`PairsError` where a thermal frame, or for ``simulate`` a label map, is missing.
    """

    pairs: Pairs
    share: tuple[float, float]
    simulate: bool = False
    level: bool = False
    scale: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        self.pairs.require("label" if self.simulate else "thermal")


@dataclass
class Batch:
    """thermal (B,1,S,S) and visible (B,3,S,S) float32 in [-1,1]; label (B,S,S) long, 255 = none; tags: names per
    picture; tagged (B,) bool: the tags are complete, so a missing one is absent; captions ("" = none); names."""

    thermal: Tensor
    visible: Tensor
    label: Tensor
    tags: list[list[str]]
    tagged: Tensor
    captions: list[str]
    names: list[str]


class Batches:
    """``Batches(sources, ...)[step]`` -> :class:`Batch`; iterate with :meth:`from_step`, which decodes ahead.

    Decoded items stay on ``device`` as uint8 until ``cache_gb`` is full.
    """

    def __init__(self, sources: Sequence[Source], *, batch_size: int, size: int, steps: int, seed: int = 0,
                 device: str | torch.device = "cpu", cache_gb: float = 6.0, threads: int = 4):  # fmt: skip
        if size % 8:
            raise ValueError(f"size is {size}; crops must be multiples of 8")
        self.sources, self.batch_size, self.size, self.steps, self.seed = list(sources), batch_size, size, steps, seed
        self.device, self.threads = torch.device(device), threads
        self._room = int(cache_gb * 2**30)
        self._cache: dict[tuple[int, int], tuple] = {}
        self._decoding: dict[tuple[int, int], Future] = {}

    def _item(self, source: int, index: int) -> tuple[Tensor | None, Tensor, Tensor | None, dict]:
        key = (source, index)
        decoding = self._decoding.pop(key, None)  # also where it came too late: its picture must not stay in memory
        if key not in self._cache:
            pair = decoding.result() if decoding else self.sources[source].pairs[index]
            visible = torch.from_numpy(pair.visible.copy()).permute(2, 0, 1).contiguous().to(self.device)
            if self.sources[source].level:
                visible = level(visible)
            thermal = None if pair.thermal is None else torch.from_numpy(pair.thermal.copy())[None].to(self.device)
            # the label map stays on the CPU: its crop is counted there, without waiting for the device
            label = None if pair.label is None else torch.from_numpy(pair.label.copy())[None]
            if label is not None and (unknown := label[(label >= len(CLASSES)) & (label != IGNORE)]).numel():
                raise PairsError(
                    f"{self.sources[source].pairs.root}, {pair.name}: label map with class {int(unknown.max())}; "
                    f"expected ids below {len(CLASSES)} (cmmfnet.data.scenes.CLASSES), 0 or {IGNORE} where there is none"
                )
            item = (thermal, visible, label, pair.meta)
            size = visible.numel() * 5 // 3
            if size > self._room:
                return item
            self._room -= size
            self._cache[key] = item
        return self._cache[key]

    def _choose(self, step: int) -> tuple[np.random.Generator, list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, step])
        progress = min(1.0, step / max(1, self.steps - 1))
        shares = np.array([s.share[0] + (s.share[1] - s.share[0]) * progress for s in self.sources])
        picks = rng.choice(len(self.sources), size=self.batch_size, p=shares / shares.sum())
        return rng, [
            (int(s), int(rng.choice(len(self.sources[s].pairs), p=self.sources[s].pairs.weights))) for s in picks
        ]

    def __getitem__(self, step: int) -> Batch:
        rng, chosen = self._choose(step)
        generator = torch.Generator(self.device).manual_seed(hash((self.seed, step, 1)) % 2**63)
        # simulated pictures first, so that each kind is one contiguous block
        chosen.sort(key=lambda c: not self.sources[c[0]].simulate)
        thermal, visible, label, tags, tagged, captions, names = [], [], [], [], [], [], []
        simulated = 0
        for source, index in chosen:
            t, v, m, meta = self._item(source, index)
            crop = Crop.draw(rng, *v.shape[-2:], self.sources[source].scale, aspect=1.3)
            visible.append(crop.apply(v, self.size) / 255)
            if m is None:
                label.append(torch.full((self.size, self.size), IGNORE))
            else:
                label.append(crop.apply(m, self.size, nearest=True)[0].long())
            if self.sources[source].simulate:
                simulated += 1
            else:
                thermal.append(crop.apply(t, self.size) / 255)
            tags.append(self._tags(meta, label[-1] if m is not None else None))
            tagged.append(m is not None or bool(meta.get("tags")))
            captions.append(meta.get("caption") or "")
            names.append(meta["name"])
        photos, labels = torch.stack(visible), torch.stack(label).to(self.device, non_blocking=True)
        frames = []
        if simulated:
            classes = torch.where(labels[:simulated] == IGNORE, 0, labels[:simulated])
            frames.append(simulate_thermal(photos[:simulated], classes, generator))
        if thermal:
            frames.append(torch.stack(thermal))
        mixed = sensor(torch.cat(frames), generator)
        # label 0 is "unlabelled": a class for the simulation, nothing to learn
        labels = torch.where(labels == 0, IGNORE, labels)
        return Batch(mixed, photos * 2 - 1, labels, tags, torch.tensor(tagged, device=self.device), captions, names)

    @staticmethod
    def _tags(meta: dict, label: Tensor | None) -> list[str]:
        """Names of what is in the crop (by its label map: 1 % of it or more) or in the whole picture, lighting, sky."""
        if label is not None:
            share = torch.bincount(label.flatten(), minlength=len(CLASSES)).float() / label.numel()
            present = [
                CLASSES[i] for i in share.argsort(descending=True).tolist() if share[i] >= 0.01 and i < len(CLASSES)
            ]
            names = [COCOSTUFF[c] for c in present if COCOSTUFF.get(c)]
        else:
            names = list(meta.get("tags", ()))
        return list(dict.fromkeys(names)) + [w for w in (meta.get("lighting"), meta.get("sky")) if w and w != "none"]

    def from_step(self, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from ``start`` to the last step. The next batch is made meanwhile, on a CUDA stream of its own,
        and the files of a later one are decoded."""
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

        def build(step: int) -> tuple[Batch, torch.cuda.Event | None]:
            with torch.cuda.stream(stream):  # None: no effect
                return self[step], stream.record_event() if stream else None

        with ThreadPoolExecutor(self.threads) as decoders, ThreadPoolExecutor(1) as builder:
            ready = builder.submit(build, start)
            for step in range(start, self.steps):
                batch, made = ready.result()
                if step + 1 < self.steps:
                    ready = builder.submit(build, step + 1)
                for source, index in self._choose(step + 3)[1] if step + 3 < self.steps else ():
                    if (source, index) not in self._cache and (source, index) not in self._decoding:
                        self._decoding[source, index] = decoders.submit(self.sources[source].pairs.__getitem__, index)
                if made is not None:
                    torch.cuda.current_stream(self.device).wait_event(made)
                    for tensor in (batch.thermal, batch.visible, batch.label, batch.tagged):
                        tensor.record_stream(torch.cuda.current_stream(self.device))
                yield step, batch
