"""The training loop: time cap, checkpoint and resume, JSONL log, sample sheets. What one step does stands in run.py.

    cmmfnet train --recipe configs/cmmfnet.yaml --data ../shared/data --pretrained ../shared/weights --out runs/cmmfnet

``OUT/log.jsonl`` has one object a line, ``OUT/step-N.pt`` is the newest checkpoint, ``OUT/sheets/step-N.jpg`` shows
input, output and truth, ``OUT/model.safetensors`` is the averaged model, which every command takes with ``--model``.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from cmmfnet.data.pairs import Pairs
from cmmfnet.recipe import Recipe, RecipeError, SourceRecipe


def open_pairs(data: Path, source: SourceRecipe) -> Pairs:
    return Pairs(Path(data) / source.folder, source.split, source.lighting, source.sources)


def train(
    *,
    recipe: Recipe,
    data: Path,
    out: Path,
    pretrained: Path | None = None,
    start_from: str | None = None,
    resume: bool = True,
    max_minutes: float | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Train a model by a recipe. The same command goes on where it was stopped.

    Args:
        recipe: a YAML file such as configs/tiny.yaml; --recipe.NAME after it changes a single field
        data: the folder that the recipe's source folders are in
        out: the run's folder: log, sheets, checkpoint, model.safetensors
        pretrained: folder of loss networks and CLIP tag vectors (default: environment variable CMMFNET_PRETRAINED)
        start_from: fine-tune this model (known name, file or hf:...) with its own network instead of a fresh one
        resume: false refuses a folder that already has a checkpoint
        max_minutes: stop, save and exit after this time
        device: auto, cpu or cuda (CUDA_VISIBLE_DEVICES picks one of several)

    Returns:
        The last validation scores (empty without a validation source).

    Raises:
        RecipeError, PairsError, PretrainedError, ModelError, DeviceError: nothing was trained. NonFiniteLoss: a loss
            became NaN or infinite.
    """
    # here, so that `cmmfnet train --help` does not wait for torch
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("training needs more packages: pip install 'cmmfnet[train]'") from error
    import torch

    from cmmfnet import checkpoint
    from cmmfnet.colorizer import DeviceError, pick_device
    from cmmfnet.data.batches import Batches, Source
    from cmmfnet.evaluate import score_network
    from cmmfnet.run import Run, write_sheet

    out, pretrained = Path(out), pretrained or os.environ.get("CMMFNET_PRETRAINED")
    newest = checkpoint.latest(out)
    if newest and not resume:
        raise FileExistsError(
            f"{out} already has {newest.name}; choose another folder, or leave --resume at true to go on"
        )
    if ":" in device:
        raise DeviceError(
            f"device is {device!r}; use cuda, and CUDA_VISIBLE_DEVICES={device.split(':')[1]} before the command"
        )
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=pick_device(device).type == "cpu")
    torch.backends.cudnn.benchmark = True
    sources = [Source(open_pairs(data, s), s.share, s.simulate, s.level, s.scale) for s in recipe.sources]
    validation = open_pairs(data, recipe.validation).require("thermal") if recipe.validation else None
    state = checkpoint.load(newest) if newest else None
    start = state["step"] if state else 0
    if start >= recipe.steps:
        raise RecipeError(
            f"{out} is at step {start} of {recipe.steps} already; --recipe.steps with a larger number trains on"
        )
    run = Run(recipe, out, accelerator, pretrained=pretrained, start_from=start_from, state=state)
    batches = Batches(
        sources,
        batch_size=recipe.batch_size,
        size=recipe.size,
        steps=recipe.steps,
        seed=recipe.seed,
        device=accelerator.device,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))

    began, scores = time.monotonic(), {}
    with (
        (out / "log.jsonl").open("a") as log,
        tqdm(total=recipe.steps, initial=start, desc="train", mininterval=2, disable=None) as bar,
    ):

        def write(row: dict) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()

        for step, batch in batches.from_step(start):
            run.update(step, batch)
            bar.update()
            done, minutes = step + 1, (time.monotonic() - began) / 60
            last = done == recipe.steps or (max_minutes is not None and minutes > max_minutes)
            if last or done % recipe.log_every == 0:
                losses = run.losses()
                write({"step": done, "minutes": minutes, "rate": recipe.learning_rate_at(step), **losses})
                bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()}, refresh=False)
            if last or done % recipe.save_every == 0:
                run.save(done)
            if validation is not None and (last or done % recipe.sheet_every == 0):
                write_sheet(out / "sheets" / f"step-{done}.jpg", run.ema.network, validation)
                scores = score_network(run.ema.network, validation, pretrained)
                write({"step": done, "validation": scores})
            if last:
                break
    print(f"step {done} of {recipe.steps}: {', '.join(f'{k} {v:.3f}' for k, v in (losses | scores).items())}")
    print(f"model {out / 'model.safetensors'}")
    return scores
