"""``cmmfnet demo``: rendered street scenes, coloured by the same function as everybody's own
pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.colorizer.colorize import colorize
from cmmfnet.colorizer.report import Report
from cmmfnet.colorizer.video_options import VideoOptions
from cmmfnet.files.pictures import write_picture

FRAMES = [
    ("street", 1),
    ("house", 2),
    ("street", 3),
    ("park", 4),
    ("street", 5),
    ("house", 6),
]  # kind and seed
CLIP_FRAMES, CLIP_FPS, CLIP_SIZE = 20, 10, (192, 256)


def demo(*, out: str = "out/demo", model: str = "cmmfnet", device: str = "auto") -> Report:
    """Render sample frames, colour them and write a page to compare input, result and truth; with
    PyAV also a short clip of a street.

    The frames are computer graphics, so that everybody may have them.

    Args:
        out: folder for the frames (thermal/), the results (colour/), the page (gallery.html) and
            the clip (street.npy, street.mp4); earlier ones are replaced
        model: a name of `cmmfnet models`, a .safetensors file, or hf:OWNER/REPO@COMMIT
        device: auto, cpu, cuda, cuda:1 or mps
    """
    from cmmfnet.data.scenes import render
    from cmmfnet.files.gallery import Item, write_gallery
    from cmmfnet.files.page import as_grey
    from cmmfnet.thermal.stretch import normalise

    folder = Path(out)
    scenes = {}
    for kind, seed in FRAMES:
        scene = render(seed, kind, size=(512, 640))
        scenes[f"{kind}-{seed}.png"] = scene
        write_picture(folder / "thermal" / f"{kind}-{seed}.png", scene.thermal)
    report = colorize(
        str(folder / "thermal" / "*.png"),
        out=str(folder / "colour"),
        model=model,
        device=device,
        overwrite=True,
    )

    items = []
    for name, scene in scenes.items():
        with Image.open(folder / "colour" / name) as picture:
            items.append(
                Item(
                    name,
                    as_grey(normalise(scene.thermal)),
                    np.asarray(picture),
                    truth=scene.visible,
                )
            )
    page = write_gallery(folder / "gallery.html", items, title="cmmfnet: rendered frames in colour")
    clip = _write_clip(folder, model, device)
    print(f"thermal frames  {folder / 'thermal'}\ncolour          {folder / 'colour'}")
    print(f"clip            {clip}")
    print(f"to look at      {page.resolve().as_uri()}")
    return report


def _write_clip(folder: Path, model: str, device: str) -> str:
    """Two seconds of a street, thermal beside colour: the file, or why there is none."""
    from cmmfnet.data.scenes import render
    from cmmfnet.files.video import pyav

    try:
        pyav()
    except ImportError as error:
        return f"none: {error}"
    kind, seed = FRAMES[0]
    times = [index / CLIP_FPS for index in range(CLIP_FRAMES)]
    frames = [render(seed, kind, size=CLIP_SIZE, time=time).thermal for time in times]
    np.save(folder / f"{kind}.npy", np.stack(frames))
    out = folder / f"{kind}.mp4"
    colorize(
        str(folder / f"{kind}.npy"),
        out=str(out),
        model=model,
        device=device,
        overwrite=True,
        video=VideoOptions(fps=CLIP_FPS, side_by_side=True, smooth=0.9),
    )
    return str(out)
