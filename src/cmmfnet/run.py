"""A run: everything that changes while training, one update of it, and its way to disk and back."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from cmmfnet import checkpoint
from cmmfnet.data.batches import Batch
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluate import centre_crops, to_picture
from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet import CMMFNetMethod
from cmmfnet.perceptual import load_features
from cmmfnet.recipe import Recipe, RecipeError
from cmmfnet.text import WORDS, SentenceEncoder, load_tag_vectors
from cmmfnet.weights import ModelError, load_model, save_model

TAG_VECTORS = "clip-vitb16-cocostuff171.safetensors"


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the batch is saved beside the log."""


def build(recipe: Recipe, pretrained: Path | None) -> tuple[nn.Module, dict]:
    """The network of a recipe with its pre-trained parts in place, and its configuration. Raises ``ValueError``."""
    config = dict(recipe.model)
    if config.get("text") == "clip-tags":
        config.setdefault("words", list(WORDS))
    network = build_network(config)
    if config.get("text") == "clip-tags":
        if pretrained is None:
            warnings.warn("no folder of pre-trained files: the vectors of words start at random", stacklevel=2)
        else:
            names, vectors = load_tag_vectors(Path(pretrained) / TAG_VECTORS)
            index = {w: i for i, w in enumerate(network.words)}
            with torch.no_grad():
                for name, vector in zip(names, vectors, strict=True):
                    if name in index:
                        network.word_vectors[index[name]] = vector
    if recipe.imagenet:
        network.image_encoder.load_imagenet(load_features("vgg16", pretrained))
    return network, config


def _take_over(recipe: Recipe, model: str) -> tuple[nn.Module, dict]:
    """The network and configuration of a trained model; the recipe's own ``model`` gives way to it."""
    loaded = load_model(model)
    if loaded.config["method"] != recipe.model.get("method"):
        raise RecipeError(f"{model} is a {loaded.config['method']}, the recipe trains a {recipe.model.get('method')}")
    if different := [k for k, v in _plain(recipe.model).items() if loaded.config.get(k) != v]:
        warnings.warn(f"{model} keeps its own {', '.join(different)}, which the recipe has otherwise", stacklevel=2)
    return loaded.network.requires_grad_(True), loaded.config


def _parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict]:
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

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


class Run:
    """Networks, optimisers and EMA of one training, in the folder ``out``.

    All draws of a step depend on (seed, step) alone, so that a restored run goes on exactly where it was saved.
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
        """A fresh run, one from the weights of the model ``start_from``, or one from a checkpoint's ``state``.

        Raises :class:`RecipeError` (or the loaders' own errors) for what cannot be built.
        """
        self.recipe, self.out, self.accelerator = recipe, out, accelerator
        device = accelerator.device
        torch.manual_seed(recipe.seed)
        try:
            if state is not None:
                network, self.config = build_network(state["config"]), state["config"]
            elif start_from is not None:
                network, self.config = _take_over(recipe, start_from)
            else:
                network, self.config = build(recipe, pretrained)
            self.network = network.to(device).train()
            self.method = CMMFNetMethod(
                self.network, recipe.losses, perceptual=recipe.perceptual, perceptual_mode=recipe.perceptual_mode,
                pretrained=pretrained, text_dropout=recipe.text_dropout, device=device,
                sentences=SentenceEncoder() if network.text_source == "clip-sentence" else None,
            )  # fmt: skip
        except ModelError:
            raise
        except ValueError as error:  # from the network's or the losses' own checks of what the recipe says
            raise RecipeError(str(error)) from error
        fused = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.network, recipe), recipe.learning_rate, betas=recipe.betas, fused=fused
        )
        self.ema = EMA(self.network, recipe.ema)
        self.parts = {"network": self.network, "ema": self.ema.network, "optimiser": self.optimiser}
        self.judge = None
        if self.method.discriminator is not None:
            weights = self.method.discriminator.to(device).parameters()
            self.judge = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.5, 0.999), fused=fused)
            self.parts |= {"discriminator": self.method.discriminator, "judge": self.judge}
        self._pending: tuple[int, Batch, dict[str, Tensor]] | None = None
        if state is not None:
            self._restore(state)

    def update(self, step: int, batch: Batch) -> None:
        """One step of the generator, the discriminator (where there is one) and the EMA.

        Raises :class:`NonFiniteLoss` for the step before: its losses are looked at now, when the device has them, so
        that the loop never waits for the device.
        """
        recipe = self.recipe
        rate = recipe.learning_rate * recipe.learning_rate_at(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.check_finite()
        with self.accelerator.autocast():
            losses, colour = self.method.generator_losses(batch, np.random.default_rng([recipe.seed, step, 2]))
        if "adversarial" in losses and step < recipe.adversarial_start * recipe.steps:
            del losses["adversarial"]
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(sum(losses.values()))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        self.optimiser.step()
        if self.judge is not None:
            for group in self.judge.param_groups:
                group["lr"] = rate
            losses["discriminator"] = self.method.discriminator_loss(batch, colour)
            self.judge.zero_grad(set_to_none=True)
            self.accelerator.backward(losses["discriminator"])
            self.judge.step()
        self.ema.update(self.network, step)
        self._pending = (step + 1, batch, {"norm": norm} | {k: v.detach() for k, v in losses.items()})

    def check_finite(self) -> None:
        """Raises :class:`NonFiniteLoss`, with the batch saved, where the last losses or gradient are not finite."""
        if self._pending is None or torch.stack(list(self._pending[2].values())).isfinite().all():
            return
        step, batch, values = self._pending
        file = self.out / f"non-finite-{step}.pt"
        checkpoint.save(file, {"thermal": batch.thermal.cpu(), "visible": batch.visible.cpu(), "names": batch.names})
        raise NonFiniteLoss(
            f"step {step}: {', '.join(f'{k} {float(v):g}' for k, v in values.items())}; the batch is in {file}. Lower "
            "learning_rate or set precision to no, then train again: it goes on from the last checkpoint"
        )

    def losses(self) -> dict[str, float]:
        """Gradient norm and weighted losses of the last update."""
        self.check_finite()
        return {k: float(v) for k, v in self._pending[2].items()}

    def save(self, step: int) -> None:
        """``step-N.pt`` in place of the older one, and ``model.safetensors``: the averaged weights as float16."""
        self.check_finite()
        recipe = asdict(self.recipe)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": step, "random": checkpoint.random_state(), "config": self.config, "recipe": recipe}
        checkpoint.save(self.out / f"step-{step}.pt", state)
        for old in self.out.glob("step-*.pt"):
            if old.name != f"step-{step}.pt":
                old.unlink()
        training = {"recipe": recipe, "steps": step, **self.recipe.notes}
        save_model(self.out / "model.safetensors", self.ema.network, self.config, training, storage="float16")

    def _restore(self, state: dict) -> None:
        theirs, other = (
            state["recipe"],
            "train into another folder, with --start-from and this folder's model.safetensors",
        )
        if _plain(theirs["model"]) != _plain(self.recipe.model):
            raise RecipeError(
                f"{self.out} trains the model {theirs['model']}, the recipe says {self.recipe.model}; {other}"
            )
        if changed := self.parts.keys() ^ (state.keys() - {"step", "random", "config", "recipe"}):
            raise RecipeError(
                f"{self.out} has or lacks {', '.join(sorted(changed))}: its losses are {theirs['losses']}, the recipe "
                f"says {self.recipe.losses}; {other}"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        checkpoint.restore_random_state(state["random"])


def _plain(config: dict) -> dict:
    """With lists for tuples, as it comes back from JSON."""
    return json.loads(json.dumps(config))


def write_sheet(path: Path, network: nn.Module, pairs: Pairs, count: int = 8) -> None:
    """Input, output and truth of the first ``count`` centre crops side by side, JPEG."""
    rows = []
    device = next(network.parameters()).device
    for thermal, truth, _ in centre_crops(pairs, limit=count):
        with torch.inference_mode():
            colour = to_picture(network(torch.from_numpy(thermal)[None, None].to(device))[0])
        grey = np.repeat(((thermal + 1) * 127.5).round().astype(np.uint8)[..., None], 3, axis=2)
        rows.append(np.concatenate([grey, colour, truth], axis=1))
    half = (len(rows) + 1) // 2
    rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, quality=88)
