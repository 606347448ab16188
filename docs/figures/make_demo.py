"""The README's picture: rendered scenes, what the bundled model makes of their thermal frames, and
the truth.

python docs/figures/make_demo.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet import Colorizer
from cmmfnet.data.scenes.scenes import render
from cmmfnet.files.page import as_grey
from cmmfnet.thermal.stretch import normalise

SCENES = (
    ("street", 1),
    ("house", 1),
    ("park", 3),
)  # not among the training seeds, which start at 10,000
SIZE = (256, 320)


def main() -> None:
    colorizer = Colorizer.from_pretrained(device="cpu")
    rows = []
    for kind, seed in SCENES:
        scene = render(seed, kind, SIZE, lighting="day")
        grey = np.asarray(as_grey(normalise(scene.thermal)))
        grey = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
        rows.append(np.concatenate([grey, colorizer(scene.thermal), scene.visible], axis=1))
    Image.fromarray(np.concatenate(rows)).save(Path(__file__).with_name("demo.jpg"), quality=88)


if __name__ == "__main__":
    main()
