"""cmmfnet-paper from a raw data set to coloured frames by the commands of the docs, on miniatures
of KAIST and IRVI: no captions, for IRVI no validation pictures, a reduced network, a tiny CLIP."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_clip import write_tiny_clip

from cmmfnet.cli import main
from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.data.prepare import irvi, kaist
from cmmfnet.text.sentences import DEFAULT_PROMPT
from cmmfnet.training.recipe import find_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SETS = {0: [3, 2], 1: [2], 2: [1], 6: [2], 7: [1], 8: [1]}
NETWORK = {
    "channels": [4, 8, 16], "encoder_blocks": [1, 1, 1], "decoder_blocks": [1, 1, 0],
    "kernels": [5, 5, 3], "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
    "text_width": 32, "tail": 4,
}  # fmt: skip


def frame(path: Path, rng: np.random.Generator, size: tuple[int, int], grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = rng.integers(0, 256, (6, 8) if grey else (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


@pytest.fixture
def reduced(tmp_path, monkeypatch) -> Path:
    """The configuration with a small network and without VGG-19."""
    monkeypatch.setenv("CMMFNET_TEXT_ENCODER", str(write_tiny_clip(tmp_path / "clip")))
    monkeypatch.setenv("CMMFNET_CACHE", str(tmp_path / "cache"))
    recipe = yaml.safe_load(find_config("cmmfnet-paper").read_text(encoding="utf-8"))
    recipe["model"] |= NETWORK
    recipe["losses"]["perceptual"] = 0.0
    changes = {"shapes": [[64, 64]], "epochs": None, "steps": 20, "save_every": 10}
    recipe |= changes | {"sheet_every": 10, "log_every": 5}
    (tmp_path / "reduced.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path / "reduced.yaml"


def command(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def train_and_use(config: Path, data: Path, source: str | None, geometry: str) -> tuple[dict, str]:
    """Train 20 steps in two goes, evaluate, colour, export, compare; -> evaluation, warnings."""
    out, said = data.parent / "run", []
    train = ("train", "--config", config, "--data", data, "--out", out, "--device", "cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        command(*train, "--workers", 0, "--max-steps", 10)
        assert (out / "step-10.pt").is_file()
        command(*train, "--workers", 0, "--resume", "must")
        said = " ".join(str(warning.message) for warning in caught)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20 and (out / "step-20.pt").is_file()
    part = ("--sources", source) if source else ("--lighting", "day")
    test = ("--data", data, "--split", "test", *part, "--geometry", geometry, "--device", "cpu")
    command("evaluate", out, *test, "--json", data.parent / "scores.json")
    result = json.loads((data.parent / "scores.json").read_text())

    model = out / "model.safetensors"
    colorizer = Colorizer.from_pretrained(str(model), device="cpu")
    assert colorizer.traits.default_prompt == DEFAULT_PROMPT
    thermal = next((data / "thermal").iterdir())
    by_default, asked = colorizer(thermal), colorizer(thermal, text=DEFAULT_PROMPT)
    assert np.array_equal(by_default, asked)
    command("colorize", thermal, "--model", model, "-o", data.parent / "colour.png")
    assert np.array_equal(np.asarray(Image.open(data.parent / "colour.png")), by_default)
    command("export", model, "-o", data.parent / "model.onnx")
    pair = (model, data.parent / "model.onnx")
    command("compare", *pair, *test, "--report", data.parent / "compared.html")
    assert (data.parent / "compared.html").stat().st_size > 1000
    return result, said


def raw_kaist(tmp_path, monkeypatch) -> Path:
    counts = {n: (sum(frames), len(frames)) for n, frames in SETS.items()}
    monkeypatch.setattr(kaist, "COUNTS", counts)
    rng = np.random.default_rng(0)
    for number, videos in SETS.items():
        for v, frames in enumerate(videos):
            folder = tmp_path / "RAW" / "images" / f"set{number:02d}" / f"V{v:03d}"
            for i in range(frames):
                frame(folder / "lwir" / f"I{i:05d}.jpg", rng, (320, 256), grey=True)
                frame(folder / "visible" / f"I{i:05d}.jpg", rng, (320, 256))
    return tmp_path / "RAW"


def test_kaist(tmp_path, monkeypatch, reduced):
    raw_kaist(tmp_path, monkeypatch)
    command("prepare", "kaist", tmp_path / "RAW", tmp_path / "kaist")
    result, said = train_and_use(reduced, tmp_path / "kaist", None, "kaist-b")
    assert "without validation" not in said
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert result["protocol"]["frames"] == 4
    index = (tmp_path / "kaist" / "index.jsonl").read_text().splitlines()
    held = {e["sequence"] for e in map(json.loads, index) if e["split"] == "val"}
    assert held == {"set00/V001"}  # of the training sets, never of the test sets


def raw_irvi(tmp_path, monkeypatch) -> Path:
    counts = {"traffic train": 3, "traffic test": 2, "monitoring train": 2, "monitoring test": 1}
    monkeypatch.setattr(irvi, "COUNTS", counts)
    rng = np.random.default_rng(0)
    for clip, split, count in (
        ("traffic", "train", 3), ("traffic", "test", 2), ("rooftop_sub1", "train", 2),
        ("rooftop_sub1", "test", 1),
    ):  # fmt: skip
        for i in range(count):
            folder = tmp_path / "RAW" / "single" / clip
            frame(folder / f"{split}A" / f"{i}.png", rng, (256, 256), grey=True)
            frame(folder / f"{split}B" / f"{i}.png", rng, (256, 256))
    return tmp_path / "RAW"


@pytest.mark.slow
def test_irvi(tmp_path, monkeypatch, reduced):
    raw_irvi(tmp_path, monkeypatch)
    command("prepare", "irvi", tmp_path / "RAW", tmp_path / "irvi")
    result, said = train_and_use(reduced, tmp_path / "irvi", "traffic", "short-256-crop-256")
    assert "has no pictures of split 'val'" in said and "no best.safetensors" in said
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert result["protocol"]["frames"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part", "frames"),
    [
        ("kaist", ("--lighting", "day", "--geometry", "kaist-b"), 4),
        ("irvi", ("--sources", "traffic"), 2),
    ],
)
def test_the_benchmark_on_raw_data(tmp_path, monkeypatch, name, part, frames):
    """The commands at the end of docs/benchmark.md, with small networks and two of the methods. The
    data sets have no captions and no tags."""
    raw = {"kaist": raw_kaist, "irvi": raw_irvi}[name](tmp_path, monkeypatch)
    data, out = tmp_path / name, tmp_path / "out"
    command("prepare", name, raw, data)
    monkeypatch.delenv("CMMFNET_PRETRAINED", raising=False)
    asked = [data, "--out", out, "--only", "cmmfnet-paper-own-0", "tir2lab-own-*"]
    asked += ["--split", "test", *part, "--budget", 8, "--minutes", 1500]
    asked += ["--changes", BENCHMARKS / "toy.yaml", "--workers", 0, "--device", "cpu"]
    script = [sys.executable, str(BENCHMARKS / "methods.py"), *map(str, asked)]
    subprocess.run(script, check=True, timeout=300)
    results = {
        each: json.loads((out / f"{each}-own-0" / "scores.json").read_text())
        for each in ("cmmfnet-paper", "tir2lab")
    }
    assert {each["protocol"]["frames"] for each in results.values()} == {frames}
    table = (out / "table.md").read_text()
    assert "| own | cmmfnet-paper | default |" in table and "| own | tir2lab | none |" in table
    assert "| 8 of 1 / 527,740 of 1" in table and "| trivial | mean picture |" in table
