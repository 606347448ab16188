"""Everything a training needs before its first step: processes, data, networks, checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from cmmfnet.colorizer.torch import DeviceError, pick_device
from cmmfnet.data.batches import Batches
from cmmfnet.data.fields import RecipeError
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.source import GIVEN, sources_for
from cmmfnet.evaluation.learned import pretrained_folder
from cmmfnet.evaluation.network_scores import score_network
from cmmfnet.files.atomic import clear_parts
from cmmfnet.training import checkpoint
from cmmfnet.training.log import Log, write_sheet
from cmmfnet.training.recipe import Recipe, find_config, read_recipe
from cmmfnet.training.run import Run
from cmmfnet.training.validation import open_validation, validation_geometry


@dataclass(frozen=True)
class Prepared:
    """A run and its data. ``start``: the number of steps that are done already."""

    run: Run
    batches: Batches
    validation: Pairs | None
    start: int
    pretrained: Path | None

    def validate(self, done: int, log: Log) -> dict[str, float]:
        """Write sample sheet, scores and, if it is the best so far, the model; returns the scores.

        The first process does; the others wait for it, and have no scores.
        """
        if self.validation is None:
            return {}
        run, scores = self.run, {}
        if run.accelerator.is_main_process:
            network = run.ema.network
            write_sheet(run.out / "sheets" / f"step-{done}.jpg", network, self.validation)
            geometry = validation_geometry(run.recipe)
            scores = score_network(network, self.validation, self.pretrained, geometry)
            log.scores(done, scores)
            if run.note_scores(scores):
                run.save_model(run.out / "best.safetensors", done)
        run.accelerator.wait_for_everyone()
        return scores


def prepare(
    config: Recipe,
    data: str | Path,
    out: Path,
    *,
    recipe: str,
    pretrained: Path | None,
    start_from: str | None,
    resume: str,
    max_steps: int | None,
    workers: int | None,
    device: str,
    wandb: str | None,
) -> Prepared:
    """Arguments and errors as in :func:`cmmfnet.training.train.train`.

    Nothing is written before all is found to be in order, but for the scenes of ``scenes:N``.
    """
    config, pretrained = _matched(config, recipe), pretrained_folder(pretrained)
    newest = _newest(out, resume)
    accelerator = _accelerator(config, out, device, wandb)
    processes, main = accelerator.num_processes, accelerator.is_main_process
    if config.batch_size % processes or config.batch_size // processes < config.accumulate:
        raise RecipeError(
            f"batch_size is {config.batch_size}, accumulate is {config.accumulate}, for "
            f"{processes} processes; every process takes an equal share of the batch, with at "
            "least one picture for each of its parts"
        )
    if str(data).startswith("scenes:"):
        if main:
            _render(str(data), out / "scenes")
        accelerator.wait_for_everyone()
        data = out / "scenes"
    sources = [source.opened(data) for source in config.sources]
    validation = open_validation(config, data)
    config = config.with_steps(
        max(sum(len(source.pairs) for source in sources_for(sources, kind)) for kind in GIVEN)
    )
    state = checkpoint.load(newest) if newest else None
    start = state["step"] if state else 0
    _check_end(out, start, config, max_steps)
    run = Run(config, out, accelerator, pretrained=pretrained, start_from=start_from, state=state)
    del state
    if run.method.paired and (single := [s.folder for s in config.sources if s.gives != "both"]):
        raise RecipeError(
            f"gives of {single[0]} is thermal or colour alone, and {config.model['method']} "
            "learns from pairs; expected both"
        )
    batches = Batches(
        sources, batch_size=config.batch_size, size=config.size, shapes=config.shapes,
        steps=config.steps,
        seed=config.seed, device=accelerator.device, rank=accelerator.process_index,
        world=processes, workers=_workers(processes) if workers is None else workers,
        unpaired=not run.method.paired, frames=run.method.frames,
    )  # fmt: skip
    if main:
        out.mkdir(parents=True, exist_ok=True)
        clear_parts(out, out / "sheets")
        (out / "recipe.json").write_text(json.dumps(asdict(config), indent=1))
        accelerator.init_trackers(wandb or "cmmfnet", {"method": config.model["method"]})
    accelerator.wait_for_everyone()
    return Prepared(run, batches, validation, start, pretrained)


def _newest(out: Path, resume: str) -> Path | None:
    """The checkpoint to go on from."""
    newest = checkpoint.latest(out)
    if newest and resume == "never":
        raise FileExistsError(
            f"{out} already has {newest.name}; choose another folder, or --resume auto to go on"
        )
    if not newest and resume == "must":
        raise RecipeError(f"{out} has no checkpoint to go on from; --resume auto starts there")
    return newest


def _check_end(out: Path, start: int, config: Recipe, max_steps: int | None) -> None:
    if start >= config.steps:
        raise RecipeError(
            f"{out} is at step {start} of {config.steps} already; --config.steps with a larger "
            "number trains on"
        )
    if max_steps is not None and start >= max_steps:
        raise RecipeError(
            f"{out} is at step {start} already, --max-steps is {max_steps}; a larger number trains "
            "on"
        )


def _accelerator(config: Recipe, out: Path, device: str, wandb: str | None) -> Accelerator:
    if ":" in device:
        raise DeviceError(
            f"device is {device!r}; use cuda, and CUDA_VISIBLE_DEVICES={device.split(':')[1]} "
            "before the command"
        )
    trackers = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    if wandb is not None:
        if importlib.util.find_spec("wandb") is None:
            raise ImportError("logging to Weights & Biases needs its package: pip install wandb")
        trackers.append("wandb")
    on_cpu = pick_device(device).type == "cpu"
    if on_cpu and config.precision == "fp16":
        raise RecipeError("precision is fp16, which needs CUDA; on the CPU use bf16 or no")
    torch.backends.cudnn.benchmark = True
    # gradients of cuDNN's attention in 16 bits can be NaN (pytorch/pytorch, issue 196678)
    torch.backends.cuda.enable_cudnn_sdp(False)
    # while the first process validates, the others wait
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    return Accelerator(
        mixed_precision=config.precision,
        cpu=on_cpu,
        log_with=trackers or None,
        project_dir=out,
        kwargs_handlers=[patience],
    )


def _matched(config: Recipe, recipe: str) -> Recipe:
    """``config``, or the data, losses and budget of ``recipe`` for the network of ``config``."""
    if recipe == "own":
        return config
    other = read_recipe(find_config("cmmfnet" if recipe == "matched" else recipe)).matched()
    notes = {
        "summary": f"{config.model.get('method')} with the losses and data of {recipe} "
        "(docs/training.md)"
    }
    return replace(other, model=config.model, notes=notes, seed=config.seed)


def _render(data: str, folder: Path) -> None:
    """The scenes that ``scenes:COUNT`` asks for, unless they are there."""
    from cmmfnet.data.scenes import write_pairs

    count = data.removeprefix("scenes:")
    if not count.isdecimal() or int(count) < 5:
        raise RecipeError(
            f"data is {data!r}; expected scenes:COUNT with 5 or more, a folder or a URL"
        )
    if not (folder / "index.jsonl").exists():
        write_pairs(folder, int(count), size=(128, 160), jobs=os.cpu_count() or 1)


def _workers(processes: int) -> int:
    """One reader a core, shared by the processes of this machine, and at most 16 each."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(16, cores // local))
