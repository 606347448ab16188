"""Pairs made by a model: random training frames and the colours that the model gives them, to teach
a smaller one.

    python -m cmmfnet.training.taught out/taught --config cmmfnet --data DATA --count 1500

The frames are those that a recipe would train on (its sources, crops, simulated thermal, sensor
effects), so the pupil meets the same variety; the colours are the teacher's, which, unlike a photo,
follow from the frame alone. The folder is in the project's layout (pairs.py): any recipe trains on
it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.data.pairs import PairsError
from cmmfnet.training.recipe import Recipe


def write_taught(
    out: str | Path,
    *,
    config: Recipe,
    data: str,
    count: int,
    teacher: str = "cmmfnet",
    night: float = 0.08,
    seed: int = 0,
    batch_size: int = 4,
    device: str = "auto",
    max_minutes: float | None = None,
) -> Path:
    """Write ``count`` frames of a recipe with the teacher's colours into the folder ``out``;
    returns its index.

    The same command goes on where it was stopped, and adds to a folder that has fewer than
    ``count``.

    Args:
        out: a folder for thermal/, visible/ and index.jsonl, split "train"
        config: the recipe whose sources are drawn from, with their shares at the end of its
            training
        data: the folder that its source folders are in
        count: frames, each drawn anew
        teacher: a known name, a .safetensors file or hf:OWNER/REPO@COMMIT; a network that knows the
            word "night"
        night: share of the daytime frames that the teacher colours by night, told so by the word
            "night"
        seed: of all draws
        batch_size: frames that go through the teacher together
        device: auto, cpu, cuda, cuda:1 or mps
        max_minutes: stop after this time; the index then has what is there

    Raises:
        PairsError, ModelError, DeviceError: nothing was written. ValueError: ``count`` or ``night``
        out of range.
    """
    import torch

    from cmmfnet.colorizer.torch import pick_device
    from cmmfnet.data.batches import Batches
    from cmmfnet.text.sentences import tag_ids
    from cmmfnet.training.train import open_source
    from cmmfnet.weights.files import load_model

    if count < 1 or not 0 <= night <= 1:
        raise ValueError(f"count is {count}, night is {night}; expected 1 or more, and 0 to 1")
    out = Path(out)
    shares = [replace(s, share=(s.share[1], s.share[1])) for s in config.sources]
    sources = [open_source(data, source) for source in shares]
    place = pick_device(device)
    network = load_model(teacher).network.to(place)
    ids, mask = tag_ids([["night"]], network.words)
    said = network.embed_tags(ids.to(place)), mask.to(place)
    steps = -(-count // batch_size)
    batches = Batches(
        sources, batch_size=batch_size, size=config.size, steps=steps, seed=seed, device=place
    )
    index = out / "index.jsonl"
    done = len(index.read_text(encoding="utf-8").splitlines()) if index.exists() else 0
    if done % batch_size:
        raise PairsError(
            f"{index} has {done} lines, no multiple of {batch_size}; give the batch size it was "
            "made with"
        )
    for part in ("thermal", "visible"):
        (out / part).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with index.open("a", encoding="utf-8") as file:
        for step in range(done // batch_size, steps):
            if max_minutes is not None and time.monotonic() - began > 60 * max_minutes:
                break
            batch = batches[step]
            rng = np.random.default_rng([seed, step, 3])
            dark = ["night" in tags or bool(rng.random() < night) for tags in batch.tags]
            with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16):
                # the same tokens for all, masked where it is day: no text
                colours = network(
                    batch.thermal,
                    said[0].expand(len(dark), -1, -1),
                    said[1].expand(len(dark), -1) & torch.tensor(dark, device=place)[:, None],
                )
            frames = ((batch.thermal[:, 0].cpu() + 1) * 127.5).round().clamp(0, 255).byte().numpy()
            pictures = (
                ((colours.float() + 1) * 127.5)
                .round()
                .clamp(0, 255)
                .byte()
                .permute(0, 2, 3, 1)
                .cpu()
                .numpy()
            )
            rows = []
            for row in range(batch_size):
                name = f"taught_{step * batch_size + row:06d}"
                Image.fromarray(frames[row]).save(out / "thermal" / f"{name}.png")
                Image.fromarray(np.ascontiguousarray(pictures[row])).save(
                    out / "visible" / f"{name}.png"
                )
                tags = (
                    [t for t in batch.tags[row] if t not in ("day", "dusk", "night")]
                    if dark[row]
                    else batch.tags[row]
                )
                rows.append(
                    {"name": name, "split": "train", "source": batch.names[row], "tags": tags,
                     "lighting": "night" if dark[row] else "day"}
                )  # fmt: skip
            # a batch's lines in one go, after its pictures: an index names only what is there
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
    return index


def main(argv: Sequence[str] | None = None) -> None:
    from cmmfnet.cli import arguments_of

    values = arguments_of("taught", write_taught, argv)
    print(write_taught(values.pop("out"), **values))


if __name__ == "__main__":
    main()
