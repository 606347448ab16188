"""Method: the networks, losses and training step of a paper, as the training loop uses them. Each
paper's module has one subclass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cmmfnet.nn.fast.modules import accelerate

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch
    from cmmfnet.training.recipe import Recipe

Losses = dict[str, Tensor]
"""Name -> scalar, multiplied by its weight."""


@dataclass(frozen=True)
class StepContext:
    """A step of the training, and its random numbers.

    A random number is a function of (seed, step, position of the picture in the whole batch), so
    that neither resuming nor the number of processes changes it. Modules that draw themselves
    (dropout) use torch's generator, which the loop seeds by (seed, step, process).
    """

    seed: int
    step: int
    steps: int

    @property
    def progress(self) -> float:
        """The finished part of the training, in [0, 1)."""
        return self.step / self.steps

    def rng(self, position: int) -> np.random.Generator:
        """Random generator of one picture of the step; ``Batch.positions`` has the positions."""
        return np.random.default_rng([self.seed, self.step, 2, position])


class Method:
    """Networks, losses and one training step of a paper.

    Attributes of the class:
        Network: the generator. Its constructor's keywords are ``model`` in a recipe and the
            configuration in a model file. ``forward(thermal (B,1,H,W) in [-1,1], text=None,
            text_mask=None) -> (B,3,H,W) in [-1,1]``. Its attributes with the names of traits
            (``cmmfnet.methods.traits.Traits``: ``multiple_of``, ``fixed_size``, ...) tell callers
            what it takes; without any it takes sides that are multiples of 8, and no text.
        title, paper: as tables and `cmmfnet models` print them
        paired: whether it learns from aligned pairs; otherwise ``Batch.visible`` shows other scenes
            than ``Batch.thermal``
        frames: 1; or 3, then ``Batch.thermal`` is (B,3,1,H,W) and ``Batch.visible`` (B,3,3,H,W),
            neighbours in time
        LOSSES: the paper's losses and their weights; a recipe may choose other weights
        optimisers: optimiser -> the names of the networks that it trains
        captured: the networks that a step may run as CUDA graphs

    ``networks`` holds every trained network by name, "generator" among them. The loop puts a
    DistributedDataParallel in the place of each that is not captured where there are several
    processes, so a step takes its networks from there when it runs. All parameters of a network
    must reach the losses of its optimiser (DDP waits for each of them).
    """

    Network: ClassVar[type[nn.Module]]
    title: ClassVar[str]
    paper: ClassVar[str]
    paired: ClassVar[bool] = True
    frames: ClassVar[int] = 1
    LOSSES: ClassVar[dict[str, float]]
    optimisers: ClassVar[dict[str, tuple[str, ...]]] = {"generator": ("generator",)}
    captured: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, network: nn.Module, losses: dict[str, float], *, pretrained: str | Path | None = None
    ):
        """``losses``: name -> weight; a weight of 0 leaves out a loss and the parts that only this
        loss needs. ``pretrained``: folder of loss networks (perceptual.py). The keywords that a
        subclass adds are ``options`` in a recipe.

        Raises ``ValueError`` for an unknown loss.
        """
        if unknown := set(losses) - set(self.LOSSES):
            raise ValueError(
                f"unknown loss {', '.join(sorted(unknown))}; expected some of "
                f"{', '.join(self.LOSSES)}"
            )
        self.weights = {name: weight for name, weight in losses.items() if weight}
        self.pretrained = pretrained
        self.networks: dict[str, nn.Module] = {"generator": network}
        self.pools: dict[str, ImagePool] = {}
        self.graphs = (
            False  # whether a step may capture its networks as CUDA graphs; the loop says so
        )

    @classmethod
    def configuration(cls, model: dict) -> dict:
        """The full configuration of a fresh network, from ``model`` of a recipe."""
        return model

    @classmethod
    def extended(cls, network: nn.Module, config: dict, model: dict) -> tuple[nn.Module, dict]:
        """A trained network and its configuration, with the parts that ``model`` of a recipe adds;
        here none."""
        return network, config

    @classmethod
    def size(cls, network: nn.Module) -> int:
        """Parameters of one of its networks, as the paper's code counts them."""
        return sum(p.numel() for p in network.parameters())

    def start(self) -> None:
        """Load the pre-trained parts of a fresh network. Not called for a network that was trained
        before."""

    def to(self, device: torch.device) -> None:
        """Move the modules that are not in ``networks`` (frozen loss networks) to the device."""

    def accelerate(self) -> None:
        """Put the fast twins (nn/fast/modules.py) into the networks and the frozen loss
        networks."""
        for part in (*self.networks.values(), *vars(self).values()):
            if isinstance(part, nn.Module):
                accelerate(part)

    def parameter_groups(self, optimiser: str, recipe: Recipe) -> list[dict]:
        """Groups for Adam or AdamW: "params" and, where they differ from the recipe's, "factor" (on
        the learning rate), "betas", "weight_decay"."""
        networks = [self.networks[name] for name in self.optimisers[optimiser]]
        return [
            {"params": [p for network in networks for p in network.parameters() if p.requires_grad]}
        ]

    def training_step(self, batch: Batch, moment: StepContext) -> Iterator[tuple[str, Losses]]:
        """One step, as a generator. ``yield optimiser, losses`` hands losses to the loop; when the
        generator goes on, that optimiser has made its step. Local variables carry results from an
        earlier part to a later one:

            fake = self.networks["generator"](batch.thermal)
            yield "generator", {"l1": ..., "adversarial": ...}
            yield "discriminator", {"discriminator": ...}

        Every call must yield the same optimisers in the same order, each with at least one loss
        that has a gradient. Runs under the recipe's mixed precision; discriminators belong in
        :func:`in_full_precision`.
        """
        raise NotImplementedError


class frozen:
    """``with frozen(network) as judge``: gradients pass through ``judge`` to its inputs, and its
    weights get none.

    For a generator's loss through a discriminator. ``judge`` is the network without its
    DistributedDataParallel, which would wait for gradients that never come.
    """

    def __init__(self, network: nn.Module):
        self.network = unwrapped(network)

    def __enter__(self) -> nn.Module:
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        return self.network

    def __exit__(self, *_) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def with_factors(groups: list[dict], factors: dict[int, float]) -> list[dict]:
    """Parameter groups, split by the factor on their learning rate. ``factors``: ``id`` of a
    parameter -> factor; others have 1."""
    parts = []
    for group in groups:
        for factor in dict.fromkeys((1.0, *factors.values())):
            chosen = [p for p in group["params"] if factors.get(id(p), 1.0) == factor]
            parts.append(group | {"params": chosen, "factor": factor})
    return parts


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside a DistributedDataParallel, or the network."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def in_full_precision(network: nn.Module, *inputs: Tensor):
    """``network(*inputs)`` in float32 whatever the mixed precision around it: half precision turns
    GANs black."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        return network(*(x.float() for x in inputs))


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the device, by way of pinned memory: from other memory the host would wait for all
    pending work of the device."""
    return (
        x.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda" and not x.is_cuda
        else x.to(device)
    )


class ImagePool:
    """The last pictures of a generator, for its discriminator (Shrivastava et al., CVPR 2017,
    section 2.3).

    Until the pool has ``size`` pictures, a call returns its input. Then, with probability 1/2 for
    each picture, it returns an older picture, which the new one replaces. ``pictures`` is part of a
    run's state: it is saved and restored for each process.
    """

    def __init__(self, size: int = 50):
        self.size = size
        self.pictures: list[Tensor] = []

    def __call__(self, pictures: Tensor, batch: Batch, moment: StepContext) -> Tensor:
        """(B,...) -> (B,...), detached."""
        out = []
        for picture, position in zip(pictures.detach(), batch.positions, strict=True):
            rng = moment.rng(position)
            if len(self.pictures) < self.size:
                self.pictures.append(picture.clone())
            elif rng.random() < 0.5:
                chosen = int(rng.integers(self.size))
                self.pictures[chosen], picture = picture.clone(), self.pictures[chosen]
            out.append(picture)
        return torch.stack(out)
