"""``cmmfnet colorize``: pictures from a file, folder or glob into colour pictures, resumable and without surprises."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cmmfnet.sources import list_sources, plan_outputs, write_picture

if TYPE_CHECKING:
    from cmmfnet.colorizer import Colorizer
    from cmmfnet.gallery import Item

GALLERY_LIMIT = 200


class UsageError(ValueError):
    """Arguments that make no sense; the message says what to type instead."""


@dataclass
class Report:
    """What became of the pictures."""

    where: Path
    coloured: list[Path] = field(default_factory=list)  # the files written
    skipped: list[Path] = field(default_factory=list)  # the files that were there before
    failed: dict[Path, str] = field(default_factory=dict)  # input -> reason
    tags: dict[Path, list[tuple[str, float]]] = field(default_factory=dict)  # input -> names and probabilities
    seconds: float = 0.0  # without loading the model

    @property
    def exit_status(self) -> int:
        return 1 if self.failed else 0

    def __str__(self) -> str:
        parts = [f"coloured {len(self.coloured)}"]
        if self.skipped:
            parts.append(f"skipped {len(self.skipped)} that were done before (--overwrite colours them again)")
        if self.failed:
            parts.append(f"failed {len(self.failed)}")
        speed = f"; {self.seconds / len(self.coloured):.2f} s a frame" if self.coloured else ""
        return f"{', '.join(parts)}{speed}; in {self.where}"


def colorize(
    source: str,
    *,
    out: str,
    text: str | None = None,
    model: str = "cmmfnet",
    device: str = "auto",
    span: str | None = None,
    palette: str | None = None,
    batch_size: int | None = None,
    gallery: str | None = None,
    overwrite: bool = False,
    show_tags: bool = False,
) -> Report:
    """Turn thermal pictures into colour. The colours are a plausible guess, not a measurement.

    Results that are there already are kept, so a command that was interrupted goes on where it stopped.

    Args:
        source: a picture, a folder of pictures, or a glob in quotes ("set00/**/lwir/*.jpg")
        out: folder for the results (NAME.png each), or a picture file if the source is one picture
        text: what is to be seen, e.g. "a road with two cars, trees and a brick house"; without it the model guesses
        model: a name of `cmmfnet models`, a .safetensors file, or hf:OWNER/REPO@COMMIT
        device: auto, cpu, cuda, cuda:1 or mps
        span: LOW,HIGH in the pictures' own units (counts or degrees), the same for all; without it each frame is
            stretched by itself, between its 1st and 99th percentile
        palette: false-colour palette the pictures were saved in, e.g. ironbow; auto finds it
        batch_size: frames of one size that are coloured together (default: 8 on a GPU, else 1)
        gallery: also write one HTML page FILE.html to compare input and result
        overwrite: replace results that are there already
        show_tags: print what the model believes to see in each picture

    Raises:
        UsageError, SourceError, ModelError, DeviceError: nothing was written. FileExistsError: the one result is there.
    """
    _check(text, span, palette, batch_size, gallery)
    inputs = list_sources(source)
    outputs = plan_outputs(source, inputs, out)
    report = Report(where=Path(out))
    if Path(source).is_file() and outputs[0].exists() and not overwrite:
        raise FileExistsError(f"{outputs[0]} is there already; --overwrite replaces it")
    todo = [(file, result) for file, result in zip(inputs, outputs, strict=True) if overwrite or not result.exists()]
    report.skipped = [result for result in outputs if result not in {result for _, result in todo}]

    if todo:
        from cmmfnet.colorizer import Colorizer

        colorizer = Colorizer.from_pretrained(model, device=device)
        predicts = getattr(colorizer.network, "predicts_tags", False)
        if show_tags and not predicts:
            raise UsageError(f"model {model!r} predicts no tags; leave out --show-tags")
        notes = {"Comment": "colours guessed from a thermal picture by a model", "Model": colorizer.name}
        notes |= {"Text": text or "", "Span": span or "1st to 99th percentile of the frame"}
        started = time.perf_counter()
        _run(colorizer, todo, report, notes, text, span, palette, batch_size, tags=show_tags or gallery is not None)
        report.seconds = time.perf_counter() - started
    if show_tags:
        for file, tags in report.tags.items():
            print(f"{file}: " + ", ".join(f"{name} {probability:.2f}" for name, probability in tags))
    if gallery is not None:
        from cmmfnet.gallery import write_gallery

        pairs = [
            pair for pair in zip(inputs, outputs, strict=True) if pair[1].exists() and pair[0] not in report.failed
        ]
        if pairs:
            write_gallery(gallery, _items(pairs, report, text, span, palette), title=f"{source} in colour")
    for file, reason in report.failed.items():
        print(f"cmmfnet: failed: {reason if str(file) in reason else f'{file}: {reason}'}", file=sys.stderr)
    print(report)
    return report


def _check(
    text: str | None, span: str | None, palette: str | None, batch_size: int | None, gallery: str | None
) -> None:
    """What would be wrong for every picture is said once, before anything is done."""
    from cmmfnet.palettes import PALETTES
    from cmmfnet.prompts import parse_tags
    from cmmfnet.thermal import parse_span

    try:
        parse_tags(text or "")
        if span is not None:
            parse_span(span)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if palette is not None and palette not in ("auto", *PALETTES):
        raise UsageError(f"unknown palette {palette!r}; choose auto or one of: {', '.join(PALETTES)}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; expected 1 or more")
    if gallery is not None and Path(gallery).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--gallery is one HTML page; name it {Path(gallery).stem}.html")


def _run(
    colorizer: Colorizer,
    todo: list[tuple[Path, Path]],
    report: Report,
    notes: dict[str, str],
    text: str | None,
    span: str | None,
    palette: str | None,
    batch_size: int | None,
    *,
    tags: bool,
) -> None:
    """Colour ``todo`` in batches; while one is coloured, threads read the next and write the one before."""
    import torch
    from tqdm import tqdm

    from cmmfnet.thermal import ThermalFileError, read_thermal

    size = batch_size or (8 if colorizer.device.type == "cuda" else 1)
    chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
    writes: list[tuple[Path, Path, Future]] = []

    def finish_writes() -> None:
        for file, result, write in writes:
            try:
                write.result()
                report.coloured.append(result)
            except OSError as error:
                report.failed[file] = f"{file}: its result {result} cannot be written: {error}"

    with ThreadPoolExecutor(4) as pool, tqdm(total=len(todo), unit="frame", disable=None) as bar:

        def start_reads(number: int) -> list[Future]:
            chunk = chunks[number] if number < len(chunks) else []
            return [pool.submit(read_thermal, file, palette=palette) for file, _ in chunk]

        try:
            ahead = start_reads(0)
            for number, chunk in enumerate(chunks):
                reads, ahead = ahead, start_reads(number + 1)
                good = []
                for (file, result), read in zip(chunk, reads, strict=True):
                    try:
                        good.append((file, result, read.result()))
                    except (ThermalFileError, OSError) as error:
                        report.failed[file] = str(error)
                colours = colorizer([thermal for *_, thermal in good], text=text, span=span, batch_size=size)
                if tags and getattr(colorizer.network, "predicts_tags", False):
                    for file, _, thermal in good:
                        report.tags[file] = colorizer.tags(thermal, span=span)
                finish_writes()
                writes = [
                    (file, result, pool.submit(write_picture, result, rgb, notes))
                    for (file, result, _), rgb in zip(good, colours, strict=True)
                ]
                bar.update(len(chunk))
            finish_writes()
        except torch.cuda.OutOfMemoryError as error:
            raise UsageError(
                f"the GPU has too little memory for {size} frames at a time; use --batch-size {max(1, size // 2)}"
                + (" with smaller pictures, or --device cpu" if size == 1 else "")
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the pictures that are being written
            raise


def _items(
    pairs: list[tuple[Path, Path]], report: Report, text: str | None, span: str | None, palette: str | None
) -> Iterator[Item]:
    """The pictures of a page, read again from disk: a page of thousands must not hold them all in memory."""
    import numpy as np
    from PIL import Image

    from cmmfnet.gallery import Item, as_grey
    from cmmfnet.thermal import normalise, parse_span, read_thermal

    if len(pairs) > GALLERY_LIMIT:
        print(f"cmmfnet: the page shows {GALLERY_LIMIT} of {len(pairs)} pictures, evenly spaced", file=sys.stderr)
        pairs = [pairs[i * len(pairs) // GALLERY_LIMIT] for i in range(GALLERY_LIMIT)]
    for file, result in pairs:
        thermal = normalise(read_thermal(file, palette=palette), parse_span(span) if span else None)
        with Image.open(result) as picture:
            rgb = np.asarray(picture.convert("RGB"))
        seen = [f"{name} {probability:.2f}" for name, probability in report.tags.get(file, [])]
        caption = f"text: {text}" if text else f"seen: {', '.join(seen)}" if seen else ""
        yield Item(file.name, as_grey(thermal), rgb, caption)


def models(name: str | None = None) -> None:
    """List the known models, or describe one.

    Args:
        name: a known name, a .safetensors file, or hf:OWNER/REPO@COMMIT; without it, all known names
    """
    from cmmfnet.weights import KNOWN, describe

    if name is None and not KNOWN:
        print("no bundled models in this installation")
    for each in [name] if name is not None else KNOWN:
        found = describe(each)
        print(f"{found['name']}: {found['summary'] or found['method']}")
        print(f"  {found['parameters'] / 1e6:.1f} M parameters, {found['bytes'] / 1e6:.1f} MB as {found['storage']}")
        print(f"  licence   {found['licence']}")
        print(f"  sha256    {found['sha256']}")
        print(f"  file      {found['path']}")
        for key, value in (found["training"] or {}).items():
            print(f"  {key:9} {value}")
