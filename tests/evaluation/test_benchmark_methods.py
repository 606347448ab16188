"""benchmarks/methods.py: what is in the benchmark, what its budget makes of a configuration, and
its table."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmmfnet.methods import METHODS, method_class
from cmmfnet.methods.matched import Matched

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # methods imports methods_table, dataclasses look their module up
    spec.loader.exec_module(module)
    return module


table = load("methods_table")
methods = load("methods")


def given(**changes) -> Namespace:
    basic = {
        "budget": 1000, "changes": None, "lighting": "day,dusk", "sources": None, "split": "val",
        "minutes": 5.0,
        "geometry": "short-256-crop-256", "text_source": None,
    }  # fmt: skip
    return Namespace(**(basic | changes))


def named(name: str):
    return next(training for training in methods.plan() if training.name == name)


def test_crops_of_pixels_are_as_near_as_what_is_scored():
    for label in ("cmmfnet-paper", "lkatgan"):
        frame = methods.recipe_of(named(f"{label}-own-0"), given(geometry="kaist-b"))
        assert frame.shapes and frame.sources[0].zoom == (1, 1)
        small = methods.recipe_of(named(f"{label}-own-0"), given())
        assert not small.shapes and small.sources[0].zoom is None
        assert small.sources[0].scale == (0.8, 1.0)


def test_own_fixed_and_ssim_rows_and_the_source_of_text():
    own, fixed = (methods.recipe_of(named(f"lkatgan-{g}-0"), given()) for g in ("own", "fixed"))
    assert own.options["faithful"] is True and fixed.options["faithful"] is False
    ssim = methods.recipe_of(named("lkatgan-ssim-own-0"), given())
    assert ssim.losses == own.losses | {"ssim": 1.0, "adversarial": 0.0}
    for source, length in (("clip-tags", 16), ("clip-sentence", 77)):
        found = methods.recipe_of(named("text-key-ci-0"), given(text_source=source))
        assert (found.model["text"], found.model["text_length"]) == (source, length)
        assert found.model["ci"] == "text_key"
    without = methods.recipe_of(named("without-text-ablation-0"), given(text_source="clip-tags"))
    assert without.model["text"] == "none"


def test_every_method_seed_ablation_and_control_is_planned():
    plan = methods.plan()
    assert len({t.name for t in plan}) == len(plan)
    own = {t.label for t in plan if t.group == "own"}
    peers = {m for m in METHODS if not m.startswith("cmmfnet")}
    assert own == peers | {"cmmfnet", "cmmfnet-paper", "lkatgan-ssim"}
    without = own - {t.label for t in plan if t.group == "matched"}
    assert without == {"i2vgan", "palette", "lkatgan-ssim"}
    assert {t.label for t in plan if t.group == "fixed"} == {"ticcgan", "mugan", "lkatgan"}
    for label in (
        "cmmfnet",
        "cmmfnet-paper",
        "lkatgan",
        "pix2pix",
        "without-text",
        "without-ci",
        "learned-queries",
    ):
        assert {t.seed for t in plan if t.label == label} == {0, 1, 2}, label
    assert {t.seed for t in plan if t.label == "mugan"} == {0}
    assert {t.label for t in plan if t.group == "ablation"} == {"without-text", "without-ci"}
    assert {t.label for t in plan if t.group == "ci"} == {"image-query", "text-key"}
    assert {t.label for t in plan if t.group == "control"} == {
        "learned-queries",
        "shuffled-text",
        "empty-text",
    }


def test_the_budget_is_in_pictures_and_the_recipe_the_paper_s():
    for training in methods.plan():
        recipe = methods.recipe_of(training, given())
        assert (
            recipe.epochs is None
            and 0 <= recipe.steps * recipe.batch_size - 1000 < recipe.batch_size
        )
        assert recipe.seed == training.seed and recipe.warmup <= recipe.steps // 20
        assert recipe.validation.lighting == ("day", "dusk") and recipe.validation.split == "val"
        assert not any(source.lighting == ("day",) for source in recipe.sources)
        if training.group == "matched":
            assert recipe.training == "matched" and set(recipe.losses) <= set(Matched.LOSSES)
            assert recipe.model["method"] == named(f"{training.label}-own-0").label.removesuffix(
                "-paper"
            )
        else:
            assert recipe.training is None and set(recipe.losses) <= set(
                method_class(recipe.model["method"]).LOSSES
            )
    assert methods.recipe_of(named("pix2pix-own-0"), given(split="test")).validation is None


def test_controls_change_what_they_say_and_nothing_else():
    paper = methods.recipe_of(named("cmmfnet-paper-own-1"), given())
    for name, model, text in (
        ("without-text-ablation-1", {"text": "none"}, "own"),
        ("without-ci-ablation-1", {"ci": "add"}, "own"),
        ("learned-queries-control-1", {"text": "learned"}, "own"),
        ("shuffled-text-control-1", {}, "shuffled"),
        ("empty-text-control-1", {}, "empty"), ("image-query-ci-1", {"ci": "image_query"}, "own"),
        ("text-key-ci-1", {"ci": "text_key"}, "own"),
    ):  # fmt: skip
        recipe = methods.recipe_of(named(name), given())
        assert recipe.model == paper.model | model and {s.text for s in recipe.sources} == {text}
        assert (recipe.losses, recipe.steps, recipe.options) == (
            paper.losses,
            paper.steps,
            paper.options,
        )


def test_changes_of_a_file_and_every_network_of_the_toy(tmp_path):
    from cmmfnet.methods import build_network

    file = tmp_path / "changes.yaml"
    file.write_text("all: {size: 128}\npix2pix: {model: {width: 8}, losses: {l1: 7.0}}\n")
    recipe = methods.recipe_of(named("pix2pix-own-0"), given(changes=file))
    assert (recipe.size, recipe.model, recipe.losses["l1"]) == (
        128,
        {"method": "pix2pix", "width": 8},
        7.0,
    )
    assert recipe.losses["adversarial"] == 1.0
    assert methods.recipe_of(named("pix2pix-matched-0"), given(changes=file)).model["width"] == 8
    for training in (training for training in methods.plan() if training.seed == 0):
        recipe = methods.recipe_of(training, given(changes=FOLDER / "toy.yaml"))
        network = build_network(method_class(recipe.model["method"]).configuration(recipe.model))
        assert sum(p.numel() for p in network.parameters()) < 1_000_000, training.name
        assert not any(weight for loss, weight in recipe.losses.items() if loss == "perceptual")


def test_the_commands_of_the_page_name_trainings_and_their_files(tmp_path, monkeypatch):
    """Every command of docs/benchmark.md with methods.py: its options exist, each pattern of --only
    names trainings, and the file of --changes is there or written by the lines before it."""
    page = (FOLDER.parent / "docs" / "benchmark.md").read_text(encoding="utf-8")
    (tmp_path / "benchmarks").symlink_to(FOLDER)
    monkeypatch.chdir(tmp_path)
    known, seen = [training.name for training in methods.plan()], 0
    for block in re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S):
        lines = re.sub(r" *\\\n *", " ", block).splitlines(keepends=True)
        at = [i for i, line in enumerate(lines) if "benchmarks/methods.py" in line]
        before = "".join(lines[: at[0]]) if at else ""
        if "<<" in before:
            subprocess.run(["bash", "-ec", before], check=True)
        for line in (lines[i] for i in at):
            words = shlex.split(line.split(" && ")[-1], comments=True)
            monkeypatch.setattr(sys, "argv", words[1:])
            found = methods.arguments()
            chosen = [n for p in found.only for n in known if fnmatch.fnmatch(n, p)]
            assert all(fnmatch.filter(known, pattern) for pattern in found.only), line
            for name in dict.fromkeys(chosen):
                methods.recipe_of(named(name), found)
            if count := re.search(r"# (\d+) trainings", line):
                assert int(count[1]) == len(known)
            seen += 1
    assert seen >= 6


def test_minutes_of_all_starts_count(tmp_path):
    rows = (
        [{"minutes": m} for m in (0.5, 1.0)]
        + [{"validation": {}}]
        + [{"minutes": m} for m in (0.2, 0.4, 3.0)]
    )
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"minutes": 9'
    )  # killed while it wrote
    assert methods.minutes_spent(log) == pytest.approx(4.0)
    assert methods.minutes_spent(tmp_path / "none") == 0
    log.write_text("")  # a training that ended before its first row
    assert methods.minutes_spent(log) == 0


def rows(values: dict[str, float]) -> list[dict]:
    return [
        {"name": n, "source": "", "lighting": "day", "sequence": "", "psnr": v}
        for n, v in values.items()
    ]


def test_seeds_are_averaged_by_picture():
    mean = table.mean_rows([rows({"a": 10.0, "b": 20.0}), rows({"b": 24.0, "a": 12.0})])
    assert {row["name"]: row["psnr"] for row in mean} == {"a": 11.0, "b": 22.0}
    with pytest.raises(ValueError, match="different frames"):
        table.mean_rows([rows({"a": 1.0}), rows({"b": 1.0})])


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[Path, Path]:
    """Two seeds of cmmfnet and one pix2pix, scored by `cmmfnet evaluate` on folders of pictures."""
    from tiny_data import data_set

    from cmmfnet.evaluation.evaluate import evaluate
    from cmmfnet.evaluation.setting import Setting

    entries = [
        {"name": f"{split}{i}", "split": split, "lighting": "day"}
        for split in ("train", "val")
        for i in range(3)
    ]
    data = data_set(tmp_path_factory.mktemp("pairs"), entries, size=(40, 48))
    out = tmp_path_factory.mktemp("out")
    rng = np.random.default_rng(0)
    for training in (named("cmmfnet-own-0"), named("cmmfnet-own-1"), named("pix2pix-own-0")):
        pictures = out / training.name / "pictures"
        pictures.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(
                pictures / f"val{i}.png"
            )
        evaluate(
            str(pictures),
            Setting(data=str(data), metrics="psnr,ssim", device="cpu"),
            json=out / training.name / "scores.json",
        )
        result = {
            "key": "", "training": vars(training), "pictures_seen": 1000, "budget": 1000,
            "steps": 1000 if training.config == "pix2pix" else 250,
            "minutes": 2.5, "minutes_cap": 5.0,
            "side_by_side": 2, "text": "none", "device": "CPU", "torch": "2", "changes": "none",
        }  # fmt: skip
        (out / training.name / "result.json").write_text(json.dumps(result))
    return out, data


def test_table_lines_and_sheet(results, capsys):
    out, data = results
    names = [folder.name for folder in sorted(out.iterdir()) if folder.is_dir()]
    table.write_table(out, data, names)
    text = (out / "table.md").read_text()
    assert text == capsys.readouterr().out
    for baseline in (
        "grey replicate",
        "mean colour",
        "mean picture",
        "mean colour of each level",
        "nearest training picture",
    ):
        assert f"| trivial | {baseline} |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| own | cmmfnet |")]
    assert row.split(" | ")[3:7] == ["2", "1000", "250 of 4 / -", "2.5"]
    assert " to " in row and "[" in row
    assert "| 1,000 of 1 / 200 epochs of its set |" in text
    assert (
        "Differences to cmmfnet (own)" in text
        and "No better than mean colour in PSNR: cmmfnet (own), pix2pix (own)" in text
    )
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert all(
        line["protocol"]["frames"] == 3 and "truth_sha256" in line["protocol"] for line in lines
    )
    cmmfnet = {
        line["seed"]: line["mean"]
        for line in lines
        if line["method"] == "cmmfnet" and line["metric"] == "psnr"
    }
    assert cmmfnet.keys() == {0, 1, None} and cmmfnet[None] == pytest.approx(
        (cmmfnet[0] + cmmfnet[1]) / 2
    )
    with Image.open(out / "sheet-own.jpg") as sheet:
        assert sheet.size == (4 * 144, 16 + 3 * 144)


def test_every_configuration_but_ours_has_its_paper_s_steps():
    assert table.PAPERS.keys() == {t.config for t in methods.plan()} - {"cmmfnet"}


@pytest.mark.parametrize("has", [{}, {"caption": "a road", "tags": ["road"]}], ids=["none", "some"])
def test_data_without_texts_are_scored_with_the_default_text(tmp_path, has):
    from tiny_data import data_set

    entries = [
        {"name": f"{i}", "split": "val", "lighting": "day"} | (has if i else {}) for i in (0, 1)
    ]
    data_set(tmp_path, entries)
    found = {}
    for name in ("cmmfnet-paper-own-0", "empty-text-control-0"):
        for source in ("clip-sentence", "clip-tags"):
            asked = given(data=tmp_path, text_source=source)
            recipe = methods.recipe_of(named(name), asked)
            found[name, source] = methods.text_of(named(name), recipe, asked)
    assert list(found.values()) == (
        ["caption", "tags", "none", "none"] if has else ["default", "default", "none", "none"]
    )


def test_what_is_packed_gives_the_same_table(results, tmp_path):
    out, data = results
    names = [folder.name for folder in sorted(out.iterdir()) if folder.is_dir()]
    table.write_table(out, data, names)
    table.pack(tmp_path / "all.tar.gz", out, names)
    with tarfile.open(tmp_path / "all.tar.gz") as tar:
        tar.extractall(tmp_path / "there", filter="data")
    assert len(list((tmp_path / "there").glob("*/pictures/*.jpg"))) == 9
    table.write_table(tmp_path / "there", data, names)
    assert (tmp_path / "there" / "table.md").read_text() == (out / "table.md").read_text()


def test_results_of_two_protocols_are_not_put_into_one_table(results, tmp_path):
    out, data = shutil.copytree(results[0], tmp_path / "out"), results[1]
    file = out / "pix2pix-own-0" / "scores.json"
    changed = json.loads(file.read_text())
    changed["protocol"]["frames_sha256"] = "0"
    file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="another protocol: frames_sha256"):
        table.write_table(out, data, ["cmmfnet-own-0", "pix2pix-own-0"])
