"""The training loop: one GPU, mixed precision, EMA, time cap, checkpoint and resume, JSONL log, sample sheets.

    cmmfnet train --recipe configs/cmmfnet.yaml --data ../shared/data --pretrained ../shared/weights --out runs/cmmfnet

``OUT/log.jsonl`` has one object a line, ``OUT/step-N.pt`` is the newest checkpoint, ``OUT/sheets/step-N.jpg`` shows input,
output and truth, ``OUT/model.safetensors`` is the averaged model, which every command takes with ``--model``.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from cmmfnet import checkpoint
from cmmfnet.data.batches import Batch, Batches, Source
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluate import centre_crops, score_network, to_picture
from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet import CMMFNetMethod
from cmmfnet.perceptual import load_features
from cmmfnet.recipe import Recipe, SourceRecipe
from cmmfnet.text import WORDS, SentenceEncoder, load_tag_vectors
from cmmfnet.weights import load_model, save_model


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the batch is saved beside the log."""


def open_pairs(data: Path, source: SourceRecipe) -> Pairs:
    return Pairs(Path(data) / source.folder, source.split, source.lighting, source.sources)


def build(recipe: Recipe, pretrained: Path | None) -> tuple[torch.nn.Module, dict]:
    """The network of a recipe with its pre-trained parts in place, and its configuration."""
    config = dict(recipe.model)
    tags = config.get("text") == "clip-tags"
    if tags:
        config.setdefault("words", list(WORDS))
    torch.manual_seed(recipe.seed)
    network = build_network(config)
    if tags and pretrained is not None:
        names, vectors = load_tag_vectors(Path(pretrained) / "clip-vitb16-cocostuff171.safetensors")
        index = {w: i for i, w in enumerate(network.words)}
        with torch.no_grad():
            for name, vector in zip(names, vectors, strict=True):
                if name in index:
                    network.word_vectors[index[name]] = vector
    if recipe.imagenet:
        network.image_encoder.load_imagenet(load_features("vgg16", pretrained))
    return network, config


def _parameter_groups(network: torch.nn.Module, recipe: Recipe) -> list[dict]:
    """Weight decay on matrices only; a factor of its own for the pre-trained stem."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in network.named_parameters():
        stem = recipe.imagenet and name.startswith("image_encoder.stem.")
        groups.setdefault((stem, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": p,
            "weight_decay": recipe.weight_decay if decay else 0.0,
            "factor": recipe.stem_learning_rate if stem else 1.0,
        }
        for (stem, decay), p in groups.items()
    ]


class EMA:
    """Exponential moving average of parameters; buffers are copied. The decay warms up as (1 + t) / (10 + t)."""

    def __init__(self, network: torch.nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


def _check_finite(out: Path, step: int, batch: Batch, losses: dict[str, torch.Tensor], norm: torch.Tensor) -> None:
    if torch.stack([*losses.values(), norm]).isfinite().all():
        return
    file = out / f"non-finite-{step}.pt"
    checkpoint.save(file, {"thermal": batch.thermal.cpu(), "visible": batch.visible.cpu(), "names": batch.names})
    raise NonFiniteLoss(
        f"step {step}: losses {({k: float(v) for k, v in losses.items()})}, gradient norm {float(norm)}; the batch is in {file}. "
        "Lower learning_rate or set precision to no, then train again: it goes on from the last checkpoint"
    )


def write_sheet(path: Path, network: torch.nn.Module, pairs: Pairs, count: int = 8) -> None:
    """Input, output and truth of the first ``count`` centre crops side by side, JPEG."""
    rows = []
    for thermal, truth, _ in centre_crops(pairs, limit=count):
        device = next(network.parameters()).device
        with torch.inference_mode():
            colour = to_picture(network(torch.from_numpy(thermal)[None, None].to(device))[0])
        grey = np.repeat(((thermal + 1) * 127.5).round().astype(np.uint8)[..., None], 3, axis=2)
        rows.append(np.concatenate([grey, colour, truth], axis=1))
    half = (len(rows) + 1) // 2
    rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, quality=88)


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    pretrained: Path | None = None,
    start_from: str | None = None,
    resume: bool = True,
    max_minutes: float | None = None,
    device: str | None = None,
) -> dict:
    """Train a model by a recipe.

    Args:
        recipe: a YAML file under configs/, or its fields.
        data: the folder that the recipe's source folders are in.
        out: the run's folder; training goes on from the newest checkpoint in it.
        pretrained: folder with loss networks and CLIP tag vectors (also: environment variable CMMFNET_PRETRAINED).
        start_from: a model (name, file or hf:...) of the same configuration whose weights are the start, for fine-tuning.
        resume: false refuses a folder that already has a checkpoint.
        max_minutes: stop, save and exit after this time.
        device: cpu or cuda; by default what Accelerate finds.

    Returns:
        The last validation scores (empty without a validation source).
    """
    out = Path(out)
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=device == "cpu")
    device = accelerator.device
    torch.backends.cudnn.benchmark = True
    out.mkdir(parents=True, exist_ok=True)
    newest = checkpoint.latest(out)
    if newest and not resume:
        raise ValueError(f"{out} already has {newest.name}; choose another folder, or leave --resume at true to go on")

    network, config = build(recipe, pretrained)
    if start_from is not None and newest is None:
        network.load_state_dict(load_model(start_from).network.state_dict(), strict=True)
    network.to(device).train()
    sentences = SentenceEncoder() if network.text_source == "clip-sentence" else None
    method = CMMFNetMethod(
        network, recipe.losses, perceptual=recipe.perceptual, perceptual_mode=recipe.perceptual_mode, pretrained=pretrained,
        text_dropout=recipe.text_dropout, sentences=sentences, device=device,
    )  # fmt: skip
    fused = device.type == "cuda"
    optimiser = torch.optim.AdamW(
        _parameter_groups(network, recipe), recipe.learning_rate, betas=recipe.betas, fused=fused
    )
    judge = None
    if method.discriminator is not None:
        method.discriminator.to(device)
        judge = torch.optim.AdamW(
            method.discriminator.parameters(), recipe.learning_rate, betas=(0.5, 0.999), fused=fused
        )
    ema = EMA(network, recipe.ema)
    sources = [Source(open_pairs(data, s), s.share, s.simulate, s.level, s.scale) for s in recipe.sources]
    batches = Batches(
        sources, batch_size=recipe.batch_size, size=recipe.size, steps=recipe.steps, seed=recipe.seed, device=device
    )
    validation = open_pairs(data, recipe.validation) if recipe.validation else None
    parts = {"network": network, "ema": ema.network, "optimiser": optimiser}
    if judge is not None:
        parts |= {"discriminator": method.discriminator, "judge": judge}
    start = 0
    if newest:
        state = checkpoint.load(newest)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        checkpoint.restore_random_state(state["random"])
        start = state["step"]
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))

    def save(step: int) -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        checkpoint.save(out / f"step-{step}.pt", {**state, "step": step, "random": checkpoint.random_state()})
        for old in out.glob("step-*.pt"):
            if old.name != f"step-{step}.pt":
                old.unlink()
        training = {"recipe": asdict(recipe), "steps": step, **recipe.weights}
        save_model(out / "model.safetensors", ema.network, config, training, storage="float16")

    began, scores = time.monotonic(), {}
    with (
        (out / "log.jsonl").open("a") as log,
        tqdm(total=recipe.steps, initial=start, desc="train", mininterval=2) as bar,
    ):
        pending = None
        for step, batch in batches.from_step(start):
            rate = recipe.learning_rate_at(step)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * rate * group["factor"]
            if pending is not None:
                _check_finite(out, *pending)
            with accelerator.autocast():
                losses, colour = method.generator_losses(batch, np.random.default_rng([recipe.seed, step, 2]))
            if "adversarial" in losses and step < recipe.adversarial_start * recipe.steps:
                del losses["adversarial"]
            total = sum(losses.values())
            optimiser.zero_grad(set_to_none=True)
            accelerator.backward(total)
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            optimiser.step()
            if judge is not None:
                for group in judge.param_groups:
                    group["lr"] = recipe.learning_rate * rate
                loss = method.discriminator_loss(batch, colour)
                judge.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                judge.step()
                losses["discriminator"] = loss
            ema.update(network, step)
            done = step + 1
            # looked at in the next turn, when the device has it, so that the loop never waits for the device
            pending = (done, batch, {k: v.detach() for k, v in losses.items()}, norm)
            bar.update()
            last = done == recipe.steps or (max_minutes is not None and time.monotonic() - began > max_minutes * 60)
            if last or done % recipe.log_every == 0:
                values = {k: float(v.detach()) for k, v in losses.items()}
                if not np.isfinite([*values.values(), float(norm)]).all():
                    bad = out / f"non-finite-{done}.pt"
                    checkpoint.save(
                        bad, {"thermal": batch.thermal.cpu(), "visible": batch.visible.cpu(), "names": batch.names}
                    )
                    raise NonFiniteLoss(
                        f"step {done}: loss {values}, gradient norm {float(norm)}; the batch is in {bad}. Lower learning_rate or use "
                        "precision: no; training goes on from the last checkpoint"
                    )
                record = {
                    "step": done,
                    "minutes": (time.monotonic() - began) / 60,
                    "rate": rate,
                    "norm": float(norm),
                    **values,
                }
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()}, refresh=False)
            if last or done % recipe.sheet_every == 0:
                if validation is not None:
                    write_sheet(out / "sheets" / f"step-{done}.jpg", ema.network, validation)
                    scores = score_network(ema.network, validation, pretrained)
                    log.write(json.dumps({"step": done, "validation": scores}) + "\n")
                    log.flush()
            if last or done % recipe.save_every == 0:
                _check_finite(out, *pending)
                save(done)
            if last:
                break
    return scores
