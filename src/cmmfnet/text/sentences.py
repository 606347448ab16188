"""Whole sentences as network input: hidden states of CLIP ViT-B/32, as in the CMMF-Net paper."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cmmfnet.text.clip import SENTENCE_MODEL, ClipEncoder

# The paper feeds one fixed description per data set and does not print it; this one is ours.
TEMPLATES_BY_DATASET: dict[str, str] = {
    "street-day": (
        "A street in the daytime: a grey asphalt road with white lane markings, cars, buses and "
        "bicycles, people on the pavement, green trees, buildings with windows, traffic lights and "
        "street lamps under a bright sky."
    ),
}
DEFAULT_PROMPT = TEMPLATES_BY_DATASET["street-day"]


class SentenceEncoder(ClipEncoder):
    """CLIP's hidden states of sentences: one token for each piece of the text, which is a word or a
    part of one."""

    kind, default, cached_as = "CLIPTextModel", SENTENCE_MODEL, "sentences"

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode B texts. The end of a text longer than 77 tokens is ignored, with a warning.

        Returns:
            tokens: (B, 77, 512) float32, output of the final layer norm, before the projection; 0
                where padded.
            mask: (B, 77) bool, True where valid; start and end of text are valid.

        Raises:
            TypeError: not a list of one string or more. ImportError, OSError: see the class.
        """
        if not texts or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                "SentenceEncoder takes a list of strings, one per picture: encoder(['a street at "
                "night'])"
            )
        found = [self.cached(text) for text in texts]
        length, width = int(found[0]["counts"][1]), found[0]["tokens"].shape[1]
        tokens = np.zeros((len(texts), length, width), np.float32)
        mask = np.zeros((len(texts), length), bool)
        for i, (text, arrays) in enumerate(zip(texts, found, strict=True)):
            tokens[i, : len(arrays["tokens"])] = arrays["tokens"]
            mask[i, : len(arrays["tokens"])] = True
            if (count := int(arrays["counts"][0])) > length:
                warnings.warn(
                    f"the text has {count} tokens and CLIP reads {length}, so its end is ignored: "
                    f"{text[:40]!r} ... {text[-40:]!r}",
                    stacklevel=2,
                )
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(mask).to(self.device)

    @torch.no_grad()
    def encode(self, text: str) -> dict[str, np.ndarray]:
        """``tokens`` (n, 512) of the valid tokens, and ``counts``: tokens of the whole text, and
        the most that CLIP reads."""
        length = self.network.config.max_position_embeddings
        count = len(self.tokenizer(text, verbose=False).input_ids)
        ids = self.tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        hidden = self.network(input_ids=ids.input_ids.to(self.device)).last_hidden_state[0]
        return {"tokens": hidden.cpu().numpy(), "counts": np.array([count, length])}
