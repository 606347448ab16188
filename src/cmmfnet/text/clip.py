"""CLIP text encoders, with a memory cache and a disk cache of texts, and CLIP vectors of words.

The encoder is, in this order: the argument ``model``, the environment variable
``CMMFNET_TEXT_ENCODER`` (a folder in the form of transformers, OWNER/REPO or OWNER/REPO@COMMIT), or
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

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cmmfnet.text.cache import TextCache

ENVIRONMENT = "CMMFNET_TEXT_ENCODER"
SENTENCE_MODEL, TAG_MODEL = "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16"
# Commits on the Hugging Face hub, so that the same text gives the same tokens next year.
CLIP_REVISIONS: dict[str, str] = {
    SENTENCE_MODEL: "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    TAG_MODEL: "57c216476eefef5ab752ec549e440a49ae4ae5f3",
}
# A word's vector is the mean over these sentences, as in open-vocabulary detection (ViLD, Gu et
# al., ICLR 2022).
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
    """A frozen CLIP text encoder in float32, loaded when the first unknown text is encoded.

    Texts are cached in memory and, where the exact weights are known, on disk. Not a
    `torch.nn.Module`, since its 63 M weights must not get into a checkpoint or an optimiser.

    Args:
        model: hub name or folder; None for the module's order above.
        revision: commit on the hub; None for the one in `CLIP_REVISIONS`, or the newest.
        device: where the encoder runs and the results are.

    Raises:
        FileNotFoundError: no such folder. OSError: a folder without a model in it. At the first
            text: OSError: the model cannot be loaded; ImportError: transformers is missing.
    """

    kind: str  # class of transformers
    default: str  # model that is used where neither argument nor environment names one
    cached_as: str  # start of the disk cache's folder
    download = True  # whether a hub model may be fetched

    def __init__(
        self,
        model: str | Path | None = None,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        name = str(model or os.environ.get(ENVIRONMENT) or self.default)
        folder = Path(name).expanduser()
        self.device, self.is_folder = torch.device(device), folder.is_dir()
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
        self.cached = lru_cache(maxsize=1024)(self._cached)  # sentences of 20 tokens: 40 MB

    def encode(self, text: str) -> dict[str, np.ndarray] | None:
        """Arrays for one text, not cached; None if the encoder may not be fetched for it."""
        raise NotImplementedError

    def _cached(self, text: str) -> dict[str, np.ndarray] | None:
        """As `encode`, from the disk cache where that has the text."""
        arrays = self._disk.get(text) if self._disk else None
        if arrays is None:
            arrays = self.encode(text)
            if arrays is not None and self._disk:
                self._disk.put(text, arrays)
        return arrays

    @cached_property
    def _disk(self) -> TextCache | None:
        """None where the exact weights are not known."""
        if self.is_folder:
            return TextCache(f"{self.cached_as}-folder-{_digest(Path(self.name))}")
        commit = self.revision
        if not re.fullmatch(r"[0-9a-f]{40}", commit or ""):  # a branch, or the newest
            if not (self.download or self.is_here()):
                return None
            commit = getattr(self.network.config, "_commit_hash", None)
        return TextCache(f"{self.cached_as}-{self.name}@{commit}") if commit else None

    @cached_property
    def _loaded(self) -> tuple:
        try:
            import transformers
        except ImportError as error:
            raise ImportError(
                "a CLIP text encoder needs transformers: pip install 'cmmfnet[clip]'"
            ) from error
        options = {"revision": self.revision}
        if not self.download:
            options["local_files_only"] = True
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

    def is_here(self) -> bool:
        """Whether the encoder can be loaded without a network connection: transformers is
        installed, and the model is a folder or in the hub's cache."""
        if importlib.util.find_spec("transformers") is None:
            return False
        if self.is_folder:
            return True
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
        return isinstance(found, str)


def _digest(folder: Path) -> str:
    """Digest of all files that the tokens depend on. 0.6 GB take half a second, less than loading
    them."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    others = [file for pattern in ("*.json", "*.txt") for file in sorted(folder.glob(pattern))]
    digest = hashlib.sha256()
    for path in [*weights, *others]:
        with path.open("rb") as file:
            of_file = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {of_file}\n".encode())
    return digest.hexdigest()[:40]


class WordEncoder(ClipEncoder):
    """CLIP vectors of words that a network's table lacks, if CLIP is on this machine. Downloads
    nothing. The encoder must be the one that made the table."""

    kind, default, cached_as = "CLIPTextModelWithProjection", TAG_MODEL, "words"
    download = False

    def __call__(self, words: Sequence[str]) -> dict[str, Tensor]:
        """Word -> (D,) float32 of unit length, D = 512 for ViT-B: the normalised mean of the
        projected, pooled and normalised vectors of `TEMPLATES`. Words that cannot be encoded on
        this machine are left out.

        Raises:
            OSError: CLIP is on this machine and cannot be read.
        """
        found = {word: self.cached(word) for word in words}
        return {
            word: torch.from_numpy(arrays["vector"]).to(self.device)
            for word, arrays in found.items()
            if arrays is not None
        }

    @torch.no_grad()
    def encode(self, word: str) -> dict[str, np.ndarray] | None:
        if not self.is_here():
            return None
        sentences = [template.replace("{}", word) for template in TEMPLATES]
        length = self.network.config.max_position_embeddings
        tokens = self.tokenizer(
            sentences, padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        embedded = self.network(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).text_embeds
        mean = normalize(embedded, dim=-1).mean(0)
        return {"vector": normalize(mean, dim=0).cpu().numpy()}
