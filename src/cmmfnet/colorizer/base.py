"""What every Colorizer shares, whatever runs its network: reading, stretching, sizes, batches,
text. No torch.

``Colorizer`` (colorizer.py) runs a PyTorch network, ``OnnxColorizer`` (onnx_runtime.py) an exported
graph.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cmmfnet.colorizer.sizes import guided_upsample, pad, resize, to_picture
from cmmfnet.text.attributes import said_of
from cmmfnet.text.parser import Parsed, warn_unknown
from cmmfnet.text.prompt import CorrectionError, Prompt, read_prompt
from cmmfnet.text.vocabulary import MAX_TAGS, WORDS
from cmmfnet.thermal.frame import Thermal, read_thermal
from cmmfnet.thermal.stretch import normalise, parse_span

Source = str | Path | bytes | np.ndarray | Thermal
Span = str | tuple[float, float]
Token = tuple[
    Any, ...
]  # what stands for one text: tokens (L, ...) and mask (L), of the runtime's own array type


class FrameColorizer:
    """Any picture in, colour of the same size out. A subclass says how arrays get through its
    network.

    ``network`` is described by attributes, each with a default where it has none: ``multiple_of``,
    ``fixed_size``, ``least_size``, ``working_size``, ``text_source``, ``words``, ``predicts_tags``,
    ``default_text``, ``tag_threshold``. ``device.type`` is "cpu", "cuda" or "mps".
    """

    network: Any
    device: Any
    name: str

    def __init__(self) -> None:
        self._text = functools.lru_cache(maxsize=256)(self._encode_text)

    # --- what a subclass has: tensors are those of its runtime

    def _inference(self) -> contextlib.AbstractContextManager:
        """What one call of the network happens in."""
        return contextlib.nullcontext()

    def _stretch(self, frame: Thermal, span: tuple[float, float] | None) -> Any:
        """-> (H, W) float32 in [-1, 1], as an array or as the runtime's tensor; the next two take
        what this gives."""
        return np.ascontiguousarray(normalise(frame, span), dtype=np.float32)

    def _reduce(self, frame: Any) -> Any:
        """(H, W) -> (h, w) at working size, antialiased."""
        size = self._working_size(*frame.shape)
        return frame if size == frame.shape else resize(frame, size)

    def _batch(self, frames: list[Any]) -> Any:
        """Frames (h, w) of one size -> the runtime's tensor (B, H, W) for ``_run``, padded to what
        the network takes."""
        return np.stack([pad(frame, self._multiple()) for frame in frames])

    def _run(self, thermal: Any, texts: list[str | None], seen: Batch | None = None) -> Any:
        """Tensor (B, H, W) and B texts -> (B, 3, H, W) float32 in [-1, 1]; calls ``_tokens`` for
        the texts. ``seen``: to be filled in with what the network sees, for one that predicts
        tags."""
        raise NotImplementedError

    def _predict(self, thermal: Any) -> np.ndarray:
        """Tensor (B, H, W) -> (B, words) float32: the probability of each of the network's
        words."""
        raise NotImplementedError

    def _embed(self, names: list[str], colours: list[str | None] | None = None) -> Token | None:
        """Known names, and what colour is said of each, -> the token that stands for them; None for
        none.

        Colours come only where the network has ``takes_colours``.
        """
        raise NotImplementedError

    def _sentence(self, text: str) -> Token:
        """A whole sentence -> its tokens, for networks that take those."""
        raise NotImplementedError

    # --- calls

    def __call__(
        self,
        x: Source | Sequence[Source],
        *,
        text: str | Sequence[str | None] | None = None,
        span: Span | None = None,
        palette: str | None = None,
        batch_size: int | None = None,
        return_tags: bool = False,
    ) -> np.ndarray | list[np.ndarray] | tuple:
        """Colour one picture or a list of pictures.

        Args:
            x: path, file contents, array (H, W), or Thermal; or a list of those, of any mix of
                sizes.
            text: what is to be seen, in words; one for all pictures or a list with one for each.
                None: the network's own default (it may predict tags). ``""``: no text. ``"+snow
                -grass"``: what the network predicts for the frame, with snow and without grass
                (docs/text.md).
            span: lowest and highest value shown, in the picture's own units (degrees or counts), as
                ``(20, 35)`` or ``"20,35"``. None: each frame is stretched between its 1st and 99th
                percentile.
            palette: name of the false-colour palette that the pictures were saved in; None for grey
                pictures.
            batch_size: frames of equal size that go through the network together; None: 8 on CUDA,
                else 1.
            return_tags: also return what the network sees, at no cost of its own.

        Returns:
            (H, W, 3) uint8 RGB of the input's own size; a list of those for a list. With
            ``return_tags`` that and a ``Seen``, or a list of those.

        Raises:
            ThermalFileError: not a picture that can be read. ValueError: lists of different length;
                tags or corrections of them are asked for and this network predicts none.
        """
        single = not isinstance(x, list | tuple)
        frames = [read_thermal(item, palette=palette) for item in ([x] if single else x)]
        texts = list(text) if isinstance(text, list | tuple) else [text] * len(frames)
        if len(texts) != len(frames):
            raise ValueError(
                f"{len(texts)} texts for {len(frames)} pictures; give one text for all, or one "
                "for each"
            )
        span = parse_span(span) if isinstance(span, str) else span
        size = batch_size or (8 if self.device.type == "cuda" else 1)
        if return_tags:
            self._check_predicts()

        results: list[np.ndarray | None] = [None] * len(frames)
        seen: list[Seen | None] = [None] * len(frames)
        with self._inference():
            full = [self._stretch(frame, span) for frame in frames]
            for indices in _batches([self._network_size(*frame.shape) for frame in full], size):
                low = [self._reduce(full[i]) for i in indices]
                found = Batch() if return_tags else None
                colour = self._run(self._batch(low), [texts[i] for i in indices], found)
                for i, frame, rgb in zip(indices, low, colour, strict=True):
                    results[i] = self._finish(
                        rgb[:, : frame.shape[0], : frame.shape[1]], frame, full[i]
                    )
                if found is not None:
                    for place, i in enumerate(indices):
                        seen[i] = Seen(
                            self._likeliest(found.probabilities[place]), found.told.get(place)
                        )
        if return_tags:
            return (results[0], seen[0]) if single else (results, seen)
        return results[0] if single else results

    def tags(
        self, x: Source, top: int = 8, *, span: Span | None = None, palette: str | None = None
    ) -> list[tuple[str, float]]:
        """The things that the network believes to be in the picture: ``top`` pairs (name,
        probability in [0, 1]).

        Raises:
            ValueError: this network predicts no tags.
        """
        self._check_predicts()
        frame = read_thermal(x, palette=palette)
        with self._inference():
            low = self._reduce(
                self._stretch(frame, parse_span(span) if isinstance(span, str) else span)
            )
            probabilities = self._predict(self._batch([low]))[0]
        return self._likeliest(probabilities, top)

    def _likeliest(self, probabilities: np.ndarray, top: int = 8) -> list[tuple[str, float]]:
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.network.words[i], float(probabilities[i])) for i in best]

    def _check_predicts(self) -> None:
        if not getattr(self.network, "predicts_tags", False):
            raise ValueError(f"model {self.name!r} predicts no tags")

    # --- sizes

    def _multiple(self) -> int:
        return getattr(self.network, "fixed_size", None) or getattr(self.network, "multiple_of", 8)

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a frame is coloured, before padding: short side between ``least_size``
        and ``working_size``.

        A network is trained with objects of a certain size in pixels; on a frame far larger than
        those of training it takes a wall for a road, and on one far smaller it sees none. The last
        bound keeps memory finite for very long, narrow frames.
        """
        if fixed := getattr(self.network, "fixed_size", None):
            return fixed, fixed
        least, working = (
            getattr(self.network, "least_size", 0),
            getattr(self.network, "working_size", 512),
        )
        scale = min(
            max(1.0, least / min(height, width)),
            working / min(height, width),
            2 * working / math.sqrt(height * width),
        )
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _network_size(self, height: int, width: int) -> tuple[int, int]:
        return tuple(
            math.ceil(side / self._multiple()) * self._multiple()
            for side in self._working_size(height, width)
        )

    def _finish(self, colour: Any, low: np.ndarray, full: np.ndarray) -> np.ndarray:
        """Colour (3, h, w) in [-1, 1] at working size -> (H, W, 3) uint8. It or ``_run`` raises
        ``FloatingPointError`` for colours that are not finite."""
        if low.shape != full.shape:
            if low.shape[0] >= full.shape[0] and low.shape[1] >= full.shape[1]:
                colour = resize(colour, full.shape)
            else:
                colour = guided_upsample(colour, low[None], full[None])
        return to_picture(colour)

    # --- text

    def _tokens(
        self, thermal: Any, texts: list[str | None], seen: Batch | None = None
    ) -> list[Token | None]:
        """What stands for each of B texts beside its frame; None where that is nothing. Fills in
        ``seen``."""
        tokens = [self._text(text) if text is not None else None for text in texts]
        by_default = getattr(self.network, "default_text", "none") == "predicted"
        predicted = {
            i
            for i, text in enumerate(texts)
            if (by_default if text is None else isinstance(tokens[i], Prompt))
        }
        if predicted:
            probabilities = self._predict(thermal)
            for i in predicted:
                order = np.argsort(-probabilities[i], kind="stable")
                likely = [
                    self.network.words[j]
                    for j in order
                    if probabilities[i, j] > self.network.tag_threshold
                ]
                prompt = tokens[i] or Prompt()
                names = (prompt.tags(likely) if texts[i] is not None else likely)[:MAX_TAGS]
                tokens[i] = self._embed_all(names, prompt, texts[i] or "")
                if seen is not None:
                    seen.told[i] = names
            if seen is not None:
                seen.probabilities = probabilities
        return tokens

    def _encode_text(self, text: str) -> Token | Prompt | None:
        """Text -> its token; None where nothing in it means anything to the network, a Prompt where
        it corrects what the network predicts for a frame."""
        source = getattr(self.network, "text_source", "none")
        if not text.strip():
            return None
        if source == "none":
            warnings.warn(
                f"model {self.name!r} takes no text; {text!r} has no effect", stacklevel=5
            )
            return None
        words = self.network.words if source == "clip-tags" else WORDS
        prompt = read_prompt(text, words)
        if prompt.needs_prediction and (
            source != "clip-tags" or not getattr(self.network, "predicts_tags", False)
        ):
            raise CorrectionError(
                f"model {self.name!r} predicts no tags, so {text!r} has nothing to start from; "
                "write what is to be seen"
            )
        if source == "clip-tags":
            encoded = self._vectors(tuple(prompt.unknown))
            unknown = [
                word for word in [*prompt.unknown, *prompt.unknown_removed] if word not in encoded
            ]
            warn_unknown(Parsed(unknown=unknown), words, stacklevel=5)
            return (
                prompt
                if prompt.needs_prediction
                else self._embed_all(prompt.tags()[:MAX_TAGS], prompt, text)
            )
        return self._sentence(text)

    def _vectors(self, words: tuple[str, ...]) -> dict[str, Any]:
        """Tokens (D,) of words that the network has no name for, as far as the runtime can get
        them."""
        return {}

    def _embed_all(self, names: list[str], prompt: Prompt, text: str) -> Token | None:
        """Names and, where there is room, the other words that the runtime has vectors for."""
        token = self._embed_said(names, prompt.colours, text)
        vectors = list(self._vectors(tuple(prompt.unknown)).values())[: MAX_TAGS - len(names)]
        return self._join(token, vectors) if vectors else token

    def _join(self, token: Token | None, vectors: list[Any]) -> Token:
        """A token and vectors (D,) -> one token. Of runtimes that have ``_vectors``."""
        raise NotImplementedError

    def _embed_said(
        self, names: list[str], colours: list[tuple[str, str]], text: str
    ) -> Token | None:
        """Names, with what the text says of each, for networks that know colours."""
        if not getattr(self.network, "takes_colours", False):
            return self._embed(names)
        return self._embed(names, said_of(names, colours, text))


@dataclass(frozen=True)
class Seen:
    """What a network believes to see in a frame, and what it was told because of that.

    Attributes:
        predicted: (name, probability in [0, 1]), likeliest first, as ``tags`` gives them.
        told: the names that it got as text, where these were predicted tags or corrections of them;
            else None.
    """

    predicted: list[tuple[str, float]]
    told: list[str] | None = None


@dataclass
class Batch:
    """What came up while a batch was coloured: probabilities (B, words) of tags, and frame -> names
    told."""

    probabilities: np.ndarray | None = None
    told: dict[int, list[str]] = field(default_factory=dict)


def _batches(sizes: list[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Indices of equal sizes together, at most ``limit`` at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), limit):
            yield group[start : start + limit]
