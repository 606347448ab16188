"""The training loop: one process or many, checkpoint and resume, log, sample sheets. What one step
does stands in run.py.

    cmmfnet train --config tiny --data out/scenes --out runs/tiny
    cmmfnet train --from cmmfnet --data my-pairs --out runs/mine
    torchrun --nproc-per-node 2 -m cmmfnet train --config cmmfnet --data DATA --pretrained WEIGHTS
    --out runs/cmmfnet

``OUT/log.jsonl`` has one object a line, ``OUT/step-N.pt`` is the newest checkpoint,
``OUT/sheets/step-N.jpg`` shows input, output and truth, ``OUT/model.safetensors`` is the averaged
model, which every command takes with ``--model``, ``OUT/best.safetensors`` the one that scored best
on the validation pictures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from cmmfnet.data.fields import RecipeError
from cmmfnet.data.source import GIVEN, sources_for
from cmmfnet.training.recipe import Recipe, find_config, read_recipe


@contextmanager
def signals():
    """Whether SIGTERM or SIGINT came, as a list that it is put into; a second SIGINT interrupts at
    once."""
    came: list[str] = []

    def note(number: int, _) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield came
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


GO_ON, TIME_IS_UP, SIGNALLED = range(3)


class Agreement:
    """What all processes do next: the gravest wish of any. It is the answer to the question of the
    step before, so that nobody waits for it."""

    def __init__(self, accelerator):
        self.accelerator, self.asked = accelerator, None

    def on(self, wish: int) -> int:
        if self.accelerator.num_processes == 1:
            return wish
        import torch
        import torch.distributed as dist

        from cmmfnet.training.averaging import on_the_way

        answer = GO_ON
        if self.asked is not None:
            found, event = self.asked
            if (
                event is not None
            ):  # only what was launched before the question: the device has this step's work still
                event.synchronize()
            answer = int(found.item())
        flag = torch.full((1,), float(wish), device=self.accelerator.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)  # on a device the host goes on
        self.asked = on_the_way(flag)
        return answer

    def end(self) -> None:
        """A process that left with its question open would abort."""
        if self.asked is not None and self.asked[1] is not None:
            self.asked[1].synchronize()
        self.asked = None


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
        config: a YAML file, or the name of one that comes along: tiny, cmmfnet, finetune, pix2pix,
            ...; --config.NAME after it changes a single field. With --from it is finetune where
            nothing else is said
        data: the folder (or URL of shards) that the configuration's source folders are in; its
            folder "pairs" may be this one itself. scenes:100 renders 100 scenes into OUT/scenes and
            trains on them, with nothing at hand
        out: the run's folder: log, sheets, checkpoint, model.safetensors
        recipe: own; matched: data, losses and budget of cmmfnet's configuration, and only the
            network of --config; or a YAML file to match instead
        pretrained: folder of loss networks and CLIP tag vectors (default: environment variable
            CMMFNET_PRETRAINED)
        start_from: fine-tune this model (known name, file or hf:...) with its own network instead
            of a fresh one
        resume: auto goes on where the folder has a checkpoint; never refuses such a folder, must
            refuses one without
        max_steps: stop after this step, save and exit; the schedule stays that of the configuration
        max_minutes: stop after this time, save and exit
        workers: processes that read pictures (default: one a CPU core, up to 16 for each GPU; 0
            reads in the loop)
        device: auto, cpu or cuda (CUDA_VISIBLE_DEVICES picks one of several)
        wandb: log to this Weights & Biases project as well

    Returns:
        The last validation scores (empty without a validation source).

    Raises:
        RecipeError, PairsError, PretrainedError, ModelError, DeviceError: nothing was trained.
            NonFiniteLoss: a loss became NaN or infinite.
    """
    # here, so that `cmmfnet train --help` does not wait for torch
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise ImportError("training needs more packages: pip install 'cmmfnet[train]'") from error
    import torch

    from cmmfnet.colorizer.torch import DeviceError, pick_device
    from cmmfnet.data.batches import Batches
    from cmmfnet.evaluation.evaluate import score_network
    from cmmfnet.training import checkpoint
    from cmmfnet.training.run import Run, write_sheet

    out, pretrained = Path(out), pretrained or os.environ.get("CMMFNET_PRETRAINED")
    newest = checkpoint.latest(out)
    if newest and resume == "never":
        raise FileExistsError(
            f"{out} already has {newest.name}; choose another folder, or --resume auto to go on"
        )
    if not newest and resume == "must":
        raise RecipeError(f"{out} has no checkpoint to go on from; --resume auto starts there")
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
    # while the first process validates, the others wait
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    accelerator = Accelerator(
        mixed_precision=config.precision,
        cpu=on_cpu,
        log_with=trackers or None,
        project_dir=out,
        kwargs_handlers=[patience],
    )
    processes, main = accelerator.num_processes, accelerator.is_main_process
    torch.backends.cudnn.benchmark = True
    config = _matched(config, recipe)
    if config.batch_size % processes or config.batch_size // processes < config.accumulate:
        raise RecipeError(
            f"batch_size is {config.batch_size}, accumulate is {config.accumulate}, for "
            f"{processes} processes; every "
            "process takes an equal share of the batch, with at least one picture for each of its "
            "parts"
        )
    if str(data).startswith("scenes:"):
        if main:
            _render(str(data), out / "scenes")
        accelerator.wait_for_everyone()
        data = out / "scenes"
    sources = [source.opened(data) for source in config.sources]
    validation = None
    if config.validation is not None:
        validation = config.validation.opened(data).pairs.thinned(config.validation_pictures)
    config = config.with_steps(
        max(sum(len(source.pairs) for source in sources_for(sources, kind)) for kind in GIVEN)
    )
    state = checkpoint.load(newest) if newest else None
    start = state["step"] if state else 0
    if start >= config.steps:
        raise RecipeError(
            f"{out} is at step {start} of {config.steps} already; --config.steps with a larger "
            "number trains on"
        )
    run = Run(config, out, accelerator, pretrained=pretrained, start_from=start_from, state=state)
    del state
    if run.method.paired and (single := [s.folder for s in config.sources if s.gives != "both"]):
        raise RecipeError(
            f"gives of {single[0]} is thermal or colour alone, and {config.model['method']} "
            "learns from pairs; expected both"
        )
    batches = Batches(
        sources,
        batch_size=config.batch_size,
        size=config.size,
        shapes=config.shapes,
        steps=config.steps,
        seed=config.seed,
        device=accelerator.device,
        rank=accelerator.process_index,
        world=processes,
        workers=_workers(processes) if workers is None else workers,
        unpaired=not run.method.paired,
        frames=run.method.frames,
    )
    if main:
        out.mkdir(parents=True, exist_ok=True)
        for part in out.glob(".*.part"):  # of a process that was killed while it wrote
            part.unlink()
        (out / "recipe.json").write_text(json.dumps(asdict(config), indent=1))
        accelerator.init_trackers(
            "cmmfnet" if wandb is None else wandb, {"method": config.model["method"]}
        )
    accelerator.wait_for_everyone()

    began, scores, agreement = time.monotonic(), {}, Agreement(accelerator)
    with (
        signals() as came,
        closing(batches.from_step(start)) as stream,  # ends its workers
        (out / "log.jsonl" if main else Path(os.devnull)).open("a") as log,
        tqdm(
            total=config.steps,
            initial=start,
            desc="train",
            mininterval=2,
            disable=None if main else True,
        ) as bar,
    ):

        def write(row: dict) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()
            accelerator.log(
                {
                    k: v
                    for k, v in (row | row.get("validation", {})).items()
                    if isinstance(v, float)
                },
                row["step"],
            )

        looked, seen = time.monotonic(), start
        for step, batch in stream:
            run.update(step, batch)
            bar.update()
            done, now = step + 1, time.monotonic()
            late = max_minutes is not None and now - began > 60 * max_minutes
            agreed = agreement.on(SIGNALLED if came else TIME_IS_UP if late else GO_ON)
            last = done in (config.steps, max_steps) or agreed != GO_ON
            if last or done % config.log_every == 0:
                losses = run.losses()
                row = {
                    "step": done,
                    "minutes": (now - began) / 60,
                    "rate": config.learning_rate_at(step),
                }
                write(
                    row
                    | {"images_per_second": (done - seen) * config.batch_size / (now - looked)}
                    | losses
                )
                looked, seen = now, done
                bar.set_postfix({k: f"{v:.3f}" for k, v in losses.items()}, refresh=False)
            # who sends a signal does not wait long
            if (
                validation is not None
                and agreed != SIGNALLED
                and (last or done % config.sheet_every == 0)
            ):
                if main:
                    write_sheet(out / "sheets" / f"step-{done}.jpg", run.ema.network, validation)
                    scores = score_network(run.ema.network, validation, pretrained)
                    write({"step": done, "validation": scores})
                    if run.note_scores(scores):
                        run.save_model(out / "best.safetensors", done)
                accelerator.wait_for_everyone()
            if last or done % config.save_every == 0:
                run.save(done)
            if last:
                break
    agreement.end()
    accelerator.end_training()  # the trackers, and the processes' tie
    if main:
        if agreed == SIGNALLED:
            print(
                f"{came[0] if came else 'a signal'}: saved at step {done}; the same command goes "
                "on from there"
            )
        print(
            f"step {done} of {config.steps}: "
            f"{', '.join(f'{k} {v:.3f}' for k, v in (losses | scores).items())}"
        )
        print(f"model {out / 'model.safetensors'}")
    return scores


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
