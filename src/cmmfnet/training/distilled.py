"""Pairs with a model's colours: random training frames coloured by a teacher, to train a smaller
network on.

    cmmfnet distil out/distilled --config cmmfnet --data DATA --count 1500

The frames are drawn as a recipe draws them (its sources, crops, simulated thermal, sensor effects),
so that the small network trains on the same variety. The colours are the teacher's; unlike the
colours of a photo, they follow from the frame alone. The folder is in the project's layout
(data/pairs.py), so any recipe trains on it.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.data.store import PairsError
from cmmfnet.data.write import PairsWriter
from cmmfnet.files.errors import UserError
from cmmfnet.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor


def write_distilled(
    out: str | Path,
    *,
    config: Recipe,
    data: str,
    count: int,
    teacher: str = "cmmfnet",
    night: float = 0.08,
    seed: int = 0,
    batch_size: int = 4,
    workers: int = 0,
    device: str = "auto",
    max_minutes: float | None = None,
) -> Path:
    """Write pairs with a model's colours: frames that a recipe would train on, coloured by the
    teacher.

    The same command goes on where it was stopped, and adds to a folder that has fewer than
    ``count``.

    Args:
        out: a folder for thermal/, visible/ and index.jsonl, split "train"
        config: the recipe whose sources are drawn from, with their shares at the end of its
            training; the frames have its shapes, or its size
        data: the folder that its source folders are in
        count: frames, each drawn anew
        teacher: a known name, a .safetensors file or hf:OWNER/REPO@COMMIT; a network that knows the
            word "night"
        night: share of the daytime frames that the teacher colours by night, by the word "night"
        seed: random seed
        batch_size: frames that go through the teacher together
        workers: processes that read pictures; 0 reads in this one
        device: auto, cpu, cuda, cuda:1 or mps
        max_minutes: stop after this time; the index then has the frames written so far

    Returns: the index.

    Raises:
        PairsError, ModelError, DeviceError: nothing was written. UserError: ``count`` or ``night``
        is out of range.
    """
    import torch

    from cmmfnet.colorizer.torch import pick_device
    from cmmfnet.data.batches import Batches
    from cmmfnet.text.tags import tag_ids
    from cmmfnet.weights.files import load_model

    if count < 1 or not 0 <= night <= 1:
        raise UserError(f"count is {count}, night is {night}; expected 1 or more, and 0 to 1")
    writer = PairsWriter(Path(out))
    sources = [replace(s, share=(s.share[1], s.share[1])).opened(data) for s in config.sources]
    place = pick_device(device)
    network = load_model(teacher).network.to(place)
    ids, mask = tag_ids([["night"]], network.words)
    tokens, mask = network.embed_tags(ids.to(place)), mask.to(place)
    steps = -(-count // batch_size)
    batches = Batches(
        sources, batch_size=batch_size, size=config.size, shapes=config.shapes, steps=steps,
        seed=seed, device=place, workers=workers,
    )  # fmt: skip
    index = writer.index
    done = len(index.read_text(encoding="utf-8").splitlines()) if index.exists() else 0
    if done % batch_size:
        raise PairsError(
            f"{index} has {done} lines, no multiple of {batch_size}; give the batch size it was "
            "made with"
        )
    began = time.monotonic()
    with closing(batches.from_step(done // batch_size)) as stream:  # ends its workers
        for step, batch in stream:
            if max_minutes is not None and time.monotonic() - began > 60 * max_minutes:
                break
            rng = np.random.default_rng([seed, step, 3])
            dark = ["night" in tags or bool(rng.random() < night) for tags in batch.tags]
            with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16):
                # the same tokens for all, masked where it is day: no text
                colours = network(
                    batch.thermal,
                    tokens.expand(len(dark), -1, -1),
                    mask.expand(len(dark), -1) & torch.tensor(dark, device=place)[:, None],
                )
            frames, pictures = (
                _as_bytes(batch.thermal[:, 0]),
                _as_bytes(colours.permute(0, 2, 3, 1)),
            )
            rows = []
            for row in range(batch_size):
                name = f"distilled_{step * batch_size + row:06d}"
                writer.write(name, thermal=frames[row], visible=pictures[row])
                tags = batch.tags[row]
                if dark[row]:
                    tags = [t for t in tags if t not in ("day", "dusk", "night")]
                rows.append(
                    {"name": name, "split": "train", "source": batch.names[row], "tags": tags,
                     "lighting": "night" if dark[row] else "day"}
                )  # fmt: skip
            writer.append(rows)
    print(f"{min(count, steps * batch_size)} pairs in {writer.root}")
    return index


def _as_bytes(pictures: Tensor) -> np.ndarray:
    """[-1,1] -> uint8, of any shape."""
    scaled = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(scaled.byte().cpu().numpy())
