"""A result of ``cmmfnet evaluate`` as text and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.protocol import PICTURES, sentence
from cmmfnet.files.atomic import atomic_write


def describe(protocol: dict, data: str | Path) -> str:
    """The protocol in three lines."""
    usual = protocol["pictures"] == PICTURES[None]
    pictures = "" if usual else f"; pictures: {protocol['pictures']}"
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    return (
        f"{data}, split {protocol['split']}: "
        f"{sentence(protocol['geometry']['name'], protocol['ssim']['preset'])}\n"
        f"{protocol['frames']} frames, sha256 of their list {protocol['frames_sha256'][:16]}, of "
        "the true pictures "
        f"{protocol['truth_sha256'][:16]}{pictures}\n{versions}"
    )


def table(result: dict) -> str:
    """Means by source; for all, the 95 % interval under each, and the mean over sequences."""
    shown = [
        name for name in METRICS if any(name in cell for cell in result["scores"]["all"].values())
    ]
    width = max([14, *(len(METRICS[name].title) + 2 for name in shown)])
    lines = [
        f"{'source':16}{'pairs':>6}  {'':28}"
        + "".join(f"{METRICS[name].title:>{width}}" for name in shown)
    ]

    def line(source: str, count: str, method: str, values: Sequence[str]) -> None:
        lines.append(
            f"{source:16}{count:>6}  {method:28}" + "".join(f"{value:>{width}}" for value in values)
        )

    def number(name: str, cell: dict | None, key: str = "mean") -> str:
        return f"{cell[key]:.{METRICS[name].decimals}f}" if cell and cell[key] is not None else "-"

    def interval(name: str, cell: dict | None) -> str:
        return (
            f"[{number(name, cell, 'low')},{number(name, cell, 'high')}]"
            if cell and cell["low"] is not None
            else ""
        )

    for source, methods in result["scores"].items():
        for method, cell in methods.items():
            line(
                source, str(cell["pairs"]), method, [number(name, cell.get(name)) for name in shown]
            )
            if source == "all":
                line("", "", "", [interval(name, cell.get(name)) for name in shown])
    sequences = next(iter(result["scores"]["all"].values()))["sequences"]
    for method, cell in result["scores"]["all"].items():
        if sequences == cell["pairs"]:
            break  # every picture is its own sequence: the same numbers again
        line(
            "by sequence",
            str(sequences),
            method,
            [number(name, cell.get(name), "over_sequences") for name in shown],
        )
    directions = ", ".join(
        f"{METRICS[n].title} {METRICS[n].better}" for n in shown if METRICS[n].better
    )
    return "\n".join(
        text.rstrip()
        for text in [*lines, f"better is: {directions}; [95 % interval over sequences]"]
    )


def write_result(path: str | Path, result: dict) -> None:
    """As JSON; numbers that JSON does not have (the PSNR of equal pictures) as the string "inf" or
    "nan"."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    with atomic_write(Path(path), text=True) as file:
        json.dump(plain(result), file, indent=1, allow_nan=False)
