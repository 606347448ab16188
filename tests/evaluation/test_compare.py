"""`cmmfnet compare`: paired numbers, refusals, and the page in a real browser."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny_data import BASELINES, write_data

from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation import intervals, report
from cmmfnet.evaluation.compare import compare, read_result
from cmmfnet.evaluation.comparison import by_disagreement, groups, paired, read_curve, varied
from cmmfnet.evaluation.evaluate import evaluate
from cmmfnet.evaluation.protocol import frames
from cmmfnet.evaluation.report import chart, ticks
from cmmfnet.evaluation.setting import Setting
from cmmfnet.files.errors import UserError

NASTY = "soft <b>&\"'"


@pytest.fixture(autouse=True)
def no_pretrained_files(monkeypatch):
    monkeypatch.delenv("CMMFNET_PRETRAINED", raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    entries = [{"name": f"t{i}", "split": "train", "source": "a"} for i in range(3)]
    for i in range(8):
        sequence = f"s{i // 2}" if i < 4 else None
        entries.append(
            {
                "name": f"v{i}",
                "split": "val",
                "source": "ab"[i % 2],
                "lighting": "day",
                "sequence": sequence,
            }
        )
    return write_data(tmp_path_factory.mktemp("pairs"), entries)


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Predictions: "close" is the truth with little noise, the nasty one is blurred, "far" has
    colours exchanged."""
    root, rng = tmp_path_factory.mktemp("predictions"), np.random.default_rng(0)
    for name in ("close", NASTY, "far"):
        (root / name).mkdir()
    for _, truth, meta in frames(Pairs(data, "val")):
        noisy = np.clip(truth + rng.normal(0, 4, truth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / "close" / f"{meta['name']}.png")
        Image.fromarray(truth).filter(ImageFilter.GaussianBlur(9)).save(
            root / NASTY / f"{meta['name']}.png"
        )
        Image.fromarray(np.ascontiguousarray(truth[..., ::-1])).save(
            root / "far" / f"{meta['name']}.png"
        )
    return root


def ask(folders, data, *names, **options):
    return compare(
        *(str(folders / name) for name in names),
        setting=Setting(data=str(data), device="cpu"),
        **options,
    )


@pytest.fixture(scope="module")
def found(folders, data, tmp_path_factory):
    """A comparison of all three with its page, and its numbers as JSON."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CMMFNET_PRETRAINED", raising=False)
        result = ask(
            folders,
            data,
            "close",
            NASTY,
            "far",
            report=out / "page.html",
            json=out / "numbers.json",
        )
    return result, (out / "page.html").read_text(encoding="utf-8"), out


@pytest.fixture(scope="module")
def stored(folders, data, tmp_path_factory):
    """close.json and far.json of `cmmfnet evaluate`, with the pictures that they were made of."""
    out = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CMMFNET_PRETRAINED", raising=False)
        for name in ("close", "far"):
            evaluate(
                str(folders / name),
                Setting(data=data, device="cpu"),
                save=out / name,
                json=out / f"{name}.json",
            )
    return out


# --- numbers


def test_scores_are_those_of_evaluate(found, stored):
    result, _, out = found
    assert result["compared"] == ["close", NASTY, "far"] and list(result["scores"]) == [
        "close",
        NASTY,
        "far",
        *BASELINES,
    ]
    alone = json.loads((stored / "far.json").read_text())
    assert alone["scores"]["all"]["far"] == result["scores"]["far"]
    assert alone["protocol"] == result["protocol"]
    assert json.loads((out / "numbers.json").read_text())["paired"] == result["paired"]


def test_differences_are_paired_and_tested_by_sequence(found, stored):
    result = found[0]
    rows = {n: read_result(stored / f"{n}.json")["pictures"][n] for n in ("close", "far")}
    gaps = [b["psnr"] - a["psnr"] for a, b in zip(rows["close"], rows["far"], strict=True)]
    clusters = [row["sequence"] or row["name"] for row in rows["far"]]
    cell = result["paired"]["far"]["psnr"]
    assert len(set(clusters)) == 6 and cell["difference"] == pytest.approx(np.mean(gaps))
    assert cell["p"] == intervals.sign_flip_p(gaps, clusters) == 2 / 2**6  # every sequence is worse
    assert (cell["low"], cell["high"]) == intervals.mean_interval(gaps, [1] * 8, clusters)
    assert cell["low"] < cell["difference"] < cell["high"] < 0
    tests = [cell for cells in result["paired"].values() for cell in cells.values()]
    assert len(tests) == 4 and set(result["paired"]["far"]) == {
        "psnr",
        "ssim",
    }  # share of colour has no direction
    assert [cell["p_holm"] for cell in tests] == intervals.holm([cell["p"] for cell in tests])


def test_another_reference_turns_the_sign(found, folders, data):
    turned = ask(folders, data, "close", "far", reference="far")
    assert turned["reference"] == "far" and set(turned["paired"]) == {"close"}
    want = found[0]["paired"]["far"]["ssim"]["difference"]
    assert turned["paired"]["close"]["ssim"]["difference"] == pytest.approx(-want)


def row(name, **values):
    return {"name": name, "source": "", "lighting": "", "sequence": "", **values}


def test_missing_values_and_infinite_scores():
    rows = {
        "a": [
            row("1", psnr=float("inf")),
            row("2", psnr=20.0, flicker=3.0),
        ],
        "b": [
            row("1", psnr=float("inf")),
            row("2", psnr=22.0),
        ],
    }
    cells = paired(rows, ["a", "b"], "a", ["psnr", "flicker", "colour_share"], 0)["b"]
    assert set(cells) == {"psnr"}  # nothing to pair, and no direction
    assert cells["psnr"]["difference"] == 1.0  # equal pictures on both sides differ by nothing
    rows["b"][0]["psnr"] = 30.0
    cell = paired(rows, ["a", "b"], "a", ["psnr"], 0)["b"]["psnr"]
    assert (
        cell["difference"] == -np.inf
        and cell["p"] is None
        and cell["p_holm"] is None
        and cell["low"] is None
    )


def test_groups_and_disagreement(found):
    result = found[0]
    assert set(result["groups"]) == {"source", "lighting", "sequence"} and set(
        result["groups"]["sequence"]
    ) == {
        "s0",
        "s1",
    }
    assert result["groups"]["source"]["a"]["close"]["pairs"] == 4
    parts = [result["groups"]["source"][s]["far"]["psnr"] for s in "ab"]
    assert np.mean(parts) == pytest.approx(result["scores"]["far"]["psnr"]["mean"])
    spread = [value for _, value in result["order"]["ssim"]]
    assert spread == sorted(spread, reverse=True) and len(spread) == 8
    rows = {
        "a": [row("1", ssim=0.5), row("2", ssim=0.1)],
        "b": [row("1", ssim=0.6), row("2", ssim=0.9)],
    }
    assert by_disagreement(rows, ["ssim"])["ssim"] == [
        ["2", pytest.approx(0.8)],
        ["1", pytest.approx(0.1)],
    ]
    assert groups(rows, ["ssim"]) == {}


def test_every_sequence_is_shown_before_any_is_shown_twice():
    sequences = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "c": "c"}
    assert varied(["a1", "a2", "a3", "b1", "c"], sequences) == ["a1", "b1", "c", "a2", "a3"]


def test_curve_of_a_run(tmp_path):
    rows = [
        {"step": 1, "l1": 0.5}, {"step": 10, "validation": {"psnr": 10.0, "ssim": 0.1}},
        {"step": 20, "validation": {"psnr": 12.0, "ssim": 0.2}},
        {"step": 20, "validation": {"psnr": 12.5, "ssim": 0.3}},
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows) + '{"step": 30, "valid'
    )
    assert read_curve(str(tmp_path)) == {
        "psnr": [[10, 10.0], [20, 12.5]],
        "ssim": [[10, 0.1], [20, 0.3]],
    }
    assert read_curve(str(tmp_path / "none")) == {} and read_curve(None) == {}


# --- stored results


def test_stored_results_compare_without_running_anything(found, folders, data, stored, tmp_path):
    result = compare(
        str(stored / "close.json"), str(stored / "far.json"), report=tmp_path / "page.html"
    )
    assert result["scores"]["far"] == found[0]["scores"]["far"] and list(result["scores"]) == [
        "close",
        "far",
        *BASELINES,
    ]
    assert result["paired"]["far"]["psnr"]["p"] == found[0]["paired"]["far"]["psnr"]["p"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article") == 8 and page.count("<img") == 8 * 4  # the saved pictures
    lost = json.loads((stored / "far.json").read_text())
    lost["methods"]["far"]["saved"] += "-gone"
    (tmp_path / "far.json").write_text(json.dumps(lost))
    mixed = compare(
        str(folders / NASTY),
        str(tmp_path / "far.json"),
        setting=Setting(data=str(data)),
        report=tmp_path / "page.html",
    )
    assert mixed["compared"] == [NASTY, "far"] and mixed["scores"]["far"] == result["scores"]["far"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 8 * 3 and page.count("no picture stored") == 8


def test_pictures_of_data_that_changed_are_not_shown(data, stored, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    lines = (data / "index.jsonl").read_text().splitlines()
    (tmp_path / "data" / "index.jsonl").write_text("\n".join(lines[:-1]))
    for name in ("close", "far"):
        result = json.loads((stored / f"{name}.json").read_text()) | {
            "data": str(tmp_path / "data")
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    compare(str(tmp_path / "close.json"), str(tmp_path / "far.json"), report=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<article" not in page and "No pictures: none were asked for" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "kaist-a"}, r"geometry: .*short-256-crop-256.* and .*kaist-a"),
        ({"ssim": "gauss-11"}, r"ssim: .*skimage-u7.* and .*gauss-11"),
        ({"sources": "a"}, r"frames: 8 and 4; frames_sha256"),
    ],
)
def test_results_of_different_protocols_are_refused(
    folders, data, stored, tmp_path, options, message
):
    evaluate(
        str(folders / "far"),
        Setting(data=data, device="cpu", **options),
        json=tmp_path / "two.json",
    )
    with pytest.raises(
        UserError,
        match="were made under different protocols and cannot be compared: .*" + message,
    ):
        compare(str(stored / "close.json"), str(tmp_path / "two.json"))
    with pytest.raises(
        UserError, match=r"this command and .*two.json were made under different protocols"
    ):
        compare(
            str(folders / "close"),
            str(tmp_path / "two.json"),
            setting=Setting(data=str(data), device="cpu"),
        )


def test_equal_names_with_other_pictures_are_refused(folders, data, stored, tmp_path):
    other = json.loads((stored / "close.json").read_text())
    other["protocol"]["truth_sha256"] = "0" * 64
    other["protocol"]["versions"]["torch"] = "9.9"  # may differ
    (tmp_path / "two.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"cannot be compared: truth_sha256: \w+ and 0+$"):
        compare(str(stored / "close.json"), str(tmp_path / "two.json"))
    with pytest.raises(UserError, match="truth_sha256"):  # known only after the run
        compare(
            str(folders / "far"),
            str(tmp_path / "two.json"),
            setting=Setting(data=str(data), device="cpu"),
        )


# --- mistakes


def test_mistakes_are_explained(folders, data, tmp_path):
    one, two = str(folders / "close"), str(folders / "far")
    with pytest.raises(
        UserError, match="found 1 to compare; give two or more, or use cmmfnet evaluate"
    ):
        compare(one, setting=Setting(data=str(data)))
    with pytest.raises(UserError, match=r"--report is one HTML page; name it page.html"):
        compare(one, two, setting=Setting(data=str(data)), report=tmp_path / "page.pdf")
    with pytest.raises(UserError, match=r"--data is needed to score .*close, .*far"):
        compare(one, two)
    with pytest.raises(UserError, match=r"--pictures is -1; expected 0 or more"):
        compare(one, two, setting=Setting(data=str(data)), pictures=-1)
    with pytest.raises(UserError, match=r"reference is 'nobody'; expected one of close, far"):
        compare(one, two, setting=Setting(data=str(data), device="cpu"), reference="nobody")
    with pytest.raises(UserError, match=r"two of what is compared are called 'close \(close\)'"):
        compare(one, one, one, setting=Setting(data=str(data), device="cpu"))
    for content, message in [
        ("{", "is no JSON"),
        ('{"scores": 1}', "has the format None, expected 'cmmfnet-evaluate-1'"),
    ]:
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=message):
            compare(one, str(tmp_path / "bad.json"), setting=Setting(data=str(data)))
    with pytest.raises(FileNotFoundError):
        read_result(tmp_path / "gone.json")


def test_results_without_a_common_metric(stored, tmp_path):
    for name, metric in (("close", "psnr"), ("far", "ssim")):
        result = json.loads((stored / f"{name}.json").read_text()) | {"metrics": [metric]}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="share no metric"):
        compare(str(tmp_path / "close.json"), str(tmp_path / "far.json"))


# --- the page


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


def test_page_loads_nothing_and_escapes_names(found):
    page = found[1]
    parsed = Tags(page)
    assert "<b>" not in page and page.count(NASTY) == 0
    assert NASTY in "".join(parsed.text) or NASTY in parsed.text
    sources = [a["src"] for _, a in parsed.tags if "src" in a]
    assert len(sources) == 8 * 5 and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert not any({"href", "action", "srcset", "onclick"} & a.keys() for _, a in parsed.tags)
    assert not {tag for tag, _ in parsed.tags} & {"link", "iframe", "object", "form", "b"}
    assert re.findall(r"https?://|url\(|@import", page) == []
    assert "default-src 'none'" in page


def test_page_says_what_was_measured(found):
    result, page, _ = found
    text = " ".join("".join(Tags(page).text).split())
    assert "8 frames in 6 sequences" in text and result["protocol"]["frames_sha256"] in text
    for name in BASELINES:
        assert name in text
    assert f"{result['scores']['far']['psnr']['mean']:.2f}" in text
    assert f"{result['paired']['far']['psnr']['difference']:+.3f}".replace("-", "−") in text
    assert "Holm's correction over all 4 tests" in text and "skimage-u7" in text
    labelled = [a for tag, a in Tags(page).tags if a.get("role") == "region"]
    assert labelled and all(
        a["tabindex"] == "0" and a["aria-label"] for a in labelled
    )  # scrolls by keyboard
    assert all(a["alt"] for tag, a in Tags(page).tags if tag == "img")


def test_of_scores_that_read_the_same_none_is_the_better_one(found, tmp_path):
    result = copy.deepcopy(found[0])
    result["scores"][NASTY]["psnr"]["mean"] = result["scores"][NASTY]["ssim"]["mean"] = 0.0
    for label, psnr, ssim in (("close", 15.001, 0.5), ("far", 15.004, 0.4)):
        result["scores"][label]["psnr"]["mean"], result["scores"][label]["ssim"]["mean"] = (
            psnr,
            ssim,
        )
    page = report.write_report(tmp_path / "page.html", result, []).read_text()
    assert page.count("<strong>15.00</strong>") == 2
    assert "<strong>0.500</strong>" in page and "<strong>0.400</strong>" not in page


def test_fewer_pictures_or_none(folders, data, tmp_path):
    ask(folders, data, "close", "far", report=tmp_path / "two.html", pictures=2)
    assert (tmp_path / "two.html").read_text().count("<article") == 2
    ask(folders, data, "close", "far", report=tmp_path / "none.html", pictures=0)
    assert "<img" not in (tmp_path / "none.html").read_text()


def test_page_with_curves(found, tmp_path):
    curves = {
        "close": {"psnr": [[100, 10.0], [200, 12.0]]},
        "far": {"psnr": [[100, 9.0]], "colour_share": [[100, 1.0]]},
    }
    page = report.write_report(tmp_path / "p.html", {**found[0], "curves": curves}, []).read_text()
    assert (
        page.count("<svg") == 2 and page.count("<polyline") == 3 and "far, step 100: 9.00" in page
    )
    points = re.search(r'<polyline points="([\d., -]+)"', page)[1].split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x0 < x1 and y0 > y1  # up is better
    assert "<svg" not in found[1]


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 8000, [0, 2000, 4000, 6000, 8000]),
        (11.4, 15.3, [12, 13, 14, 15]),
        (0.31, 0.52, [0.35, 0.4, 0.45, 0.5]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, want):
    found = ticks(low, high)
    assert all(low <= t <= high for t in found) and found == pytest.approx(want)


def test_chart_of_one_point_and_of_none():
    one = chart("psnr", {"a": [[0, 10.0]]})
    assert [text for *_, text in one["lines"]["a"]] == ["a, step 0: 10.00"]
    assert chart("psnr", {"a": [[5, float("nan")]]}) is None and chart("psnr", {}) is None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on the PATH")
def test_page_in_a_browser(found, tmp_path):
    """The script has run: frames are sorted by disagreement, one score is shown, and another one
    after a choice."""
    page = found[1]
    order = [name for name, _ in found[0]["order"]["ssim"]]
    choose = (
        "<script>document.documentElement.dataset.first = [...document.querySelectorAll('article "
        "h3')]"
        ".map((h) => h.firstChild.data.trim()).join();"
        "metric.value = 'ssim'; metric.dispatchEvent(new Event('change'));"
        "sort.value = 'name'; sort.dispatchEvent(new Event('change'));</script></html>"
    )
    (tmp_path / "page.html").write_text(page.replace("</html>", choose), encoding="utf-8")
    arguments = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-sync",
        "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(["chromium", *arguments], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-2000:]
    dom = Tags(done.stdout)
    root = dict(dom.tags)["html"]
    assert root["data-ready"] == "yes"
    assert root["data-first"].split(",") == sorted(
        order, key=lambda name: (-dict(found[0]["order"]["ssim"])[name], name)
    )
    shown = {a["data-metric"] for tag, a in dom.tags if "data-metric" in a and "hidden" not in a}
    assert shown == {"ssim"}
    names = [json.loads(a["data-scores"])["name"] for tag, a in dom.tags if tag == "article"]
    assert names == sorted(names) and len(names) == 8
