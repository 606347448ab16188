"""A run: everything that changes while training, one update of it, and its way to disk and back."""

from __future__ import annotations

import contextlib
import inspect
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from cmmfnet.data.batches import Batch
from cmmfnet.data.fields import RecipeError
from cmmfnet.files.errors import UserError
from cmmfnet.methods import build_network, method_class
from cmmfnet.methods.matched import Matched
from cmmfnet.methods.method import Losses, StepContext
from cmmfnet.training import checkpoint, small_start
from cmmfnet.training.averaging import EMA, Readings
from cmmfnet.training.checkpoint import CheckpointError
from cmmfnet.training.recipe import Recipe
from cmmfnet.weights.building import build_fitting, check_values, shapes_of
from cmmfnet.weights.files import load_model, save_model
from cmmfnet.weights.known import ModelError


class NonFiniteLoss(UserError):
    """A loss or a weight became NaN or infinite; nothing of it was saved as a checkpoint."""


_LOWER = (
    "Lower learning_rate or set precision to no, then train again: it goes on from the last "
    "checkpoint"
)


def seed_torch(recipe: Recipe, step: int, process: int) -> None:
    """Seed torch's generator, for modules that draw themselves (dropout, diffusion noise), by
    (seed, step, process). So a run has no random state that a checkpoint would need, and goes on
    with the same random numbers, even on other machines."""
    words = np.random.SeedSequence([recipe.seed, step, process]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)


def _take_over(recipe: Recipe, model: str) -> tuple[nn.Module, dict]:
    """The network and configuration of a trained model, which replace the recipe's ``model``."""
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


def _fresh(recipe: Recipe) -> tuple[nn.Module, dict]:
    """A network as the recipe has it, and its full configuration."""
    config = method_class(recipe.model.get("method")).configuration(dict(recipe.model))
    shapes_of(config)  # refuses a network that no machine can hold
    return build_network(config), config


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
                network, self.config = self._build(state), state["config"]
            elif start_from is not None:
                network, self.config = _take_over(recipe, start_from)
            else:
                network, self.config = _fresh(recipe)
            check_values(recipe.options)
            trains = Matched if recipe.training == "matched" else method
            self.method = trains(
                network.train(), recipe.losses, pretrained=pretrained, **recipe.options
            )
        except CheckpointError:
            raise
        except TypeError as error:
            raise RecipeError(f"options are {recipe.options}: {error}") from error
        except ModelError as error:
            # start_from names its own file; a configuration comes from the recipe
            if start_from is not None:
                raise
            raise RecipeError(str(error.__cause__ or error)) from error
        except ValueError as error:  # the method's own checks
            raise RecipeError(str(error)) from error
        if state is None and start_from is None:
            self.method.start()
            small_start.start(self.method)
        self.method.to(device)
        self.method.accelerate()
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

    def _build(self, state: dict) -> nn.Module:
        try:
            return build_fitting(state["config"], state["networks"]["generator"])
        except (ModelError, KeyError) as error:
            raise self._unusable(f"does not fit its own network: {error}", state) from error

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
        moment = StepContext(recipe.seed, step, recipe.steps)
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
            f"is in {file}. {_LOWER}"
        )

    def losses(self) -> dict[str, float]:
        """Gradient norm and weighted losses of the last update, over all processes."""
        self.check_finite()
        values = self._readings.last
        found = self.accelerator.reduce(torch.stack([v.float() for v in values.values()]), "mean")
        return dict(zip(values, found.tolist(), strict=True))

    def note_scores(self, scores: dict[str, float]) -> bool:
        """Whether these validation scores are the best so far: by LPIPS if both have it, else by
        PSNR."""
        if "lpips" in scores.keys() & self.best.keys():
            better = scores["lpips"] < self.best["lpips"]
        else:
            better = not self.best or scores["psnr"] > self.best["psnr"]
        if better:
            self.best = scores
        return better

    def save(self, step: int) -> None:
        """Write ``model.safetensors``, the averaged weights as float16, and ``step-N.pt``; the
        older checkpoint is deleted last.

        Every process calls it; the first one writes. Raises :class:`NonFiniteLoss` before anything
        is written.
        """
        self.check_finite()
        for name, network in (*self.networks.items(), ("averaged generator", self.ema.network)):
            if wrong := checkpoint.not_finite(network.state_dict()):
                raise NonFiniteLoss(
                    f"step {step}: weights of the {name} are not finite ({wrong[0]}). {_LOWER}"
                )
        pools = [{name: pool.pictures for name, pool in self.method.pools.items()}]
        if self.method.pools and self.accelerator.num_processes > 1:
            gathered: list = [None] * self.accelerator.num_processes
            dist.all_gather_object(gathered, _on_cpu(pools[0]))
            pools = gathered
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "step": step, "config": self.config, "recipe": asdict(self.recipe), "best": self.best,
            "pools": pools, "ema": self.ema.network.state_dict(),
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimisers": {name: each.state_dict() for name, each in self.optimisers.items()},
            "scaler": scaler.state_dict() if scaler is not None else None,
        }  # fmt: skip
        self.save_model(self.out / "model.safetensors", step)
        file = self.out / f"step-{step}.pt"
        checkpoint.save(file, state)
        for old in self.out.glob("step-*.pt"):
            if old != file:
                old.unlink()

    def save_model(self, file: Path, step: int) -> None:
        """The averaged weights as float16, with their configuration and recipe."""
        training = {"recipe": asdict(self.recipe), "steps": step, **self.recipe.notes}
        save_model(file, self.ema.network, self.config, training, storage="float16")

    def _restore(self, state: dict) -> None:
        theirs = state["recipe"]
        other = f"train into another folder, with --from {self.out / 'model.safetensors'}"
        if _plain(theirs.get("model")) != _plain(self.recipe.model):
            raise RecipeError(
                f"{self.out} trains the model {theirs.get('model')}, the recipe says "
                f"{self.recipe.model}; {other}"
            )
        for what, mine in (("networks", self.networks), ("optimisers", self.optimisers)):
            if changed := mine.keys() ^ state[what].keys():
                raise RecipeError(
                    f"{self.out} has or lacks {', '.join(sorted(changed))}: its losses are "
                    f"{theirs.get('losses')}, the recipe says {self.recipe.losses}; {other}"
                )
        for name, network in self.networks.items():
            self._load(network, state, "networks", name)
        self._load(self.ema.network, state, "ema")
        for name, optimiser in self.optimisers.items():
            hyperparameters = [dict(group) for group in optimiser.param_groups]
            self._load(optimiser, state, "optimisers", name)
            for group, fresh in zip(optimiser.param_groups, hyperparameters, strict=True):
                group.update(fresh)  # betas, weight decay: from the recipe
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self._load(self.accelerator.scaler, state, "scaler")
        self.best = state["best"]
        mine = _plain(asdict(self.recipe))
        data = (
            "sources", "batch_size", "size", "shapes", "seed", "steps", "accumulate", "losses",
            "options", "training", "precision",
        )  # fmt: skip
        theirs = _plain(theirs)
        if changed := [name for name in data if theirs.get(name, mine[name]) != mine[name]]:
            warnings.warn(
                f"{self.out} goes on with other {', '.join(changed)} than it began with",
                stacklevel=2,
            )
        self._restore_pools(state["pools"])

    def _load(self, part: Any, state: dict, *keys: str) -> None:
        """``part.load_state_dict`` with what the checkpoint has for it, of the same shapes, finite
        weights. Raises :class:`CheckpointError`."""
        found = state
        for key in keys:
            found = found[key]
        try:
            part.load_state_dict(found)
            for parameter, moments in getattr(part, "state", {}).items():
                for name, value in moments.items():
                    if value.ndim and value.shape != parameter.shape:
                        raise ValueError(f"{name} is {tuple(value.shape)} for {parameter.shape}")
            wrong = checkpoint.not_finite(found) if isinstance(part, nn.Module) else []
        except Exception as error:  # load_state_dict raises almost anything for other contents
            reason = " ".join(str(error).split())
            raise self._unusable(f"does not fit: {' '.join(keys)}: {reason:.300}", state) from error
        if wrong:
            raise self._unusable(f"holds NaN or infinite values ({wrong[0]})", state)

    def _unusable(self, reason: str, state: dict) -> CheckpointError:
        return CheckpointError(self.out / f"step-{state['step']}.pt", reason)

    def _restore_pools(self, pools: list[dict[str, list[Tensor]]]) -> None:
        processes, me = self.accelerator.num_processes, self.accelerator.process_index
        if len(pools) == processes:
            for name, pool in self.method.pools.items():
                pool.pictures = [p.to(self.accelerator.device) for p in pools[me][name]]
        elif self.method.pools:
            warnings.warn(
                f"the checkpoint has the discriminators' pools of {len(pools)} processes, now "
                f"there are {processes}: the pools start empty",
                stacklevel=2,
            )


def _on_cpu(pools: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [p.cpu() for p in pictures] for name, pictures in pools.items()}


def _plain(config: dict) -> dict:
    """With lists for tuples, as it comes back from JSON."""
    return json.loads(json.dumps(config))
