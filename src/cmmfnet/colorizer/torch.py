"""Colorizer: pictures coloured by a PyTorch network, on the CPU or a GPU."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.colorizer import sizes, tensors
from cmmfnet.colorizer.base import FrameColorizer, Runtime, Tokens
from cmmfnet.files.errors import UserError
from cmmfnet.methods.traits import traits_of
from cmmfnet.nn.fast.graphs import GraphedInference
from cmmfnet.nn.fast.modules import accelerate
from cmmfnet.text.attributes import attribute_weights
from cmmfnet.text.clip import WordEncoder
from cmmfnet.text.sentences import SentenceEncoder
from cmmfnet.text.tags import tag_ids
from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.stretch_cuda import normalised, stretched_counts
from cmmfnet.weights.files import load_model
from cmmfnet.weights.known import parts

SECOND = 0.2
"""The part of the colours that a second model gives."""


class DeviceError(UserError):
    """The device asked for is not there, or too small; the message says what to use instead."""


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """``auto`` -> CUDA where there is a GPU, else Apple's MPS, else the CPU; anything else is
    checked to be there.

    Raises:
        DeviceError: no such device on this machine.
    """
    if device == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(
            f"unknown device {device!r}; expected auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {device!r} was asked for, but this machine has no usable CUDA GPU "
            f"(torch {torch.__version__}); use --device cpu, or auto"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device!r} was asked for, but this machine has {torch.cuda.device_count()} "
            "CUDA GPUs"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device 'mps' was asked for, but this machine has no Apple GPU; use --device cpu, or "
            "auto"
        )
    return chosen


class Colorizer(FrameColorizer):
    """Colours thermal pictures with one network.

        >>> colorizer = Colorizer.from_pretrained()                           # doctest: +SKIP
        >>> colour = colorizer("frame.png", text="a road, trees and a car")   # doctest: +SKIP
        >>> colour.shape, colour.dtype                                        # doctest: +SKIP
        ((512, 640, 3), dtype('uint8'))

    Several threads may call one Colorizer. It can be pickled and copied: the copy has weights of
    its own and empty caches. A process forked after a call must not use it (docs/models.md).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        name: str = "network",
        guidance: float = 1.0,
        second: nn.Module | None = None,
    ):
        """
        Args:
            network: keeps the contract of ``cmmfnet.methods``; put into evaluation mode and moved
                to ``device``.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
            dtype: of weights and activations; None means float32, with products in bfloat16 on a
                GPU or CPU that has it, as in training (on such a CPU twice as fast, mean difference
                below half a grey level); ``torch.float32`` forbids that.
            name: what pictures made with it are labelled with.
            guidance: how far a text moves the colours away from those without: colour without text
                + guidance * difference; 0 to 4, other values than 1 run the network twice for a
                frame with text.
            second: a network whose colours, without text, are mixed in (`TorchRuntime.mixed`); best
                one of another architecture. A frame with text then takes three passes.

        Raises:
            DeviceError: ``device`` is not there. ValueError: another ``guidance``, or a ``second``
                that takes one size only.
        """
        self._options = {
            "device": device, "dtype": dtype, "name": name, "guidance": guidance, "second": second,
        }  # fmt: skip
        super().__init__(TorchRuntime(network, **self._options))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "cmmfnet",
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        guidance: float = 1.0,
    ) -> Colorizer:
        """A Colorizer with released or trained weights: a known name, a .safetensors file, or
        hf:OWNER/REPO@COMMIT; or two of them, joined by a +: "cmmfnet+cmmfnet-small" mixes the
        second model's colours in.

        Raises:
            ModelError: not found, not safetensors, or damaged. DeviceError: ``device`` is not
                there.
        """
        device = pick_device(device)  # before the time is spent on loading
        model, *others = (load_model(part) for part in parts(name))
        return cls(
            model.network, device=device, dtype=dtype, guidance=guidance,
            name="+".join([model.name, *(other.name for other in others)]),
            second=others[0].network if others else None,
        )  # fmt: skip

    @property
    def network(self) -> nn.Module:
        return self.runtime.network

    def __reduce__(self) -> tuple:
        return _rebuilt, (type(self), self.network, self._options)


def _rebuilt(cls: type[Colorizer], network: nn.Module, options: dict[str, Any]) -> Colorizer:
    return cls(network, **options)


class TorchRuntime(Runtime):
    """A PyTorch network, its device and its number types. On CUDA frames are tensors from the
    stretch to the finished picture, and the network runs as a CUDA graph."""

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str | torch.device,
        dtype: torch.dtype | None,
        name: str,
        guidance: float,
        second: nn.Module | None = None,
    ):
        if not 0 <= guidance <= 4:
            raise ValueError(
                f"guidance is {guidance}; expected 0 (text has no effect) to 4, 1 is as trained"
            )
        if not isinstance(dtype, torch.dtype | None):
            raise TypeError(f"dtype is {dtype!r}; expected a torch.dtype, such as torch.float32")
        self.guidance, self.name = guidance, name
        self.device, self.traits = pick_device(device), traits_of(network)
        half = dtype is None and _has_bfloat16(self.device)
        on_cuda, takes_float32 = self.device.type == "cuda", self.traits.takes_float32
        # On a GPU the weights are cast once; with a network that keeps float32 where it matters,
        # autocast is not needed, whose own casts take a tenth of a frame's time.
        self._mixed = half and not (on_cuda and takes_float32)
        self.dtype = dtype or (torch.bfloat16 if half and not self._mixed else torch.float32)
        self.input_dtype = torch.float32 if takes_float32 else self.dtype
        self.not_finite = f" in {self.dtype}; use float32"
        weights = torch.bfloat16 if half and on_cuda else self.dtype
        self.network = accelerate(network.to(self.device, weights).eval())
        self.forward = GraphedInference(self.network) if on_cuda else self.network
        self.second: Callable | None = None
        if second is not None:
            theirs = traits_of(second)
            if theirs.fixed_size:
                raise ValueError(
                    f"the second network takes {theirs.fixed_size}x{theirs.fixed_size} pixels "
                    "alone; expected one that takes the first network's sizes"
                )
            step = math.lcm(self.traits.multiple_of, theirs.multiple_of)
            self.traits = replace(self.traits, multiple_of=step)
            second = accelerate(second.to(self.device, weights).eval())
            self.second = GraphedInference(second) if on_cuda else second
        self.frames_are_tensors = on_cuda
        self._stretched = GraphedInference(stretched_counts) if on_cuda else stretched_counts
        self._encoders: dict[type, Any] = {}
        self._lock = threading.Lock()
        self._process: int | None = None  # that made the first call

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        self._check_process()
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed),
        ):
            yield

    def stretch(self, thermal: Thermal, span: tuple[float, float] | None) -> np.ndarray | Tensor:
        if not self.frames_are_tensors:
            return super().stretch(thermal, span)
        return normalised(thermal, span, self.device, self._stretched)

    def sizes(self, frame: np.ndarray | Tensor) -> ModuleType:
        return sizes if isinstance(frame, np.ndarray) else tensors

    def array(self, colour: Tensor | np.ndarray) -> np.ndarray:
        return colour if isinstance(colour, np.ndarray) else colour.cpu().numpy()

    def run(
        self, batch: np.ndarray | Tensor, texts: Sequence[Tokens | None], *, tags: bool = False
    ) -> tuple[Tensor, np.ndarray | None]:
        """As ``Runtime.run``; with ``heads`` tags come from the pass that gives the colours."""
        heads = tags and self.traits.heads
        rows: list[np.ndarray | None] = [None] * len(texts)
        probabilities = self.predict(batch) if tags and not heads else None
        thermal = self.on_device(batch)

        def colours(indices: list[int], *text: Tensor | None) -> Tensor:
            frames = thermal if len(indices) == len(thermal) else thermal[indices]
            if not heads:
                return self.forward(frames, *text).float()
            colour, logits, _ = self.forward(frames, *text, heads=True)
            for i, row in zip(indices, torch.sigmoid(logits.float()).cpu().numpy(), strict=True):
                rows[i] = row
            return colour.float()

        done: list[tuple[list[int], Tensor]] = []
        with_text = [i for i, text in enumerate(texts) if text is not None]
        without = [i for i, text in enumerate(texts) if text is None]
        if with_text:
            tokens, mask = (
                nn.utils.rnn.pad_sequence([texts[i][part] for i in with_text], batch_first=True)
                for part in (0, 1)
            )
            guided = colours(with_text, tokens, mask)
            if self.guidance != 1 or self.second is not None:
                plain = self.forward(thermal[with_text], None, None).float()
                guided = (plain + self.guidance * (guided - plain)).clamp(-1, 1)
                guided = self.mixed(guided, plain, thermal, with_text)
            done.append((with_text, guided))
        if without:
            plain = colours(without, None, None)
            done.append((without, self.mixed(plain, plain, thermal, without)))
        colour = done[0][1]
        if len(done) > 1:
            colour = torch.empty(len(texts), *colour.shape[1:], device=self.device)
            for indices, some in done:
                colour[indices] = some
        return colour, np.stack(rows) if heads else probabilities

    def mixed(self, colour: Tensor, plain: Tensor, thermal: Tensor, rows: list[int]) -> Tensor:
        """``colour`` (B,3,H,W), moved by a fifth of the way from the first network's colours
        without text, ``plain``, to the second network's of the ``rows`` of ``thermal``; ``colour``
        where there is no second network.

        Two networks err in different places, so that the mean of both is nearer to the truth
        (docs/training.md#softened-pairs). A text moves the colours as much as without a second.
        """
        if self.second is None:
            return colour
        other = self.second(thermal[rows], None, None).float()
        return (colour + SECOND * (other - plain)).clamp(-1, 1)

    def predict(self, batch: np.ndarray | Tensor) -> np.ndarray:
        return self.network.predict_tags(self.on_device(batch)).float().cpu().numpy()

    def on_device(self, batch: np.ndarray | Tensor) -> Tensor:
        """A batch (B, H, W) as the network takes it: (B, 1, H, W)."""
        return torch.as_tensor(batch)[:, None].to(self.device, self.input_dtype)

    def embed(
        self,
        names: Sequence[str],
        colours: Sequence[str | None],
        vectors: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        # of no names one token is made, too, for the width of a token alone
        ids, mask = tag_ids([list(names) or [self.traits.words[0]]], self.traits.words)
        more = ()
        if self.traits.takes_colours:
            weights = [attribute_weights(colour) for colour in colours] or [attribute_weights(None)]
            more = (torch.from_numpy(np.stack([weights])).to(self.device),)
        tokens = self.network.embed_tags(ids.to(self.device), *more)[0]
        mask = mask[0].to(self.device)
        if not vectors:
            return tokens, mask
        # columns that a network has for names alone are 0
        rows = F.pad(torch.stack(list(vectors)), (0, tokens.shape[1] - len(vectors[0])))
        count = len(names)
        given = torch.ones(len(vectors), dtype=torch.bool, device=self.device)
        return torch.cat([tokens[:count], rows.to(tokens.dtype)]), torch.cat([mask[:count], given])

    def vectors(self, words: tuple[str, ...]) -> dict[str, Tensor]:
        """CLIP vectors, where CLIP is on this machine and the network still has the projection that
        they go through; in a released file the projection is folded into the table of names."""
        projection = getattr(self.network, "text_projection", None)
        if not words or not isinstance(projection, nn.Linear):
            return {}
        with self._lock:
            found = self._encoder(WordEncoder)(words)
        for vector in found.values():
            if len(vector) != projection.in_features:
                raise ValueError(
                    f"the CLIP text encoder gives vectors of {len(vector)} numbers and model "
                    f"{self.name!r} takes {projection.in_features}; CMMFNET_TEXT_ENCODER must name "
                    "the one it was trained with"
                )
        return {word: vector.to(self.device, self.dtype) for word, vector in found.items()}

    def encode(self, sentence: str) -> tuple[Tensor, Tensor]:
        with self._lock:
            tokens, mask = self._encoder(SentenceEncoder)([sentence])
        return tokens[0].to(self.device, self.dtype), mask[0].to(self.device)

    def _encoder(self, kind: type) -> Any:
        if kind not in self._encoders:
            self._encoders[kind] = kind()
        return self._encoders[kind]

    def _check_process(self) -> None:
        """A forked process has none of the threads that its parent computes with."""
        if self._process is None:
            self._process = os.getpid()
        elif self._process != os.getpid() and torch.get_num_threads() > 1:
            raise RuntimeError(
                "this process was forked from one that had coloured pictures, and would wait for "
                "the threads of that process for ever; start processes by "
                "multiprocessing.get_context('spawn'), or call torch.set_num_threads(1) first"
            )


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it, not only a slow way to compute it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch has no public name for a CPU's; where a release drops the private one, float32 it is
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
