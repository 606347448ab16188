"""Tags as network input: indices into a vocabulary, and tables with one CLIP vector per name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cmmfnet.text.vocabulary import MAX_TAGS, WORDS


def tag_ids(
    batch: Sequence[Sequence[str]], words: Sequence[str] = WORDS, max_tags: int = MAX_TAGS
) -> tuple[Tensor, Tensor]:
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


def load_tag_vectors(path: str | Path) -> tuple[tuple[str, ...], Tensor]:
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
