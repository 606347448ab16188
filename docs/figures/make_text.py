"""Writes text.jpg: rendered scenes that training never saw, coloured by the bundled model with
different texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cmmfnet import Colorizer
from cmmfnet.data.scenes.scenes import render
from cmmfnet.files.page import as_grey
from cmmfnet.thermal.stretch import normalise

SCENES = [
    (3, "street", ["", "a red car", "snow", "night"]),
    (4, "park", ["", "snow, trees without leaves", "orange trees", "night"]),
    (6, "house", ["", "a white house", "a red brick house", "snow"]),
]
WIDTH, HEIGHT, LINE = 240, 192, 20


def tile(picture: np.ndarray, title: str) -> np.ndarray:
    canvas = Image.new("RGB", (WIDTH, HEIGHT + LINE), "white")
    canvas.paste(
        Image.fromarray(picture).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    )
    ImageDraw.Draw(canvas).text(
        (4, HEIGHT + 3), title, fill=(20, 20, 20), font=ImageFont.load_default(13)
    )
    return np.array(canvas)


def main() -> None:
    colorizer = Colorizer.from_pretrained(device="cpu")
    rows = []
    for seed, kind, texts in SCENES:
        thermal = render(seed, kind, size=(256, 320), lighting="day").thermal
        tiles = [tile(as_grey(normalise(thermal.astype(np.float32))), "thermal")]
        tiles += [
            tile(colorizer(thermal, text=text), f"“{text}”" if text else "no text")
            for text in texts
        ]
        rows.append(np.hstack(tiles))
    Image.fromarray(np.vstack(rows)).save(Path(__file__).parent / "text.jpg", quality=86)


if __name__ == "__main__":
    main()
