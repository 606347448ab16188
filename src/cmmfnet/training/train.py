"""``cmmfnet train``: the training loop, on one process or many.

    cmmfnet train --config tiny --data out/scenes --out runs/tiny
    cmmfnet train --from cmmfnet --data my-pairs --out runs/mine
    torchrun --nproc-per-node 2 -m cmmfnet train --config cmmfnet --data DATA --pretrained WEIGHTS
    --out runs/cmmfnet

setup.py prepares a run, run.py makes one update of it, stopping.py hears signals, log.py writes
``OUT/log.jsonl``. ``OUT/step-N.pt`` is the newest checkpoint, ``OUT/sheets/step-N.jpg`` shows
input, output and truth. ``OUT/model.safetensors`` is the averaged model, which every command takes
with ``--model``; ``OUT/best.safetensors`` is the model with the best scores on the validation
pictures.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmmfnet.data.fields import RecipeError
from cmmfnet.training.recipe import Recipe

if TYPE_CHECKING:
    from cmmfnet.training.setup import Prepared


def train(
    *,
    config: Recipe,
    data: str,
    out: Path = Path("run"),
    recipe: str = "own",
    pretrained: Path | None = None,
    start_from: str | None = None,
    resume: Literal["auto", "never", "must"] = "auto",
    max_steps: int | None = None,
    max_minutes: float | None = None,
    workers: int | None = None,
    device: str = "auto",
    wandb: str | None = None,
) -> dict[str, float]:
    """Train or fine-tune a model. The same command goes on where it was stopped.

    Several GPUs: torchrun --nproc-per-node N -m cmmfnet train ..., or accelerate launch -m cmmfnet
    train ...

    Args:
        config: a YAML file, or the name of one in the package: tiny, cmmfnet, finetune, pix2pix,
            ...; --config.NAME after it changes a single field. With --from the default is finetune
        data: the folder (or URL of shards) of the configuration's source folders; a data set itself
            stands for its folder "pairs". scenes:100 renders 100 scenes into OUT/scenes and
            trains on them; needs no data
        out: the run's folder: log, sheets, checkpoint, model.safetensors
        recipe: own; matched: data, losses and budget of cmmfnet's configuration, and only the
            network of --config; or a YAML file to match instead
        pretrained: folder of loss networks and CLIP tag vectors (default: environment variable
            CMMFNET_PRETRAINED)
        start_from: fine-tune this model (known name, file or hf:...) with its own network instead
            of a fresh one
        resume: auto goes on where the folder has a checkpoint; never refuses such a folder, must
            refuses one without
        max_steps: stop at this step, counted from the run's beginning, save and exit; the schedule
            stays the configuration's
        max_minutes: stop after this time, save and exit
        workers: processes that read pictures (default: one a CPU core, up to 16 for each GPU; 0
            reads in the loop)
        device: auto, cpu or cuda (CUDA_VISIBLE_DEVICES picks one of several)
        wandb: log to this Weights & Biases project as well

    Returns:
        The last validation scores (empty without a validation source).

    Raises:
        RecipeError, PairsError, PretrainedError, ModelError, DeviceError, CheckpointError: nothing
            was trained. NonFiniteLoss: a loss or weight became NaN or infinite; the last checkpoint
            is as it was.
    """
    if max_steps is not None and max_steps < 1:
        raise RecipeError(f"--max-steps is {max_steps}; expected 1 or more")
    if max_minutes is not None and not max_minutes > 0:
        raise RecipeError(f"--max-minutes is {max_minutes}; expected more than 0")
    if workers is not None and not 0 <= workers <= 1024:
        raise RecipeError(f"--workers is {workers}; expected 0 to 1024")
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise ImportError("training needs more packages: pip install 'cmmfnet[train]'") from error
    from cmmfnet.training.setup import prepare  # here: `cmmfnet train --help` does not need torch

    prepared = prepare(
        config, data, Path(out), recipe=recipe, pretrained=pretrained, start_from=start_from,
        resume=resume, max_steps=max_steps, workers=workers, device=device, wandb=wandb,
    )  # fmt: skip
    seconds = math.inf if max_minutes is None else 60 * max_minutes
    return loop(prepared, min(max_steps or math.inf, prepared.run.recipe.steps), seconds)


def loop(prepared: Prepared, end: int, seconds: float) -> dict[str, float]:
    """Train to the step ``end``, for ``seconds`` at most, or until a signal comes; returns the last
    validation scores."""
    from cmmfnet.training.log import Log
    from cmmfnet.training.stopping import GO_ON, SIGNALLED, TIME_IS_UP, Agreement, signals

    run, start = prepared.run, prepared.start
    recipe, agreement, scores, began = run.recipe, Agreement(run.accelerator), {}, time.monotonic()
    with (
        signals() as came,
        closing(prepared.batches.from_step(start)) as stream,  # ends its workers
        Log(run, start) as log,
    ):
        for step, batch in stream:
            run.update(step, batch)
            done = step + 1
            late = time.monotonic() - began > seconds
            agreed = agreement.on(SIGNALLED if came else TIME_IS_UP if late else GO_ON)
            last = done == end or agreed != GO_ON
            if last or done % recipe.log_every == 0:
                losses = log.losses(done)
            # after a signal there is no time for validation
            if agreed != SIGNALLED and (last or done % recipe.sheet_every == 0):
                scores = prepared.validate(done, log) or scores
            if last or done % recipe.save_every == 0:
                run.save(done)
            log.bar.update()
            if last:
                break
    agreement.end()
    run.accelerator.end_training()  # the trackers, and the process group
    if run.accelerator.is_main_process:
        if agreed == SIGNALLED:
            signal = came[0] if came else "a signal"
            print(f"{signal}: saved at step {done}; the same command goes on from there")
        shown = ", ".join(f"{k} {v:.3f}" for k, v in (losses | scores).items())
        print(f"step {done} of {recipe.steps}: {shown}\nmodel {run.out / 'model.safetensors'}")
    return scores
