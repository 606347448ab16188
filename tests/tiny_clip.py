"""A CLIP text encoder of a few thousand random weights, for tests that encode sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


def write_tiny_clip(folder: Path) -> Path:
    """A folder in the form of transformers: byte-level tokenizer without merges, two layers of
    width 32. Skips the test where transformers is not installed."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    characters = [chr(b) for b in printable] + [
        chr(256 + i) for i in range(len(others))
    ]  # as in GPT-2's byte table
    pieces = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({piece: i for i, piece in enumerate(pieces)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = transformers.CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77, projection_dim=16, bos_token_id=512, eos_token_id=513,
        pad_token_id=513,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.CLIPTextModelWithProjection(config)
    torch.nn.init.normal_(network.text_projection.weight)
    network.save_pretrained(folder)
    return folder
