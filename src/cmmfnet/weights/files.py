"""Model files: safetensors with the configuration inside, loaded strictly or not at all.

A model file is one ``.safetensors`` file. Its header holds four strings: ``format`` ("cmmfnet-1"),
``config`` (JSON: a method and the keywords of its network), ``training`` (JSON: what it was trained
on and how) and ``storage`` ("float32", "float16" or "int8"). docs/models.md describes the format
for other readers.

Torch is imported inside the functions that need it, so that ``cmmfnet models`` answers at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError

if TYPE_CHECKING:
    import torch

FORMAT = "cmmfnet-1"
STORAGES = ("float32", "float16", "int8")
BUNDLED = Path(__file__).parent / "bundled"
HUB_FILE = "model.safetensors"

# Below this many values a tensor costs next to nothing, and a rounding error in it costs as much as
# anywhere.
INT8_FROM = 4096
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<commit>[^/]+))?(?:/(?P<file>.+))?")


class ModelError(UserError):
    """A model that cannot be found, trusted or loaded; the message says what to do instead."""


@dataclass(frozen=True)
class Known:
    """One row of the table of known weights."""

    file: str  # in BUNDLED
    sha256: str
    licence: str
    summary: str


KNOWN: dict[str, Known] = {
    "cmmfnet": Known(
        file="cmmfnet.safetensors",
        sha256="82ce7f89b198a75b09a37f3676ecf46568895b6f9b3d124a15cc2ec8b813d2d5",
        licence="research use (the terms of the training data); see docs/model-card.md",
        summary="CMMF-Net, the released recipe: VGG-16 hybrid ViT, large-kernel U-Net, "
        "pseudo-thermal co-training, words by region",
    ),
    "cmmfnet-small": Known(
        file="cmmfnet-small.safetensors",
        sha256="a616e243af640ba0bfb9dc7e7e58fbf0a8f2b382309ffe0f110041181d4d1791",
        licence="research use (the terms of the training data); see docs/model-card-small.md",
        summary="for live colour on a CPU, at a cost in quality: a small network taught by cmmfnet",
    ),
}


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
        ModelError: not found, not safetensors, damaged, or its tensors are not exactly those of the
            network.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from cmmfnet.methods import build_network

    path, known = _find(name)
    header = _header(path)
    if known is not None:
        _check_sha256(path, known.sha256)
    config, training = _metadata(path, header, "config"), _metadata(path, header, "training")
    if not isinstance(config, dict) or "method" not in config:
        raise ModelError(f"{path}: its configuration names no method, found {config!r}")
    try:
        network = build_network(config)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: no network can be built from its configuration {config}: {error}"
        ) from error

    try:
        stored = load_file(path)
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    expected = network.state_dict()
    floats = {key for key, tensor in expected.items() if tensor.is_floating_point()}
    quantised = {key for key in stored.keys() & floats if stored[key].dtype == torch.int8}
    state = {}
    for key in stored.keys() - {f"{key}.scale" for key in quantised}:
        tensor = stored[key]
        if key in quantised:
            scale = stored.get(f"{key}.scale")
            if scale is None or scale.shape != tensor.shape[:1]:
                raise ModelError(
                    f"{path}: {key} is int8, but its scales {key}.scale are missing or of another "
                    "size"
                )
            tensor = tensor.float() * scale.float().view(-1, *[1] * (tensor.ndim - 1))
        state[key] = tensor.float() if tensor.is_floating_point() else tensor
    _check_tensors(path, state, expected)
    network.load_state_dict(state, strict=True)
    label = name if known is not None or str(name).startswith("hf:") else path.stem
    return LoadedModel(
        network.to(torch.float32).eval().requires_grad_(False), config, training, str(label)
    )


def _check_tensors(
    path: Path, state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the network has {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    kinds = [
        f"{key} is {state[key].dtype}, the network has {expected[key].dtype}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].is_floating_point() != expected[key].is_floating_point()
    ]
    found = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in [
            ("missing", missing),
            ("not in the network", extra),
            ("misshapen", shapes + kinds),
        ]
        if names
    ]
    if found:
        raise ModelError(
            f"{path}: its tensors are not those of the network its configuration describes; "
            f"{'; '.join(found)}"
        )


# --- finding and describing


def _find(name: str | Path) -> tuple[Path, Known | None]:
    if isinstance(name, str) and name in KNOWN:
        path = BUNDLED / KNOWN[name].file
        if not path.is_file():
            raise ModelError(
                f"the bundled model {name!r} is not in this installation ({path}); install "
                "cmmfnet again"
            )
        return path, KNOWN[name]
    if isinstance(name, str) and name.startswith("hf:"):
        return _from_hub(name), None
    path = Path(name)
    if path.suffix.lower() in _PICKLES:
        raise ModelError(_pickle_message(path))
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.safetensors"))
        raise ModelError(
            f"{path} is a folder; give the model file inside it"
            + (f": {', '.join(inside)}" if inside else ", but it holds no .safetensors file")
        )
    if path.is_file():
        return path, None
    if isinstance(name, Path) or os.sep in name or "/" in name or path.suffix == ".safetensors":
        raise ModelError(f"no model file {path} (looked in {path.absolute().parent})")
    close = difflib.get_close_matches(str(name), KNOWN, cutoff=0.4)
    raise ModelError(
        f"unknown model {str(name)!r}{f'; did you mean {close[0]!r}?' if close else '.'} "
        f"Known: {', '.join(KNOWN) or 'none'}. Otherwise give the path of a .safetensors file, or "
        "hf:OWNER/REPO@COMMIT"
    )


def _from_hub(name: str) -> Path:
    match = _HUB.fullmatch(name)
    if match is None:
        raise ModelError(
            f"{name!r} is not of the form hf:OWNER/REPO@COMMIT or "
            "hf:OWNER/REPO@COMMIT/FILE.safetensors"
        )
    repo, commit, file = match["repo"], match["commit"], match["file"] or HUB_FILE
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ModelError(
            f"{name!r} is not pinned to a commit, so its weights could change under you (found "
            f"revision {commit!r}); "
            f"write hf:{repo}@ followed by the 40-digit commit shown at "
            f"https://huggingface.co/{repo}/commits/main"
        )
    if Path(file).suffix.lower() in _PICKLES:
        raise ModelError(_pickle_message(Path(file)))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, revision=commit))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"{name}: the hub did not give {file}: {error}") from error


def _pickle_message(path: Path) -> str:
    return (
        f"{path} is a pickle, and loading a pickle runs whatever code is in it; only safetensors "
        "are loaded. "
        "Use the .safetensors file that `cmmfnet train` wrote, or build the network in Python, "
        "load the weights with "
        "torch.load(..., weights_only=True) and write it with cmmfnet.weights.files.save_model"
    )


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: 8 bytes of length, then tensor name -> dtype, shape,
    offsets."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        whole = len(start) == 8 and length <= min(size - 8, 100_000_000)
        # a pickle's first bytes are no length that could be, a header of 128, 384, ... bytes begins
        # with 0x80, too
        if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and not whole):
            raise ModelError(_pickle_message(path))
        if not whole:
            raise ModelError(
                f"{path} is not a whole safetensors file ({size:,} bytes); it was cut off or is "
                "another format"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        end = 8 + length + max((value["data_offsets"][1] for value in tensors.values()), default=0)
    except (
        UnicodeDecodeError,
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:
        raise ModelError(
            f"{path} is not a safetensors file: its header does not read ({error})"
        ) from error
    if end != size:
        raise ModelError(
            f"{path} is damaged: {size:,} bytes, its header promises {end:,}; copy or download it "
            "again"
        )
    found = header.get("__metadata__", {}).get("format")
    if found != FORMAT:
        hint = (
            "; a newer cmmfnet wrote it: pip install -U cmmfnet"
            if str(found).startswith("cmmfnet-")
            else ""
        )
        raise ModelError(
            f"{path} is no cmmfnet model: its metadata say format={found!r}, expected "
            f"{FORMAT!r}{hint}"
        )
    return header


def _metadata(path: Path, header: dict[str, Any], key: str) -> Any:
    try:
        return json.loads(header["__metadata__"][key])
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path}: its metadata entry {key!r} is missing or no JSON") from error


def _check_sha256(path: Path, expected: str) -> None:
    found = _sha256(path)
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
    path, known = _find(name)
    header = _header(path)
    sha256 = _sha256(path)
    if known is not None and sha256 != known.sha256:
        _check_sha256(path, known.sha256)
    training = _metadata(path, header, "training")
    tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    scales = {f"{key}.scale" for key, value in tensors.items() if value["dtype"] == "I8"}
    counted = [
        v
        for k, v in tensors.items()
        if k not in scales and v["dtype"] in ("F32", "F16", "BF16", "F64", "I8")
    ]
    return {
        "name": str(name),
        "method": _metadata(path, header, "config").get("method"),
        "parameters": sum(math.prod(value["shape"]) for value in counted),
        "bytes": path.stat().st_size,
        "storage": header["__metadata__"].get("storage"),
        "training": training,
        "licence": known.licence if known else (training or {}).get("licence", "not stated"),
        "summary": known.summary if known else (training or {}).get("summary", ""),
        "sha256": sha256,
        "path": str(path),
    }
