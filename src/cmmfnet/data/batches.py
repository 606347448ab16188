"""Batches for training: decoded by worker processes (items.py), finished on the training device.

A picture is a function of (seed, step, position in the step's whole batch). The number of processes
and of workers, and the step at which a run was resumed, change nothing. So the state of a run's
data is the number of its next step.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from cmmfnet.data.augment import (
    Crop,
    Draws,
    gain_control,
    gain_draws,
    sensor,
    sensor_draws,
    stretch,
)
from cmmfnet.data.items import Items
from cmmfnet.data.simulate import simulate_thermal, simulation_draws
from cmmfnet.data.source import Source, check_mix
from cmmfnet.data.store import PairsError
from cmmfnet.text.labels import IGNORE

PATIENCE = 900.0
"""Seconds to wait for a batch: long enough to fetch a shard over a slow line, short enough to
notice a disk that hangs."""


@dataclass
class Batch:
    """The pictures of a step and their annotations.

    Attributes:
        thermal, visible: (B,1,H,W) and (B,3,H,W) float32 in [-1,1].
        label: (B,H,W) long, 255 = no label.
        tags: names of the things in each picture.
        tagged: (B,) bool, whether the tags are complete, so that a missing name is absent.
        captions: of each picture; "" = it has none, None = train it without text.
        names: of the pictures.
        positions: of the pictures in the step's whole batch, for random numbers that do not depend
            on the number of processes.
        colours: (colour, name) of things of each picture.
        given_tags: names of recoloured things, which the thermal frame does not show
            (data/made/recolour.py).
        crops: the place of each colour picture in its file.
        taught: whether the colours of each picture are a model's.

    With three frames, thermal is (B,3,1,H,W) and visible (B,3,3,H,W), in the order of time; all
    else belongs to the middle frame. With unpaired colour, all but visible belongs to the thermal
    frame.
    """

    thermal: Tensor
    visible: Tensor
    label: Tensor
    tags: list[list[str]]
    tagged: Tensor
    captions: list[str | None]
    names: list[str]
    positions: list[int]
    colours: list[list[tuple[str, str]]] = field(default_factory=list)
    given_tags: list[list[str]] = field(default_factory=list)
    crops: list[Crop] = field(default_factory=list)
    taught: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def split(self, parts: int) -> list[Batch]:
        """Micro-batches for gradient accumulation: contiguous, sizes differ by one at most. Raises
        ``ValueError``."""
        if not 1 <= parts <= len(self):
            raise ValueError(
                f"{parts} parts of a batch of {len(self)} pictures; expected 1 to {len(self)}"
            )
        ends = [len(self) * i // parts for i in range(parts + 1)]
        return [
            Batch(**{f.name: getattr(self, f.name)[a:b] for f in fields(self)})
            for a, b in pairwise(ends)
        ]


class Batches:
    """``Batches(sources, ...)[step]`` -> :class:`Batch`; iterate with :meth:`from_step`, which
    works ahead.

    ``batch_size`` counts the pictures of all processes: the one with number ``rank`` of ``world``
    takes the positions rank, rank + world, ... ``workers`` processes decode; with 0 the training
    process does. ``unpaired``: the colour picture (with a crop of its own) is drawn independently
    of the thermal frame, from the same mix (see ``Source.gives``). ``frames`` = 3: three neighbours
    of a sequence (``Pairs.triplets``) with one crop, one set of sensor and simulation draws, white
    noise apart. ``sources`` are opened ones (``Source.opened``). ``size`` is the side of square
    crops; ``shapes`` are, in its place, (height, width) of crops, of which each step draws one.

    Raises ``ValueError`` for a request that makes no sense.
    """

    def __init__(self, sources: Sequence[Source], *, batch_size: int, steps: int, size: int = 256,
                 shapes: Sequence[tuple[int, int]] = (), seed: int = 0,
                 device: str | torch.device = "cpu", rank: int = 0, world: int = 1,
                 workers: int = 0,
                 unpaired: bool = False, frames: int = 1):  # fmt: skip
        shapes = [*shapes] or [(size, size)]
        if any(side % 8 for shape in shapes for side in shape):
            raise ValueError(f"crops are {shapes}; their sides must be multiples of 8")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of {world} processes; expected 0 to {world - 1}")
        if batch_size < world:
            raise ValueError(
                f"batch_size is {batch_size} for {world} processes; expected at least {world}, "
                "one picture for each"
            )
        if frames not in (1, 3):
            raise ValueError(f"frames is {frames}; expected 1 or 3")
        check_mix(sources)
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.device, self.workers, self.frames = torch.device(device), workers, frames
        self._own = slice(rank, None, world)
        self._items = Items(
            sources, batch_size=batch_size, shapes=shapes, steps=steps, seed=seed, rank=rank,
            world=world,
            unpaired=unpaired, frames=frames, workers=workers,
        )  # fmt: skip

    def __getitem__(self, step: int) -> Batch:
        return self._finish(step, self._items[step])

    def from_step(self, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from ``start`` to the last step. While one trains the next is finished, on
        a CUDA stream of its own, and the workers decode later ones.

        Close it (``contextlib.closing``) or drop it to end the workers. Raises :class:`PairsError`
        for pictures that cannot be used, for a worker that died and where no batch came for
        ``PATIENCE`` seconds.
        """
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        decoded = iter(self._loader(range(start, self.steps)))
        ready = None
        try:
            for step in range(start, self.steps):
                items = self._next(decoded, step)
                with torch.cuda.stream(stream):  # None: no effect
                    following = (
                        step,
                        self._finish(step, items),
                        stream.record_event() if stream else None,
                    )
                if ready:
                    yield self._hand_over(*ready)
                ready = following
            if ready:
                yield self._hand_over(*ready)
        finally:
            del decoded  # its last reference: ends the workers

    def _loader(self, steps: range) -> DataLoader:
        workers = {}
        if self.workers:
            workers = {
                "timeout": PATIENCE,
                "prefetch_factor": 2,
                "worker_init_fn": _start_worker,
                # workers share the index with this process; where fork is not safe, each gets a
                # copy
                "multiprocessing_context": "fork" if sys.platform == "linux" else "spawn",
            }
        return DataLoader(
            self._items, batch_size=None, sampler=steps, num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            # of its own: else every start takes a number from the training's generator
            generator=torch.Generator(),
            **workers,
        )  # fmt: skip

    def _next(self, decoded: Iterator, step: int) -> dict[str, Any] | PairsError:
        try:
            try:
                return next(decoded)
            except (OSError, EOFError):
                # a worker that dies while it hands its batch over: torch's RuntimeError, raised
                # when the system tells of its end, comes a moment later
                time.sleep(1)
                raise
        except RuntimeError as error:  # so torch reports dead workers and timeouts
            if not any(
                text in str(error)
                for text in ("timed out", "exited unexpectedly", "killed by signal")
            ):
                raise
            alive = {process.pid for process in multiprocessing.active_children()}
            at = [row for row in self._items.at.tolist() if row[0] > 0]
            dead = [row for row in at if row[0] not in alive] or at
            where = [self._items.sources[s].pairs for _, s, _ in dead]
            names = [
                f"{p.root}, {p.entries[i]['name']}"
                for p, (_, _, i) in zip(where, dead, strict=True)
                if i >= 0
            ]
            raise PairsError(
                f"step {step}: {str(error).strip()}. It was at "
                f"{'; '.join(names) or 'no picture'}. A file that kills its decoder, "
                "a disk that hangs or too little memory (then: fewer workers)"
            ) from error

    def _hand_over(
        self, step: int, batch: Batch, made: torch.cuda.Event | None
    ) -> tuple[int, Batch]:
        if made is not None:
            training = torch.cuda.current_stream(self.device)
            training.wait_event(made)
            for tensor in (batch.thermal, batch.visible, batch.label, batch.tagged):
                tensor.record_stream(training)
        return step, batch

    def _finish(self, step: int, items: dict[str, Any] | PairsError) -> Batch:
        """Upload, simulation and sensor effects. Nothing here waits for the device."""
        if isinstance(items, PairsError):
            raise items
        on = {
            k: v.to(self.device, non_blocking=True)
            for k, v in items.items()
            if isinstance(v, Tensor)
        }
        visible = on["visible"].permute(0, 1, 4, 2, 3).contiguous().float() / 255
        frame, label = on["thermal"].float() / 255, on["label"].long()
        rows = on["simulated"]
        if len(rows):
            photo = (
                on["photo"].permute(0, 1, 4, 2, 3).contiguous().float() / 255
                if "photo" in on
                else visible[rows]
            )
            frame[rows] = self._simulate(
                step, photo, torch.where(label == IGNORE, 0, label)[rows], rows
            )
        if items["gain_control"].any():  # on the CPU, as below
            draws = self._draws(gain_draws, step, 2)
            made = [gain_control(frame[p], _of(draws, p)) for p in self._parts(len(frame))]
            frame = torch.where(on["gain_control"][:, None, None, None], torch.cat(made), frame)
        plain = items["sensor"].logical_not()  # on the CPU, to be looked at without waiting
        if plain.all():
            mixed = stretch(frame)
        else:
            draws = self._draws(sensor_draws, step, 1, *frame.shape[1:])
            mixed = torch.cat([sensor(frame[p], _of(draws, p)) for p in self._parts(len(frame))])
            if plain.any():
                mixed = torch.where(on["sensor"][:, None, None, None], mixed, stretch(frame))
        # label 0 is "unlabelled": a class for the simulation, nothing to learn
        label = torch.where(label == 0, IGNORE, label)[:, self.frames // 2]
        if self.frames == 1:
            visible = visible[:, 0]
        else:
            mixed = mixed.unsqueeze(2)
        lists = (
            items[k]
            for k in (
                "captions", "names", "positions", "colours", "given_tags", "crops", "taught",
            )
        )  # fmt: skip
        return Batch(mixed, visible * 2 - 1, label, items["tags"], on["tagged"], *lists)

    def _simulate(self, step: int, photo: Tensor, label: Tensor, rows: Tensor) -> Tensor:
        """photo (K,F,3,S,S), label (K,F,S,S) of the pictures ``rows`` (K,) of this process ->
        frames (K,F,S,S)."""
        draws = _of(self._draws(simulation_draws, step, 0), rows)
        made = [
            simulate_thermal(
                photo[p].flatten(0, 1),
                label[p].flatten(0, 1),
                {k: v.repeat_interleave(self.frames, dim=0) for k, v in _of(draws, p).items()},
            )
            for p in self._parts(len(photo))
        ]
        return torch.cat(made).view_as(label)

    def _draws(self, draw, step: int, stream: int, *shape: int) -> Draws:
        """Random numbers for this process' pictures: numbers of the whole batch are drawn and the
        own ones taken.

        So they belong to positions; drawing the others' is a fraction of a millisecond on a GPU,
        and one generator a picture would be a kernel a picture.
        """
        seed = np.random.SeedSequence([self.seed, step, stream]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self.device).manual_seed(int(seed) % 2**63)
        return _of(draw(self.batch_size, *shape, generator), self._own)

    def _parts(self, count: int) -> list[slice]:
        """On the CPU one picture at a time: there the last bit can depend on where in a tensor a
        number stands (vector instructions for most, scalar code for the rest). A GPU computes every
        element alike, and wants large tensors."""
        return (
            [slice(i, i + 1) for i in range(count)] if self.device.type == "cpu" else [slice(None)]
        )


def _of(draws: Draws, rows: slice | Tensor) -> Draws:
    return {k: v[rows] for k, v in draws.items()}


def _as_it_is(items: Any) -> Any:
    return items


def _start_worker(number: int) -> None:
    # A signal to the whole group (Ctrl-C, a scheduler's SIGTERM) is the training process' to
    # answer: it saves, then ends us.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    get_worker_info().dataset.at[number, 0] = os.getpid()
