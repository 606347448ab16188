"""Scores of the colours of one video: how steady they are, and with a true video how right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmmfnet.colorizer.video_source import Shot, open_source
from cmmfnet.data.decode import colour
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.protocol import versions
from cmmfnet.evaluation.scoring import Rows, Scorer, default_metrics, summary
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import PICTURES, list_sources
from cmmfnet.files.video_reader import Picture, VideoReader
from cmmfnet.thermal.decode import is_known
from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.limits import MAX_PIXELS
from cmmfnet.thermal.steady import SteadySpan
from cmmfnet.thermal.stretch import normalise

STEADINESS = ("still_flicker", "warping_error")
WITHOUT_TRUTH = (*STEADINESS, "niqe")
"""Metrics that need no true video."""
FORMAT = "cmmfnet-evaluate-clip-1"


def evaluate_clip(
    colours: str,
    thermal: str,
    truth: str | None = None,
    *,
    metrics: tuple[str, ...] | None = None,
    ssim: str = "skimage-u7",
    pretrained: str | Path | None = None,
    device: str = "cpu",
) -> dict:
    """Score the colours of a video.

    Frames are compared by their number. Within a scene all thermal frames are stretched between the
    span of its first frame; a pair of frames across a scene cut is left out.

    Args:
        colours: a video, or a folder or glob of pictures in natural order.
        thermal: what was coloured: a video, a sequence of a camera, or a folder or glob.
        truth: what a colour camera saw, of the same form and number as ``colours``.
        metrics: names in ``METRICS``; None: those of steadiness and, with truth, the defaults.
        pretrained: folder with the files of LPIPS.

    Returns:
        frames, scenes, metrics, versions; scores, "colours" and "truth" -> metric -> mean over
        frames; rows, "colours" and "truth" -> one row a frame.

    Raises:
        UserError: the frames differ in number or size, cannot be read, or a metric needs truth.
        ImportError: a metric needs a package that is not installed.
    """
    defaults = () if truth is None else (*default_metrics(pretrained), "flicker")
    names = list(metrics if metrics is not None else (*STEADINESS, *defaults))
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"unknown metric {', '.join(unknown)}; choose some of {', '.join(METRICS)}")
    if truth is None and (needing := [name for name in names if name not in WITHOUT_TRUTH]):
        raise UserError(f"{', '.join(needing)} needs a true video; add --truth")
    scorer = Scorer(names, ssim=ssim, pretrained=pretrained, device=device)
    steady = SteadySpan(1)
    rows: dict[str, Rows] = {"colours": []} | ({} if truth is None else {"truth": []})
    thermals, pictures = _thermals(thermal), _pictures(colours)
    truths = itertools.repeat(None) if truth is None else _pictures(truth)
    for index in itertools.count():
        one, seen, true = (next(each, None) for each in (thermals, pictures, truths))
        ends = [one is None, seen is None, *([true is None] if truth is not None else [])]
        if all(ends):
            break
        if any(ends):
            counted = {thermal: one, colours: seen} | ({} if truth is None else {truth: true})
            short = ", ".join(name for name, frame in counted.items() if frame is None)
            longer = ", ".join(name for name, frame in counted.items() if frame is not None)
            raise UserError(f"{short} ends after {index} frames, and {longer} does not")
        stretched = normalise(one, steady(one), find_fill=False)
        for name, picture in ((colours, seen), (truth, true)):
            if picture is not None and picture.shape[:2] != stretched.shape:
                raise UserError(_sizes(name, picture, thermal, stretched))
        scorer.begin(stretched, true, {"name": str(index), "sequence": f"scene {steady.cuts}"})
        rows["colours"].append(scorer.row("colours", seen))
        if truth is not None:
            rows["truth"].append(scorer.row("truth", true))
    scores = {name: summary(each, names) for name, each in rows.items()}
    for name, found in scores.items():
        found |= {metric: cell["mean"] for metric, cell in scorer.together(name).items()}
    return {
        "format": FORMAT,
        "colours": colours,
        "thermal": thermal,
        "truth": truth,
        "frames": len(rows["colours"]),
        "scenes": steady.cuts + 1,
        "metrics": names,
        "versions": versions(),
        "scores": scores,
        "rows": rows,
    }


def clip_table(result: dict) -> str:
    """The scores of :func:`evaluate_clip` as text."""
    names = [name for name in METRICS if name in result["scores"]["colours"]]
    lines = [
        f"{result['colours']}: {result['frames']} frames, scenes: {result['scenes']}",
        f"{'':10}" + "".join(f"{METRICS[name].title:>16}" for name in names),
    ]
    for label, scores in result["scores"].items():
        cells = (f"{scores[name]:.{METRICS[name].decimals}f}" for name in names)
        lines.append(f"{label:10}" + "".join(f"{cell:>16}" for cell in cells))
    directions = ", ".join(f"{METRICS[n].title} {METRICS[n].better}" for n in names)
    return "\n".join([*lines, f"better is: {directions}"])


def _thermals(source: str) -> Iterator[Thermal]:
    reading = dict.fromkeys(("palette", "raw", "kelvin_per_count")) | {"max_pixels": MAX_PIXELS}
    timed = Path(source).is_file() and not is_known(source)
    with open_source(source, reading, None if timed else 1.0) as opened:
        for item in opened.items:
            if isinstance(item, Shot):
                yield item.thermal
        if opened.problems:
            raise UserError("; ".join(opened.problems))


def _pictures(source: str) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 each."""
    if not Path(source).is_file():
        for file in list_sources(source, PICTURES):
            try:
                yield colour(file)
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: no picture that can be read: {error}") from error
        return
    with Path(source).open("rb") as file:
        reader = VideoReader(file, source, MAX_PIXELS)
        try:
            for item in reader.items():
                if isinstance(item, Picture):
                    yield _rgb(item.pixels, source)
            if reader.problems:
                raise UserError("; ".join(reader.problems))
        finally:
            reader.close()


def _rgb(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype != np.uint8:
        raise UserError(f"{name}: frames of {pixels.dtype}; expected a colour video of 8 bits")
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _sizes(name: str, picture: np.ndarray, thermal: str, stretched: np.ndarray) -> str:
    (height, width), (h, w) = picture.shape[:2], stretched.shape
    hint = "; colour it without --side-by-side" if (height, width) == (h, 2 * w) else ""
    return f"{name} has frames of {width} x {height} pixels, and {thermal} of {w} x {h}{hint}"
