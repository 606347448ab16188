"""Prompts into text tokens: names found in a prompt, their CLIP vectors, and CLIP's hidden states of a whole sentence.

Two sources of text tokens, and the network does not care which:

* ``clip-tags``: `parse_tags` finds known names in the prompt, `tag_ids` makes indices of them, and a table of one
  vector per name (`load_tag_vectors`, `clip_tag_vectors`) makes tokens. The released model needs only the first two.
* ``clip-sentence``: `SentenceEncoder`, frozen CLIP ViT-B/32 hidden states of the sentence, as in the CMMF-Net paper.

transformers is imported only when a CLIP text encoder is asked for: ``pip install 'cmmfnet[clip]'``.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cmmfnet.prompts import Parsed, known_phrases, parse_tags
from cmmfnet.words import COCO_STUFF, COLOURS, EXTRA_WORDS, WORDS

__all__ = [
    "COCO_STUFF",
    "COLOURS",
    "DEFAULT_PROMPT",
    "EXTRA_WORDS",
    "TEMPLATES",
    "TEMPLATES_BY_DATASET",
    "WORDS",
    "Parsed",
    "SentenceEncoder",
    "clip_tag_vectors",
    "load_tag_vectors",
    "parse_tags",
    "tag_ids",
    "warn_unknown",
]

# The paper feeds one fixed description per data set and does not print it; this one is ours.
TEMPLATES_BY_DATASET: dict[str, str] = {
    "street-day": (
        "A street in the daytime: a grey asphalt road with white lane markings, cars, buses and bicycles, people on "
        "the pavement, green trees, buildings with windows, traffic lights and street lamps under a bright sky."
    ),
}
DEFAULT_PROMPT = TEMPLATES_BY_DATASET["street-day"]

# Sentences of the kind that open-vocabulary detectors and segmenters average over (ViLD, Gu et al., ICLR 2022).
TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a {} in the scene.",
    "There is the {} in the scene.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
    "a photo of a {} in the scene.",
    "This is one {} in the scene.",
)

# Commits on the Hugging Face hub, so that the same text gives the same tokens next year.
CLIP_REVISIONS: dict[str, str] = {
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    "openai/clip-vit-base-patch16": "57c216476eefef5ab752ec549e440a49ae4ae5f3",
}


def warn_unknown(parsed: Parsed, words: Sequence[str] = WORDS, stacklevel: int = 2) -> None:
    """Warn once (UserWarning) about all words of a prompt that the model does not know, with the nearest known names.

    Silent where every word is known. `stacklevel` is that of `warnings.warn`: 2 points at the caller.
    """
    if not parsed.unknown:
        return
    phrases = known_phrases(words)
    hints = []
    for word in parsed.unknown:
        close = difflib.get_close_matches(word, phrases, n=3, cutoff=0.75)
        near = list(dict.fromkeys(name for phrase in close for name in phrases[phrase]))
        hints.append(f"'{word}'" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    warnings.warn(
        f"the model does not know and leaves out: {', '.join(hints)}. Known are {len(words)} names "
        "(cmmfnet.text.WORDS) and their everyday synonyms",
        stacklevel=stacklevel,
    )


def tag_ids(
    batch: Sequence[Sequence[str]], words: Sequence[str] = WORDS, max_tags: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices into `words` for a batch of tag lists, padded to the longest list (at least 1).

    Args:
        batch: B lists of names; a list may be empty, and of a longer one the first `max_tags` are kept.
        words: the vocabulary, in the order of the table that the indices go into.
        max_tags: the most tags per picture, at least 1.

    Returns:
        ids: (B, L) int64, 0 where padded. mask: (B, L) bool, True = valid.

    Raises:
        TypeError: a list of tags is a string. ValueError: a tag is not in `words`, or `max_tags` < 1.
    """
    if max_tags < 1:
        raise ValueError(f"max_tags is {max_tags}, it must be at least 1")
    index = {name: i for i, name in enumerate(words)}
    rows: list[list[int]] = []
    for tags in [batch] if isinstance(batch, str) else batch:
        if isinstance(tags, str):
            raise TypeError(f"tag_ids takes lists of tags, got the string {tags!r}: use [parse_tags({tags!r}).tags]")
        for tag in tags:
            if tag not in index:
                near = difflib.get_close_matches(str(tag), list(words), n=3)
                hint = f" (nearest: {', '.join(near)})" if near else ""
                raise ValueError(
                    f"{tag!r} is not one of the {len(words)} known names{hint}; parse_tags finds them in text"
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
    """Read a table of tag vectors: a safetensors file with `vectors` (N, D) and, in its metadata, `names` in JSON.

    Returns:
        names: N names. vectors: (N, D) float32, as stored (unit length in CLIP tables; D is 512 for ViT-B).

    Raises:
        FileNotFoundError: no such file. ValueError: the file is no such table; the text says what is wrong with it.
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
        raise ValueError(f"{path} has no tensor 'vectors', only {keys}: it is not a table of tag vectors")
    if "names" not in metadata:
        raise ValueError(
            f"{path} has no 'names' in its metadata (found {sorted(metadata)}): a JSON list, one per vector"
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
            f"{path}: 'vectors' is {vectors.dtype} of shape {tuple(vectors.shape)}, expected floats of shape "
            f"({len(names)}, D) for its {len(names)} names"
        )
    vectors = vectors.float()
    if not torch.isfinite(vectors).all():
        raise ValueError(f"{path}: 'vectors' has values that are not finite")
    return tuple(names), vectors


def _load_clip(kind: str, model: str | Path, revision: str | None, device: str | torch.device):
    """(text network, tokenizer) of a hub name or a local folder; `kind` is the transformers class. Frozen, float32."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("a CLIP text encoder needs transformers: pip install 'cmmfnet[clip]'") from error
    name = str(model)
    if Path(name).is_dir():
        revision = None
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"no folder {name}; give a folder or a hub name such as openai/clip-vit-base-patch32")
    else:
        revision = revision or CLIP_REVISIONS.get(name)
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(name, revision=revision)
        network = getattr(transformers, kind).from_pretrained(name, revision=revision)
    except OSError as error:
        raise OSError(
            f"cannot load the CLIP text encoder {name!r} (revision {revision}): {error}\n"
            "Without a network, copy the model's folder here once and give its path as `model`."
        ) from error
    return network.to(device, torch.float32).eval().requires_grad_(False), tokenizer


@torch.no_grad()
def clip_tag_vectors(
    names: Sequence[str],
    model: str | Path = "openai/clip-vit-base-patch16",
    revision: str | None = None,
    templates: Sequence[str] = TEMPLATES,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """CLIP text vectors of names: projected and pooled, unit length per template, averaged, and made unit length again.

    Args:
        names: N names, put into the templates as they are.
        model: hub name, or a folder in the form of transformers.
        revision: commit on the hub; by default the one in `CLIP_REVISIONS`, for a model not listed there the newest.
        templates: sentences with one "{}".

    Returns:
        (N, D) float32 on the CPU; D is 512 for ViT-B.

    Raises:
        ImportError: transformers is missing. OSError: the model cannot be loaded.
        ValueError: no names, or a template without "{}".
    """
    if not names or isinstance(names, str):
        raise ValueError(f"clip_tag_vectors takes a list of one name or more, got {names!r}")
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"templates must be sentences with '{{}}' in the place of the name, got {list(templates)}")
    network, tokenizer = _load_clip("CLIPTextModelWithProjection", model, revision, device)
    context = network.config.max_position_embeddings
    vectors = []
    for name in names:
        sentences = [template.replace("{}", name) for template in templates]
        tokens = tokenizer(sentences, padding=True, truncation=True, max_length=context, return_tensors="pt").to(device)
        embedded = network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds
        vectors.append(torch.nn.functional.normalize(embedded, dim=-1).mean(0))
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1).cpu()


class SentenceEncoder:
    """Frozen CLIP text encoder: one token per piece of the sentence, the text source of the CMMF-Net paper.

    Deliberately no `torch.nn.Module`: its 63 M frozen weights must not get into the network's checkpoint or optimiser.

    Args:
        model: hub name (downloaded once), or a folder in the form of transformers.
        revision: commit on the hub; by default the one in `CLIP_REVISIONS`, for a model not listed there the newest.
        device: where the encoder runs and the tokens are.

    Raises:
        ImportError: transformers is missing. OSError: the model cannot be loaded.
    """

    CACHED_TEXTS = 1024  # about 40 kB per sentence of 20 tokens

    def __init__(
        self,
        model: str | Path = "openai/clip-vit-base-patch32",
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network, self.tokenizer = _load_clip("CLIPTextModel", model, revision, device)
        self.device = torch.device(device)
        self.length: int = self.network.config.max_position_embeddings
        self.width: int = self.network.config.hidden_size
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode B texts; repeated texts come from the cache. A text longer than 77 tokens is cut, with a warning.

        Returns:
            tokens: (B, 77, 512) float32, output of the final layer norm, before the projection; 0 where padded.
            mask: (B, 77) bool, True = valid, start and end of text included.

        Raises:
            TypeError: `texts` is a string or has an element that is none.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("SentenceEncoder takes a list of strings, one per picture: encoder(['a street at night'])")
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        fresh: dict[str, torch.Tensor] = {}
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

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Text -> its valid rows (n, width)."""
        for text, ids in zip(texts, self.tokenizer(texts, verbose=False).input_ids, strict=True):
            if len(ids) > self.length:
                warnings.warn(
                    f"the text has {len(ids)} tokens and CLIP reads {self.length}, so its end is ignored: "
                    f"{text[:40]!r} ... {text[-40:]!r}",
                    stacklevel=4,  # past __call__ and the wrapper that no_grad makes
                )
        batch = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        hidden = self.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        counts = batch.attention_mask.sum(1).tolist()
        # clone: a view would keep the padded rows of the whole batch in memory
        return {text: hidden[i, : counts[i]].clone() for i, text in enumerate(texts)}
