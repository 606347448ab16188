"""Text tokens for a network, from one of two sources:

* ``clip-tags``: `parse_tags` finds known names in the prompt, `tag_ids` makes indices of them, and
  a table of one vector per name (`load_tag_vectors`, `clip_tag_vectors`) makes tokens. The released
  model needs only the first two.
* ``clip-sentence``: `SentenceEncoder`, frozen CLIP ViT-B/32 hidden states of the sentence, as in
  the CMMF-Net paper.

transformers is imported only when a CLIP text encoder (clip.py) is needed: ``pip install
'cmmfnet[clip]'``.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cmmfnet.text.cache import TextCache
from cmmfnet.text.clip import (
    CLIP_REVISIONS,
    SENTENCE_MODEL,
    TEMPLATES,
    ClipEncoder,
    WordEncoder,
    clip_tag_vectors,
)
from cmmfnet.text.parser import Parsed, parse_tags, warn_unknown
from cmmfnet.text.vocabulary import COCO_STUFF, COLOURS, EXTRA_WORDS, WORDS

__all__ = [
    "CLIP_REVISIONS",
    "COCO_STUFF",
    "COLOURS",
    "DEFAULT_PROMPT",
    "EXTRA_WORDS",
    "TEMPLATES",
    "TEMPLATES_BY_DATASET",
    "WORDS",
    "Parsed",
    "SentenceEncoder",
    "WordEncoder",
    "clip_tag_vectors",
    "load_tag_vectors",
    "parse_tags",
    "tag_ids",
    "warn_unknown",
]

# The paper feeds one fixed description per data set and does not print it; this one is ours.
TEMPLATES_BY_DATASET: dict[str, str] = {
    "street-day": (
        "A street in the daytime: a grey asphalt road with white lane markings, cars, buses and "
        "bicycles, people on "
        "the pavement, green trees, buildings with windows, traffic lights and street lamps under "
        "a bright sky."
    ),
}
DEFAULT_PROMPT = TEMPLATES_BY_DATASET["street-day"]


def tag_ids(
    batch: Sequence[Sequence[str]], words: Sequence[str] = WORDS, max_tags: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices into `words` for a batch of tag lists, padded to the longest list (at least 1).

    Args:
        batch: B lists of names; a list may be empty, and of a longer one the first `max_tags` are
            kept.
        words: the vocabulary, in the order of the table that the indices go into.
        max_tags: the most tags per picture, at least 1.

    Returns:
        ids: (B, L) int64, 0 where padded. mask: (B, L) bool, True = valid.

    Raises:
        TypeError: a list of tags is a string. ValueError: a tag is not in `words`, or `max_tags` <
            1.
    """
    if max_tags < 1:
        raise ValueError(f"max_tags is {max_tags}, it must be at least 1")
    index = {name: i for i, name in enumerate(words)}
    rows: list[list[int]] = []
    for tags in [batch] if isinstance(batch, str) else batch:
        if isinstance(tags, str):
            raise TypeError(
                f"tag_ids takes lists of tags, got the string {tags!r}: use "
                f"[parse_tags({tags!r}).tags]"
            )
        for tag in tags:
            if tag not in index:
                near = difflib.get_close_matches(str(tag), list(words), n=3)
                hint = f" (nearest: {', '.join(near)})" if near else ""
                raise ValueError(
                    f"{tag!r} is not one of the {len(words)} known names{hint}; parse_tags finds "
                    "them in text"
                )
        rows.append([index[tag] for tag in tags[:max_tags]])
    length = max([1, *map(len, rows)])
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = True
    return ids, mask


def load_tag_vectors(path: str | Path) -> tuple[tuple[str, ...], torch.Tensor]:
    """Read a table of tag vectors: a safetensors file with `vectors` (N, D) and, in its metadata,
    `names` in JSON.

    Returns:
        names: N names. vectors: (N, D) float32, as stored (unit length in CLIP tables; D is 512 for
            ViT-B).

    Raises:
        FileNotFoundError: no such file. ValueError: the file is no such table; the text says what
            is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of tag vectors at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
            vectors = file.get_tensor("vectors") if "vectors" in keys else None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if vectors is None:
        raise ValueError(
            f"{path} has no tensor 'vectors', only {keys}: it is not a table of tag vectors"
        )
    if "names" not in metadata:
        raise ValueError(
            f"{path} has no 'names' in its metadata (found {sorted(metadata)}): a JSON list, one "
            "per vector"
        )
    try:
        names = json.loads(metadata["names"])
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: 'names' in the metadata is not JSON ({error}); expected a list of strings"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: 'names' in the metadata is not a list of strings")
    if vectors.ndim != 2 or len(vectors) != len(names) or not vectors.is_floating_point():
        raise ValueError(
            f"{path}: 'vectors' is {vectors.dtype} of shape {tuple(vectors.shape)}, expected "
            "floats of shape "
            f"({len(names)}, D) for its {len(names)} names"
        )
    vectors = vectors.float()
    if not torch.isfinite(vectors).all():
        raise ValueError(f"{path}: 'vectors' has values that are not finite")
    return tuple(names), vectors


class SentenceEncoder:
    """Frozen CLIP text encoder: one token per piece of the sentence, the text source of the
    CMMF-Net paper.

    Texts are cached in memory and, by model, revision and text, on disk (`cmmfnet.text.cache`), so
    that a run with nothing but known texts never loads the encoder. Deliberately no
    `torch.nn.Module`: its 63 M frozen weights must not get into the network's checkpoint or
    optimiser.

    Args:
        model: hub name (downloaded once), or a folder in the form of transformers; by default the
            model in CMMFNET_TEXT_ENCODER, else OpenAI's ViT-B/32 (clip.py).
        revision: commit on the hub; by default the one in `CLIP_REVISIONS`, for a model not listed
            there the newest.
        device: where the encoder runs and the tokens are.

    Raises:
        OSError: no such folder, or no model in it. When the first text is encoded: the model cannot
            be loaded; ImportError: transformers is missing.
    """

    CACHED_TEXTS = 1024  # in memory; about 40 kB per sentence of 20 tokens

    def __init__(
        self,
        model: str | Path | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._encoder = ClipEncoder("CLIPTextModel", model, revision, SENTENCE_MODEL, device)
        self.device = self._encoder.device
        self._length: int | None = None
        self._width: int | None = None
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def network(self) -> torch.nn.Module:
        return self._encoder.network

    @property
    def tokenizer(self):
        return self._encoder.tokenizer

    @property
    def length(self) -> int:
        """The largest number of tokens of a text: 77."""
        if self._length is None:
            self._length = self.network.config.max_position_embeddings
        return self._length

    @property
    def width(self) -> int:
        """Numbers of a token: 512 for ViT-B."""
        if self._width is None:
            self._width = self.network.config.hidden_size
        return self._width

    @cached_property
    def _disk(self) -> TextCache | None:
        identity = self._encoder.identity
        return TextCache(f"sentences-{identity}") if identity else None

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode B texts; known ones come from the caches. A text longer than 77 tokens is cut,
        with a warning.

        Returns:
            tokens: (B, 77, 512) float32, output of the final layer norm, before the projection; 0
                where padded.
            mask: (B, 77) bool, True = valid, start and end of text included.

        Raises:
            TypeError: `texts` is a string or has an element that is none. ImportError, OSError: the
                encoder is needed and cannot be loaded.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                "SentenceEncoder takes a list of strings, one per picture: encoder(['a street at "
                "night'])"
            )
        fresh: dict[str, Tensor] = {}
        new = []
        for text in dict.fromkeys(texts):
            if text not in self._cache:
                rows = self._from_disk(text)
                if rows is None:
                    new.append(text)
                else:
                    fresh[text] = rows
        for start in range(0, len(new), 64):
            fresh.update(self._encode(new[start : start + 64]))
        tokens = torch.zeros(len(texts), self.length, self.width, device=self.device)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool, device=self.device)
        for i, text in enumerate(texts):
            rows = fresh[text] if text in fresh else self._cache[text]
            tokens[i, : len(rows)] = rows
            mask[i, : len(rows)] = True
        self._cache.update(fresh)
        for text in dict.fromkeys(texts):
            self._cache.move_to_end(text)
        while len(self._cache) > self.CACHED_TEXTS:
            self._cache.popitem(last=False)
        return tokens, mask

    def _from_disk(self, text: str) -> Tensor | None:
        kept = self._disk.get(text) if self._disk else None
        if kept is None:
            return None
        count, self._length = kept["counts"].tolist()
        self._width = kept["tokens"].shape[1]
        self._warn_if_cut(text, count)
        return torch.from_numpy(kept["tokens"]).to(self.device)

    def _warn_if_cut(self, text: str, count: int) -> None:
        if count > self.length:
            warnings.warn(
                f"the text has {count} tokens and CLIP reads {self.length}, so its end is ignored: "
                f"{text[:40]!r} ... {text[-40:]!r}",
                stacklevel=4,  # past __call__ and what it calls
            )

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Text -> its valid rows (n, width)."""
        counts = [len(ids) for ids in self.tokenizer(texts, verbose=False).input_ids]
        for text, count in zip(texts, counts, strict=True):
            self._warn_if_cut(text, count)
        batch = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(self.device)
        with torch.no_grad():
            hidden = self.network(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).last_hidden_state
        valid = batch.attention_mask.sum(1).tolist()
        # clone: a view would keep the padded rows of the whole batch in memory
        found = {text: hidden[i, : valid[i]].clone() for i, text in enumerate(texts)}
        if self._disk:
            for text, count in zip(texts, counts, strict=True):
                arrays = {
                    "tokens": found[text].cpu().numpy(),
                    "counts": np.array([count, self.length]),
                }
                self._disk.put(text, arrays)
        return found
