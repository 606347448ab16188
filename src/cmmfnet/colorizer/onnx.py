"""OnnxColorizer: pictures coloured by a graph of ``cmmfnet export``, run by ONNX Runtime. No
torch."""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmmfnet.colorizer.base import FrameColorizer, Runtime, Tokens
from cmmfnet.methods.traits import Traits
from cmmfnet.text.attributes import attribute_weights
from cmmfnet.weights.known import ModelError

FORMAT = "cmmfnet-onnx-1"
TEXT_INPUTS = ("text", "text_mask", "text_colours")  # the parts of a text, in its order
Sentences = Callable[[Sequence[str]], tuple[Any, Any]]


@dataclass(frozen=True)
class Device:
    type: str  # "cpu" or "cuda"


class OnnxColorizer(FrameColorizer):
    """Colours thermal pictures with an exported model; called as ``Colorizer`` is.

        >>> colorizer = OnnxColorizer.from_pretrained("cmmfnet.onnx")         # doctest: +SKIP
        >>> colour = colorizer("frame.png", text="a street at night")         # doctest: +SKIP

    Several threads may call one OnnxColorizer. It can be pickled and copied: the copy reads the
    file again.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        sentences: Sentences | None = None,
    ):
        """
        Args:
            path: a file that ``cmmfnet export`` wrote.
            device: ``cpu``; ``cuda``, with onnxruntime-gpu; ``auto``: CUDA where onnxruntime has
                it.
            threads: of one call on the CPU; None: as many as this process may use.
            sentences: for a model that takes whole sentences: B texts -> tokens (B, L, D) and mask
                (B, L), such as ``cmmfnet.text.sentences.SentenceEncoder()`` (which needs torch).
                Other models know their words by themselves, and a model knows its default prompt.

        Raises:
            ModelError: no such file, not an exported model, or no such device. ImportError:
                onnxruntime is missing.
        """
        self._options = {"device": device, "threads": threads, "sentences": sentences}
        super().__init__(OnnxRuntime(path, **self._options))
        self.metadata = self.runtime.metadata
        self._path = path

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto") -> OnnxColorizer:
        """As ``Colorizer.from_pretrained``, of a file that ``cmmfnet export`` wrote."""
        return cls(name, device=device)

    def __reduce__(self) -> tuple:
        return _rebuilt, (type(self), self._path, self._options)


def _rebuilt(cls: type[OnnxColorizer], path: str | Path, options: dict[str, Any]) -> OnnxColorizer:
    return cls(path, **options)


class OnnxRuntime(Runtime):
    """A graph and its session."""

    not_finite = "; export it without --half"

    def __init__(
        self, path: str | Path, *, device: str, threads: int | None, sentences: Sentences | None
    ):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "an .onnx model needs ONNX Runtime: pip install 'cmmfnet[onnx]'"
            ) from error
        path = Path(path)
        if not path.is_file():
            raise ModelError(f"no model file {path} (looked in {path.absolute().parent})")
        self.device = Device(_pick(device, onnxruntime.get_available_providers()))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or _cpus()
        # it warns that inputs with a default are no constants, which is what they are for
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider"] if self.device.type == "cuda" else []
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common type but this
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise ModelError(
                f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}"
            ) from error
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        if self.metadata.get("format") != FORMAT:
            raise ModelError(
                f"{path} is no graph of cmmfnet export: its metadata say "
                f"format={self.metadata.get('format')!r}, expected {FORMAT!r}"
            )
        try:
            self.traits = Traits.from_strings(self.metadata)
            self._default = default_tokens(self.metadata)
        except ValueError as error:
            raise ModelError(
                f"{path}: its metadata are incomplete or wrong ({error}); export the model again"
            ) from error
        self.name = self.metadata.get("model", path.stem)
        self._sentences, self._lock = sentences, threading.Lock()

    def run(
        self, batch: np.ndarray, texts: Sequence[Tokens | None], *, tags: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        feed = {"thermal": batch[:, None]} | self._text_feed(texts)
        if tags:
            return tuple(self._session.run(["colour", "tags"], feed))
        return self._session.run(["colour"], feed)[0], None

    def _text_feed(self, texts: Sequence[Tokens | None]) -> dict[str, np.ndarray]:
        """The inputs of text. A frame without text has no valid token; where no frame has text the
        inputs are left out, unless the graph has a default text."""
        given = [text for text in texts if text is not None]
        if not given and self._default is None:
            return {}
        parts = given[0] if given else self._default
        length = max((len(text[1]) for text in given), default=1)
        feed = {}
        for part, name in enumerate(TEXT_INPUTS[: len(parts)]):
            like = np.asarray(parts[part])
            feed[name] = np.zeros((len(texts), length, *like.shape[1:]), like.dtype)
            for row, text in zip(feed[name], texts, strict=True):
                if text is not None:
                    row[: len(text[part])] = text[part]
        return feed

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return self._session.run(["tags"], {"thermal": batch[:, None]})[0]

    def embed(
        self, names: Sequence[str], colours: Sequence[str | None], vectors: Sequence[Any] = ()
    ) -> Tokens:
        """Indices of words and weights of colours: the graph has the words' vectors."""
        ids = np.array([self.traits.words.index(name) for name in names], dtype=np.int64)
        weights = (np.stack([attribute_weights(colour) for colour in colours]),)
        return ids, np.ones(len(ids), dtype=bool), *(weights if self.traits.takes_colours else ())

    def encode(self, sentence: str) -> Tokens:
        if self._default is not None and sentence == self.traits.default_prompt:
            return self._default
        if self._sentences is None:
            raise ModelError(
                f"model {self.name!r} takes whole sentences, which a CLIP text encoder makes "
                "tokens of; give "
                "OnnxColorizer(..., sentences=cmmfnet.text.sentences.SentenceEncoder()), or "
                "colour without text"
            )
        with self._lock:
            tokens, mask = self._sentences([sentence])
        return np.asarray(tokens, dtype=np.float32)[0], np.asarray(mask, dtype=bool)[0]


DEFAULT_TOKENS = "default_tokens"


def default_tokens(metadata: Mapping[str, str]) -> Tokens | None:
    """Tokens (L, D) float32 and mask (L) of the default prompt in a graph's metadata; None for a
    graph without one.

    Raises:
        ValueError: they are no numbers of the shape that the metadata give.
    """
    if DEFAULT_TOKENS not in metadata:
        return None
    shape, _, data = metadata[DEFAULT_TOKENS].partition(":")
    try:
        length, width = (int(side) for side in shape.split("x"))
        tokens = np.frombuffer(base64.b64decode(data, validate=True), np.float32)
        tokens = tokens.reshape(length, width)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{DEFAULT_TOKENS} cannot be read: {error}") from error
    if not np.isfinite(tokens).all():
        raise ValueError(f"{DEFAULT_TOKENS} has values that are not finite")
    return tokens, np.ones(length, dtype=bool)


def default_tokens_string(tokens: np.ndarray) -> str:
    """Tokens (L, D) for a graph's metadata: the shape, ":" and float32 in base64."""
    tokens = np.ascontiguousarray(tokens, dtype="<f4")
    return f"{tokens.shape[0]}x{tokens.shape[1]}:{base64.b64encode(tokens.tobytes()).decode()}"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pick(device: str, providers: list[str]) -> str:
    has_cuda = "CUDAExecutionProvider" in providers
    if device == "auto":
        return "cuda" if has_cuda else "cpu"
    if device not in ("cpu", "cuda"):
        raise ModelError(f"device is {device!r}; an .onnx model runs on cpu or cuda")
    if device == "cuda" and not has_cuda:
        raise ModelError(
            f"device 'cuda' was asked for, but this ONNX Runtime has {', '.join(providers)}; "
            "pip install onnxruntime-gpu in the place of onnxruntime, or use --device cpu"
        )
    return device
