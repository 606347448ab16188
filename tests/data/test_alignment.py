"""The shift of pairs: found where it is known, not seen where there is none, and a page that loads
nothing."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.prepare import alignment
from cmmfnet.data.prepare.alignment import (
    PairShift,
    Shift,
    check_alignment,
    estimate_shift,
    summary,
)
from cmmfnet.data.scenes import render
from cmmfnet.files.errors import UserError

MARGIN = 14
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "pairs"


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """(thermal (H,W) uint16, visible (H,W,3) uint8) of rendered scenes, 228 x 284."""
    found = [
        render(seed, kind, size=(228, 284), lighting="day")
        for seed, kind in ((1, "street"), (2, "house"), (5, "street"))
    ]
    return [(scene.thermal, scene.visible) for scene in found]


def shifted(
    scene: tuple[np.ndarray, np.ndarray], dx: int = 0, dy: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """200 x 256 of a scene, the content of the colour picture dx to the right and dy down."""
    thermal, visible = scene
    height, width = thermal.shape
    rows, columns = slice(MARGIN, height - MARGIN), slice(MARGIN, width - MARGIN)
    moved = visible[MARGIN - dy : height - MARGIN - dy, MARGIN - dx : width - MARGIN - dx]
    return thermal[rows, columns], moved


def off_by(found: Shift, dx: float, dy: float) -> float:
    return float(np.hypot(found.dx - dx, found.dy - dy))


# --- the estimate


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, 0), (-3, 5), (12, -12), (-9, -2), (7, 11)])
def test_known_shifts_are_found_within_a_pixel(scenes, dx, dy):
    for scene in scenes:
        found = estimate_shift(*shifted(scene, dx, dy))
        assert off_by(found, dx, dy) < 1, found
        assert found.confidence >= 1 and found.similarity >= 6 and found.scale == 1


def test_thermal_brightness_and_its_sign_do_not_matter(scenes):
    thermal, visible = shifted(scenes[0], 4, -6)
    black_hot = 65535 - thermal
    curved = np.sqrt(thermal - thermal.min() + 1.0)
    for other in (black_hot, curved, thermal / 1e4):
        assert off_by(estimate_shift(other, visible), 4, -6) < 1


def test_fractions_of_a_pixel(scenes):
    # twice as large pictures moved by an odd number of pixels, then halved
    pictures = (Image.fromarray(x.astype(np.float32)) for x in (scenes[0][0], scenes[0][1].mean(2)))
    thermal, visible = (
        np.asarray(picture.resize((568, 456), Image.Resampling.BICUBIC)) for picture in pictures
    )
    a, b = thermal[20:-20, 20:-20], visible[20 - 5 : -20 - 5, 20 - 3 : -20 - 3]
    a, b = (np.asarray(Image.fromarray(x.copy()).reduce(2)) for x in (a, b))
    assert off_by(estimate_shift(a, b), 1.5, 2.5) < 0.4


def test_another_field_of_view_is_found_as_scale(scenes):
    thermal, visible = shifted(scenes[0])
    height, width = thermal.shape
    for growth in (1.04, 1.02):
        back = (
            1 / growth,
            0,
            width / 2 * (1 - 1 / growth),
            0,
            1 / growth,
            height / 2 * (1 - 1 / growth),
        )
        larger = Image.fromarray(visible).transform(
            (width, height), Image.Transform.AFFINE, back, Image.Resampling.BICUBIC
        )
        found = estimate_shift(thermal, np.asarray(larger))
        assert abs(found.scale - growth) <= 0.0101 and off_by(found, 0, 0) < 2


def test_large_pictures_are_measured_small_and_told_in_their_own_pixels(scenes):
    thermal, visible = shifted(scenes[1], 6, -4)
    found = estimate_shift(
        np.kron(thermal, np.ones((5, 5))), np.kron(visible.mean(2), np.ones((5, 5)))
    )
    assert off_by(found, 30, -20) < 5


def test_what_does_not_belong_together_is_not_trusted(scenes):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, scenes[0][1].shape, dtype=np.uint8)
    for thermal, visible in (
        (scenes[0][0], scenes[1][1]),
        (scenes[1][0], scenes[2][1]),
        (scenes[0][0], noise),
    ):
        found = estimate_shift(thermal, visible)
        assert found.confidence < 1 or found.similarity < 6, found


def test_pictures_without_edges_give_zero_not_a_warning(scenes):
    flat = np.full(scenes[0][0].shape, 7)
    with np.errstate(all="raise"):
        assert estimate_shift(flat, scenes[0][1]) == Shift(0.0, 0.0, 1.0, 0.0, 0.0)
        assert estimate_shift(scenes[0][0], np.zeros_like(scenes[0][1])).confidence == 0


def test_sizes_are_checked():
    with pytest.raises(UserError, match=r"\(40, 50\).*\(40, 51\)"):
        estimate_shift(np.zeros((40, 50)), np.zeros((40, 51, 3)))
    with pytest.raises(UserError, match="32 or more"):
        estimate_shift(np.zeros((31, 50)), np.zeros((31, 50, 3)))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real pairs in {REAL}")
def test_real_pairs_moved_by_a_known_shift():
    pairs = Pairs(REAL, sources=("m3svd",))
    for i in range(0, len(pairs), 30):
        pair = pairs[i]
        assert off_by(estimate_shift(*shifted((pair.thermal, pair.visible), 9, -7)), 9, -7) < 1, (
            pair.name
        )


# --- a data set


@pytest.fixture(scope="module")
def data(scenes, tmp_path_factory) -> tuple[Path, list[PairShift]]:
    """Two sequences of five frames, one of them mounted 6 px off, a pair of two scenes, and a
    broken file."""
    root = tmp_path_factory.mktemp("<b>&set") / "data <i>set"
    for kind in ("thermal", "visible"):
        (root / kind).mkdir(parents=True)
    entries = []

    def add(name: str, thermal: np.ndarray, visible: np.ndarray, **entry) -> None:
        Image.fromarray(thermal).save(root / "thermal" / f"{name}.png")
        Image.fromarray(visible).save(root / "visible" / f"{name}.png")
        entries.append({"name": name, **entry})

    rng = np.random.default_rng(0)
    for k in range(5):
        noise = rng.integers(0, 40, scenes[0][0].shape, dtype=np.uint16)
        scene = scenes[k % 3][0] + noise, scenes[k % 3][1]
        add(f"good_{k}", *shifted(scene), sequence="good")
        add(f"off_{k}", *shifted(scene, 6, -1), sequence="<script>alert(1)</script>")
    add("two & <scenes>", scenes[0][0], scenes[1][1], source="mixed")
    add("broken", *scenes[0], source="mixed")
    path = root / "visible" / "broken.png"
    path.write_bytes(path.read_bytes()[:2000])
    (root / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    before = {p: p.read_bytes() for p in root.rglob("*.png")}
    results = check_alignment(root, jobs=2)
    assert {p: p.read_bytes() for p in root.rglob("*.png")} == before
    return root, results


def test_each_pair_is_judged(data):
    root, results = data
    rows = [json.loads(line) for line in (root / "alignment.jsonl").read_text().splitlines()]
    assert (
        [row["name"] for row in rows]
        == [r.name for r in results]
        == [e["name"] for e in Pairs(root).entries]
    )
    reasons = {row["name"]: row["reason"] for row in rows}
    assert [reasons[f"good_{k}"] for k in range(5)] == [""] * 5 and [
        reasons[f"off_{k}"] for k in range(5)
    ] == ["shifted"] * 5
    assert reasons["two & <scenes>"] in ("unlike", "uncertain")
    assert reasons["broken"].startswith("unreadable: ") and "broken.png" in reasons["broken"]
    for row in rows:
        assert row["flagged"] == (row["reason"] not in ("", "uncertain"))
        if row["name"].startswith("off"):
            assert abs(row["dx"] - 6) < 1 and abs(row["dy"] + 1) < 1 and row["confidence"] > 1


def test_a_constant_shift_of_a_sequence_is_told_with_its_number(data):
    text = summary(data[1])
    assert (
        re.search(r"alignment of 12 pairs: [67] flagged", text)
        and "  5 shifted" in text
        and "  1 unreadable" in text
    )
    found = re.search(
        r"<script>alert\(1\)</script>: a constant shift of dx \+(.*), dy -(.*) \(spread", text
    )
    assert abs(float(found[1]) - 6) < 1 and abs(float(found[2]) - 1) < 1
    assert re.search(r"move its colour pictures \d\.\d px to the left and \d\.\d px down", text)
    assert "good:" not in text


def result(name: str, reason: str = "", group: str = "g", **values) -> PairShift:
    shift = {"dx": 0.0, "dy": 0.0, "scale": 1.0, "confidence": 3.0, "similarity": 20.0} | values
    return PairShift(name, group, Shift(**shift), reason)


def test_scattered_shifts_are_no_mounting_and_a_common_scale_is_one():
    scattered = [result(str(i), "shifted", dx=float(dx)) for i, dx in enumerate((3, 9, -4, 6, -8))]
    assert "constant" not in summary(scattered)
    assert "constant scale of 1.030" in summary(
        [result(str(i), "scaled", scale=1.03) for i in range(5)]
    )


def test_a_set_that_cannot_be_judged_says_why():
    text = summary([result(str(i), "unlike", dx=40.0) for i in range(3)] + [result("x")])
    assert "most pairs could not be judged" in text and "median shift 0.0" in text


def test_limit_spreads_over_the_index_and_requests_are_checked(data, tmp_path):
    root, _ = data
    kept = (root / "alignment.jsonl").read_bytes()
    assert [r.name for r in check_alignment(root, limit=3)] == ["good_0", "good_2", "good_4"]
    (root / "alignment.jsonl").write_bytes(kept)
    with pytest.raises(UserError, match="limit is 0"):
        check_alignment(root, limit=0)
    with pytest.raises(PairsError, match="does not exist"):
        check_alignment(tmp_path)


def test_without_scipy_it_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'cmmfnet\[train\]'"):
        check_alignment(data[0])


# --- the page


class Page(HTMLParser):
    """The tags and text of a page."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def source(data, tmp_path_factory) -> str:
    root, results = data
    path = tmp_path_factory.mktemp("page") / "<u>set" / "alignment.html"
    alignment.write_worst(path, Pairs(root), dict(enumerate(results)))
    assert Path(root / "alignment.html").is_file()
    return path.read_text(encoding="utf-8")


def test_names_are_text(source):
    page = Page(source)
    assert not {"i", "u", "scenes"} & {tag for tag, _ in page.tags}
    assert "two & <scenes>" in page.text and "Alignment of <u>set" in page.text
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert "two & <scenes>, thermal" in alts


def test_the_worst_come_first_and_each_has_its_slider(source, data):
    page = Page(source)
    names = re.findall(r"<h2>(.*?)</h2>", source)
    assert len(names) == 11 and all(name.startswith("good") for name in names[-5:])
    assert sum(tag == "input" and a.get("type") == "range" for tag, a in page.tags) == 11
    assert summary(data[1]) in page.text  # in its own lines
    assert "broken: unreadable: " in page.text and "shifted: dx " in page.text


def test_at_most_60_pairs_and_no_shifts_at_all(data, tmp_path):
    pairs = Pairs(data[0])
    many = {i: PairShift(f"p{i}", "g", None, "unreadable: x") for i in range(70)}
    text = alignment.write_worst(tmp_path / "a.html", pairs, many).read_text()
    assert "p4: unreadable: x" in text and "and 65 more unreadable pairs" in text
    good = next(result for result in data[1] if result.shift is not None)
    index = data[1].index(good)
    pairs.entries = [pairs.entries[index]] * 61
    text = alignment.write_worst(tmp_path / "b.html", pairs, dict(enumerate([good] * 61)))
    assert text.read_text().count("<article>") == 60 and "60 of 61 pairs" in text.read_text()
