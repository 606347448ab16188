"""FrameColorizer: any picture and a text in, colour of the picture's size out. No torch.

A call does three steps, which are public: ``prepare`` reads, stretches and reduces a frame, ``run``
passes frames and texts through the network, ``finish`` makes a picture of the colours. ``Runtime``
runs the network: torch.py has one for PyTorch, onnx.py one for ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from cmmfnet.colorizer import sizes
from cmmfnet.files.errors import UserError
from cmmfnet.methods.traits import Traits
from cmmfnet.text.parser import warn_unknown
from cmmfnet.text.prompt import Prompt, read_prompt
from cmmfnet.text.vocabulary import MAX_TAGS, WORDS
from cmmfnet.thermal.frame import Thermal, read_thermal
from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.stretch import normalise, parse_span

Source = Any
"""A path, the bytes of a picture file, an array or tensor (H, W), a PIL image, or a Thermal."""
Span = str | tuple[float, float]
Tokens = tuple[Any, ...]
"""One text for a network: tokens (L, ...) and mask (L), arrays of the runtime's own type."""
CACHED_TEXTS = 256


@dataclass(frozen=True)
class Frame:
    """A thermal frame ready for the network.

    Attributes:
        full: (H, W) float32 in [-1, 1], an array or, on a GPU, a tensor.
        low: the same at working size (h, w); ``full`` itself where that fits.
    """

    full: Any
    low: Any


@dataclass(frozen=True)
class TextInput:
    """One text as the network gets it.

    Attributes:
        tokens: one token for each of ``names``, or the tokens of a sentence.
        names: the names in the text, in the order of the tokens; empty for a sentence.
        colours: the colour of each name ("red", "bare"), or None; always None for a network that
            takes no colours.
    """

    tokens: Tokens
    names: tuple[str, ...] = ()
    colours: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Seen:
    """Tags that a network predicts for a frame.

    Attributes:
        predicted: (name, probability in [0, 1]), likeliest first, as ``tags`` gives them.
        given_tags: the names that the network got as text, if these are predicted tags or
            corrections of them; else None.
        night: whether the frame looks like night (`looks_like_night`).
    """

    predicted: list[tuple[str, float]]
    given_tags: list[str] | None = None
    night: bool = False


NIGHT_MARGIN = -1.0
"""Log odds of "night" over those of "day" and "dusk" from which a frame looks like night.

The largest whole number for which the bundled model finds all 140 night frames of its training (and
1 of 237 by day and dusk); docs/text.md has the rates on scenes that it was not trained on."""


def looks_like_night(words: Sequence[str], probabilities: np.ndarray) -> bool:
    """Whether "night" is about as likely as "day" and "dusk" or likelier. ``probabilities``
    (words,) in [0, 1]; False for a network without these words."""
    if not {"day", "dusk", "night"} <= set(words):
        return False
    light = np.array([probabilities[words.index(word)] for word in ("night", "day", "dusk")])
    light = light.astype(np.float64).clip(1e-9, 1 - 1e-9)
    night, *others = np.log(light / (1 - light))
    return bool(night > max(others) + NIGHT_MARGIN)


NIGHT_NOTE = (
    "looks like night, and without text is coloured as by day or at dusk: try the text night"
)


class Runtime:
    """A network that can be run. A batch is (B, H, W) float32 in [-1, 1], padded."""

    traits: Traits
    name: str
    device: Any  # device.type is "cpu", "cuda" or "mps"
    not_finite: str  # the end of the message about NaN in colours

    def inference(self) -> contextlib.AbstractContextManager:
        """The context of every call."""
        return contextlib.nullcontext()

    def stretch(self, thermal: Thermal, span: tuple[float, float] | None) -> Any:
        """-> (H, W) float32 in [-1, 1], an array or a tensor of the runtime."""
        return np.ascontiguousarray(normalise(thermal, span), dtype=np.float32)

    def sizes(self, frame: Any) -> ModuleType:
        """The module that resizes such a frame: sizes.py, or tensors.py."""
        return sizes

    def array(self, colour: Any) -> np.ndarray:
        """A tensor of the runtime, or an array, as an array."""
        return colour

    def run(
        self, batch: Any, texts: Sequence[Tokens | None], *, tags: bool = False
    ) -> tuple[Any, np.ndarray | None]:
        """Colours (B, 3, H, W) float32 in [-1, 1] and, with ``tags``, probabilities (B, words)."""
        raise NotImplementedError

    def predict(self, batch: Any) -> np.ndarray:
        """Probabilities (B, words) float32 of the network's words."""
        raise NotImplementedError

    def vectors(self, words: tuple[str, ...]) -> dict[str, Any]:
        """Tokens (D,) of those words without a name that the runtime can encode."""
        return {}

    def embed(
        self, names: Sequence[str], colours: Sequence[str | None], vectors: Sequence[Any] = ()
    ) -> Tokens:
        """Tokens of names, followed by ``vectors``; at least one of both is given. ``colours`` has
        an effect where the network takes colours."""
        raise NotImplementedError

    def encode(self, sentence: str) -> Tokens:
        """Tokens of a sentence, for networks that take sentences."""
        raise NotImplementedError


class FrameColorizer:
    """Colours pictures with the network of a runtime. ``traits`` describes the network, ``name`` is
    that of the model, ``device.type`` is "cpu", "cuda" or "mps"."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.traits = runtime, runtime.traits
        self.name, self.device = runtime.name, runtime.device
        self._read = functools.lru_cache(maxsize=CACHED_TEXTS)(self._read_text)

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
            x: path, file contents, array (H, W), PIL image or Thermal; or a list of those, of any
                mix of sizes.
            text: a description of the picture; one for all pictures or a list with one for
                each. None: the model's default (no text, predicted tags, or its default prompt).
                ``""``: no text. ``"+snow -grass"``: the tags that the model predicts for the frame,
                with snow and without grass (docs/text.md).
            span: lowest and highest value shown, in the picture's own units (degrees or counts), as
                ``(20, 35)`` or ``"20,35"``. None: each frame is stretched between its 1st and 99th
                percentile.
            palette: name of the false-colour palette that the pictures were saved in; None for grey
                pictures.
            batch_size: frames of equal size that go through the network together; None: 8 on CUDA,
                else 1.
            return_tags: also return the tags that the network predicts, at no cost of their own.

        Returns:
            (H, W, 3) uint8 RGB of the input's own size; a list of those for a list. With
            ``return_tags`` that and a ``Seen``, or a list of those.

        Raises:
            ThermalFileError: not a picture that can be read. ValueError: lists of different length;
                a span that does not fit the frame; tags or corrections of them are asked for and
                this network predicts none. FloatingPointError: the network gave NaN.
        """
        single = not isinstance(x, list | tuple)
        sources = [x] if single else x
        texts = list(text) if isinstance(text, list | tuple) else [text] * len(sources)
        if len(texts) != len(sources):
            raise ValueError(
                f"{len(texts)} texts for {len(sources)} pictures; give one text for all, or one "
                "for each"
            )
        for each in texts:
            if not isinstance(each, str | None):
                raise TypeError(f"text is {each!r}; expected a string or None, or a list of those")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        size = batch_size or self.default_batch
        if return_tags:
            self._check_predicts()
        thermals = []
        for i, each in enumerate(sources):
            with _named(i, x):
                thermals.append(read_thermal(each, palette=palette))
        pictures: list[np.ndarray | None] = [None] * len(thermals)
        seen: list[Seen | None] = [None] * len(thermals)
        with self.runtime.inference():
            frames = []
            for i, each in enumerate(thermals):
                with _named(i, x):
                    frames.append(self.prepare(each, span))
            for indices in _groups([self.network_size(frame) for frame in frames], size):
                group = [frames[i] for i in indices]
                colours, found = self.run(group, [texts[i] for i in indices], tags=return_tags)
                for i, colour, each in zip(indices, colours, found, strict=True):
                    pictures[i], seen[i] = self.finish(colour, frames[i]), each
        if return_tags:
            return (pictures[0], seen[0]) if single else (pictures, seen)
        return pictures[0] if single else pictures

    def tags(
        self, x: Source, top: int = 8, *, span: Span | None = None, palette: str | None = None
    ) -> list[tuple[str, float]]:
        """The ``top`` likeliest tags of a picture: pairs (name, probability in [0, 1]).

        Raises:
            ValueError: this network predicts no tags.
        """
        self._check_predicts()
        frame = self.prepare(x, span, palette=palette)
        return self.likeliest(self.predict([frame])[0], top)

    # --- the steps of a call

    @property
    def default_batch(self) -> int:
        """Frames of one size that go through the network together by default."""
        return 8 if self.device.type == "cuda" else 1

    def prepare(self, x: Source, span: Span | None = None, *, palette: str | None = None) -> Frame:
        """Read a picture, stretch it, and reduce or enlarge it to the network's working size."""
        thermal = read_thermal(x, palette=palette)
        span = parse_span(span) if isinstance(span, str) else span
        with self.runtime.inference():
            full = self.runtime.stretch(thermal, span)
            size = sizes.working_size(self.traits, *full.shape)
            resized = size != tuple(full.shape)
            return Frame(
                full, self.runtime.sizes(full).resize(full, size, "bilinear") if resized else full
            )

    def batch(self, frames: Sequence[Frame]) -> Any:
        """Frames that pad to one size -> the network's input (B, H, W)."""
        if len({self.network_size(frame) for frame in frames}) != 1:
            found = ", ".join(sorted({f"{h}x{w}" for h, w in map(self.network_size, frames)}))
            raise ValueError(f"frames of one batch must pad to one size, found {found or 'none'}")
        module = self.runtime.sizes(frames[0].low)
        return module.stack([module.pad(frame.low, self.traits.step) for frame in frames])

    def run(
        self, frames: Sequence[Frame], texts: Sequence[str | None], *, tags: bool = False
    ) -> tuple[list[Any], list[Seen | None]]:
        """Colour frames that pad to one size.

        Args:
            frames: of ``prepare``, B of them.
            texts: one for each, as in a call.
            tags: also predict tags.

        Returns:
            B colours (3, h, w) float32 in [-1, 1] at working size, and B ``Seen``, None without
            ``tags``.
        """
        with self.runtime.inference():
            batch = self.batch(frames)
            corrected = [i for i, text in enumerate(texts) if self._needs_prediction(text)]
            probabilities = self.runtime.predict(batch) if corrected else None
            inputs = [
                self.text_input(text, probabilities[i] if i in corrected else None)
                for i, text in enumerate(texts)
            ]
            colours, found = self.runtime.run(
                batch,
                [each and each.tokens for each in inputs],
                tags=tags and probabilities is None,
            )
        probabilities = found if probabilities is None else probabilities
        seen: list[Seen | None] = [None] * len(frames)
        if tags:
            for i, each in enumerate(inputs):
                given_tags = list(each.names if each else ()) if i in corrected else None
                night = looks_like_night(self.traits.words, probabilities[i])
                seen[i] = Seen(self.likeliest(probabilities[i]), given_tags, night)
        cut = [
            colour[:, : frame.low.shape[0], : frame.low.shape[1]]
            for colour, frame in zip(colours, frames, strict=True)
        ]
        return cut, seen

    def predict(self, frames: Sequence[Frame]) -> np.ndarray:
        """Frames that pad to one size -> probabilities (B, words) float32 of the network's words.

        Raises:
            ValueError: this network predicts no tags.
        """
        self._check_predicts()
        with self.runtime.inference():
            return self.runtime.predict(self.batch(frames))

    def likeliest(self, probabilities: np.ndarray, top: int = 8) -> list[tuple[str, float]]:
        """The ``top`` likeliest of the network's words, with their probabilities."""
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.traits.words[i], float(probabilities[i])) for i in best]

    def finish(self, colour: Any, frame: Frame) -> np.ndarray:
        """Colour (3, h, w) in [-1, 1] at working size -> (H, W, 3) uint8 of the frame's own size.

        Raises:
            FloatingPointError: the colours are NaN or infinite.
        """
        full, low = frame.full, frame.low
        if isinstance(full, np.ndarray):
            colour = self.runtime.array(colour)
        module = self.runtime.sizes(full)
        with self.runtime.inference():
            if low.shape != full.shape:
                if low.shape[0] >= full.shape[0] and low.shape[1] >= full.shape[1]:
                    colour = module.resize(colour, tuple(full.shape), "bilinear")
                else:
                    colour = sizes.guided_upsample(
                        colour, low[None], full[None], resize=module.resize,
                        box_mean=module.box_mean,
                    )  # fmt: skip
            try:
                return module.to_picture(colour)
            except FloatingPointError:
                raise FloatingPointError(
                    f"model {self.name!r} gave NaN or infinite colours{self.runtime.not_finite}"
                ) from None

    def network_size(self, frame: Frame) -> tuple[int, int]:
        """(height, width) that a frame is padded to; frames of one batch have the same."""
        step = self.traits.step
        return tuple(-(-side // step) * step for side in frame.low.shape)

    def _check_predicts(self) -> None:
        if not self.traits.predicts_tags:
            raise ValueError(f"model {self.name!r} predicts no tags")

    # --- text

    def text_input(
        self, text: str | None, probabilities: np.ndarray | None = None
    ) -> TextInput | None:
        """A text, None for the model's default, as the network gets it; None for no text.

        Args:
            text: as in a call.
            probabilities: (words,), of the frame's tags, for a text that starts from them.

        Raises:
            UserError: the text corrects predicted tags, and this network predicts none.
        """
        with self.runtime.inference():  # its number types; texts are cached
            if text is None and self.traits.default_text == "predicted":
                return self.predicted_input(probabilities)
            found = self._read(self.traits.default_prompt if text is None else text)
            if not isinstance(found, Prompt):
                return found
            return self._embed(found.names(self._likely(probabilities)), found)

    def predicted_input(self, probabilities: np.ndarray) -> TextInput | None:
        """The predicted tags of a frame (probabilities (words,)) as its text; None for no tag."""
        return self._embed(self._likely(probabilities), Prompt())

    def _needs_prediction(self, text: str | None) -> bool:
        if text is None and self.traits.default_text == "predicted":
            return True
        return text is not None and isinstance(self._read(text), Prompt)

    def _likely(self, probabilities: np.ndarray) -> list[str]:
        """Names above the network's threshold, likeliest first."""
        order = np.argsort(-probabilities, kind="stable")
        likely = [i for i in order if probabilities[i] > self.traits.tag_threshold]
        return [self.traits.words[i] for i in likely]

    def _read_text(self, text: str) -> TextInput | Prompt | None:
        """A text as the network gets it, None for no text, or the Prompt itself where it corrects
        the tags that the network predicts for a frame."""
        if not text.strip():
            return None
        if not self.traits.takes_text:
            message = f"model {self.name!r} takes no text; {text!r} has no effect"
            warnings.warn(message, stacklevel=_level_outside())
            return None
        words = self.traits.words if self.traits.takes_names else WORDS
        prompt = read_prompt(text, words)
        if prompt.needs_prediction and not self.traits.can_correct:
            raise UserError(
                f"model {self.name!r} predicts no tags, so {text!r} has nothing to start from; "
                "write what is to be seen"
            )
        if not self.traits.takes_names:
            return TextInput(self.runtime.encode(text))
        self.warn_unused(prompt)
        return prompt if prompt.needs_prediction else self._embed(prompt.names(), prompt)

    def warn_unused(self, prompt: Prompt) -> None:
        """Warn of words and colours of a prompt that this network of names leaves out."""
        encoded = self.runtime.vectors(tuple(prompt.unknown))
        unknown = [w for w in (*prompt.unknown, *prompt.unknown_removed) if w not in encoded]
        warn_unknown(unknown, self.traits.words, stacklevel=1 + _level_outside())
        if prompt.loose:
            shown = ", ".join(map(repr, prompt.loose))
            warnings.warn(
                f"{shown} stands with no thing in the text, so it has no effect; write it before "
                f"one, such as '{prompt.loose[0]} car'",
                stacklevel=_level_outside(),
            )
        if prompt.colours and not self.traits.takes_colours:
            coloured = ", ".join(f"{colour} {name}" for colour, name in prompt.colours)
            warnings.warn(
                f"model {self.name!r} knows no colours, so those of {coloured!r} have no effect",
                stacklevel=_level_outside(),
            )

    def _embed(self, names: Sequence[str], prompt: Prompt) -> TextInput | None:
        """Names with their colours and, where there is room, words that the runtime can encode."""
        names = list(names)[:MAX_TAGS]
        takes_colours = self.traits.takes_colours
        colours = prompt.colours_of(names) if takes_colours else [None] * len(names)
        vectors = self.runtime.vectors(tuple(prompt.unknown)) if prompt.unknown else {}
        vectors = dict(list(vectors.items())[: MAX_TAGS - len(names)])
        if not names and not vectors:
            return None
        return TextInput(
            self.runtime.embed(names, colours, list(vectors.values())),
            (*names, *vectors),
            (*colours, *[None] * len(vectors)),
        )


def _level_outside() -> int:
    """``stacklevel`` for ``warnings.warn`` in the calling function: the first caller outside this
    package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("cmmfnet."):
        level, frame = level + 1, frame.f_back
    return level


@contextlib.contextmanager
def _named(i: int, x: Source | Sequence[Source]) -> Iterator[None]:
    """Errors of the i-th picture of a list say which it is: arrays have no name."""
    try:
        yield
    except ThermalFileError as error:
        if not isinstance(x, list | tuple):
            raise
        raise ThermalFileError(f"picture {i} of {len(x)} (counted from 0): {error}") from error


def _groups(of_size: list[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Indices of equal sizes together, at most ``limit`` at a time."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(of_size):
        groups.setdefault(size, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), limit):
            yield group[start : start + limit]
