"""``cmmfnet colorize``: pictures from a file, folder or glob into colour pictures, resumable and
without surprises."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cmmfnet.files.atomic import DISK_FULL, clear_parts
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import (
    dangling,
    is_result,
    list_sources,
    plan_outputs,
    write_picture,
)
from cmmfnet.text.prompt import has_corrections, read_prompt
from cmmfnet.text.prompt_files import check_prompt, picture_texts
from cmmfnet.thermal.limits import MAX_PIXELS

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import FrameColorizer, Seen
    from cmmfnet.files.gallery import Item

GALLERY_LIMIT = 200


class UsageError(UserError):
    """Arguments that make no sense; the message says what to type instead."""


@dataclass
class Report:
    """The outcome for each picture."""

    where: Path
    coloured: list[Path] = field(default_factory=list)  # the files written
    skipped: list[Path] = field(default_factory=list)  # the files that were there before
    results: list[Path] = field(default_factory=list)  # inputs that are results of an earlier run
    failed: dict[Path, str] = field(default_factory=dict)  # input -> reason
    not_shown: dict[Path, str] = field(default_factory=dict)  # input -> why the page lacks it
    seen: dict[Path, Seen] = field(default_factory=dict)  # input -> prediction, if asked for
    seconds: float = 0.0  # without loading the model

    @property
    def exit_status(self) -> int:
        return 1 if self.failed or self.not_shown else 0

    def __str__(self) -> str:
        parts = [f"coloured {len(self.coloured)}"]
        if self.skipped:
            parts.append(
                f"skipped {len(self.skipped)} that were done before (--overwrite colours them "
                "again)"
            )
        if self.results:
            parts.append(f"left out {len(self.results)} that are results of cmmfnet themselves")
        if self.failed:
            parts.append(f"failed {len(self.failed)}")
        speed = f"; {self.seconds / len(self.coloured):.2f} s a frame" if self.coloured else ""
        return f"{', '.join(parts)}{speed}; in {self.where}"


def colorize(
    source: str,
    *,
    out: str,
    text: str | None = None,
    text_file: str | None = None,
    model: str = "cmmfnet",
    device: str = "auto",
    span: str | None = None,
    palette: str | None = None,
    batch_size: int | None = None,
    gallery: str | None = None,
    overwrite: bool = False,
    show_tags: bool = False,
    guidance: float = 1.0,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Turn thermal pictures into colour. The colours are a plausible guess, not a measurement.

    Existing results are kept, so an interrupted command continues where it stopped. Pictures that
    are results of an earlier run are left out.

    Args:
        source: a picture, a folder of pictures, or a glob in quotes ("set00/**/lwir/*.jpg")
        out: folder for the results (NAME.png each), or a picture file if the source is one picture
        text: what the picture shows, e.g. "a road with two cars, trees and a brick house"; without
            it the model guesses. "+snow -grass" corrects the model's guess (--text="-grass" with
            the equals sign)
        text_file: a text for each picture, used before --text: a captions file (.jsonl, .csv, or
            NAME, a tab, TEXT), a file of times (0:00-0:12 a street), or the word beside: NAME.txt
            beside NAME.png, _folder.txt for a folder
        model: a name of `cmmfnet models`, a .safetensors file, hf:OWNER/REPO@COMMIT, or an .onnx
            file of `cmmfnet export`
        device: auto, cpu, cuda, cuda:1 or mps
        span: LOW,HIGH in the pictures' own units (counts or degrees), the same for all; without it
            each frame is stretched between its 1st and 99th percentile
        palette: false-colour palette of the pictures, e.g. ironbow; auto finds it
        batch_size: frames of one size that are coloured together (default: 8 on a GPU, else 1)
        gallery: also write one HTML page FILE.html to compare input and result
        overwrite: replace existing results
        show_tags: print the things that the model predicts for each picture, and the names it was
            given if the text corrects them
        guidance: how strongly a text moves the colours, 1 as trained, up to 4; other values than 1
            take twice the time
        max_pixels: pictures of more pixels are refused before they are decoded

    Raises:
        UserError: the request makes no sense; nothing was written.
        FileExistsError: ``source`` is one picture and its result exists.
        OSError: the disk is full; what was written before is complete.
    """
    _check(text, span, palette, batch_size, gallery, max_pixels)
    inputs, results = _inputs(source)
    outputs = plan_outputs(source, inputs, out)
    found = picture_texts(source, inputs, text=text, text_file=text_file)
    for note in found.unused:
        warnings.warn(note, stacklevel=2)
    texts = dict(zip(inputs, found.texts, strict=True))
    report = Report(where=Path(out), results=results)
    done = {result for result in outputs if os.path.isfile(result)}  # noqa: PTH113, names of any length
    if Path(source).is_file() and done and not overwrite:
        raise FileExistsError(f"{outputs[0]} is there already; --overwrite replaces it")
    pairs = list(zip(inputs, outputs, strict=True))
    todo = [(file, result) for file, result in pairs if overwrite or result not in done]
    report.skipped = [result for _, result in pairs if result in done and not overwrite]
    pages = [Path(gallery).parent] if gallery is not None else []
    clear_parts(*(result.parent for result in outputs), *pages)

    def tell() -> None:
        """Print what became of the pictures."""
        if show_tags:
            for file, seen in report.seen.items():
                print(f"{file}: {_say(seen)}")
        for file, reason in report.failed.items():
            print(
                f"cmmfnet: failed: {reason if str(file) in reason else f'{file}: {reason}'}",
                file=sys.stderr,
            )
        if text_file is not None:
            print(found)
        print(report)

    reading = {"palette": palette, "max_pixels": max_pixels}
    if todo:
        colorizer = open_colorizer(model, device, guidance)
        predicts = getattr(colorizer.network, "predicts_tags", False)
        if show_tags and not predicts:
            raise UsageError(f"model {model!r} predicts no tags; leave out --show-tags")
        _check_corrections(colorizer, [texts[file] for file, _ in todo])
        notes = {
            "Comment": "colours guessed from a thermal picture by a model",
            "Model": colorizer.name,
        }
        notes |= {"Span": span or "1st to 99th percentile of the frame"}
        started = time.perf_counter()
        tags = predicts and (
            show_tags
            or gallery is not None
            or any(map(has_corrections, filter(None, texts.values())))
        )
        try:
            _run(colorizer, todo, report, notes, texts, span, reading, batch_size, tags=tags)
        except OSError as error:  # the disk is full
            report.seconds = time.perf_counter() - started
            tell()
            raise error
        report.seconds = time.perf_counter() - started
    tell()
    if gallery is not None:
        shown = [pair for pair in pairs if pair[1].is_file() and pair[0] not in report.failed]
        if shown:
            from cmmfnet.files.gallery import write_gallery

            write_gallery(
                gallery, _items(shown, report, texts, span, reading), title=f"{source} in colour"
            )
        for file, reason in report.not_shown.items():
            print(f"cmmfnet: not in {gallery}: {file}: {reason}", file=sys.stderr)
    return report


def _inputs(source: str) -> tuple[list[Path], list[Path]]:
    """The pictures to colour, and those that are results of an earlier run."""
    listed = list_sources(source)
    with ThreadPoolExecutor(4) as pool:
        ours = list(pool.map(is_result, listed))
    inputs = [file for file, result in zip(listed, ours, strict=True) if not result]
    results = [file for file, result in zip(listed, ours, strict=True) if result]
    if not inputs:
        which = (
            f"{source} is a result"
            if len(results) == 1
            else f"all {len(results)} pictures in {source} are results"
        )
        raise UsageError(f"{which} of cmmfnet (a note in the file says so); give thermal pictures")
    return inputs, results


def open_colorizer(model: str, device: str, guidance: float = 1.0) -> FrameColorizer:
    """What colours with ``model``: ONNX Runtime, without torch, for NAME.onnx; PyTorch for any
    other."""
    if not 0 <= guidance <= 4:
        raise UsageError(
            f"--guidance is {guidance}; expected 0 (text has no effect) to 4, 1 is as trained"
        )
    if Path(model).suffix.lower() == ".onnx":
        if guidance != 1:
            raise UsageError("--guidance needs a model of PyTorch; leave it out for .onnx")
        from cmmfnet.colorizer.onnx import OnnxColorizer

        return OnnxColorizer.from_pretrained(model, device=device)
    from cmmfnet.colorizer.torch import Colorizer

    return Colorizer.from_pretrained(model, device=device, guidance=guidance)


def _say(seen: Seen) -> str:
    """What a model sees, and what it was told because of that."""
    predicted = ", ".join(f"{name} {probability:.2f}" for name, probability in seen.predicted)
    return (
        predicted
        if seen.told is None
        else f"{predicted}; told: {', '.join(seen.told) or 'nothing'}"
    )


def _check_corrections(colorizer: FrameColorizer, texts: list[str | None]) -> None:
    """Texts that start from predicted tags need a model that predicts some and takes their
    names."""
    network = colorizer.network
    if (
        getattr(network, "predicts_tags", False)
        and getattr(network, "text_source", "none") == "clip-tags"
    ):
        return
    for text in dict.fromkeys(filter(None, texts)):
        if getattr(network, "text_source", "none") != "none" and read_prompt(text).needs_prediction:
            raise UsageError(
                f"model {colorizer.name!r} predicts no tags, so {text!r} has nothing to start "
                "from; write what is to be seen"
            )


def _check(
    text: str | None,
    span: str | None,
    palette: str | None,
    batch_size: int | None,
    gallery: str | None,
    max_pixels: int,
) -> None:
    """Refuse options that would be wrong for every picture, before anything is done."""
    from cmmfnet.thermal.palettes import PALETTES
    from cmmfnet.thermal.stretch import parse_span

    try:
        check_prompt(text or "")
        if span is not None:
            parse_span(span)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if palette is not None and palette not in ("auto", *PALETTES):
        raise UsageError(
            f"unknown palette {palette!r}; choose auto or one of: {', '.join(PALETTES)}"
        )
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; expected 1 or more")
    if max_pixels < 1:
        raise UsageError(f"--max-pixels is {max_pixels}; expected 1 or more")
    if gallery is not None and Path(gallery).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--gallery is one HTML page; name it {Path(gallery).stem}.html")


def _run(
    colorizer: FrameColorizer,
    todo: list[tuple[Path, Path]],
    report: Report,
    notes: dict[str, str],
    texts: dict[Path, str | None],
    span: str | None,
    reading: dict,
    batch_size: int | None,
    *,
    tags: bool,
) -> None:
    """Colour ``todo`` in batches; meanwhile threads read the next batch and write the last one.

    ``reading``: options of ``read_thermal``. Raises ``OSError`` if the disk is full: all further
    results would fail, too.
    """
    from tqdm import tqdm

    from cmmfnet.thermal.frame import ThermalFileError, read_thermal

    size = batch_size or (8 if colorizer.device.type == "cuda" else 1)
    torch = sys.modules.get("torch")  # an .onnx model does without
    out_of_memory = torch.cuda.OutOfMemoryError if torch is not None else ()
    chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
    writes: list[tuple[Path, Path, Future]] = []

    def finish_writes() -> None:
        full = None
        for file, result, write in writes:
            try:
                write.result()
                report.coloured.append(result)
            except OSError as error:
                report.failed[file] = f"{file}: its result {result} cannot be written: {error}"
                full = error if error.errno in DISK_FULL else full
        if full is not None:
            raise full

    with ThreadPoolExecutor(4) as pool, tqdm(total=len(todo), unit="frame", disable=None) as bar:

        def start_reads(number: int) -> list[Future]:
            chunk = chunks[number] if number < len(chunks) else []
            return [pool.submit(read_thermal, file, **reading) for file, _ in chunk]

        try:
            ahead = start_reads(0)
            for number, chunk in enumerate(chunks):
                reads, ahead = ahead, start_reads(number + 1)
                good = []
                for (file, result), read in zip(chunk, reads, strict=True):
                    try:
                        good.append((file, result, read.result()))
                    except (ThermalFileError, OSError) as error:
                        lost = file.is_symlink() and not file.exists()
                        report.failed[file] = dangling(file) if lost else str(error)
                given = [texts[file] for file, *_ in good]
                frames = [thermal for *_, thermal in good]
                if tags:
                    colours, seen = colorizer(
                        frames, text=given, span=span, batch_size=size, return_tags=True
                    )
                    report.seen.update(zip([file for file, *_ in good], seen, strict=True))
                else:
                    colours = colorizer(frames, text=given, span=span, batch_size=size)
                finish_writes()
                writes = [
                    (
                        file,
                        result,
                        pool.submit(
                            write_picture,
                            result,
                            rgb,
                            notes | _text_notes(texts[file], report.seen.get(file)),
                        ),
                    )
                    for (file, result, _), rgb in zip(good, colours, strict=True)
                ]
                bar.update(len(chunk))
            finish_writes()
        except out_of_memory as error:
            raise UsageError(
                f"the GPU has too little memory for {size} frames at a time; use --batch-size "
                f"{max(1, size // 2)}"
                + (" with smaller pictures, or --device cpu" if size == 1 else "")
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the pictures that are being written
            raise


def _text_notes(text: str | None, seen: Seen | None) -> dict[str, str]:
    """What a picture notes of its text, and the names that it stands for where the text corrects
    predicted tags."""
    told = seen.told if seen is not None else None
    return {"Text": text or ""} | ({} if told is None else {"Tags": ", ".join(told)})


def _items(
    pairs: list[tuple[Path, Path]],
    report: Report,
    texts: dict[Path, str | None],
    span: str | None,
    reading: dict,
) -> Iterator[Item]:
    """The pictures of a page, read again from disk, because thousands do not fit into memory.

    A picture that cannot be read (any more) is left out and noted in ``report.not_shown``.
    """
    if len(pairs) > GALLERY_LIMIT:
        print(
            f"cmmfnet: the page shows {GALLERY_LIMIT} of {len(pairs)} pictures, evenly spaced",
            file=sys.stderr,
        )
        pairs = [pairs[i * len(pairs) // GALLERY_LIMIT] for i in range(GALLERY_LIMIT)]
    skipped = set(report.skipped)
    for file, result in pairs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were shown when the picture was coloured
                item = _item(file, result, report, texts[file], span, reading, result in skipped)
        except (UserError, OSError) as error:
            report.not_shown[file] = str(error)
            continue
        yield item


def _item(
    file: Path,
    result: Path,
    report: Report,
    text: str | None,
    span: str | None,
    reading: dict,
    skipped: bool,
) -> Item:
    import numpy as np
    from PIL import Image

    from cmmfnet.files.gallery import Item
    from cmmfnet.files.page import as_grey
    from cmmfnet.thermal.frame import read_thermal
    from cmmfnet.thermal.stretch import normalise, parse_span

    thermal = normalise(read_thermal(file, **reading), parse_span(span) if span else None)
    try:
        with Image.open(result) as picture:
            noted = picture.info.get("Text")  # an earlier run may have had another text
            rgb = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"its result {result} cannot be read ({error}); delete it") from error
    text = noted if skipped and noted is not None else text
    seen = report.seen.get(file)
    lines = [f"text: {text}"] if text else []
    if seen is not None and (not text or seen.told is not None):
        lines.append(f"seen: {_say(seen)}")
    return Item(file.name, as_grey(thermal), rgb, "; ".join(lines))
