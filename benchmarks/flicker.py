"""How steady videos are with `cmmfnet colorize --smooth`, and whether they are as good.

    python benchmarks/flicker.py CLIPS [--model cmmfnet-small] [--frames 60] [--smooth 0,0.9]
        [--start NAME=FRAME ...] [--pretrained WEIGHTS] [--keep DIR]

CLIPS holds NAME_tir.mp4 and, where there is truth, NAME_rgb.mp4, frame by frame. Each clip is cut
and coloured without loss by the command line and scored by `cmmfnet evaluate --thermal`; the truth
is scored, too. docs/evaluation.md has the formulas.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np

from cmmfnet.colorizer.colorize import colorize
from cmmfnet.colorizer.video_options import VideoOptions
from cmmfnet.evaluation.clips import WITHOUT_TRUTH, evaluate_clip
from cmmfnet.evaluation.learned import Lpips
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.files.video_reader import Picture, VideoReader
from cmmfnet.thermal.limits import MAX_PIXELS


def cut(source: Path, out: Path, start: int, count: int) -> Path:
    """Frames of a video as a lossless one of 30 frames/s."""
    import av

    with source.open("rb") as opened, av.open(str(out), "w") as file:
        pictures = (x for x in VideoReader(opened, str(source), MAX_PIXELS).items())
        frames = (x.pixels for x in pictures if isinstance(x, Picture))
        stream = None
        for index, pixels in enumerate(itertools.islice(frames, start, start + count)):
            grey = pixels.ndim == 2
            if stream is None:
                stream = file.add_stream("ffv1", rate=30)
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "gray" if grey else "bgr0"
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pixels), format="gray" if grey else "rgb24"
            )
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", default="cmmfnet-small")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--smooth", default="0,0.9")
    parser.add_argument("--start", nargs="*", default=[], metavar="NAME=FRAME")
    parser.add_argument("--pretrained", default=None, help="files of LPIPS")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the videos")
    arguments = parser.parse_args()
    starts = dict(each.split("=") for each in arguments.start)
    names = list(WITHOUT_TRUTH) + ["lpips"] * Lpips.at_hand(arguments.pretrained)
    titles = [METRICS[name].title for name in names]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for thermal in sorted(arguments.clips.glob("*_tir.mp4")):
            name = thermal.stem.removesuffix("_tir")
            start = int(starts.get(name, 0))
            part = cut(thermal, folder / f"{name}_tir.mkv", start, arguments.frames)
            seen, truth = thermal.with_name(f"{name}_rgb.mp4"), None
            if seen.exists():
                truth = str(cut(seen, folder / f"{name}_rgb.mkv", start, arguments.frames))
            chosen = tuple(names if truth else WITHOUT_TRUTH)
            for smooth in map(float, arguments.smooth.split(",")):
                out = folder / f"{name}-{smooth:g}.mkv"
                options = VideoOptions(codec="ffv1", smooth=smooth)
                colorize(
                    str(part), out=str(out), model=arguments.model, video=options, overwrite=True
                )
                result = evaluate_clip(
                    str(out),
                    str(part),
                    truth,
                    metrics=chosen,
                    pretrained=arguments.pretrained,
                )
                rows.append((name, f"--smooth {smooth:g}", result["scores"]["colours"]))
            if truth:
                rows.append((name, "truth", result["scores"]["truth"]))
    print(f"\n| clip | | {' | '.join(titles)} |\n|---|---|{'---|' * len(names)}")
    for name, label, scores in rows:
        cells = (f"{scores[m]:.{METRICS[m].decimals}f}" if m in scores else "-" for m in names)
        print(f"| {name} | {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
