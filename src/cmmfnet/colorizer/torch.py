"""Colorizer: a PyTorch network coloured with. Any picture in, colour of the same size out.

The network knows tensors of certain sizes. Stretching, sizes and padding, batches and text are
frame_colorizer.py's; here live devices, number types and the way of arrays through the network.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.colorizer.base import Batch, FrameColorizer
from cmmfnet.colorizer.sizes import guided_upsample, pad
from cmmfnet.files.errors import UserError
from cmmfnet.nn.fast.graphs import GraphedInference
from cmmfnet.nn.fast.modules import accelerate
from cmmfnet.text.attributes import attribute_weights
from cmmfnet.text.sentences import SentenceEncoder, WordEncoder, tag_ids
from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.stretch_cuda import normalised, stretched_counts
from cmmfnet.weights.files import load_model


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

    Several threads may call one Colorizer: its only state are bounded caches, of texts and, on
    CUDA, of graphs.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        name: str = "network",
        guidance: float = 1.0,
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

        Raises:
            DeviceError: ``device`` is not there. ValueError: another ``guidance``.
        """
        if not 0 <= guidance <= 4:
            raise ValueError(
                f"guidance is {guidance}; expected 0 (text has no effect) to 4, 1 is as trained"
            )
        self.guidance = guidance
        self.device = pick_device(device)
        half = dtype is None and _has_bfloat16(self.device)
        on_gpu, takes_float32 = self.device.type == "cuda", getattr(network, "takes_float32", False)
        # On a GPU the weights are cast once; with a network that keeps float32 where it matters,
        # autocast is not needed, whose own casts take a tenth of a frame's time.
        self._mixed = half and not (on_gpu and takes_float32)
        self.dtype = dtype or (torch.bfloat16 if half and not self._mixed else torch.float32)
        self.input_dtype = torch.float32 if takes_float32 else self.dtype
        self.network = accelerate(
            network.to(self.device, torch.bfloat16 if half and on_gpu else self.dtype).eval()
        )
        self._forward = GraphedInference(self.network) if on_gpu else self.network
        # frames stay tensors on a GPU; elsewhere they are arrays
        self._stretched = GraphedInference(stretched_counts) if on_gpu else None
        self.name = name
        super().__init__()
        self._sentences: SentenceEncoder | None = None
        self._words: WordEncoder | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "cmmfnet",
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        guidance: float = 1.0,
    ) -> Colorizer:
        """A Colorizer with released or trained weights: a known name, a .safetensors file, or
        hf:OWNER/REPO@COMMIT.

        Raises:
            ModelError: not found, not safetensors, or damaged. DeviceError: ``device`` is not
                there.
        """
        device = pick_device(device)  # before the time is spent on loading
        model = load_model(name)
        return cls(model.network, device=device, dtype=dtype, name=model.name, guidance=guidance)

    # --- what FrameColorizer leaves to the runtime

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed),
        ):
            yield

    def _stretch(self, frame: Thermal, span: tuple[float, float] | None) -> np.ndarray | Tensor:
        if self._stretched is None:
            return super()._stretch(frame, span)
        return normalised(frame, span, self.device, self._stretched)

    def _reduce(self, frame: np.ndarray | Tensor) -> np.ndarray | Tensor:
        if isinstance(frame, np.ndarray):
            return super()._reduce(frame)
        size = self._working_size(*frame.shape)
        return frame if size == frame.shape else _resize(frame[None], size, "bilinear")[0]

    def _batch(self, frames: list[np.ndarray] | list[Tensor]) -> Tensor:
        if isinstance(frames[0], np.ndarray):
            return torch.from_numpy(super()._batch(frames))
        multiple = self._multiple()
        return torch.stack([_pad(frame, multiple) for frame in frames])

    def _finish(
        self, colour: Tensor, low: np.ndarray | Tensor, full: np.ndarray | Tensor
    ) -> np.ndarray:
        total = colour.sum()  # of values in [-1, 1]; one that is not finite makes the sum so
        if isinstance(full, np.ndarray):
            self._check(total)
            return super()._finish(colour.cpu().numpy(), low, full)
        if low.shape != full.shape:  # on the GPU, so that only the finished picture is downloaded
            if low.shape[0] >= full.shape[0] and low.shape[1] >= full.shape[1]:
                colour = _resize(colour, full.shape, "bilinear")
            else:
                colour = guided_upsample(
                    colour, low[None], full[None], resize=_resize, box_mean=_box_mean
                )
        picture = (
            ((colour + 1) * 127.5).round_().clamp_(0, 255).byte().permute(1, 2, 0).contiguous()
        )
        # the host has not waited for anything so far, and waits once, for both
        picture, total = (x.to("cpu", non_blocking=True) for x in (picture, total))
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        self._check(total)
        return picture.numpy().copy()

    def _check(self, total: Tensor) -> None:
        if not math.isfinite(total):
            raise FloatingPointError(
                f"model {self.name!r} gave NaN or infinite colours in {self.dtype}; use float32"
            )

    def _run(self, thermal: Tensor, texts: list[str | None], seen: Batch | None = None) -> Tensor:
        """(B, H, W) and B texts -> (B, 3, H, W) float32 in [-1, 1], or not finite, which
        ``_finish`` refuses. ``seen`` is filled in."""
        tokens = self._tokens(thermal, texts, seen)
        probabilities: list[np.ndarray | None] = [None] * len(texts)
        heads = seen is not None and seen.probabilities is None and _has_heads(self.network)
        if seen is not None and seen.probabilities is None and not heads:
            seen.probabilities = self._predict(thermal)
        thermal = thermal[:, None].to(self.device, self.input_dtype)

        def colours(indices: list[int], *tokens: Tensor | None) -> Tensor:
            frames = thermal if len(indices) == len(thermal) else thermal[indices]
            if not heads:
                return self._forward(frames, *tokens).float()
            # what was seen on the way to the colours: the image encoder need not run again for the
            # tags
            colour, logits, _ = self._forward(frames, *tokens, heads=True)
            for i, row in zip(indices, torch.sigmoid(logits.float()).cpu().numpy(), strict=True):
                probabilities[i] = row
            return colour.float()

        parts: list[tuple[list[int], Tensor]] = []
        with_text = [i for i, token in enumerate(tokens) if token is not None]
        without = [i for i, token in enumerate(tokens) if token is None]
        if with_text:
            text = nn.utils.rnn.pad_sequence([tokens[i][0] for i in with_text], batch_first=True)
            mask = nn.utils.rnn.pad_sequence([tokens[i][1] for i in with_text], batch_first=True)
            told = colours(with_text, text, mask)
            if self.guidance != 1:
                alone = self._forward(thermal[with_text], None, None).float()
                told = (alone + self.guidance * (told - alone)).clamp(-1, 1)
            parts.append((with_text, told))
        if without:
            parts.append((without, colours(without, None, None)))
        colour = parts[0][1]
        if len(parts) > 1:
            colour = torch.empty(len(texts), *colour.shape[1:], device=self.device)
            for indices, some in parts:
                colour[indices] = some
        if heads:
            seen.probabilities = np.stack(probabilities)
        return colour

    def _predict(self, thermal: Tensor) -> np.ndarray:
        return (
            self.network.predict_tags(thermal[:, None].to(self.device, self.input_dtype))
            .float()
            .cpu()
            .numpy()
        )

    def _embed(
        self, names: list[str], colours: list[str | None] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        if not names:
            return None
        ids, mask = tag_ids([names], self.network.words)
        said = (
            ()
            if colours is None
            else (torch.from_numpy(np.stack([[attribute_weights(c) for c in colours]])),)
        )
        tokens = self.network.embed_tags(
            ids.to(self.device), *(weights.to(self.device) for weights in said)
        )
        return tokens[0], mask[0].to(self.device)

    def _vectors(self, words: tuple[str, ...]) -> dict[str, Tensor]:
        """CLIP vectors, where CLIP is on this machine and the network still has the projection that
        they go through; in a released file it is folded into the table of known names."""
        if not words or not isinstance(getattr(self.network, "text_projection", None), nn.Linear):
            return {}
        with self._lock:
            if self._words is None:
                self._words = WordEncoder()
            found = self._words(words)
        for vector in found.values():
            if len(vector) != self.network.text_projection.in_features:
                raise ValueError(
                    f"the CLIP text encoder gives vectors of {len(vector)} numbers and model "
                    f"{self.name!r} takes "
                    f"{self.network.text_projection.in_features}; CMMFNET_TEXT_ENCODER must name "
                    "the one it was trained with"
                )
        return {word: vector.to(self.device, self.dtype) for word, vector in found.items()}

    def _join(
        self, token: tuple[Tensor, Tensor] | None, vectors: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        rows, given = (
            torch.stack(vectors),
            torch.ones(len(vectors), dtype=torch.bool, device=self.device),
        )
        if token is None:
            token = self._embed([self.network.words[0]])  # for its width alone
            token = token[0][:0], token[1][:0]
        rows = F.pad(
            rows, (0, token[0].shape[1] - rows.shape[1])
        )  # a network may know more of a name than its vector
        return torch.cat([token[0], rows.to(token[0].dtype)]), torch.cat([token[1], given])

    def _sentence(self, text: str) -> tuple[Tensor, Tensor]:
        with self._lock:
            if self._sentences is None:
                self._sentences = SentenceEncoder()
            tokens, mask = self._sentences([text])
        return tokens[0].to(self.device, self.dtype), mask[0].to(self.device)


def _has_heads(network: nn.Module) -> bool:
    """Whether the network gives its tag logits beside the colours: ``forward(..., heads=True)``, as
    CMMFNet does."""
    return "heads" in inspect.signature(network.forward).parameters


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it, not only a slow way to compute it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch has no public name for a CPU's; where a release drops the private one, float32 it is
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def _pad(frame: Tensor, multiple: int) -> Tensor:
    """``sizes.pad`` for a tensor (H, W)."""
    for axis, side in enumerate(frame.shape):
        if side % multiple:
            frame = frame.index_select(axis, _padded_places(side, multiple, frame.device))
    return frame


@functools.lru_cache(maxsize=64)
def _padded_places(side: int, multiple: int, device: torch.device) -> Tensor:
    """Index of the row or column that stands at each place of a padded side."""
    with torch.inference_mode(False):  # a tensor that any later call may use
        return torch.from_numpy(pad(np.arange(side)[None], multiple)[0]).to(device)


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """``resampling.resize`` for tensors (C, h, w)."""
    # CUDA's filter lies in shared memory and is refused where a side shrinks by some 90 times or
    # more, as it does for frames of one or two rows, which are coloured enlarged
    shrinks = max(old / new for old, new in zip(x.shape[1:], size, strict=True))
    place = torch.device("cpu") if shrinks > 32 else x.device
    resized = F.interpolate(
        x[None].to(place), tuple(size), mode=mode, antialias=True, align_corners=False
    )
    return resized[0].to(x.device)


def _box_mean(x: Tensor, radius: int) -> Tensor:
    """``resampling.box_mean`` for tensors (C, h, w)."""
    return F.avg_pool2d(F.pad(x[None], (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)[
        0
    ]
