"""Batches: a function of (seed, step) alone, mixed by share, with tags, labels and captions of what is in the crop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_pairs import data_set

from cmmfnet.data.batches import IGNORE, Batch, Batches, Source
from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.scenes import CLASSES

ENTRIES = [
    {"name": f"p{i}", "lighting": ["day", "night"][i % 2], "sky": ["clear", "none"][i % 2], "caption": f"caption {i}"}
    for i in range(5)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    data_set(root / "pairs", ENTRIES)
    data_set(root / "photos", [{"name": f"s{i}"} for i in range(4)], size=(32, 40), colour="photo")
    return root


def sources(data: Path, shares=((1.0, 0.3), (1.0, 2.0))) -> list[Source]:
    photos = Source(Pairs(data / "photos"), shares[1], simulate=True, level=True)
    return [Source(Pairs(data / "pairs"), shares[0]), photos]


def batches(data: Path, **more) -> Batches:
    return Batches(sources(data), **({"batch_size": 3, "size": 16, "steps": 12, "seed": 7} | more))


def same(x: Batch, y: Batch) -> bool:
    tensors = all(torch.equal(getattr(x, k), getattr(y, k)) for k in ("thermal", "visible", "label", "tagged"))
    return tensors and (x.tags, x.captions, x.names) == (y.tags, y.captions, y.names)


def test_a_batch_is_in_range_and_finite(data):
    batch = batches(data)[0]
    assert batch.thermal.shape == (3, 1, 16, 16) and batch.visible.shape == (3, 3, 16, 16)
    assert batch.label.shape == (3, 16, 16) and batch.label.dtype == torch.long
    for picture in (batch.thermal, batch.visible):
        assert (
            picture.dtype == torch.float32 and picture.min() >= -1 and picture.max() <= 1 and picture.isfinite().all()
        )
    assert batch.visible.min() < -0.5 and batch.visible.max() > 0.5
    assert len(batch.tags) == len(batch.captions) == len(batch.names) == len(batch.tagged) == 3


def test_constant_pictures_give_finite_batches(tmp_path):
    root = data_set(tmp_path, [{"name": "a"}])
    Image.fromarray(np.full((24, 32), 7000, np.uint16)).save(root / "thermal" / "a.png")
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "visible" / "a.png")
    both = [Source(Pairs(root), (1, 1)), Source(Pairs(root), (1, 1), simulate=True, level=True)]
    batch = Batches(both, batch_size=8, size=16, steps=1)[0]
    assert batch.thermal.isfinite().all() and batch.visible.isfinite().all()
    assert batch.thermal.abs().max() <= 1 and batch.visible.abs().max() <= 1


def test_a_batch_depends_on_seed_and_step_alone(data):
    straight = [batch for _, batch in batches(data, threads=1).from_step()]
    assert len(straight) == 12
    assert all(same(x, y) for x, (_, y) in zip(straight, batches(data, threads=6).from_step(), strict=True))
    backwards = batches(data)  # whatever was asked for before, and in any order
    assert all(same(straight[step], backwards[step]) for step in (11, 3, 3, 0, 7))
    uncached = batches(data, cache_gb=0.0)
    torch.manual_seed(123)
    np.random.seed(5)  # global state has no say
    assert all(same(straight[step], uncached[step]) for step in range(12))
    assert not same(straight[0], straight[1])
    assert not same(straight[0], batches(data, seed=8)[0])


def test_going_on_at_a_step_gives_the_batches_of_the_straight_run(data):
    straight = dict(batches(data).from_step())
    resumed = list(batches(data).from_step(5))
    assert [step for step, _ in resumed] == list(range(5, 12))
    assert all(same(straight[step], batch) for step, batch in resumed)


def test_an_error_while_decoding_ahead_is_raised(data, tmp_path):
    root = data_set(tmp_path, ENTRIES)
    for i in range(5):
        (root / "visible" / f"p{i}.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify image file"):
        list(Batches([Source(Pairs(root), (1, 1))], batch_size=2, size=16, steps=6).from_step())


def test_shares_move_from_first_to_last(data):
    mixed = Batches(sources(data, ((1.0, 0.0), (0.0, 3.0))), batch_size=40, size=16, steps=101)

    def simulated(step: int) -> int:
        return sum(source == 1 for source, _ in mixed._choose(step)[1])

    assert simulated(0) == 0 and simulated(100) == 40
    assert sum(simulated(step) for step in range(20, 31)) / 440 == pytest.approx(0.5, abs=0.1)  # 3/4 to 1/4 x 3: half
    assert {name[0] for name in mixed[0].names} == {"p"} and {name[0] for name in mixed[100].names} == {"s"}


def test_the_frames_of_a_sequence_are_drawn_as_one_scene(tmp_path):
    entries = [{"name": str(i), "sequence": "clip" if i < 8 else None} for i in range(10)]
    drawn = Batches([Source(Pairs(data_set(tmp_path, entries)), (1, 1))], batch_size=1000, size=16, steps=1)._choose(0)[
        1
    ]
    assert sum(index < 8 for _, index in drawn) / 1000 == pytest.approx(1 / 3, abs=0.05)


def test_simulated_frames_come_from_the_photo_s_labels(tmp_path):
    root = data_set(tmp_path, [{"name": "a"}], size=(32, 32), colour="photo")
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(root / "photo" / "a.png")
    half = np.ones((32, 32), np.uint8)
    half[16:] = CLASSES.index("person")
    Image.fromarray(half).save(root / "label" / "a.png")
    batch = Batches([Source(Pairs(root), (1, 1), simulate=True, scale=(1, 1))], batch_size=16, size=32, steps=1)[0]
    sky = (batch.label == 1).unsqueeze(1)
    person = (batch.label == CLASSES.index("person")).unsqueeze(1)
    difference = [(t[p].mean() - t[s].mean()).abs() for t, s, p in zip(batch.thermal, sky, person, strict=True)]
    assert torch.stack(difference).median() > 0.5  # of the 2 from black to white


def one(root: Path, label: np.ndarray | None, **entry) -> Batch:
    data_set(root, [{"name": "a", **entry}], size=(40, 40))
    if label is None:
        (root / "label" / "a.png").unlink()
    else:
        Image.fromarray(label).save(root / "label" / "a.png")
    return Batches([Source(Pairs(root), (1, 1), scale=(1, 1))], batch_size=1, size=40, steps=1)[0]


def test_tags_are_what_covers_a_hundredth_of_the_crop(tmp_path):
    label = np.full((40, 40), CLASSES.index("road"), np.uint8)
    label[:10] = CLASSES.index("sky")
    label[39, :30] = CLASSES.index("car")  # 1.9 % of the picture
    label[20, 20:24] = CLASSES.index("person")  # 0.25 %
    batch = one(tmp_path, label, lighting="dusk", sky="cloudy", tags=["from the index"])
    assert batch.tags == [["road", "sky-other", "car", "dusk", "cloudy"]] and batch.tagged.tolist() == [True]


def test_without_a_label_map_the_index_gives_the_tags(tmp_path):
    batch = one(tmp_path, None, tags=["road", "car", "road"], lighting="night", sky="none", caption="A road.")
    assert batch.tags == [["road", "car", "night"]] and batch.tagged.tolist() == [True]
    assert batch.captions == ["A road."] and (batch.label == IGNORE).all()
    batch = one(tmp_path, None, caption=None)
    assert batch.tags == [[]] and batch.tagged.tolist() == [False] and batch.captions == [""]


def test_unlabelled_pixels_are_ignored(tmp_path):
    label = np.full((40, 40), 6, np.uint8)
    label[:20], label[20:30] = 0, IGNORE
    batch = one(tmp_path, label)
    assert set(batch.label.unique().tolist()) == {6, IGNORE}
    assert (batch.label == IGNORE).float().mean() == pytest.approx(0.75, abs=0.1)
    assert batch.tags == [["road"]]
    simulated = Batches([Source(Pairs(tmp_path), (1, 1), simulate=True)], batch_size=2, size=16, steps=1)[0]
    assert simulated.thermal.isfinite().all()


def test_a_class_that_is_not_known_is_an_error(tmp_path):
    with pytest.raises(PairsError, match=rf"a: label map with class 99; expected ids below {len(CLASSES)}"):
        one(tmp_path, np.full((40, 40), 99, np.uint8))


def test_half_data_sets_are_refused_at_once(data, tmp_path):
    with pytest.raises(PairsError, match="4 of 4 entries have no picture thermal/NAME"):
        Source(Pairs(data / "photos"), (1, 1))
    root = data_set(tmp_path, ENTRIES)
    (root / "label" / "p3.png").unlink()
    assert Source(Pairs(root), (1, 1)).pairs is not None  # labels are an extra of real pairs
    with pytest.raises(PairsError, match=r"1 of 5 entries have no picture label/NAME .*'p3'"):
        Source(Pairs(root), (1, 1), simulate=True)


def test_the_crop_size_is_checked(data):
    with pytest.raises(ValueError, match="size is 20; crops must be multiples of 8"):
        batches(data, size=20)


def test_the_index_may_hold_more_than_is_used(data):
    assert json.loads((data / "pairs" / "index.jsonl").read_text().splitlines()[0])["caption"] == "caption 0"
    captions = {caption for step in range(12) for caption in batches(data)[step].captions}
    assert captions <= {"", *(f"caption {i}" for i in range(5))} and len(captions) > 3
