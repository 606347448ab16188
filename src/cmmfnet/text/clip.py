"""CLIP's text encoder, and vectors of words. (Hidden states of sentences: sentences.py.)

The encoder is a hub name or a folder in the form of transformers: the argument ``model``, else the
environment variable ``CMMFNET_TEXT_ENCODER`` (a folder, OWNER/REPO or OWNER/REPO@COMMIT), else
OpenAI's at a pinned commit. A network needs the encoder that it was trained with. transformers
comes with ``pip install 'cmmfnet[clip]'``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cmmfnet.text.cache import TextCache

ENVIRONMENT = "CMMFNET_TEXT_ENCODER"
SENTENCE_MODEL, TAG_MODEL = "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16"
# Commits on the Hugging Face hub, so that the same text gives the same tokens next year.
CLIP_REVISIONS: dict[str, str] = {
    SENTENCE_MODEL: "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    TAG_MODEL: "57c216476eefef5ab752ec549e440a49ae4ae5f3",
}

# Sentences of the kind that open-vocabulary detectors and segmenters average over (ViLD, Gu et al.,
# ICLR 2022).
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


class ClipEncoder:
    """One CLIP text encoder by name, frozen, in float32; `network` and `tokenizer` are loaded when
    they are first used.

    Args:
        kind: the transformers class, CLIPTextModel or CLIPTextModelWithProjection.
        model: hub name or folder; None: see the module's text.
        revision: commit on the hub; by default the one in `CLIP_REVISIONS`, for a model not listed
            there the newest.
        default: the model where neither argument nor environment names one.
        device: where it runs.
        download: whether a hub model that is not on this machine may be fetched.

    Raises:
        FileNotFoundError: no such folder. OSError: a folder without a model in it.
    """

    def __init__(
        self,
        kind: str,
        model: str | Path | None,
        revision: str | None,
        default: str,
        device: str | torch.device = "cpu",
        *,
        download: bool = True,
    ) -> None:
        name = str(model or os.environ.get(ENVIRONMENT) or default)
        folder = Path(name).expanduser()
        self.kind, self.device, self.download = kind, torch.device(device), download
        self.is_folder = folder.is_dir()
        if self.is_folder:
            name, revision = str(folder), None
            if not (folder / "config.json").is_file():
                raise OSError(
                    f"cannot load the CLIP text encoder {name!r}: the folder has no config.json"
                )
        else:
            name, _, commit = name.partition("@")
            if name.startswith((".", "/", "~")) or name.count("/") != 1:
                raise FileNotFoundError(
                    f"no folder {name}; give a folder or a hub name such as {SENTENCE_MODEL}"
                )
            revision = revision or commit or CLIP_REVISIONS.get(name)
        self.name, self.revision = name, revision

    @cached_property
    def _loaded(self) -> tuple:
        try:
            import transformers
        except ImportError as error:
            raise ImportError(
                "a CLIP text encoder needs transformers: pip install 'cmmfnet[clip]'"
            ) from error
        options = {"revision": self.revision} | (
            {} if self.download else {"local_files_only": True}
        )
        try:
            tokenizer = transformers.CLIPTokenizer.from_pretrained(self.name, **options)
            network = getattr(transformers, self.kind).from_pretrained(self.name, **options)
        except OSError as error:
            raise OSError(
                f"cannot load the CLIP text encoder {self.name!r} (revision {self.revision}): "
                f"{error}\n"
                "Without a network connection, copy the model's folder here once and set "
                f"{ENVIRONMENT} to its path."
            ) from error
        return network.to(self.device, torch.float32).eval().requires_grad_(False), tokenizer

    @property
    def network(self) -> torch.nn.Module:
        return self._loaded[0]

    @property
    def tokenizer(self):
        return self._loaded[1]

    @cached_property
    def identity(self) -> str | None:
        """The identity of these weights: hub name and commit, or a digest of the folder's files;
        None: not known.

        A hub model without a pinned commit is loaded to find it.
        """
        if self.is_folder:
            return f"folder-{_digest(Path(self.name))}"
        commit = (
            self.revision if self.is_pinned else getattr(self.network.config, "_commit_hash", None)
        )
        return f"{self.name}@{commit}" if commit else None

    @property
    def is_pinned(self) -> bool:
        """Whether name and revision mean the same weights for ever, or for as long as the folder
        stays as it is."""
        return self.is_folder or re.fullmatch(r"[0-9a-f]{40}", self.revision or "") is not None

    def is_here(self) -> bool:
        """Whether it could be loaded without a network: a folder, or a hub model in the hub's
        cache, with transformers."""
        if importlib.util.find_spec("transformers") is None:
            return False
        if self.is_folder:
            return True
        from huggingface_hub import try_to_load_from_cache

        return isinstance(
            try_to_load_from_cache(self.name, "config.json", revision=self.revision), str
        )


def _digest(folder: Path) -> str:
    """Of all files that the tokens depend on; 0.6 GB take about half a second, loading them takes
    longer."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    others = [file for pattern in ("*.json", "*.txt") for file in sorted(folder.glob(pattern))]
    digest = hashlib.sha256()
    for path in [*weights, *others]:
        with path.open("rb") as file:
            digest.update(
                f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return digest.hexdigest()[:40]


@torch.no_grad()
def clip_tag_vectors(
    names: Sequence[str],
    model: str | Path | None = None,
    revision: str | None = None,
    templates: Sequence[str] = TEMPLATES,
    device: str | torch.device = "cpu",
) -> Tensor:
    """CLIP text vectors of names: projected and pooled, unit length per template, averaged, and
    made unit length again.

    Args:
        names: N names, put into the templates as they are.
        model: hub name, or a folder in the form of transformers; by default OpenAI's ViT-B/16, see
            the module's text.
        revision: commit on the hub; by default the one in `CLIP_REVISIONS`, for a model not listed
            there the newest.
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
        raise ValueError(
            f"templates must be sentences with '{{}}' in the place of the name, got "
            f"{list(templates)}"
        )
    encoder = ClipEncoder("CLIPTextModelWithProjection", model, revision, TAG_MODEL, device)
    return torch.stack([_vector(encoder, name, templates) for name in names])


@torch.no_grad()
def _vector(encoder: ClipEncoder, name: str, templates: Sequence[str]) -> Tensor:
    """(D,) float32 on the CPU."""
    sentences = [template.replace("{}", name) for template in templates]
    context = encoder.network.config.max_position_embeddings
    tokens = encoder.tokenizer(
        sentences, padding=True, truncation=True, max_length=context, return_tensors="pt"
    )
    tokens = tokens.to(encoder.device)
    embedded = encoder.network(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
    ).text_embeds
    mean = torch.nn.functional.normalize(embedded, dim=-1).mean(0)
    return torch.nn.functional.normalize(mean, dim=0).cpu()


class WordEncoder:
    """CLIP vectors of words that a table of tag vectors does not have, where CLIP is on this
    machine. Never downloads.

    Args:
        model: hub name or folder; None: see the module's text. Must be the one that the table was
            made with.
    """

    def __init__(self, model: str | Path | None = None) -> None:
        self._encoder = ClipEncoder(
            "CLIPTextModelWithProjection", model, None, TAG_MODEL, download=False
        )
        known = self._encoder.is_pinned or self._encoder.is_here()
        self._cache = (
            TextCache(f"words-{self._encoder.identity}")
            if known and self._encoder.identity
            else None
        )
        self._one = lru_cache(maxsize=4096)(self._encode)

    def __call__(self, words: Sequence[str]) -> dict[str, Tensor]:
        """Word -> (D,) float32 on the CPU, as `clip_tag_vectors` gives it; words that cannot be
        encoded here are left out.

        Raises:
            OSError: CLIP is here and cannot be read.
        """
        found = {word: self._one(word) for word in words}
        return {word: vector for word, vector in found.items() if vector is not None}

    def _encode(self, word: str) -> Tensor | None:
        kept = self._cache.get(word) if self._cache else None
        if kept is not None:
            return torch.from_numpy(kept["vector"])
        if not self._encoder.is_here():
            return None
        vector = _vector(self._encoder, word, TEMPLATES)
        if self._cache:
            self._cache.put(word, {"vector": vector.numpy()})
        return vector
