"""Model files: safetensors with the configuration inside, loaded strictly or not at all.

A model file is one ``.safetensors`` file. Its header holds four strings: ``format`` ("cmmfnet-1"),
``config`` (JSON: a method and the keywords of its network), ``training`` (JSON: what it was trained
on and how) and ``storage`` ("float32", "float16" or "int8"). docs/models.md describes the format
for other readers.

Torch is imported inside the functions that need it, so that ``cmmfnet models`` answers at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmmfnet.files.atomic import atomic_write
from cmmfnet.weights.header import FORMAT, STORAGES, read_header
from cmmfnet.weights.known import ModelError, find

if TYPE_CHECKING:
    import torch

# Below this many values a tensor costs next to nothing, and a rounding error in it costs as much as
# anywhere.
INT8_FROM = 4096


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for inference, with what its file says about it."""

    network: torch.nn.Module  # evaluation mode, float32, CPU
    config: dict[str, Any]
    training: dict[str, Any] | None
    name: str


# --- saving


def save_model(
    path: str | Path,
    network: torch.nn.Module,
    config: dict[str, Any],
    training: dict[str, Any] | None = None,
    *,
    storage: str = "float32",
) -> Path:
    """Write ``network`` to ``path`` (.safetensors), completely or not at all.

    Args:
        path: the file to write; an older file of that name is replaced only once the new one is
            safely on disk.
        network: its ``state_dict`` is what is stored; every float value must be finite.
        config: ``{"method": NAME, ...}``, the argument of ``cmmfnet.methods.build_network``;
            JSON-able.
        training: JSON-able description of data, steps, losses; shown by ``cmmfnet models``.
        storage: ``float32`` (exact), ``float16`` (half the size), ``int8`` (a quarter: every float
            tensor with two dimensions or more and over 4,096 values as int8 with one scale per
            output channel, the rest as float16).

    Raises:
        ModelError: unknown storage, a name without .safetensors, values that the storage cannot
            hold.
    """
    from safetensors.torch import save

    path = Path(path)
    if storage not in STORAGES:
        raise ModelError(f"unknown storage {storage!r}; choose one of {', '.join(STORAGES)}")
    if path.suffix != ".safetensors":
        raise ModelError(
            f"models are written as .safetensors, found {path.name!r}; name it "
            f"{path.stem}.safetensors"
        )
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config, sort_keys=True),
        "training": json.dumps(training, sort_keys=True),
        "storage": storage,
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict().items():
        tensors.update(_stored(name, tensor.detach().cpu(), storage))
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))
    return path


def _stored(name: str, tensor: torch.Tensor, storage: str) -> dict[str, torch.Tensor]:
    import torch

    if not tensor.is_floating_point():
        return {name: tensor.contiguous().clone()}
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ModelError(
            f"{name} holds NaN or infinite values; such a network must not be released"
        )
    if storage == "float32":
        return {
            name: tensor.contiguous().clone()
        }  # cloned: tied weights share memory, which safetensors refuses
    if storage == "int8" and _as_int8(tensor.shape):
        scale = tensor.abs().flatten(1).amax(1) / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # an all-zero channel
        quantised = torch.round(tensor / scale.view(-1, *[1] * (tensor.ndim - 1))).clamp(-127, 127)
        return {name: quantised.to(torch.int8).contiguous(), f"{name}.scale": scale}
    if tensor.numel() and tensor.abs().max() > torch.finfo(torch.float16).max:
        raise ModelError(
            f"{name} holds values beyond float16 (65,504); store this network as float32"
        )
    return {name: tensor.half().contiguous()}


def _as_int8(shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and math.prod(shape) > INT8_FROM


# --- loading


def load_model(name: str | Path = "cmmfnet") -> LoadedModel:
    """Load a model by name, from a file, or from the Hugging Face hub.

    Args:
        name: a name of ``KNOWN`` (its file's sha256 is checked), the path of a .safetensors file
            written by :func:`save_model`, or ``hf:OWNER/REPO@COMMIT[/FILE]`` with a full 40-digit
            commit.

    Raises:
        ModelError: not found, not safetensors, damaged, its tensors are not exactly those of the
            network, or they hold NaN or infinite values.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from cmmfnet.methods import build_network
    from cmmfnet.weights.building import compare, shapes_of

    path, known = find(name)
    header = read_header(path)
    if known is not None:
        _check_sha256(path, known.sha256)
    try:
        # modules that a constructor replaces by others count, too
        expected = shapes_of(header.config, 2 * len(header.tensors) + 1000)
        quantised = {
            key
            for key, tensor in header.tensors.items()
            if tensor.dtype == "I8" and key in expected and expected[key].is_floating_point()
        }
        scales = {key: f"{key}.scale" for key in quantised}
        compare(
            {
                key: replace(tensor, dtype="F32") if key in quantised else tensor
                for key, tensor in header.tensors.items()
                if key not in scales.values()
            },
            expected,
        )
        stored = load_file(path)
        for key, scale in scales.items():
            if scale not in stored or stored[scale].shape != stored[key].shape[:1]:
                raise ModelError(f"{key} is int8, but its scales {scale} are missing or misshapen")
            rows = stored[scale].float().view(-1, *[1] * (stored[key].ndim - 1))
            stored[key] = stored[key].float() * rows
        state = {
            key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in stored.items()
            if key not in scales.values()
        }
        if known is None and not all(tensor.isfinite().all() for tensor in state.values()):
            raise ModelError("it holds NaN or infinite values, so no picture can come of it")
        network = build_network(header.config)
        network.load_state_dict(state, strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    label = name if known is not None or str(name).startswith("hf:") else path.stem
    return LoadedModel(
        network.to(torch.float32).eval().requires_grad_(False),
        header.config,
        header.training,
        str(label),
    )


def _check_sha256(path: Path, expected: str, found: str | None = None) -> None:
    found = found or _sha256(path)
    if found != expected:
        raise ModelError(
            f"{path} is not the file that was released: sha256 {found}, expected {expected}; "
            "install cmmfnet again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(name: str | Path = "cmmfnet") -> dict[str, Any]:
    """What a model file says about itself, read from its header alone.

    Returns:
        ``name``, ``method``, ``parameters`` (stored float values, buffers included), ``bytes``,
        ``storage``, ``training`` (dict or None), ``licence``, ``summary``, ``sha256``, ``path``.

    Raises:
        ModelError: as for :func:`load_model`.
    """
    path, known = find(name)
    header, sha256 = read_header(path), _sha256(path)
    if known is not None:
        _check_sha256(path, known.sha256, sha256)
    training = header.training or {}
    counted = [
        tensor
        for key, tensor in header.tensors.items()
        if key not in header.scales and (tensor.is_floating_point() or tensor.dtype == "I8")
    ]
    return {
        "name": str(name),
        "method": header.config["method"],
        "parameters": sum(math.prod(tensor.shape) for tensor in counted),
        "bytes": path.stat().st_size,
        "storage": header.storage,
        "training": header.training,
        "licence": known.licence if known else str(training.get("licence", "not stated")),
        "summary": known.summary if known else str(training.get("summary", "")),
        "sha256": sha256,
        "path": str(path),
    }
