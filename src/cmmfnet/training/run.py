"""A run: everything that changes while training, one update of it, and its way to disk and back."""

from __future__ import annotations

import contextlib
import inspect
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from cmmfnet.data.batches import Batch
from cmmfnet.data.fields import RecipeError
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.evaluate import centre_crops, without_text
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError
from cmmfnet.methods import build_network, method_class
from cmmfnet.methods.matched import Matched
from cmmfnet.methods.method import Losses, Moment
from cmmfnet.training import checkpoint, small_start
from cmmfnet.training.averaging import EMA, Readings
from cmmfnet.training.recipe import Recipe
from cmmfnet.weights.files import ModelError, load_model, save_model


class NonFiniteLoss(UserError):
    """A loss became NaN or infinite; the batch is saved beside the log."""


def seed_torch(recipe: Recipe, step: int, process: int) -> None:
    """Seed what modules draw themselves (dropout, diffusion noise) by (seed, step, process).

    So a run has no random state that a checkpoint could lack: it goes on with the same draws, even
    on other machines.
    """
    torch.manual_seed(
        int(
            np.random.SeedSequence([recipe.seed, step, process]).generate_state(1, np.uint64)[0]
            >> 1
        )
    )


def _take_over(recipe: Recipe, model: str) -> tuple[nn.Module, dict]:
    """The network and configuration of a trained model; the recipe's own ``model`` gives way to
    it."""
    loaded = load_model(model)
    if loaded.config["method"] != recipe.model.get("method"):
        raise RecipeError(
            f"{model} is a {loaded.config['method']}, the recipe trains a "
            f"{recipe.model.get('method')}"
        )
    network, config = method_class(recipe.model["method"]).extended(
        loaded.network, loaded.config, recipe.model
    )
    if different := [k for k, v in _plain(recipe.model).items() if config.get(k) != v]:
        warnings.warn(
            f"{model} keeps its own {', '.join(different)}, which the recipe has otherwise",
            stacklevel=2,
        )
    return network.requires_grad_(True), config


class Run:
    """Networks, optimisers and EMA of one training, in the folder ``out``.

    All draws of a step depend on (seed, step) alone, so that a restored run goes on exactly where
    it was saved.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        accelerator: Accelerator,
        *,
        pretrained: Path | None = None,
        start_from: str | None = None,
        state: dict | None = None,
    ):
        """A fresh run, one from the weights of the model ``start_from``, or one from a checkpoint's
        ``state``.

        Raises :class:`RecipeError` (or the loaders' own errors) for what cannot be built.
        """
        self.recipe, self.out, self.accelerator = recipe, out, accelerator
        device = accelerator.device
        torch.manual_seed(recipe.seed)
        try:
            method = method_class(recipe.model.get("method"))
            if state is not None:
                network, self.config = build_network(state["config"]), state["config"]
            elif start_from is not None:
                network, self.config = _take_over(recipe, start_from)
            else:
                self.config = method.configuration(dict(recipe.model))
                network = build_network(self.config)
            trains = Matched if recipe.training == "matched" else method
            self.method = trains(
                network.train(), recipe.losses, pretrained=pretrained, **recipe.options
            )
        except ModelError:
            raise
        except TypeError as error:
            raise RecipeError(f"options are {recipe.options}: {error}") from error
        except (
            ValueError
        ) as error:  # from the network's or the losses' own checks of what the recipe says
            raise RecipeError(str(error)) from error
        if state is None and start_from is None:
            self.method.start()
            small_start.start(self.method)
        self.method.to(device)
        # parts of a batch would write over each other's output
        self.method.graphs = device.type == "cuda" and recipe.accumulate == 1
        self.networks = {name: net.to(device).train() for name, net in self.method.networks.items()}
        self.optimisers = {name: self._optimiser(name) for name in self.method.optimisers}
        self.ema = EMA(self.networks["generator"], recipe.ema)
        self.best: dict[str, float] = {}
        self._readings = Readings()
        if state is not None:
            self._restore(state)
        if accelerator.num_processes > 1:
            # Not accelerator.prepare: it would put the mixed precision inside each network, also
            # into discriminators that must stay in float32. Buffers stay each process' own: batch
            # statistics, which the first one saves.
            place = [device] if device.type == "cuda" else None
            known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
            sync = (
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            )  # before torch 2.13
            # What is captured gives all its gradients at once, and DDP would ask for each as it
            # comes: see _part.
            captured = self.method.captured if self.method.graphs else ()
            for name, net in self.networks.items():
                if name not in captured and any(p.requires_grad for p in net.parameters()):
                    self.method.networks[name] = nn.parallel.DistributedDataParallel(
                        net, device_ids=place, gradient_as_bucket_view=True, **{sync: False}
                    )

    def _optimiser(self, name: str) -> torch.optim.Optimizer:
        recipe = self.recipe
        groups = [
            {"factor": 1.0} | group
            for group in self.method.parameter_groups(name, recipe)
            if group["params"]
        ]
        kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
        fused = self.accelerator.device.type == "cuda"
        return kind(
            groups,
            recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )

    def update(self, step: int, batch: Batch) -> None:
        """One step of all optimisers and of the EMA.

        Raises :class:`NonFiniteLoss` for the step before the last one: its losses are looked at
        now, when the device has them, so that the loop is a step ahead of the device and does not
        wait for it.
        """
        recipe = self.recipe
        rate = recipe.learning_rate * recipe.learning_rate_at(step)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
        self.check_finite(but=1)
        seed_torch(recipe, step, self.accelerator.process_index)
        moment = Moment(recipe.seed, step, recipe.steps)
        parts = batch.split(recipe.accumulate) if recipe.accumulate > 1 else [batch]
        steps = [self.method.training_step(part, moment) for part in parts]
        shown: Losses = {}
        for name in self.method.optimisers:
            shown |= self._part(name, steps, [len(part.names) / len(batch.names) for part in parts])
        for generator in steps:  # what a method does after its last part
            if next(generator, None) is not None:
                raise RuntimeError(f"{recipe.model['method']} trains more than its optimisers")
        self.ema.update(self.networks["generator"], step)
        self._readings.note(step + 1, batch, shown)

    def _part(
        self, name: str, steps: list[Iterator[tuple[str, Losses]]], shares: list[float]
    ) -> Losses:
        """Gradients of one optimiser from all micro-batches, and its step; the losses, and the
        gradient's norm."""
        optimiser, accelerator = self.optimisers[name], self.accelerator
        shown: Losses = {}
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for part, share in zip(steps, shares, strict=True):
            with self._without_reduction(len(steps) > 1), accelerator.autocast():
                found, losses = next(part)
                total = sum(losses.values()) * share
            if found != name:
                raise RuntimeError(
                    f"{self.recipe.model['method']} trains {found} where {name} was next"
                )
            with self._without_reduction(len(steps) > 1):
                accelerator.backward(total)
            for key, loss in losses.items():
                shown[key] = shown.get(key, 0.0) + loss.detach() * share
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        if all(
            p.grad is None for p in parameters
        ):  # a stage that does not train it: its moments stay as they are
            return shown
        if len(steps) > 1 or not self._reduced(name):
            self._reduce(parameters)
        scaler = accelerator.scaler
        if scaler is not None:
            scaler.unscale_(optimiser)
        if name == "generator":
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if self.recipe.clip_norm:
                nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip_norm, norm)
            if (
                scaler is None
            ):  # with float16 an infinite norm now and then is how the scale is found
                shown = {"norm": norm} | shown
        if scaler is None:
            optimiser.step()
        else:
            scaler.step(optimiser)
            scaler.update()
        return shown

    def _without_reduction(self, on: bool) -> contextlib.ExitStack:
        """Micro-batches add their gradients up in each process first: DDP would reduce a network's
        as soon as one of them is through, which for a network that is used in two parts of a step
        can be the wrong one."""
        stack = contextlib.ExitStack()
        for network in self.method.networks.values() if on else ():
            if isinstance(network, nn.parallel.DistributedDataParallel):
                stack.enter_context(network.no_sync())
        return stack

    def _reduced(self, optimiser: str) -> bool:
        """Whether DDP has made the gradients of all processes one."""
        networks = [self.method.networks[name] for name in self.method.optimisers[optimiser]]
        return all(isinstance(network, nn.parallel.DistributedDataParallel) for network in networks)

    def _reduce(self, parameters: list[Tensor]) -> None:
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.accelerator.num_processes
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def check_finite(self, but: int = 0) -> None:
        """Raises :class:`NonFiniteLoss`, with the batch saved, where losses or a gradient are not
        finite; waits for the device. ``but``: how many of the last steps are left for later."""
        found = self._readings.not_finite(but)
        if found is None:
            return
        step, batch, values = found
        process = self.accelerator.process_index
        file = self.out / (
            f"non-finite-{step}.pt" if process == 0 else f"non-finite-{step}-process-{process}.pt"
        )
        checkpoint.save(
            file,
            {"thermal": batch.thermal.cpu(), "visible": batch.visible.cpu(), "names": batch.names},
        )
        raise NonFiniteLoss(
            f"step {step}: {', '.join(f'{k} {float(v):g}' for k, v in values.items())}; the batch "
            f"is in {file}. Lower "
            "learning_rate or set precision to no, then train again: it goes on from the last "
            "checkpoint"
        )

    def losses(self) -> dict[str, float]:
        """Gradient norm and weighted losses of the last update, over all processes."""
        self.check_finite()
        values = self._readings.last
        found = self.accelerator.reduce(torch.stack([v.float() for v in values.values()]), "mean")
        return dict(zip(values, found.tolist(), strict=True))

    def note_scores(self, scores: dict[str, float]) -> bool:
        """Whether these validation scores are the best so far: by LPIPS where it is scored, else by
        PSNR."""
        better = not self.best or (
            scores["lpips"] < self.best["lpips"]
            if "lpips" in scores
            else scores["psnr"] > self.best["psnr"]
        )
        if better:
            self.best = scores
        return better

    def save(self, step: int) -> None:
        """``step-N.pt`` in place of the older one, and ``model.safetensors``: the averaged weights
        as float16.

        Every process calls it; the first one writes.
        """
        self.check_finite()
        pools = [{name: pool.pictures for name, pool in self.method.pools.items()}]
        if self.method.pools and self.accelerator.num_processes > 1:
            gathered: list = [None] * self.accelerator.num_processes
            dist.all_gather_object(gathered, _on_cpu(pools[0]))
            pools = gathered
        if not self.accelerator.is_main_process:
            return
        state = {
            "step": step, "config": self.config, "recipe": asdict(self.recipe), "best": self.best,
            "pools": pools,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "ema": self.ema.network.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
        }  # fmt: skip
        checkpoint.save(self.out / f"step-{step}.pt", state)
        for old in self.out.glob("step-*.pt"):
            if old.name != f"step-{step}.pt":
                old.unlink()
        self.save_model(self.out / "model.safetensors", step)

    def save_model(self, file: Path, step: int) -> None:
        """The averaged weights as float16, with their configuration and recipe."""
        training = {"recipe": asdict(self.recipe), "steps": step, **self.recipe.notes}
        save_model(file, self.ema.network, self.config, training, storage="float16")

    def _restore(self, state: dict) -> None:
        theirs, other = (
            state["recipe"],
            "train into another folder, with --from and this folder's model.safetensors",
        )
        if _plain(theirs["model"]) != _plain(self.recipe.model):
            raise RecipeError(
                f"{self.out} trains the model {theirs['model']}, the recipe says "
                f"{self.recipe.model}; {other}"
            )
        for what, mine in (("networks", self.networks), ("optimisers", self.optimisers)):
            if changed := mine.keys() ^ state[what].keys():
                raise RecipeError(
                    f"{self.out} has or lacks {', '.join(sorted(changed))}: its losses are "
                    f"{theirs['losses']}, the "
                    f"recipe says {self.recipe.losses}; {other}"
                )
            for name, part in mine.items():
                part.load_state_dict(state[what][name])
        self.ema.network.load_state_dict(state["ema"])
        self.best = state["best"]
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        mine = _plain(asdict(self.recipe))
        data = (
            "sources",
            "batch_size",
            "size",
            "shapes",
            "seed",
            "steps",
            "accumulate",
            "losses",
            "options",
            "training",
            "precision",
        )
        if changed := [name for name in data if _plain(theirs).get(name) != mine[name]]:
            warnings.warn(
                f"{self.out} goes on with other {', '.join(changed)} than it began with",
                stacklevel=2,
            )
        processes, me = self.accelerator.num_processes, self.accelerator.process_index
        if len(state["pools"]) == processes:
            for name, pool in self.method.pools.items():
                pool.pictures = [p.to(self.accelerator.device) for p in state["pools"][me][name]]
        elif self.method.pools:
            warnings.warn(
                f"the pictures in the discriminators' pools are of {len(state['pools'])} "
                "processes, now there are "
                f"{processes}: the pools start empty", stacklevel=2,
            )  # fmt: skip


def _on_cpu(pools: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [p.cpu() for p in pictures] for name, pictures in pools.items()}


def _plain(config: dict) -> dict:
    """With lists for tuples, as it comes back from JSON."""
    return json.loads(json.dumps(config))


def write_sheet(path: Path, network: nn.Module, pairs: Pairs, count: int = 8) -> None:
    """Input, output and truth of the first ``count`` centre crops side by side, JPEG."""
    rows, colour = [], without_text(network)
    for thermal, truth, meta in centre_crops(pairs, limit=count):
        grey = np.repeat(((thermal + 1) * 127.5).round().astype(np.uint8)[..., None], 3, axis=2)
        rows.append(np.concatenate([grey, colour(thermal, meta), truth], axis=1))
    half = (len(rows) + 1) // 2
    rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], axis=1)
    with atomic_write(path, durable=False) as file:
        Image.fromarray(sheet).save(file, format="JPEG", quality=88)
