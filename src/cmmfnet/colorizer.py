"""Colorizer: everything around the network. Any picture in, colour of the same size out.

The network knows tensors of certain sizes. Here live stretching, sizes and padding, batches, text, devices and the way
back to 8-bit RGB.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.text import SentenceEncoder, parse_tags, tag_ids, warn_unknown
from cmmfnet.thermal import Thermal, normalise, parse_span, read_thermal
from cmmfnet.weights import load_model

Source = str | Path | bytes | np.ndarray | Thermal
Span = str | tuple[float, float]


class DeviceError(ValueError):
    """The device asked for is not there, or too small; the message says what to use instead."""


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """``auto`` -> CUDA where there is a GPU, else Apple's MPS, else the CPU; anything else is checked to be there.

    Raises:
        DeviceError: no such device on this machine.
    """
    if device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {device!r}; expected auto, cpu, cuda, cuda:1 or mps") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {device!r} was asked for, but this machine has no usable CUDA GPU "
            f"(torch {torch.__version__}); use --device cpu, or auto"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device!r} was asked for, but this machine has {torch.cuda.device_count()} CUDA GPUs"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but this machine has no Apple GPU; use --device cpu, or auto")
    return chosen


class Colorizer:
    """Colours thermal pictures with one network.

        >>> colorizer = Colorizer.from_pretrained()                           # doctest: +SKIP
        >>> colour = colorizer("frame.png", text="a road, trees and a car")   # doctest: +SKIP
        >>> colour.shape, colour.dtype                                        # doctest: +SKIP
        ((512, 640, 3), dtype('uint8'))

    Several threads may call one Colorizer: its only state is a bounded cache of texts.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        name: str = "network",
    ):
        """
        Args:
            network: keeps the contract of ``cmmfnet.methods``; put into evaluation mode and moved to ``device``.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
            dtype: of weights and activations; None means float32 weights, and bfloat16 arithmetic on a CPU that has it
                (twice as fast there, mean difference below half a grey level); ``torch.float32`` forbids that.
            name: what pictures made with it are labelled with.

        Raises:
            DeviceError: ``device`` is not there.
        """
        self.device = pick_device(device)
        self.dtype = dtype or torch.float32
        self._mixed = dtype is None and self.device.type == "cpu" and _cpu_has_bfloat16()
        self.network = network.to(self.device, self.dtype).eval()
        self.name = name
        self._text = functools.lru_cache(maxsize=256)(self._encode_text)
        self._sentences: SentenceEncoder | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "cmmfnet", device: str | torch.device = "auto", dtype: torch.dtype | None = None
    ) -> Colorizer:
        """A Colorizer with released or trained weights: a known name, a .safetensors file, or hf:OWNER/REPO@COMMIT.

        Raises:
            ModelError: not found, not safetensors, or damaged. DeviceError: ``device`` is not there.
        """
        device = pick_device(device)  # before the time is spent on loading
        model = load_model(name)
        return cls(model.network, device=device, dtype=dtype, name=model.name)

    def __call__(
        self,
        x: Source | Sequence[Source],
        *,
        text: str | Sequence[str | None] | None = None,
        span: Span | None = None,
        palette: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Colour one picture or a list of pictures.

        Args:
            x: path, file contents, array (H, W), or Thermal; or a list of those, of any mix of sizes.
            text: what is to be seen, in words; one for all pictures or a list with one for each. None: the network's
                own default (it may predict tags). ``""``: no text.
            span: lowest and highest value shown, in the picture's own units (degrees or counts), as ``(20, 35)`` or
                ``"20,35"``. None: each frame is stretched between its 1st and 99th percentile.
            palette: name of the false-colour palette that the pictures were saved in; None for grey pictures.
            batch_size: frames of equal size that go through the network together; None: 8 on CUDA, else 1.

        Returns:
            (H, W, 3) uint8 RGB of the input's own size; a list of those for a list.

        Raises:
            ThermalFileError: not a picture that can be read. ValueError: lists of different length.
        """
        single = not isinstance(x, list | tuple)
        frames = [read_thermal(item, palette=palette) for item in ([x] if single else x)]
        texts = list(text) if isinstance(text, list | tuple) else [text] * len(frames)
        if len(texts) != len(frames):
            raise ValueError(f"{len(texts)} texts for {len(frames)} pictures; give one text for all, or one for each")
        span = parse_span(span) if isinstance(span, str) else span
        size = batch_size or (8 if self.device.type == "cuda" else 1)

        results: list[np.ndarray | None] = [None] * len(frames)
        full = [torch.from_numpy(np.ascontiguousarray(normalise(frame, span), dtype=np.float32)) for frame in frames]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._mixed):
            for indices in _batches([self._network_size(*frame.shape) for frame in full], size):
                low = [self._reduce(full[i]) for i in indices]
                colour = self._run(
                    torch.stack([_pad(frame, self._multiple()) for frame in low]), [texts[i] for i in indices]
                )
                for i, frame, rgb in zip(indices, low, colour, strict=True):
                    results[i] = self._finish(rgb[:, : frame.shape[0], : frame.shape[1]], frame, full[i])
        return results[0] if single else results

    def tags(
        self, x: Source, top: int = 8, *, span: Span | None = None, palette: str | None = None
    ) -> list[tuple[str, float]]:
        """The things that the network believes to be in the picture: ``top`` pairs (name, probability in [0, 1]).

        Raises:
            ValueError: this network predicts no tags.
        """
        if not getattr(self.network, "predicts_tags", False):
            raise ValueError(f"model {self.name!r} predicts no tags")
        thermal = normalise(read_thermal(x, palette=palette), parse_span(span) if isinstance(span, str) else span)
        with torch.inference_mode():
            frame = _pad(self._reduce(torch.from_numpy(np.ascontiguousarray(thermal))), self._multiple())
            probabilities = self.network.predict_tags(frame[None, None].to(self.device, self.dtype))[0].float().cpu()
        best = probabilities.topk(min(top, len(probabilities)))
        return [(self.network.words[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    # --- sizes

    def _multiple(self) -> int:
        return getattr(self.network, "fixed_size", None) or getattr(self.network, "multiple_of", 8)

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a frame is coloured, before padding: short side between ``least_size`` and ``working_size``.

        A network is trained with objects of a certain size in pixels; on a frame far larger than those of training it
        takes a wall for a road, and on one far smaller it sees none. The last bound keeps memory finite for very long,
        narrow frames.
        """
        if fixed := getattr(self.network, "fixed_size", None):
            return fixed, fixed
        least, working = getattr(self.network, "least_size", 0), getattr(self.network, "working_size", 512)
        scale = min(
            max(1.0, least / min(height, width)), working / min(height, width), 2 * working / math.sqrt(height * width)
        )
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        return tuple(
            math.ceil(side / self._multiple()) * self._multiple() for side in self._working_size(height, width)
        )

    def _reduce(self, frame: Tensor) -> Tensor:
        """(H, W) -> (h, w) at working size, antialiased."""
        size = self._working_size(*frame.shape)
        if size == tuple(frame.shape):
            return frame
        return F.interpolate(frame[None, None], size, mode="bilinear", antialias=True, align_corners=False)[0, 0]

    def _finish(self, colour: Tensor, low: Tensor, full: Tensor) -> np.ndarray:
        """Colour (3, h, w) in [-1, 1] at working size -> (H, W, 3) uint8."""
        if low.shape[0] >= full.shape[0] and low.shape[1] >= full.shape[1] and low.shape != full.shape:
            colour = F.interpolate(colour[None], full.shape, mode="bilinear", antialias=True, align_corners=False)[0]
        elif low.shape != full.shape:
            low, full = low.to(colour.device), full.to(colour.device)
            colour = guided_upsample(colour[None], low[None, None], full[None, None])[0]
        return ((colour + 1) * 127.5).round_().clamp_(0, 255).byte().permute(1, 2, 0).contiguous().cpu().numpy()

    # --- network and text

    def _run(self, thermal: Tensor, texts: list[str | None]) -> Tensor:
        """(B, H, W) and B texts -> (B, 3, H, W) float32 in [-1, 1]."""
        thermal = thermal[:, None].to(self.device, self.dtype)
        tokens = [self._text(text) if text is not None else None for text in texts]
        if None in texts and getattr(self.network, "default_text", "none") == "predicted":
            probabilities = self.network.predict_tags(thermal).float().cpu()
            for i, text in enumerate(texts):
                if text is None:
                    order = probabilities[i].argsort(descending=True).tolist()  # tag_ids keeps the first 16
                    likely = [j for j in order if probabilities[i, j] > self.network.tag_threshold]
                    tokens[i] = self._embed([self.network.words[j] for j in likely])
        colour = torch.empty(len(texts), 3, *thermal.shape[-2:], device=self.device)
        with_text = [i for i, token in enumerate(tokens) if token is not None]
        without = [i for i, token in enumerate(tokens) if token is None]
        if with_text:
            text = nn.utils.rnn.pad_sequence([tokens[i][0] for i in with_text], batch_first=True)
            mask = nn.utils.rnn.pad_sequence([tokens[i][1] for i in with_text], batch_first=True)
            colour[with_text] = self.network(thermal[with_text], text, mask).float()
        if without:
            colour[without] = self.network(thermal[without], None, None).float()
        if not torch.isfinite(colour).all():
            raise FloatingPointError(f"model {self.name!r} gave NaN or infinite colours in {self.dtype}; use float32")
        return colour

    def _encode_text(self, text: str) -> tuple[Tensor, Tensor] | None:
        """Text -> tokens (L, D) and mask (L) on the device; None where nothing in it means anything to the network."""
        source = getattr(self.network, "text_source", "none")
        if not text.strip():
            return None
        if source == "none":
            warnings.warn(f"model {self.name!r} takes no text; {text!r} has no effect", stacklevel=5)
            return None
        if source == "clip-tags":
            parsed = parse_tags(text, self.network.words)
            warn_unknown(parsed, self.network.words, stacklevel=5)
            return self._embed(list(parsed.tags))
        with self._lock:
            if self._sentences is None:
                self._sentences = SentenceEncoder()
            tokens, mask = self._sentences([text])
        return tokens[0].to(self.device, self.dtype), mask[0].to(self.device)

    def _embed(self, names: list[str]) -> tuple[Tensor, Tensor] | None:
        if not names:
            return None
        ids, mask = tag_ids([names], self.network.words)
        return self.network.embed_tags(ids.to(self.device))[0], mask[0].to(self.device)


def _cpu_has_bfloat16() -> bool:
    # torch has no public name for this; where a release drops the private one, float32 it is
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def _batches(sizes: list[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Indices of equal sizes together, at most ``limit`` at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), limit):
            yield group[start : start + limit]


def _pad(frame: Tensor, multiple: int) -> Tensor:
    """(H, W) -> the next multiples, at the right and bottom: mirrored as often as needed, a single pixel repeated."""
    height, width = frame.shape
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return frame
    # numpy's "reflect" goes on mirroring where torch's wants a pad smaller than the frame
    return torch.from_numpy(np.pad(frame.numpy(), ((0, down), (0, right)), mode="reflect"))


def guided_upsample(colour: Tensor, low: Tensor, full: Tensor, radius: int = 2, eps: float = 1e-2) -> Tensor:
    """Bring colour up to the size of the thermal frame it came from, with that frame's fine edges.

    As in the fast guided filter (He & Sun 2015, arXiv 1505.00996), each colour channel is locally a line over the
    thermal value, fitted at low resolution in boxes of ``2 radius + 1`` px, its slope brought up bilinearly. Unlike
    there, the line does not give the colour itself, only the detail that the reduction took away:
    ``bicubic(colour) + slope * (full - bicubic(low))``. The filter proper keeps of the colour only what thermal
    brightness explains, so a red car as warm as the road goes grey. Measured on 24 real daytime pairs, whose true
    colours were reduced four times and brought back: the filter 19.4 dB, SSIM .46 (radius 4); plain bicubic 24.2, .70;
    this 24.3, .70, with 1.3 times the gradient of bicubic and no halos to be seen.

    Args:
        colour: (B, 3, h, w) in [-1, 1].
        low: (B, 1, h, w), the thermal frame at that size.
        full: (B, 1, H, W), the thermal frame itself, in the same units.

    Returns:
        (B, 3, H, W), which may overshoot [-1, 1].
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)

    def up(x: Tensor, mode: str) -> Tensor:
        return F.interpolate(x, full.shape[-2:], mode=mode, align_corners=False)

    mean_low, mean_colour = mean(low), mean(colour)
    slope = (mean(low * colour) - mean_low * mean_colour) / (mean(low * low) - mean_low * mean_low + eps)
    return up(colour, "bicubic") + up(mean(slope), "bilinear") * (full - up(low, "bicubic"))
