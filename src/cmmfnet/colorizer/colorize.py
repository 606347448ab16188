"""``cmmfnet colorize``: the pictures of a file, folder or glob into colour pictures; resumable,
nothing is overwritten."""

from __future__ import annotations

import itertools
import os
import sys
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cmmfnet.colorizer.jobs import Job, frame_path, sequence_jobs, sequences_in, write_photo
from cmmfnet.colorizer.options import (
    check_corrections,
    check_options,
    open_colorizer,
    open_for_text,
)
from cmmfnet.colorizer.report import Report, tags_line
from cmmfnet.colorizer.variants import Variants
from cmmfnet.colorizer.video_options import (
    VideoOptions,
    VideoReport,
    is_video_name,
    looks_like_video,
)
from cmmfnet.colorizer.warned import few_warnings
from cmmfnet.files.atomic import clear_parts
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import (
    RAW_FILES,
    THERMAL_FILES,
    is_result,
    list_sources,
    option_notes,
    plan_outputs,
    read_notes,
)
from cmmfnet.text.prompt import has_corrections
from cmmfnet.text.prompt_files import picture_texts
from cmmfnet.thermal.limits import MAX_PIXELS
from cmmfnet.weights.known import KNOWN

if TYPE_CHECKING:
    from cmmfnet.thermal.frame import Thermal

WARNINGS = 3
"""Warnings of one kind that are shown; the others are counted."""


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
    raw: str | None = None,
    kelvin_per_count: float | None = None,
    visible: bool = False,
    variants: int | None = None,
    seed: int | None = None,
    video: VideoOptions = VideoOptions(),  # noqa: B008, it is frozen
) -> Report | VideoReport:
    """Turn thermal pictures into colour. The colours are a plausible guess, not a measurement.

    Existing results are kept, so an interrupted command continues where it stopped. Pictures that
    are results of an earlier run are left out. A file of several frames (SEQ, CSQ, CPTV, TIFF,
    NumPy) gives a folder of numbered pictures, or a video (-o out.mp4), as do a video and a folder
    of frames (docs/video.md).

    Args:
        source: a picture, camera file or video, a folder of pictures, or a glob in quotes
            ("set00/**/lwir/*.jpg")
        out: folder for the results (NAME.png each), a picture file if the source is one picture,
            or a video file (.mp4, .mov, .mkv, .webm)
        text: what the picture shows, e.g. "a road with two cars, trees and a brick house"; without
            it the model guesses. "+snow -grass" corrects the model's guess (--text="-grass" with
            the equals sign)
        text_file: a text for each picture, used before --text: a captions file (.jsonl, .csv, or
            NAME, a tab, TEXT), a file of times (0:00-0:12 a street), or the word beside: NAME.txt
            next to NAME.png, _folder.txt for a folder
        model: a name of `cmmfnet models`, a .safetensors file, hf:OWNER/REPO@COMMIT, or an .onnx
            file of `cmmfnet export`; cmmfnet+cmmfnet-small mixes the colours of two
        device: auto, cpu, cuda, cuda:1 or mps
        span: LOW,HIGH in the pictures' own units (counts, degrees Celsius), for all; without it
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
        raw: the files hold plain numbers, WIDTHxHEIGHT,TYPE, e.g. 640x512,uint16le
        kelvin_per_count: counts become degrees Celsius by count * this - 273.15; 0.01 or 0.04 for
            cameras with linear output
        visible: also write the photo inside a FLIR file, as NAME-visible.png
        variants: colour each picture N times, 2 to 16, as NAME-1.png ...; each has other plausible
            colours for the things that the model sees
        seed: other variants for another number (default: 0)
        video: options of videos

    Raises:
        UserError: the request makes no sense; nothing was written.
        FileExistsError: ``source`` is one picture and its result exists.
        OSError: the disk is full or read-only; what was written before is complete.
    """
    from cmmfnet.thermal.stretch import parse_span

    check_options(text, span, palette, batch_size, max_pixels, raw)
    if gallery is not None and Path(gallery).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--gallery is one HTML page; name it {Path(gallery).stem}.html")
    reading = {
        "palette": palette,
        "max_pixels": max_pixels,
        "raw": raw,
        "kelvin_per_count": kelvin_per_count,
    }
    if is_video_name(out) and not Path(out).is_dir():
        for option, given in (
            ("--gallery", gallery is not None), ("--show-tags", show_tags),
            ("--visible", visible), ("--variants", variants is not None),
            ("--seed", seed is not None),
        ):  # fmt: skip
            if given:
                raise UserError(f"{option} is for pictures, and {out} is a video; leave it out")
        from cmmfnet.colorizer.video import colorize_video

        return colorize_video(
            source,
            out,
            lambda: open_for_text(text, model, device, guidance),
            text=text,
            text_file=text_file,
            span=span,
            reading=reading,
            batch_size=batch_size,
            overwrite=overwrite,
            options=video,
        )
    if video != VideoOptions():
        raise UserError(
            "--fps, --codec, --quality, --side-by-side and --smooth are for videos, and "
            f"{out} is none; name the result like a video, such as {Path(out).stem}.mp4"
        )
    if looks_like_video(source) and Path(source).is_file():
        raise UserError(
            f"{source} is a video; name the result like a video, such as -o "
            f"{Path(source).stem}-colour.mp4"
        )
    inputs, results = _inputs(source, RAW_FILES if raw is not None else THERMAL_FILES)
    outputs = plan_outputs(source, inputs, out)
    with few_warnings(WARNINGS):
        sequences = sequences_in(inputs, reading)
    if sequences and outputs[0] == Path(out):
        raise UserError(
            f"{source} holds several frames, and {out} is one picture; give a folder, such as "
            f"{Path(out).stem}"
        )
    several = _variants(variants, seed, text, text_file, visible)
    if several is not None:
        if sequences:
            raise UserError(
                f"--variants is for single pictures, and {min(sequences)} holds several frames"
            )
        outputs = several.outputs(inputs, outputs)
        inputs = [file for file in inputs for _ in range(several.count)]
    found = picture_texts(source, inputs, text=text, text_file=text_file)
    for note in found.unused:
        warnings.warn(note, stacklevel=2)
    texts = dict(zip(inputs, found.texts, strict=True))
    report = Report(where=Path(out), results=results, photos=[] if visible else None)
    done = {result for result in outputs if os.path.isfile(result)}  # noqa: PTH113, names of any length
    if Path(source).is_file() and done and not overwrite:
        raise FileExistsError(f"{outputs[0]} is there already; --overwrite replaces it")
    pairs = [
        (file, frame_path(result.with_suffix(""), 0) if file in sequences else result)
        for file, result in zip(inputs, outputs, strict=True)
    ]
    stills = [pair for pair in pairs if pair[0] not in sequences]
    todo = [Job(file, result) for file, result in stills if overwrite or result not in done]
    report.skipped = [result for _, result in stills if result in done and not overwrite]
    frames = itertools.chain.from_iterable(
        sequence_jobs(
            file,
            result.parent,
            reading,
            None if span is None else parse_span(span),
            overwrite=overwrite,
            skipped=report.skipped,
            failed=report.failed,
        )
        for file, result in pairs
        if file in sequences
    )
    clear_parts(*(result.parent for result in outputs), *(result.parent for _, result in pairs))

    options = option_notes(span, palette, raw, kelvin_per_count, guidance)
    if several is not None:
        options["Variants"] = str(several)
    taken = {file.resolve() for file in [*inputs, *outputs]}
    photos = partial(write_photo, overwrite=overwrite, taken=taken)

    def tell() -> None:
        """Print what became of the pictures."""
        report.differing = _differing(report.skipped, pairs, texts, model, options)
        if show_tags:
            for file, seen in report.seen.items():
                print(f"{file}: {tags_line(seen)}")
        for file, reason in report.failed.items():
            print(
                f"cmmfnet: failed: {reason if str(file) in reason else f'{file}: {reason}'}",
                file=sys.stderr,
            )
        if text_file is not None:
            print(found)
        if report.night:
            count, total = len(report.night), len(report.coloured)
            looks, is_ = ("look", "are") if count > 1 else ("looks", "is")
            print(
                f"{count} of {total} {looks} like night, and without text {is_} coloured as by "
                "day or at dusk: try --text night"
            )
        print(report)

    if todo or sequences:
        from cmmfnet.colorizer.batches import colour_all  # `cmmfnet colorize --help` does without

        colorizer = open_colorizer(model, device, guidance)
        predicts = colorizer.traits.predicts_tags
        if show_tags and not predicts:
            raise UserError(f"model {model!r} predicts no tags; leave out --show-tags")
        coloured = [*sequences, *(job.file for job in todo)]
        check_corrections(colorizer, [texts[file] for file in coloured])
        if several is not None:
            several.check(colorizer)

        def text_of(job: Job, thermal: Thermal) -> str | None:
            if several is None:
                return texts[job.file]
            return several.text(colorizer, job, thermal, span)

        notes = {
            "Comment": "colours guessed from a thermal picture by a model",
            "Model": colorizer.name,
        }
        notes |= options
        started = time.perf_counter()
        keep_tags = predicts and (
            show_tags
            or gallery is not None
            or any(map(has_corrections, filter(None, texts.values())))
        )
        # where tags cost nothing, they are always predicted
        tags = keep_tags or (predicts and colorizer.traits.heads)
        try:
            with few_warnings(WARNINGS):
                colour_all(
                    colorizer,
                    itertools.chain(todo, frames),
                    report,
                    notes,
                    text_of,
                    span,
                    reading,
                    batch_size,
                    tags=tags,
                    keep_tags=keep_tags,
                    total=None if sequences else len(todo),
                    photos=photos if visible else None,
                )
        except OSError as error:  # the disk is full or read-only
            report.seconds = time.perf_counter() - started
            tell()
            raise error
        report.seconds = time.perf_counter() - started
    tell()
    if gallery is not None:
        shown = [pair for pair in pairs if pair[1].is_file() and pair[0] not in report.failed]
        if shown:
            from cmmfnet.colorizer.gallery_items import gallery_items
            from cmmfnet.files.gallery import write_gallery

            write_gallery(
                gallery,
                gallery_items(shown, report, texts, span, reading),
                title=f"{source} in colour",
            )
        for file, reason in report.not_shown.items():
            print(f"cmmfnet: not in {gallery}: {file}: {reason}", file=sys.stderr)
    return report


def _differing(
    skipped: Iterable[Path],
    pairs: Iterable[tuple[Path, Path]],
    texts: dict[Path, str | None],
    model: str,
    options: dict[str, str],
) -> list[Path]:
    """The results of earlier runs whose notes name another model or text than this run's, or other
    ``options``."""
    # the frames of a sequence lie beside its first one
    inputs = {place: file for file, result in pairs for place in (result, result.parent)}
    found = []
    for result in skipped:
        file = inputs.get(result, inputs.get(result.parent))
        noted = read_notes(result)
        wanted = dict(options)
        if "Variants" not in options:  # else the text depends on the picture
            wanted["Text"] = texts.get(file) or ""
        if noted.get("Model") in KNOWN and model in KNOWN:
            wanted["Model"] = model
        if any(noted.get(key, value) != value for key, value in wanted.items()):
            found.append(result)
    return found


def _inputs(source: str, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """The pictures to colour, and those that are results of an earlier run."""
    listed = list_sources(source, suffixes)
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
        raise UserError(f"{which} of cmmfnet (a note in the file says so); give thermal pictures")
    return inputs, results


def _variants(
    count: int | None, seed: int | None, text: str | None, text_file: str | None, visible: bool
) -> Variants | None:
    """The variants asked for; None: none."""
    if count is None:
        if seed is not None:
            raise UserError("--seed goes with --variants; leave it out, or give --variants 4")
        return None
    for option, given in (("--text", text), ("--text-file", text_file), ("--visible", visible)):
        if given:
            raise UserError(
                f"--variants draws the texts itself and takes no {option}; leave one of the two "
                "out (a single colour of your choice: --text 'a red car')"
            )
    return Variants(count, seed or 0)
