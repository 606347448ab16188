"""The page: self-contained, escaped, whole."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cmmfnet.files.gallery import Item, write_gallery
from cmmfnet.files.page import LONGEST_SIDE, as_grey


def item(name: str = "frame.png", size: tuple[int, int] = (40, 60), **more) -> Item:
    height, width = size
    thermal = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    colour = np.zeros((height, width, 3), np.uint8)
    colour[..., 0] = 200
    return Item(name, thermal, colour, **more)


class Page(HTMLParser):
    """The tags and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def decode(source: str) -> Image.Image:
    kind, _, data = source.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_every_item_has_its_pictures_slider_name_size_and_caption(tmp_path):
    page = Page(
        write_gallery(
            tmp_path / "new" / "g.html",
            [item("a.png", caption="text: a car"), item("b.png")],
            "Two",
        )
    )
    assert len(page.all("article")) == 2 and len(page.all("img")) == 4
    sliders = page.all("input")
    assert [slider["type"] for slider in sliders] == ["range", "range"]
    assert [slider["aria-label"].split(":")[0] for slider in sliders] == ["a.png", "b.png"]
    for expected in ("Two", "a.png", "b.png", "60 × 40", "text: a car"):
        assert expected in page.text
    colour, thermal = (decode(img["src"]) for img in page.all("img")[:2])
    assert colour.size == thermal.size == (60, 40)
    assert np.asarray(colour.convert("RGB"))[20, 30, 0] > 190 and thermal.mode == "L"


def test_it_says_that_the_colours_are_a_guess(tmp_path):
    page = Page(write_gallery(tmp_path / "g.html", [item()], "t"))
    assert "plausible guess by a model, not measured" in page.text


def test_nothing_is_loaded_from_anywhere_and_the_page_forbids_it(tmp_path):
    page = Page(write_gallery(tmp_path / "g.html", [item(truth=item().colour)], "t"))
    sources = [
        attributes[key]
        for _, attributes in page.tags
        for key in ("src", "href", "srcset")
        if key in attributes
    ]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert (
        "url(" not in page.source and "@import" not in page.source and "http://" not in page.source
    )
    assert "https://" not in page.source and not page.all("link")
    (policy,) = [
        meta["content"]
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy and "img-src data:" in policy


def test_names_captions_and_titles_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&.png"
    page = Page(
        write_gallery(tmp_path / "g.html", [item(evil, caption=evil, truth=item().colour)], evil)
    )
    assert len(page.all("script")) == 1  # ours
    assert page.text.count(evil) == 4  # title, heading, name, caption
    assert page.all("input")[0]["aria-label"].startswith(evil)


def test_large_pictures_are_scaled_down_and_their_true_size_is_named(tmp_path):
    page = Page(write_gallery(tmp_path / "g.html", [item(size=(1000, 2000))], "t"))
    assert [decode(img["src"]).size for img in page.all("img")] == [
        (LONGEST_SIDE, LONGEST_SIDE // 2)
    ] * 2
    assert "2000 × 1000" in page.text
    assert "aspect-ratio:2000/1000" in page.source


def test_the_truth_is_a_third_picture(tmp_path):
    page = Page(
        write_gallery(
            tmp_path / "g.html", [item(truth=np.full((40, 60, 3), 9, np.uint8)), item()], "t"
        )
    )
    assert [("truth" in img["alt"] or "true" in img["alt"]) for img in page.all("img")] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_dark_and_light_schemes_and_motionless_fallback(tmp_path):
    source = write_gallery(tmp_path / "g.html", [item()], "t").read_text()
    assert "color-scheme: light dark" in source and "prefers-color-scheme: dark" in source
    assert re.search(r"var\(--at, 50%\)", source)  # shows half and half where scripts are off


def test_a_failure_half_way_leaves_the_old_page(tmp_path):
    path = write_gallery(tmp_path / "g.html", [item()], "old")
    before = path.read_bytes()

    def items():
        yield item()
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write_gallery(path, items(), "new")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["g.html"]


def test_normalised_values_become_grey_levels():
    assert as_grey(np.array([[-1.0, 0.0, 1.0, 7.0]], np.float32)).tolist() == [[0, 128, 255, 255]]
