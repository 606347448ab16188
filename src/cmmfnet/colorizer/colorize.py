"""``cmmfnet colorize``: the pictures of a file, folder or glob into colour pictures; resumable,
nothing is overwritten."""

from __future__ import annotations

import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cmmfnet.colorizer.jobs import Job, frame_path, sequence_jobs, sequences_in, write_photo
from cmmfnet.colorizer.memory import OutOfMemory, halving
from cmmfnet.colorizer.variants import Variants
from cmmfnet.colorizer.video_options import (
    VideoOptions,
    VideoReport,
    is_video_name,
    looks_like_video,
)
from cmmfnet.colorizer.warned import few_warnings
from cmmfnet.files.atomic import clear_parts
from cmmfnet.files.errors import NO_MORE_FILES, UserError
from cmmfnet.files.pictures import (
    RAW_FILES,
    THERMAL_FILES,
    dangling,
    is_result,
    list_sources,
    option_notes,
    plan_outputs,
    read_notes,
    write_picture,
)
from cmmfnet.text.prompt import has_corrections, read_prompt
from cmmfnet.text.prompt_files import check_prompt, picture_texts
from cmmfnet.thermal.limits import MAX_PIXELS
from cmmfnet.weights.known import KNOWN

if TYPE_CHECKING:
    import numpy as np

    from cmmfnet.colorizer.base import FrameColorizer, Seen
    from cmmfnet.files.gallery import Item
    from cmmfnet.thermal.frame import Thermal

GALLERY_LIMIT = 200
WARNINGS = 3
"""Warnings of one kind that are shown; the others are counted."""


@dataclass
class Report:
    """The outcome for each picture."""

    where: Path
    coloured: list[Path] = field(default_factory=list)  # the files written
    photos: list[Path] | None = None  # photos of cameras written, if asked for
    skipped: list[Path] = field(default_factory=list)  # the files that were there before
    differing: list[Path] = field(default_factory=list)  # of these, made with other settings
    results: list[Path] = field(default_factory=list)  # inputs that are results of an earlier run
    failed: dict[Path, str] = field(default_factory=dict)  # input -> reason
    not_shown: dict[Path, str] = field(default_factory=dict)  # input -> why the page lacks it
    seen: dict[Path, Seen] = field(default_factory=dict)  # input -> prediction, if asked for
    night: list[Path] = field(default_factory=list)  # inputs without text that look like night
    seconds: float = 0.0  # without loading the model

    @property
    def exit_status(self) -> int:
        return 1 if self.failed or self.not_shown else 0

    def __str__(self) -> str:
        parts = [f"coloured {len(self.coloured)}"]
        if self.skipped:
            differing = len(self.differing)
            other = (
                f", {differing} of them with other options (model, text, span, palette ...)"
                if differing
                else ""
            )
            parts.append(
                f"skipped {len(self.skipped)} that were done before{other} (--overwrite colours "
                "them again)"
            )
        if self.photos is not None:
            parts.append(f"wrote {len(self.photos)} photos from inside the files")
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
            file of `cmmfnet export`
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
                print(f"{file}: {_say(seen)}")
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
        colorizer = open_colorizer(model, device, guidance)
        predicts = colorizer.traits.predicts_tags
        if show_tags and not predicts:
            raise UserError(f"model {model!r} predicts no tags; leave out --show-tags")
        coloured = [*sequences, *(job.file for job in todo)]
        _check_corrections(colorizer, [texts[file] for file in coloured])
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
                _run(
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
            from cmmfnet.files.gallery import write_gallery

            write_gallery(
                gallery, _items(shown, report, texts, span, reading), title=f"{source} in colour"
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


def open_colorizer(model: str, device: str, guidance: float = 1.0) -> FrameColorizer:
    """The colorizer of ``model``: ONNX Runtime, without torch, for NAME.onnx; PyTorch for any
    other."""
    if not 0 <= guidance <= 4:
        raise UserError(
            f"--guidance is {guidance}; expected 0 (text has no effect) to 4, 1 is as trained"
        )
    if Path(model).suffix.lower() == ".onnx":
        if guidance != 1:
            raise UserError("--guidance needs a model of PyTorch; leave it out for .onnx")
        from cmmfnet.colorizer.onnx import OnnxColorizer

        return OnnxColorizer.from_pretrained(model, device=device)
    from cmmfnet.colorizer.torch import Colorizer

    return Colorizer.from_pretrained(model, device=device, guidance=guidance)


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


def open_for_text(text: str | None, model: str, device: str, guidance: float) -> FrameColorizer:
    """A model that takes the text of a video."""
    colorizer = open_colorizer(model, device, guidance)
    _check_corrections(colorizer, [text])
    return colorizer


def _say(seen: Seen) -> str:
    """The predicted tags, and the names that the model got as text if a text corrects them."""
    predicted = ", ".join(f"{name} {probability:.2f}" for name, probability in seen.predicted)
    return (
        predicted
        if seen.given_tags is None
        else f"{predicted}; given: {', '.join(seen.given_tags) or 'nothing'}"
    )


def _check_corrections(colorizer: FrameColorizer, texts: list[str | None]) -> None:
    """Texts that start from predicted tags need a model that predicts some and takes their
    names."""
    traits = colorizer.traits
    if traits.can_correct or not traits.takes_text:
        return
    for text in dict.fromkeys(filter(None, texts)):
        if read_prompt(text).needs_prediction:
            raise UserError(
                f"model {colorizer.name!r} predicts no tags, so {text!r} has nothing to start "
                "from; write what is to be seen"
            )


def check_options(
    text: str | None,
    span: str | None,
    palette: str | None,
    batch_size: int | None,
    max_pixels: int,
    raw: str | None,
) -> None:
    """Refuse options that would be wrong for every picture, before anything is done."""
    from cmmfnet.thermal.cameras.raw import parse_raw
    from cmmfnet.thermal.palettes import PALETTES
    from cmmfnet.thermal.stretch import parse_span

    try:
        check_prompt(text or "")
        if span is not None:
            parse_span(span)
        if raw is not None:
            parse_raw(raw)
    except ValueError as error:
        raise UserError(str(error)) from error
    if palette is not None and palette not in ("auto", *PALETTES):
        raise UserError(
            f"unknown palette {palette!r}; choose auto or one of: {', '.join(PALETTES)}"
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; expected 1 or more")
    if max_pixels < 1:
        raise UserError(f"--max-pixels is {max_pixels}; expected 1 or more")


@dataclass(frozen=True, eq=False)
class _Coloured:
    """A frame's picture, the text that it was coloured with, and what the model saw, if asked."""

    picture: np.ndarray
    text: str | None
    seen: Seen | None


def _run(
    colorizer: FrameColorizer,
    todo: Iterable[Job],
    report: Report,
    notes: dict[str, str],
    text_of: Callable[[Job, Thermal], str | None],
    span: str | None,
    reading: dict,
    batch_size: int | None,
    *,
    tags: bool,
    keep_tags: bool,
    total: int | None,
    photos: Callable[[Job, Thermal], Path | None] | None,
) -> None:
    """Colour ``todo`` in batches; meanwhile threads read the next batch and write the last one.

    ``reading``: options of ``read_thermal``. ``tags``: predict tags; ``keep_tags``: note them in
    the report. ``total``: number of jobs, if it is known. ``photos``: writes a frame's photo.
    Raises ``OSError`` if the disk is full or read-only: all further results would fail, too.
    """
    from tqdm import tqdm

    from cmmfnet.thermal.frame import ThermalFileError, read_thermal
    from cmmfnet.thermal.stretch import parse_span
    from cmmfnet.thermal.units import refuse_empty

    size = batch_size or colorizer.default_batch
    jobs = iter(todo)
    writes: list[tuple[Job, Future]] = []

    def finish_writes() -> None:
        full = None
        for job, write in writes:
            try:
                written = write.result()
                if written == job.result:
                    report.coloured.append(job.result)
                elif written is not None:
                    report.photos.append(written)
            except ThermalFileError as error:  # of a photo
                report.failed[job.label] = str(error)
            except OSError as error:
                report.failed[job.label] = (
                    f"{job.label}: its result {job.result} cannot be written: {error}"
                )
                full = error if error.errno in NO_MORE_FILES else full
        if full is not None:
            raise full

    def run(batch: Sequence[tuple[Job, Thermal]]) -> list[_Coloured]:
        given = [text_of(job, thermal) for job, thermal in batch]
        frames = [thermal for _, thermal in batch]
        asked = {"text": given, "span": span, "batch_size": size}
        if tags:
            pictures, seen = colorizer(frames, return_tags=True, **asked)
        else:
            pictures, seen = colorizer(frames, **asked), [None] * len(batch)
        return list(map(_Coloured, pictures, given, seen))

    with ThreadPoolExecutor(4) as pool, tqdm(total=total, unit="frame", disable=None) as bar:

        def read_one(job: Job) -> Thermal:
            thermal = read_thermal(job.thermal or job.file, **reading)
            if span is not None:
                refuse_empty(thermal, parse_span(span))  # here, so that one frame fails alone
            return thermal

        def start_reads() -> list[tuple[Job, Future]]:
            return [(job, pool.submit(read_one, job)) for job in itertools.islice(jobs, size)]

        try:
            ahead = start_reads()
            while ahead:
                reads, ahead = ahead, start_reads()
                good: list[tuple[Job, Thermal]] = []
                for job, read in reads:
                    try:
                        good.append((job, read.result()))
                    except (ThermalFileError, OSError) as error:
                        lost = job.file.is_symlink() and not job.file.exists()
                        report.failed[job.file] = dangling(job.file) if lost else str(error)
                coloured: list[tuple[Job, Thermal, _Coloured]] = []
                for (job, thermal), result in zip(good, halving(run, good), strict=True):
                    if isinstance(result, OutOfMemory):
                        report.failed[job.label] = str(result)
                    elif isinstance(result, Exception):
                        raise result
                    else:
                        coloured.append((job, thermal, result))
                        if result.seen is None:
                            continue
                        if keep_tags:
                            report.seen[job.label] = result.seen
                        if result.seen.night and (not result.text or "Variants" in notes):
                            report.night.append(job.label)
                finish_writes()
                writes = [
                    (
                        job,
                        pool.submit(
                            write_picture,
                            job.result,
                            each.picture,
                            notes | _text_notes(each.text, report.seen.get(job.label)),
                        ),
                    )
                    for job, _, each in coloured
                ]
                if photos is not None:
                    writes += [
                        (job, pool.submit(photos, job, thermal)) for job, thermal, _ in coloured
                    ]
                bar.update(len(reads))
            finish_writes()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the pictures that are being written
            raise


def _text_notes(text: str | None, seen: Seen | None) -> dict[str, str]:
    """What a picture notes of its text, and the names that it stands for where the text corrects
    predicted tags."""
    given_tags = seen.given_tags if seen is not None else None
    return {"Text": text or ""} | ({} if given_tags is None else {"Tags": ", ".join(given_tags)})


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
    for file, result in pairs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were shown when the picture was coloured
                item = _item(file, result, report, texts[file], span, reading)
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
            noted = picture.info.get("Text")  # of an earlier run, or drawn for a variant
            rgb = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"its result {result} cannot be read ({error}); delete it") from error
    text = text if noted is None else noted
    seen = report.seen.get(file)
    lines = [f"text: {text}"] if text else []
    if seen is not None and (not text or seen.given_tags is not None):
        lines.append(f"seen: {_say(seen)}")
    return Item(file.name, as_grey(thermal), rgb, "; ".join(lines))
