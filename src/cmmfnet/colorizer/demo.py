"""``cmmfnet demo``: rendered street scenes, coloured by the same function as everybody's own
pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.colorizer.colorize import Report, colorize
from cmmfnet.files.pictures import write_picture

FRAMES = [
    ("street", 1),
    ("house", 2),
    ("street", 3),
    ("park", 4),
    ("street", 5),
    ("house", 6),
]  # kind and seed


def demo(*, out: str = "out/demo", model: str = "cmmfnet", device: str = "auto") -> Report:
    """Render sample frames, colour them and write a page to compare input, result and truth.

    The frames are computer graphics, so that everybody may have them.

    Args:
        out: folder for the frames (thermal/), the results (colour/) and the page (gallery.html);
            earlier ones are replaced
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
    print(f"thermal frames  {folder / 'thermal'}\ncolour          {folder / 'colour'}")
    print(f"to look at      {page.resolve().as_uri()}")
    return report
