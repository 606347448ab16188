"""OnnxColorizer: what ``cmmfnet export`` wrote, run by ONNX Runtime. No torch is imported, nor
needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmmfnet.colorizer.base import Batch, FrameColorizer, Token
from cmmfnet.text.attributes import attribute_weights
from cmmfnet.weights.known import ModelError

FORMAT = "cmmfnet-onnx-1"
TEXT_INPUTS = ("text", "text_mask", "text_colours")  # the parts of a token, in its order
Sentences = Callable[[Sequence[str]], tuple[Any, Any]]


@dataclass(frozen=True)
class Device:
    type: str  # "cpu" or "cuda"


@dataclass(frozen=True)
class OnnxNetwork:
    """What the file says about its network, under the names that a network of ``cmmfnet.methods``
    has."""

    text_source: str
    words: list[str]
    multiple_of: int
    fixed_size: int | None
    least_size: int
    working_size: int
    predicts_tags: bool
    default_text: str
    tag_threshold: float
    takes_colours: bool = False


class OnnxColorizer(FrameColorizer):
    """Colours thermal pictures with an exported model; called as ``Colorizer`` is.

        >>> colorizer = OnnxColorizer.from_pretrained("cmmfnet.onnx")         # doctest: +SKIP
        >>> colour = colorizer("frame.png", text="a street at night")         # doctest: +SKIP

    Several threads may call one OnnxColorizer.
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
                Other models know their words by themselves.

        Raises:
            ModelError: no such file, not an exported model, or no such device. ImportError:
                onnxruntime is missing.
        """
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
        options.log_severity_level = (
            3  # it warns that inputs with a default are no constants, which is what they are for
        )
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
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("format") != FORMAT:
            raise ModelError(
                f"{path} is no graph of cmmfnet export: its metadata say "
                f"format={metadata.get('format')!r}, expected {FORMAT!r}"
            )
        try:
            self.network = OnnxNetwork(
                text_source=metadata["text_source"], default_text=metadata["default_text"],
                **{key: json.loads(metadata[key]) for key in (
                    "words", "multiple_of", "fixed_size", "least_size", "working_size",
                    "predicts_tags", "tag_threshold",
                )},
                # files from before have no such key
                takes_colours=json.loads(metadata.get("takes_colours", "false")),
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"{path}: its metadata are incomplete or no JSON ({error}); export the model again"
            ) from error
        self.metadata = dict(metadata)
        self.name = metadata.get("model", path.stem)
        self._sentences = sentences
        super().__init__()

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto") -> OnnxColorizer:
        """As ``Colorizer.from_pretrained``, of a file that ``cmmfnet export`` wrote."""
        return cls(name, device=device)

    # --- what FrameColorizer leaves to the runtime

    def _run(
        self, thermal: np.ndarray, texts: list[str | None], seen: Batch | None = None
    ) -> np.ndarray:
        """(B, H, W) and B texts -> (B, 3, H, W) float32 in [-1, 1]. ``seen`` is filled in."""
        tokens = self._tokens(thermal, texts, seen)
        feed = {"thermal": thermal[:, None]}
        given = [token for token in tokens if token is not None]
        if given:  # frames without text have no valid token, which is what no text is to the graph
            length = max(len(token[1]) for token in given)
            for part, name in enumerate(TEXT_INPUTS[: len(given[0])]):
                like = np.asarray(given[0][part])
                feed[name] = np.zeros((len(texts), length, *like.shape[1:]), like.dtype)
                for row, token in zip(feed[name], tokens, strict=True):
                    if token is not None:
                        row[: len(token[part])] = token[part]
        if seen is not None and seen.probabilities is None:
            colour, seen.probabilities = self._session.run(["colour", "tags"], feed)
        else:
            (colour,) = self._session.run(["colour"], feed)
        if not np.isfinite(colour).all():
            raise FloatingPointError(
                f"model {self.name!r} gave NaN or infinite colours; export it without --half"
            )
        return colour

    def _predict(self, thermal: np.ndarray) -> np.ndarray:
        return self._session.run(["tags"], {"thermal": thermal[:, None]})[0]

    def _embed(self, names: list[str], colours: list[str | None] | None = None) -> Token | None:
        """The graph has the words' vectors and wants to be told which, and what is said of each."""
        if not names:
            return None
        ids = np.array([self.network.words.index(name) for name in names], dtype=np.int64)
        said = (
            ()
            if colours is None
            else (np.stack([attribute_weights(colour) for colour in colours]),)
        )
        return ids, np.ones(len(ids), dtype=bool), *said

    def _sentence(self, text: str) -> Token:
        if self._sentences is None:
            raise ModelError(
                f"model {self.name!r} takes whole sentences, which a CLIP text encoder makes "
                "tokens of; give "
                "OnnxColorizer(..., sentences=cmmfnet.text.sentences.SentenceEncoder()), or "
                "colour without text"
            )
        tokens, mask = self._sentences([text])
        return np.asarray(tokens, dtype=np.float32)[0], np.asarray(mask, dtype=bool)[0]


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
