"""The header of a model file: what it says about itself, checked before anything is used."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmmfnet.weights.known import ModelError, pickle_message

FORMAT = "cmmfnet-1"
STORAGES = ("float32", "float16", "int8")
MOST_BYTES = 100_000_000  # of a header
MOST_CHARACTERS = 1_000_000  # of a metadata entry
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4,
    "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]

    def is_floating_point(self) -> bool:
        """Like ``torch.Tensor.is_floating_point``."""
        return self.dtype in ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Header:
    tensors: dict[str, Stored]
    config: dict[str, Any]
    training: dict[str, Any] | None
    storage: str

    @property
    def scales(self) -> set[str]:
        """Tensors that hold the scales of an int8 tensor."""
        return {f"{key}.scale" for key, value in self.tensors.items() if value.dtype == "I8"}


def read_header(path: Path) -> Header:
    """Raises :class:`ModelError` for anything but a whole safetensors file of this project, and
    OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        whole = len(start) == 8 and length <= min(size - 8, MOST_BYTES)
        # the first bytes of a pickle are no possible length; a header of 128, 384, ... bytes begins
        # with 0x80, too
        if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and not whole):
            raise ModelError(pickle_message(path))
        if not whole:
            raise ModelError(
                f"{path} is not a whole safetensors file ({size:,} bytes); it was cut off or is "
                "another format"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        tensors = {key: _stored(value) for key, value in header.items() if key != "__metadata__"}
        end = 8 + length + max((end for _, end in tensors.values()), default=0)
        metadata = header.get("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata that are no texts")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path} is not a safetensors file: its header does not read ({str(error)[:200]})"
        ) from error
    if end != size:
        raise ModelError(
            f"{path} is damaged: {size:,} bytes, its header promises {end:,}; copy or download it "
            "again"
        )
    if (found := metadata.get("format")) != FORMAT:
        newer = str(found).startswith("cmmfnet-")
        hint = "; a newer cmmfnet wrote it: pip install -U cmmfnet" if newer else ""
        raise ModelError(
            f"{path} is no cmmfnet model: its metadata say format={str(found)[:100]!r}, expected "
            f"{FORMAT!r}{hint}"
        )
    config, training = (_parsed(path, metadata, key) for key in ("config", "training"))
    if not isinstance(config, dict) or not isinstance(config.get("method"), str):
        raise ModelError(f"{path}: its configuration names no method, found {repr(config)[:200]}")
    if not isinstance(training, dict | None):
        raise ModelError(
            f"{path}: its metadata entry 'training' is {repr(training)[:200]}; expected an object "
            "or null"
        )
    if (storage := metadata.get("storage")) not in STORAGES:
        raise ModelError(
            f"{path}: its metadata say storage={storage!r:.100}; expected one of "
            f"{', '.join(STORAGES)}"
        )
    return Header({key: value for key, (value, _) in tensors.items()}, config, training, storage)


def _stored(entry: dict[str, Any]) -> tuple[Stored, int]:
    """A tensor and the end of its data. Raises for anything that is not as safetensors has it."""
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, begin, end]
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in numbers):
        raise TypeError(f"a tensor with {repr(entry)[:100]}")
    if end - begin != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"a tensor of {end - begin} bytes with {repr(entry)[:100]}")
    return Stored(dtype, tuple(shape)), end


def _parsed(path: Path, metadata: dict[str, str], key: str) -> Any:
    try:
        if len(metadata[key]) > MOST_CHARACTERS:
            raise ValueError(f"{len(metadata[key]):,} characters")
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata entry {key!r} is missing or no JSON") from error
