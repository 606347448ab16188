"""The README's clip: a drive through a rendered street, thermal left, the bundled model's colours
right.

python docs/figures/make_clip.py
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.colorizer.colorize import colorize
from cmmfnet.colorizer.video_options import VideoOptions
from cmmfnet.data.scenes import render
from cmmfnet.files.video_reader import Picture, VideoReader

KIND, SEED = "street", 1  # not among the training seeds, which start at 10,000
SIZE, FRAMES, FPS = (168, 224), 28, 8
COLOURS = 48  # of the GIF


def main() -> None:
    frames = [render(SEED, KIND, SIZE, time=i / FPS).thermal for i in range(FRAMES)]
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "street.npy"), Path(folder, "street.mkv")
        np.save(source, np.stack(frames))
        options = VideoOptions(fps=FPS, codec="ffv1", side_by_side=True, smooth=0.9)
        colorize(str(source), out=str(result), device="cpu", video=options)
        with result.open("rb") as file:
            reader = VideoReader(file, result.name, 1_000_000)
            pictures = [x.pixels for x in reader.items() if isinstance(x, Picture)]
            reader.close()
    assert len(pictures) == FRAMES
    # one palette for all frames: no flicker of its own
    sheet = Image.fromarray(np.concatenate(pictures[::6])).quantize(COLOURS)
    shown = [Image.fromarray(p).quantize(palette=sheet, dither=Image.Dither.NONE) for p in pictures]
    out = Path(__file__).with_name("clip.gif")
    shown[0].save(
        out, save_all=True, append_images=shown[1:], duration=1000 // FPS, loop=0, optimize=True
    )
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
