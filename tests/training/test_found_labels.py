"""Label maps of real pairs, found by a network: where they lie, what they are of, and what is
refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.scenes import write_pairs
from cmmfnet.methods import build_network
from cmmfnet.text.labels import CLASSES, IGNORE
from cmmfnet.training.found_labels import found, guided, write_found_labels
from cmmfnet.weights.files import save_model

SKY, ROAD = CLASSES.index("sky"), CLASSES.index("road")
CONFIG = {
    "method": "cmmfnet", "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
    "channels": [8, 8, 8],
    "encoder_blocks": [0, 0, 0], "decoder_blocks": [0, 0, 0], "text": "none",
    "classes": len(CLASSES),
}  # fmt: skip


class Bright(nn.Module):
    """Sky where the frame is bright, road where it is not, at an eighth of its size, and in between
    neither."""

    def forward(self, thermal, heads=False):
        level = nn.functional.avg_pool2d(thermal, 8)
        logits = torch.full((len(thermal), len(CLASSES), *level.shape[-2:]), -20.0)
        logits[:, SKY], logits[:, ROAD] = 6 * level[:, 0], -6 * level[:, 0]
        return None, None, logits


def halves(height=96, width=128):
    frame = np.zeros((height, width), np.uint8)
    frame[: height // 2] = 255
    return frame


def test_the_map_ends_where_the_photo_does():
    thermal, photo = halves(), np.repeat(halves()[..., None], 3, axis=2)
    label = found(Bright(), thermal, photo, 0.5, "cpu")
    assert label.shape == thermal.shape and label.dtype == np.uint8
    assert (label[:46] == SKY).all() and (label[50:] == ROAD).all()


def test_what_is_not_likely_has_no_label():
    thermal = halves()
    thermal[:, 64:] = 128  # sky and road are equally likely here
    photo = np.zeros((96, 128, 3), np.uint8)
    photo[:, 64:] = 255
    label = found(Bright(), thermal, photo, 0.8, "cpu")
    assert (label[:40, :58] == SKY).all() and (label[:, 72:] == IGNORE).all()


def test_the_guided_filter_follows_an_edge_and_smooths_elsewhere():
    guide = (halves() / 255).astype(np.float32)
    rng = np.random.default_rng(0)
    noisy = guide + rng.normal(0, 0.2, guide.shape).astype(np.float32)
    out = guided(noisy, guide, radius=6)
    assert np.abs(out - guide).mean() < 0.03 and abs(float(out[47].mean() - out[48].mean())) > 0.9


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    index = write_pairs(root, 6, seed=2, size=(48, 64))
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    rows[0]["lighting"] = "night"
    index.write_text("".join(json.dumps(row | {"split": row["split"]}) + "\n" for row in rows))
    for row in rows:
        (root / "label" / f"{row['name']}.png").unlink()
    torch.manual_seed(0)
    save_model(root / "model.safetensors", build_network(CONFIG), CONFIG)
    return root


@pytest.mark.slow
def test_a_folder_like_the_one_it_was_made_from(pairs, tmp_path):
    """Through the command line."""
    command = [
        sys.executable,
        "-m",
        "cmmfnet",
        "found-labels",
        str(tmp_path / "out"),
        "--pairs",
        str(pairs),
    ]
    done = subprocess.run(
        [*command, "--model", str(pairs / "model.safetensors"),
         "--least", "0.0", "--device", "cpu"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and f"pairs in {tmp_path / 'out'}" in done.stdout, done.stderr
    old, new = Pairs(pairs, "train"), Pairs(tmp_path / "out")
    assert [e["name"] for e in new.entries] == [e["name"] for e in old.entries]
    dark = old.entries[0]["name"]
    for i, entry in enumerate(new.entries):
        label = new[i].label
        assert (label is None) == (entry["name"] == dark) == ("labels" not in entry)
        assert label is None or (label.shape == new[i].thermal.shape and label.max() < len(CLASSES))
        assert np.array_equal(new[i].thermal, old[i].thermal) and np.array_equal(
            new[i].visible, old[i].visible
        )
    with pytest.raises(FileExistsError, match="is a data set already"):
        write_found_labels(
            tmp_path / "out", pairs=str(pairs), model=str(pairs / "model.safetensors"), device="cpu"
        )


def test_a_stopped_run_goes_on_and_names_that_begin_alike_are_kept_apart(pairs, tmp_path):
    """Links that are there already do not stop it, and 'a' is not 'a.b'."""
    root = tmp_path / "pairs"
    for kind in ("thermal", "visible"):
        (root / kind).mkdir(parents=True)
        for name, value in (("a", 10), ("a.b", 200)):
            Image.fromarray(
                np.full((48, 64) + ((3,) if kind == "visible" else ()), value, np.uint8)
            ).save(root / kind / f"{name}.png")
    (root / "index.jsonl").write_text(
        "".join(json.dumps({"name": n, "split": "train"}) + "\n" for n in ("a.b", "a"))
    )
    given = {"pairs": str(root), "model": str(pairs / "model.safetensors"), "device": "cpu"}
    index = write_found_labels(tmp_path / "out", **given)
    index.unlink()  # as if it had been stopped before its end
    write_found_labels(tmp_path / "out", **given)
    assert [int(Pairs(tmp_path / "out")[i].visible[0, 0, 0]) for i in (0, 1)] == [200, 10]


def test_a_model_without_label_head_is_refused(pairs, tmp_path):
    config = CONFIG | {"classes": 0}
    save_model(tmp_path / "no.safetensors", build_network(config), config)
    with pytest.raises(PairsError, match="has no label head"):
        write_found_labels(
            tmp_path / "out", pairs=str(pairs), model=str(tmp_path / "no.safetensors"), device="cpu"
        )
    assert not (tmp_path / "out").exists()
