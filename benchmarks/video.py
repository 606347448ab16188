"""What `cmmfnet colorize` of a video costs beyond the network alone, with and without --smooth.

    python benchmarks/video.py VIDEO [--model cmmfnet-small] [--device cpu] [--threads 1]
        [--frames 30] [--rounds 5]
    python benchmarks/video.py VIDEO --stages      # processor time of each stage by itself

Every round runs each in turn on the same frames, so that what else the machine does meets all of
them: the network alone, `colorize` and `colorize --smooth 0.95` (decoding, colouring, encoding).
Wall time tells on an idle machine; processor time, on a busy one, is a limit from above.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

from flicker import cut

SMOOTH = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="cmmfnet-small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", action="store_true", help="each stage by itself, no network")
    arguments = parser.parse_args()
    import torch

    from cmmfnet import Colorizer
    from cmmfnet.colorizer import options
    from cmmfnet.colorizer.colorize import colorize
    from cmmfnet.colorizer.video_options import VideoOptions
    from cmmfnet.colorizer.video_source import Shot, open_source
    from cmmfnet.thermal.limits import MAX_PIXELS

    torch.set_num_threads(arguments.threads)
    colorizer = Colorizer.from_pretrained(arguments.model, device=arguments.device)
    options.open_colorizer = lambda *_: colorizer  # loaded once
    wait = torch.cuda.synchronize if colorizer.device.type == "cuda" else lambda: None
    times: dict[str, list[tuple[float, float]]] = {}

    def measure(label: str, call) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        call()
        wait()
        times.setdefault(label, []).append(
            (
                (time.perf_counter() - wall) / arguments.frames * 1e3,
                (time.process_time() - processor) / arguments.frames * 1e3,
            )
        )

    with tempfile.TemporaryDirectory() as folder:
        part = cut(arguments.video, Path(folder) / "part.mkv", 0, arguments.frames)
        reading = dict.fromkeys(("palette", "raw", "kelvin_per_count")) | {"max_pixels": MAX_PIXELS}
        with open_source(str(part), reading, None) as source:
            shots = [item for item in source.items if isinstance(item, Shot)]
        arguments.frames = len(shots)
        if arguments.stages:
            return print_stages(colorizer, part, reading, arguments.rounds)
        frames = [colorizer.prepare(shot.thermal) for shot in shots]
        size = colorizer.default_batch

        def network() -> None:
            for start in range(0, len(frames), size):
                batch = frames[start : start + size]
                colorizer.run(batch, [None] * len(batch))

        def pipeline(smooth: float) -> None:
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                colorize(
                    str(part),
                    out=str(Path(folder) / "out.mp4"),
                    overwrite=True,
                    video=VideoOptions(smooth=smooth),
                )

        pipeline(SMOOTH)  # compiling, caches
        for _ in range(arguments.rounds):
            measure("network alone", network)
            measure("colorize", lambda: pipeline(0))
            measure(f"colorize --smooth {SMOOTH}", lambda: pipeline(SMOOTH))
    height, width = shots[0].thermal.values.shape
    print(
        f"{arguments.model}, {arguments.device}, {arguments.threads} threads, {len(shots)} frames "
        f"of {width}x{height}, {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| ms a frame | wall, median | wall, least | processor, median |\n|---|---|---|---|")
    alone = None
    for label, each in times.items():
        walls, processors = zip(*each, strict=True)
        found = (statistics.median(walls), min(walls), statistics.median(processors))
        alone = alone or found
        cells = (f"{a:.1f} ({a / b - 1:+.1%})" for a, b in zip(found, alone, strict=True))
        print(f"| {label} | {' | '.join(cells)} |")


def print_stages(colorizer, part: Path, reading: dict, rounds: int) -> None:
    """Processor time of decoding, stretch, finishing and encoding, milliseconds a frame."""
    for smooth in (0, SMOOTH):
        found = [stage_times(colorizer, part, reading, smooth) for _ in range(rounds)]
        middle = {stage: statistics.median(each[stage] for each in found) for stage in found[0]}
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in middle.items())
        print(f"--smooth {smooth}: {stages}, all {sum(middle.values()):.1f} ms a frame")


def stage_times(colorizer, part: Path, reading: dict, smooth: float) -> dict[str, float]:
    from cmmfnet.colorizer.steady import SteadyFrames
    from cmmfnet.colorizer.video_source import Shot, open_source
    from cmmfnet.files.video_writer import VideoWriter

    steady, clock = SteadyFrames(colorizer, smooth), time.process_time
    start = clock()
    with open_source(str(part), reading, None) as source:
        shots = [item for item in source.items if isinstance(item, Shot)]
    decoded = clock()
    ready = [steady.prepare(shot.thermal) for shot in shots]
    stretched = clock()
    colours = [colorizer.run([each.frame], [None])[0][0] for each in ready]
    coloured = clock()
    pictures = [steady.finish(*each) for each in zip(colours, ready, strict=True)]
    finished = clock()
    out, size = part.with_name("stages.mp4"), pictures[0].shape[:2]
    with out.open("wb") as file:
        writer = VideoWriter(file, out.name, size, time_base=source.time_base, rate=source.rate)
        for picture, shot in zip(pictures, shots, strict=True):
            writer.picture(picture, shot.pts, shot.duration)
        writer.close()
    spans = {
        "decode": decoded - start, "stretch": stretched - decoded, "finish": finished - coloured,
        "encode": clock() - finished,
    }  # fmt: skip
    return {stage: seconds / len(shots) * 1e3 for stage, seconds in spans.items()}


if __name__ == "__main__":
    main()
