"""Softened pairs: whose colours they have, and that a discriminator does not take a model's colours
for real."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from cmmfnet.data.pairs import Pairs
from cmmfnet.data.scenes import write_pairs
from cmmfnet.data.source import Source
from cmmfnet.methods import build_network
from cmmfnet.nn.losses import hinge_discriminator
from cmmfnet.training.softened import softened
from cmmfnet.weights.files import save_model

CONFIG = {
    "method": "cmmfnet", "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
    "channels": [8, 8, 8],
    "encoder_blocks": [0, 0, 0], "decoder_blocks": [0, 0, 0], "text": "none",
}  # fmt: skip


def grey(picture):
    return picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def test_half_of_the_brightness_and_a_third_of_the_colour_are_the_guess():
    colours = np.full((64, 96, 3), (120, 80, 40), np.uint8)
    guess = np.full((64, 96, 3), (60, 100, 140), np.uint8)
    out = softened(colours, guess, 32)
    assert np.ptp(out.reshape(-1, 3), axis=0).max() == 0
    assert grey(out).mean() == pytest.approx((grey(colours) + grey(guess)).mean() / 2, abs=1)
    before, after, theirs = (
        float((x[0, 0, 0] - grey(x)[0, 0]) - (x[0, 0, 2] - grey(x)[0, 0]))
        for x in (colours.astype(np.float32), out.astype(np.float32), guess.astype(np.float32))
    )
    assert after == pytest.approx(before + 0.3 * (theirs - before), abs=2)


def test_fine_detail_stays_the_colours_own():
    """A checkerboard of single pixels is not in the large areas of either picture."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 80
    colours = np.repeat((100 + board)[..., None], 3, axis=2).astype(np.uint8)
    guess = np.repeat((180 - board)[..., None], 3, axis=2).astype(np.uint8)  # the same mean
    out = softened(colours, guess, 32).astype(int)
    assert np.abs(out - colours)[8:-8, 8:-8].max() <= 1


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    index = write_pairs(root, 4, seed=2, size=(48, 64))
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    rows[0] |= {"lighting": "night", "sequence": "street"}
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed, name in enumerate(("teacher", "second")):
        torch.manual_seed(seed)
        save_model(root / f"{name}.safetensors", build_network(CONFIG), CONFIG)
    return root


def test_night_frames_get_the_teachers_colours_and_the_others_keep_most_of_the_photo(
    pairs, tmp_path
):
    """Through the command line."""
    command = [
        sys.executable, "-m", "cmmfnet", "soften", str(tmp_path / "out"), "--pairs", str(pairs),
        "--teacher", str(pairs / "teacher.safetensors"),
        "--second", str(pairs / "second.safetensors"), "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"3 pairs in {tmp_path / 'out'}" in done.stdout, done.stderr
    old, new = Pairs(pairs, "train"), Pairs(tmp_path / "out")
    assert new.entries[0] == {
        "name": f"{old.entries[0]['name']}_by_day", "split": "train", "source": "taught",
        "sequence": "street", "lighting": "day",
    }  # fmt: skip
    assert new.entries[1:] == old.entries[1:]
    for i in range(3):
        assert np.abs(new[i].thermal.astype(int) - old[i].thermal).max() <= 1  # stretched twice
        moved = np.abs(new[i].visible.astype(int) - old[i].visible).mean()
        assert moved > 1, "its colours are the photo's"
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode != 0 and "is a data set already" in again.stderr


def test_only_pictures_that_are_not_taught_count_as_real():
    real, fake = torch.tensor([[-1.0], [3.0]]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    first, second, both = (
        hinge_discriminator(real, fake, torch.tensor(counted))
        for counted in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
    )
    assert (float(first), float(second)) == (3.0, 1.0)
    assert float(both) == float(hinge_discriminator(real, fake)) == 2.0
    assert float(hinge_discriminator(real, fake, torch.zeros(2))) == 1.0  # none is real


def test_a_batch_says_which_pictures_are_taught(pairs):
    from cmmfnet.data.batches import Batches

    def batch(*shares):
        sources = [
            Source("pairs", split="train", taught=taught, share=(share, share)).opened(pairs)
            for taught, share in zip((True, False), shares, strict=True)
        ]
        return Batches(sources, batch_size=3, size=32, steps=1)[0]

    assert batch(1.0, 0.0).taught == [True] * 3 and batch(0.0, 1.0).taught == [False] * 3
    assert [part.taught for part in batch(1.0, 0.0).split(3)] == [[True]] * 3
