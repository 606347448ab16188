"""`cmmfnet evaluate`: the protocol, the baselines, and that a model, its run and its saved pictures
score the same."""

from __future__ import annotations

import hashlib
import json
import math
import warnings

import numpy as np
import pytest
import torch
from fake_network import Fake
from PIL import Image
from tiny_data import BASELINES, write_data

from cmmfnet import methods
from cmmfnet.cli import main
from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation import (
    evaluate,
    metrics,
    network_scores,
    predictors,
    protocol,
    scoring,
)
from cmmfnet.evaluation.baselines import trivial_baselines
from cmmfnet.evaluation.predictors import open_predictor
from cmmfnet.evaluation.protocol import centre_crop, cut, frames
from cmmfnet.evaluation.setting import Setting
from cmmfnet.files.errors import UserError
from cmmfnet.weights.files import save_model
from cmmfnet.weights.known import ModelError


@pytest.fixture(autouse=True)
def no_pretrained_files(monkeypatch):
    monkeypatch.delenv("CMMFNET_PRETRAINED", raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four training pictures; six to validate: a sequence of three, three single ones of two
    sources."""
    entries = [
        {"name": f"t{i}", "split": "train", "source": "a", "lighting": "day"} for i in range(4)
    ]
    for i in range(3):
        entries.append(
            {"name": f"s{i}", "split": "val", "source": "a", "lighting": "day", "sequence": "s"}
        )
    for i, (source, lighting) in enumerate([("a", "dusk"), ("b", "day"), ("b", "day")]):
        more = {"caption": "a road and a tree", "tags": ["car", "road"]} if i == 1 else {}
        entries.append(
            {"name": f"v{i}", "split": "val", "source": source, "lighting": lighting} | more
        )
    return write_data(tmp_path_factory.mktemp("pairs"), entries)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A run's folder with a fake network as its model."""
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:Fake")
    monkeypatch.setattr(methods, "build_network", lambda config: Fake())
    save_model(
        tmp_path / "my-run" / "model.safetensors",
        Fake(),
        {"method": "fake"},
        {"steps": 3, "data": "none"},
    )
    return tmp_path / "my-run"


def ask(what, data, *more):
    return main(["evaluate", str(what), "--data", str(data), "--device", "cpu", *map(str, more)])


# --- the protocol


@pytest.mark.parametrize(
    "size",
    [(1, 1), (3, 999), (255, 257), (257, 255), (256, 256), (480, 641), (77, 91), (513, 300)],
    ids=str,
)
def test_centre_crop_has_its_size(size):
    rng = np.random.default_rng(0)
    assert centre_crop(rng.integers(0, 256, (*size, 3)).astype(np.uint8), 256).shape == (
        256,
        256,
        3,
    )
    grey = centre_crop(rng.integers(0, 256, size).astype(np.uint8), 256)
    assert (grey.shape, grey.dtype) == ((256, 256), np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (96, 64)], ids=str)
def test_centre_crop_is_the_middle(size):
    picture = np.arange(64 * 96, dtype=np.int64).reshape(size) % 251
    top, left = (size[0] - 64) // 2, (size[1] - 64) // 2
    want = picture[top : top + 64, left : left + 64].astype(np.uint8)
    assert np.array_equal(centre_crop(picture.astype(np.uint8), 64), want)


def test_centre_crop_scales_the_short_side():
    """Halved: a grey middle square of half the side stays a middle square of half the side."""
    picture = np.zeros((128, 200), np.uint8)
    picture[32:96, 68:132] = 255
    crop = centre_crop(picture, 64) > 127
    assert crop[17:47, 17:47].all() and crop.sum() == pytest.approx(32 * 32, rel=0.1)


def test_kaist_a_halves_and_cuts_the_middle():
    picture = np.zeros((512, 640), np.uint8)
    picture[:, 64 : 64 + 512] = np.repeat(np.arange(256, dtype=np.uint8), 2)[None]
    found = cut(picture, "kaist-a", "any")
    assert (
        found.shape == (256, 256)
        and np.abs(found[:, 8:-8].astype(int) - np.arange(256)[None, 8:-8]).max() <= 1
    )
    assert cut(np.zeros((100, 90, 3), np.uint8), "kaist-a", "any").shape == (256, 256, 3)


def test_kaist_b_cuts_by_the_name_alone():
    picture = (np.arange(512 * 640).reshape(512, 640) % 65521).astype(np.int64)
    n = int.from_bytes(hashlib.sha256(b"set06_V000_I00019").digest()[:8], "big")
    rng = np.random.default_rng(n)
    top, left = rng.integers(257), rng.integers(385)
    found = cut(picture, "kaist-b", "set06_V000_I00019")
    assert np.array_equal(found, picture[top : top + 256, left : left + 256])
    assert np.array_equal(found, cut(picture, "kaist-b", "set06_V000_I00019"))
    assert not np.array_equal(found, cut(picture, "kaist-b", "set06_V000_I00020"))
    with pytest.raises(
        UserError, match=r"small is 640x200; geometry kaist-b cuts 256x256 out of larger frames"
    ):
        cut(picture[:200], "kaist-b", "small")


def test_a_part_of_a_stretched_frame_is_stretched_by_its_percentiles_alone(tmp_path):
    """Pairs come stretched to 0 to 255; in a cut, many pixels at these ends are no fill values."""
    thermal = np.tile(np.linspace(0, 255, 128), (64, 1))  # a ramp, whose middle is nearly flat
    thermal[:, 32:96] = 100 + np.arange(64)[:, None] // 8
    thermal[:32, 32:36] = 255
    for kind in ("thermal", "visible"):
        (tmp_path / kind).mkdir()
        Image.fromarray(thermal.astype(np.uint8)).save(tmp_path / kind / "a.png")
    (tmp_path / "index.jsonl").write_text('{"name": "a"}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = Pairs(tmp_path)
        ((found, *_),) = network_scores.centre_crops(pairs, 64)
        ((other, *_),) = frames(pairs)
    middle = pairs[0].thermal[:, 32:96].astype(np.float64)
    low, high = np.percentile(middle, [1, 99])
    assert np.allclose(found, np.clip((middle - low) / (high - low) * 2 - 1, -1, 1), atol=1e-5)
    assert np.allclose(other[2::4, 2::4].mean(), found.mean(), atol=0.05)


def test_frame_list_checksum_is_that_of_prepare():
    entries = [
        {"name": "b", "split": "val"},
        {"name": "a", "split": "val"},
        {"name": "c", "split": "test"},
    ]
    assert protocol.frames_sha256(entries) == hashlib.sha256(b"test c\nval a\nval b").hexdigest()
    assert protocol.frames_sha256(entries[::-1]) == protocol.frames_sha256(entries)


def test_protocol_is_stored_with_every_number(data, model, tmp_path, capsys):
    assert ask(model, data, "--json", tmp_path / "r.json", "--ssim", "gauss-11", "--seed", 4) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    stored = result["protocol"]
    assert (
        stored["frames"] == 6
        and stored["geometry"]["name"] == "short-256-crop-256"
        and result["seed"] == 4
    )
    assert stored["frames_sha256"] == protocol.frames_sha256(Pairs(data, "val").entries)
    assert (
        stored["ssim"]["preset"] == "gauss-11"
        and stored["ssim"]["sigma"] == 1.5
        and stored["split"] == "val"
    )
    digest = hashlib.sha256()
    for _, truth, _ in frames(Pairs(data, "val")):
        digest.update(repr(truth.shape).encode() + truth.tobytes())
    assert stored["truth_sha256"] == digest.hexdigest()
    assert (
        torch.__version__.startswith(stored["versions"]["torch"])  # perhaps without its +cu124
        and stored["versions"]["numpy"] == np.__version__
    )
    file = (model / "model.safetensors").read_bytes()
    assert result["methods"]["my-run"]["sha256"] == hashlib.sha256(file).hexdigest()
    assert (
        result["methods"]["my-run"]
        | {"kind": "run", "method": "fake", "training": {"steps": 3, "data": "none"}}
        == result["methods"]["my-run"]
    )
    printed = capsys.readouterr().out
    assert (
        "SSIM (gauss-11) on uint8" in printed
        and stored["frames_sha256"][:16] in printed
        and "no LPIPS" in printed
    )


# --- baselines


@pytest.fixture
def halves(tmp_path):
    """Two 64x64 pictures: cold left, hot right; the colours of the halves are red and blue, then
    green and grey."""
    colours = {"a": [(200, 20, 10), (0, 40, 250)], "b": [(0, 180, 30), (90, 90, 90)]}
    for part in ("thermal", "visible"):
        (tmp_path / part).mkdir()
    for name, (cold, hot) in colours.items():
        thermal = np.zeros((64, 64), np.uint8)
        thermal[:, 32:] = 255
        visible = np.zeros((64, 64, 3), np.uint8)
        visible[:, :32], visible[:, 32:] = cold, hot
        Image.fromarray(thermal).save(tmp_path / "thermal" / f"{name}.png")
        Image.fromarray(visible).save(tmp_path / "visible" / f"{name}.png")
    (tmp_path / "index.jsonl").write_text(
        "".join(json.dumps({"name": n, "source": "hand"}) + "\n" for n in colours)
    )
    return Pairs(tmp_path)


def test_trivial_baselines_on_halves(halves):
    baselines = trivial_baselines(halves, "whole")
    assert list(baselines) == BASELINES
    thermal = np.full((64, 64), -1, np.float32)
    thermal[:, 32:] = 1
    cold, hot = [100, 100, 20], [45, 65, 170]  # means of red and green, of blue and grey
    found = {name: f(thermal, {"name": "new"}) for name, f in baselines.items()}
    for picture in found.values():
        assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
    inner = {
        name: (p[:, :24].reshape(-1, 3), p[:, 40:].reshape(-1, 3)) for name, p in found.items()
    }
    assert (inner["grey replicate"][0] == 0).all() and (inner["grey replicate"][1] == 255).all()
    for side in inner["mean colour"]:
        assert (np.abs(side - (np.array(cold) + hot) / 2) <= 0.5).all()
    for name in ("mean picture", "mean colour of each level"):
        assert (inner[name][0] == cold).all() and (inner[name][1] == hot).all()
    # where the frame is turned round, the mean picture stays and the colours of the levels follow
    turned = {
        name: baselines[name](-thermal, {})
        for name in ("mean picture", "mean colour of each level")
    }
    assert np.array_equal(turned["mean picture"], found["mean picture"])
    assert (turned["mean colour of each level"][:, :32] == hot).all()
    # a level between, which no training pixel has, takes the colour of the nearest
    assert (
        baselines["mean colour of each level"](np.full((4, 4), 0.3, np.float32), {}) == hot
    ).all()


def test_nearest_training_picture_is_another_scene_with_the_nearest_thermal(data):
    train = Pairs(data, "train")
    nearest = trivial_baselines(train)["nearest training picture"]
    for thermal, truth, meta in frames(train):
        rough = thermal + np.random.default_rng(0).normal(0, 0.05, thermal.shape).astype(np.float32)
        assert np.array_equal(
            nearest(rough * 0.5 + 0.1, {"name": "new"}), truth
        )  # gain and offset do not matter
        assert not np.array_equal(
            nearest(thermal, meta), truth
        )  # its own picture would be no baseline
    everything = trivial_baselines(Pairs(data))["nearest training picture"]
    for thermal, _, meta in frames(Pairs(data)):
        if meta.get("sequence"):
            found = everything(thermal, meta)
            others = [t for _, t, m in frames(Pairs(data)) if m.get("sequence") != meta["sequence"]]
            assert any(np.array_equal(found, other) for other in others)


# --- scores


def test_summary_is_means_and_a_share_of_colour():
    rows = [
        {
            "name": "a",
            "psnr": 20.0,
            "ssim": 0.5,
            "lpips": 0.2,
            "colourfulness": 10.0,
            "truth": 40.0,
            "sequence": "",
        },
        {
            "name": "b",
            "psnr": 30.0,
            "ssim": 0.7,
            "lpips": 0.6,
            "colourfulness": 50.0,
            "truth": 20.0,
            "sequence": "",
        },
    ]
    want = {
        "psnr": 25.0,
        "ssim": 0.6,
        "lpips": 0.4,
        "colour_share": 1.0,
    }  # 60 / 60, not the mean of 1/4 and 5/2
    assert scoring.summary(rows) == pytest.approx(want)
    without = [{k: v for k, v in row.items() if k != "lpips"} for row in rows]
    assert "lpips" not in scoring.summary(without)


def test_scores_of_the_truth_and_of_a_baseline(data, tmp_path):
    pairs = Pairs(data, "val")
    truths = {meta["name"]: truth for _, truth, meta in network_scores.centre_crops(pairs)}
    rows = network_scores.score(lambda thermal, meta: truths[meta["name"]], pairs, tmp_path)
    assert [(r["name"], r["psnr"], r["ssim"]) for r in rows] == [
        (n, math.inf, pytest.approx(1)) for n in truths
    ]
    assert all("lpips" not in r and r["colourfulness"] == r["truth"] for r in rows)
    assert scoring.summary(rows)["colour_share"] == 1
    grey = network_scores.score(trivial_baselines(pairs)["grey replicate"], pairs, tmp_path)
    assert scoring.summary(grey)["colour_share"] == 0 and scoring.summary(grey)["psnr"] < 20


def test_score_network_is_the_mean_of_what_the_network_makes(data):
    pairs = Pairs(data, "val")
    network = Fake().eval()
    found = network_scores.score_network(network, pairs)
    psnr = [
        metrics.psnr(
            predictors.to_picture(network(torch.from_numpy(thermal)[None, None])[0]), truth
        )
        for thermal, truth, _ in frames(pairs)
    ]
    assert found.keys() == {"psnr", "ssim", "colour_share"} and found["psnr"] == pytest.approx(
        np.mean(psnr)
    )


def test_table_has_means_by_source_intervals_and_means_by_sequence(data, model, tmp_path, capsys):
    assert ask(model, data, "--json", tmp_path / "r.json") == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["scores"].keys() == {"a", "b", "all"} and list(result["scores"]["all"]) == [
        "my-run",
        *BASELINES,
    ]
    rows, cell = result["pictures"]["my-run"], result["scores"]["all"]["my-run"]
    assert (
        cell["pairs"] == 6
        and cell["sequences"] == 4
        and result["scores"]["a"]["my-run"]["pairs"] == 4
    )
    psnr = {row["name"]: row["psnr"] for row in rows}
    assert cell["psnr"]["mean"] == pytest.approx(np.mean(list(psnr.values())))
    by_sequence = [np.mean([psnr[f"s{i}"] for i in range(3)]), psnr["v0"], psnr["v1"], psnr["v2"]]
    assert cell["psnr"]["over_sequences"] == pytest.approx(np.mean(by_sequence))
    assert cell["psnr"]["low"] < cell["psnr"]["mean"] < cell["psnr"]["high"]
    assert min(by_sequence) <= cell["psnr"]["low"] and cell["psnr"]["high"] <= max(by_sequence)
    assert (
        f"{cell['psnr']['mean']:.2f}" in printed
        and f"[{cell['psnr']['low']:.2f},{cell['psnr']['high']:.2f}]" in printed
    )
    assert "by sequence" in printed and all(name in printed for name in BASELINES)


def test_two_runs_give_the_same_file(data, model, tmp_path):
    for name in ("one", "two"):
        assert ask(model, data, "--json", tmp_path / name, "--metrics", "psnr,flicker,delta_e") == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    rows = json.loads((tmp_path / "one").read_text())["pictures"]["my-run"]
    assert ["flicker" in row for row in rows] == [False, True, True, False, False, False]
    assert all("delta_e" in row and "ssim" not in row for row in rows)


def test_a_metric_that_no_frame_has_is_named(data, tmp_path, capsys):
    data_file = tmp_path / "r.json"
    options = ("--geometry", "whole", "--metrics", "niqe", "--json", data_file)
    assert ask("cmmfnet-small", data, *options) == 0
    assert "no NIQE: it needs two patches of 96x96 pixels" in capsys.readouterr().out
    assert data_file.is_file()


def test_flicker_is_between_neighbours_of_one_sequence(data):
    pairs = Pairs(data, "val")
    seen = list(frames(pairs))
    scorer = scoring.Scorer(["flicker"])
    constant = np.full((256, 256, 3), 90, np.uint8)
    rows = []
    for thermal, truth, meta in seen:
        scorer.begin(thermal, truth, meta)
        rows.append(scorer.row("m", constant))
    for i in (1, 2):
        want = metrics.flicker(constant, constant, seen[i][1], seen[i - 1][1])
        assert rows[i]["flicker"] == want and want > 0
    assert "flicker" not in rows[0] and "flicker" not in rows[3]


# --- what can be scored


def test_saved_pictures_score_exactly_as_the_model(data, model, tmp_path):
    for geometry in ("short-256-crop-256", "whole", "whole-256"):
        folder, more = (
            tmp_path / geometry,
            ["--geometry", geometry, "--metrics", "psnr,ssim,delta_e,colour_share"],
        )
        assert ask(model, data, "--save", folder, "--json", tmp_path / "a.json", *more) == 0
        assert sorted(p.name for p in folder.iterdir()) == [
            "s0.png",
            "s1.png",
            "s2.png",
            "v0.png",
            "v1.png",
            "v2.png",
        ]
        assert ask(folder, data, "--json", tmp_path / "b.json", *more) == 0
        one, two = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
        assert one["pictures"]["my-run"] == two["pictures"][geometry]
        assert one["scores"]["all"]["my-run"] == two["scores"]["all"][geometry]
        assert one["protocol"] == two["protocol"] and one["methods"]["my-run"]["saved"] == str(
            folder.resolve()
        )
        assert two["methods"][geometry]["kind"] == "predictions"
    with Image.open(folder / "s0.png") as picture:
        assert picture.size == (80, 64)


def test_whole_frames_are_coloured_first_and_reduced_after(data):
    """The truth is that of the default geometry; the picture is what `Colorizer` gives users."""
    network, pairs = Fake(), Pairs(data, "val")
    colorizer = Colorizer(network, device="cpu", dtype=torch.float32)
    predictor = predictors.network_predictor("n", network, pairs, "whole-256", device="cpu")
    scorer = scoring.Scorer(["psnr", "apce"])
    rows, truth = scoring.measure([predictor], pairs, scorer, "whole-256")
    crops, same_truth = scoring.measure([predictor], pairs, scorer, "short-256-crop-256")
    assert truth == same_truth
    for i, row in enumerate(rows["n"]):
        pair = pairs[i]
        made = protocol.centre_crop(colorizer(pair.thermal), 256)
        assert row["psnr"] == metrics.psnr(made, protocol.centre_crop(pair.visible, 256))
    assert [row["psnr"] for row in rows["n"]] != [row["psnr"] for row in crops["n"]]


def test_pictures_of_full_size_are_cut_like_the_truth(data, tmp_path):
    perfect = tmp_path / "perfect"
    perfect.mkdir()
    for file in (data / "visible").iterdir():  # of all splits: more than is asked for is no mistake
        with Image.open(file) as picture:
            picture.save(perfect / file.name)
    result = evaluate.evaluate(
        str(perfect), Setting(data=data, device="cpu"), json=tmp_path / "r.json"
    )
    assert all(row["psnr"] == math.inf for row in result["pictures"]["perfect"])
    assert (
        result["scores"]["all"]["perfect"]["psnr"] | {"mean": math.inf, "low": None, "high": None}
        == (result["scores"]["all"]["perfect"]["psnr"])
    )
    stored = json.loads(
        (tmp_path / "r.json").read_text(), parse_constant=pytest.fail
    )  # JSON that others read, too
    assert stored["scores"]["all"]["perfect"]["psnr"]["mean"] == "inf"


def test_model_file_run_folder_and_network_agree(data, model):
    pairs = Pairs(data, "val")
    thermals, _, metas = map(list, zip(*frames(pairs), strict=True))
    network = Fake().eval()
    want = [predictors.to_picture(network(torch.from_numpy(t)[None, None])[0]) for t in thermals]
    for what in (model, model / "model.safetensors"):
        predictor = open_predictor(str(what), pairs, "short-256-crop-256", device="cpu")
        assert predictor.name == "my-run" and predictor.batch == 1
        found = [predictor.colour([t], [m])[0] for t, m in zip(thermals, metas, strict=True)]
        together = predictor.colour(thermals, metas)
        for a, b, c in zip(found, together, want, strict=True):
            assert np.array_equal(a, c) and np.array_equal(b, c)


def test_an_exported_graph_is_scored_as_its_network_is(data, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from test_onnx_runtime import fake_graph

    graph = fake_graph(Fake())
    onnx.save(graph, tmp_path / "mine.onnx")
    results = {}
    for geometry in ("short-256-crop-256", "whole"):
        for text in ("none", "tags"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = evaluate.evaluate(
                    str(tmp_path / "mine.onnx"),
                    Setting(data=data, geometry=geometry, text=text, device="cpu"),
                )
                pairs = Pairs(data, "val")
                network = predictors.network_predictor(
                    "n", Fake(), pairs, geometry, text=text, device="cpu"
                )
                exported = open_predictor(
                    str(tmp_path / "mine.onnx"), pairs, geometry, text=text, device="cpu"
                )
            assert found["method"] == "mine"
            record = found["methods"]["mine"]
            assert (record["kind"], record["model"], record["text"]) == ("graph", "fake", text)
            for thermal, _, meta in frames(pairs, geometry):
                (a,), (b,) = exported.colour([thermal], [meta]), network.colour([thermal], [meta])
                assert np.array_equal(a, b)
            results[geometry, text] = found["scores"]["all"]["mine"]["psnr"]["mean"]
    assert len(set(results.values())) == 4  # size and text reach it
    for entry in graph.metadata_props:
        if entry.key == "text_source":
            entry.value = "clip-sentence"
    onnx.save(graph, tmp_path / "sentences.onnx")
    with pytest.raises(UserError, match="takes whole sentences"):
        open_predictor(
            str(tmp_path / "sentences.onnx"), pairs, "whole", text="caption", device="cpu"
        )
    with pytest.raises(ModelError, match="no model file"):
        open_predictor(str(tmp_path / "none.onnx"), pairs, "whole", device="cpu")


def test_batches_are_of_equal_size_and_come_back_in_order():
    asked = []

    def colour(thermals, metas):
        asked.append([t.shape for t in thermals])
        return [
            np.full((*t.shape, 3), m["n"], np.uint8) for t, m in zip(thermals, metas, strict=True)
        ]

    sizes = [(4, 4), (4, 6), (4, 4), (4, 4), (4, 6)]
    metas = [{"n": i} for i in range(5)]
    found = scoring.colour_all(
        predictors.Predictor("p", colour, {}, 2), [np.zeros(s, np.float32) for s in sizes], metas
    )
    assert [p[0, 0, 0] for p in found] == [0, 1, 2, 3, 4] and [p.shape[:2] for p in found] == sizes
    assert sorted(map(len, asked)) == [1, 2, 2] and all(len(set(batch)) == 1 for batch in asked)


def test_text_reaches_the_network_as_asked(data):
    """Green is the first number of the mean token: -1 without text."""
    pairs = Pairs(data, "val", sources=("b",))  # the first of the two has a caption and tags
    thermals, _, metas = map(list, zip(*frames(pairs), strict=True))
    table = Fake().table.detach()

    def green(given, **more):
        made = predictors.network_predictor(
            "n", Fake(**more), pairs, "short-256-crop-256", text=given, device="cpu"
        )
        return [int(p[0, 0, 1]) for p in made.colour(thermals, metas)], made.record["text"]

    def level(*ids):
        return round((float(table[list(ids), 0].mean()) + 1) * 127.5)

    assert green("none") == ([0, 0], "none")
    assert green("default") == ([0, 0], "none")
    assert green("default", default_prompt="road") == ([level(1)] * 2, "default prompt")
    assert green("none", default_prompt="road") == ([0, 0], "none")
    with pytest.warns(
        UserWarning, match="1 of 2 entries have no 'caption' and get the model's default text"
    ):
        assert green("caption") == ([level(1, 2), 0], "caption")  # road and tree
    with pytest.warns(UserWarning, match="1 of 2 entries have no 'tags'"):
        assert green("tags") == ([level(0, 1), 0], "tags")  # car and road
    assert green("caption", text="none") == ([0, 0], "none (takes none)")


def test_a_network_that_gives_nan_is_named(data):
    class Broken(Fake):
        def forward(self, thermal, text=None, text_mask=None):
            return super().forward(thermal) * float("nan")

    pairs = Pairs(data, "val")
    predictor = predictors.network_predictor(
        "broken", Broken(), pairs, "short-256-crop-256", device="cpu"
    )
    thermal, _, meta = next(frames(pairs))
    with pytest.raises(UserError, match=r"s0 or a frame beside it: .*'broken' gave NaN"):
        predictor.colour([thermal], [meta])


# --- mistakes


def test_preset_lkat_cuts_decimals_off_and_takes_the_best_epoch(data, model, tmp_path, capsys):
    with pytest.raises(UserError, match=r"has no best.safetensors, since it was trained without"):
        evaluate.evaluate(str(model), Setting(data=data, preset="lkat", device="cpu"))
    save_model(model / "best.safetensors", Fake(), {"method": "fake"}, {"steps": 2, "data": "none"})
    found = {}
    for name, more in (("ours", ()), ("theirs", ("--preset", "lkat"))):
        out = tmp_path / f"{name}.json"
        assert ask(model, data, *more, "--save", tmp_path / name, "--json", out) == 0
        assert ("LKAT-GAN's code scores, not our" in capsys.readouterr().out) == bool(more)
        found[name] = json.loads(out.read_text())
    steps = {name: each["methods"]["my-run"]["training"]["steps"] for name, each in found.items()}
    assert steps == {"ours": 3, "theirs": 2}
    gaps = [
        np.asarray(Image.open(tmp_path / "ours" / file.name)).astype(int)
        - np.asarray(Image.open(file))
        for file in (tmp_path / "theirs").glob("*.png")
    ]
    assert len(gaps) == 6 and np.isin(gaps, (0, 1)).all()
    assert 0.3 < np.mean(np.stack(gaps)[..., 0]) < 0.6  # red is the frame, with white and black
    assert main(["compare", str(tmp_path / "ours.json"), str(tmp_path / "theirs.json")]) == 2
    assert "different protocols" in capsys.readouterr().err


def folder_of(tmp_path, names, size=(80, 64), suffix=".png"):
    folder = tmp_path / "predictions"
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", size, (90, 80, 70)).save(folder / f"{name}{suffix}")
    return folder


FRAMES = ["s0", "s1", "s2", "v0", "v1", "v2"]


def test_missing_surplus_and_double_pictures_are_counted(data, tmp_path):
    folder = folder_of(tmp_path, [*FRAMES[:2], "t0", "x1", "x2"])
    message = (
        r"its 5 pictures are not those of the 6 frames: 4 missing \(s2, v0, v1, ...\); "
        r"2 not in the index \(x1, x2\)"
    )
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(str(folder), Setting(data=data))
    folder_of(tmp_path, ["s0"], suffix=".jpg")
    with pytest.raises(UserError, match=r"two pictures of 's0': s0.jpg and s0.png"):
        evaluate.evaluate(str(folder), Setting(data=data))


def test_pictures_of_another_size_or_none(data, tmp_path):
    folder = folder_of(tmp_path, FRAMES)
    Image.new("RGB", (100, 50)).save(folder / "v1.png")
    with pytest.raises(
        UserError,
        match=r"v1.png is 100x50; expected 80x64 like the true picture, or 256x256 as",
    ):
        evaluate.evaluate(str(folder), Setting(data=data))
    (folder / "v1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"v1.png is no picture that can be read"):
        evaluate.evaluate(str(folder), Setting(data=data))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError,
        match=r"is neither a run \(it has no model.safetensors\) nor a folder of pred",
    ):
        evaluate.evaluate(str(tmp_path / "empty"), Setting(data=data))
    with pytest.raises(ModelError, match="unknown model 'nothing'"):
        evaluate.evaluate("nothing", Setting(data=data))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": "psnr,snr"}, UserError, r"unknown metric snr; choose some of psnr, ssim"),
        ({"preset": "gan"}, UserError, r"preset is 'gan'; expected lkat or none"),
        (
            {"preset": "lkat", "geometry": "whole"},
            UserError,
            r"preset lkat scores 256x256 pictures .* found geometry whole and ssim skimage-u7",
        ),
        ({"ssim": "u7"}, UserError, r"ssim is 'u7'; expected one of skimage-u7, gauss-11"),
        (
            {"geometry": "kaist"},
            UserError,
            r"geometry is 'kaist'; expected one of short-256-crop-256, kaist-a",
        ),
        ({"geometry": "kaist-b"}, UserError, r"is 80x64; geometry kaist-b cuts"),
        (
            {"metrics": "flicker", "geometry": "kaist-b"},
            UserError,
            r"geometry kaist-b cuts each frame at another place",
        ),
        (
            {"metrics": "flicker", "sources": "b"},
            UserError,
            r"flicker needs sequences of two frames or more",
        ),
        (
            {"text": "captions"},
            UserError,
            r"text is 'captions'; expected one of default, none, caption, tags",
        ),
        (
            {"text": "caption", "sources": "a"},
            UserError,
            r"no entry of .*index.jsonl has 'caption'",
        ),
    ],
)
def test_mistakes_are_found_and_explained(data, model, options, error, message):
    with pytest.raises(error, match=message):
        evaluate.evaluate(str(model), Setting(data=data, device="cpu", **options))


def test_lpips_that_was_asked_for_and_is_not_there(data, model, tmp_path):
    with pytest.raises(FileNotFoundError, match="LPIPS heads not found"):
        evaluate.evaluate(
            str(model), Setting(data=data, metrics="lpips", pretrained=tmp_path, device="cpu")
        )


def test_mistakes_get_one_line(data, model, tmp_path, capsys):
    assert main(["evaluate", str(model)]) == 2
    assert "--data is missing; give a folder of pairs" in capsys.readouterr().err
    assert ask(model, data, "--metrics", "snr") == 2
    assert capsys.readouterr().err.startswith(
        "cmmfnet: error: unknown metric snr; choose some of psnr"
    )
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a.txt").write_text("mine")
    assert ask(model, data, "--save", tmp_path / "used") == 1
    assert "is not empty; name a new folder" in capsys.readouterr().err
    assert ask(model, tmp_path) == 2 and "index.jsonl does not exist" in capsys.readouterr().err


def test_without_a_train_split_there_are_no_baselines(data, model, tmp_path):
    only = write_data(tmp_path / "only", [{"name": f"p{i}", "split": "test"} for i in range(2)])
    with pytest.warns(UserWarning, match="no trivial baselines, which come from the split train"):
        result = evaluate.evaluate(str(model), Setting(data=only, split="test", device="cpu"))
    assert list(result["scores"]["all"]) == ["my-run"]


def test_a_folder_named_like_a_baseline(data, tmp_path):
    folder = folder_of(tmp_path, FRAMES).rename(tmp_path / "mean colour")
    with pytest.raises(UserError, match="mean colour is the name of a trivial baseline; rename"):
        evaluate.evaluate(str(folder), Setting(data=data, device="cpu"))
