"""Batches: functions of (seed, step, position) alone, mixed by share, with tags, labels and
captions of what is in the crop."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing
from multiprocessing import resource_sharer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import data_set, same

from cmmfnet.data import batches as batches_module
from cmmfnet.data import items as items_module
from cmmfnet.data.augment import stretch
from cmmfnet.data.batches import Batch, Batches
from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.source import Source
from cmmfnet.text.labels import CLASSES, IGNORE

ENTRIES = [
    {
        "name": f"p{i}",
        "sequence": "clip" if i < 4 else None,
        "lighting": ["day", "night"][i % 2],
        "sky": ["clear", "none"][i % 2],
        "caption": f"caption {i}",
    }
    for i in range(5)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    data_set(root / "pairs", ENTRIES)
    data_set(root / "photos", [{"name": f"s{i}"} for i in range(4)], size=(32, 40), colour="photo")
    return root


def sources(data: Path, shares=((1.0, 0.3), (1.0, 2.0))) -> list[Source]:
    photos = Source(str(data / "photos"), shares[1], simulate=True, level=True).opened()
    return [Source(str(data / "pairs"), shares[0]).opened(), photos]


def batches(data: Path, **more) -> Batches:
    return Batches(sources(data), **({"batch_size": 3, "size": 16, "steps": 12, "seed": 7} | more))


def joined(parts: list[Batch]) -> Batch:
    """The parts that the processes of one step have, as the batch of a single one."""
    order = torch.tensor([p for part in parts for p in part.positions]).argsort()
    whole = {}
    for field in Batch.__dataclass_fields__:
        values = [getattr(part, field) for part in parts]
        if isinstance(values[0], torch.Tensor):
            whole[field] = torch.cat(values)[order]
        else:
            flat = [value for part in values for value in part]
            whole[field] = [flat[i] for i in order]
    return Batch(**whole)


def test_a_batch_is_in_range_and_finite(data):
    batch = batches(data)[0]
    assert batch.thermal.shape == (3, 1, 16, 16) and batch.visible.shape == (3, 3, 16, 16)
    assert batch.label.shape == (3, 16, 16) and batch.label.dtype == torch.long
    for picture in (batch.thermal, batch.visible):
        assert (
            picture.dtype == torch.float32
            and picture.min() >= -1
            and picture.max() <= 1
            and picture.isfinite().all()
        )
    assert batch.visible.min() < -0.5 and batch.visible.max() > 0.5
    assert len(batch.tags) == len(batch.captions) == len(batch.names) == len(batch.tagged) == 3


def test_constant_pictures_give_finite_batches(tmp_path):
    root = data_set(tmp_path, [{"name": "a"}])
    Image.fromarray(np.full((24, 32), 7000, np.uint16)).save(root / "thermal" / "a.png")
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(root / "visible" / "a.png")
    both = [
        Source(str(root)).opened(),
        Source(str(root), simulate=True, level=True).opened(),
    ]
    batch = Batches(both, batch_size=8, size=16, steps=1)[0]
    assert batch.thermal.isfinite().all() and batch.visible.isfinite().all()
    assert batch.thermal.abs().max() <= 1 and batch.visible.abs().max() <= 1


def test_a_batch_depends_on_seed_and_step_alone(data):
    straight = [batch for _, batch in batches(data).from_step()]
    assert len(straight) == 12
    backwards = batches(data)  # whatever was asked for before, and in any order
    assert all(same(straight[step], backwards[step]) for step in (11, 3, 3, 0, 7))
    torch.manual_seed(123)
    np.random.seed(5)  # global state has no say
    assert all(same(straight[step], backwards[step]) for step in range(12))
    assert not same(straight[0], straight[1])
    assert not same(straight[0], batches(data, seed=8)[0])


MODES = [{}, {"unpaired": True}, {"frames": 3}, {"unpaired": True, "frames": 3}]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_workers_change_nothing(data, mode):
    alone = [batch for _, batch in batches(data, **mode).from_step()]
    helped = list(batches(data, workers=3, **mode).from_step())
    assert [step for step, _ in helped] == list(range(12))
    assert all(same(x, y) for x, (_, y) in zip(alone, helped, strict=True))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_number_of_processes_changes_nothing(data, mode):
    """Bit for bit, with a batch of 5 in parts of 3 + 2 and 2 + 2 + 1."""
    alone = batches(data, batch_size=5, **mode)
    for world in (2, 3):
        ranks = [
            batches(data, batch_size=5, rank=rank, world=world, **mode) for rank in range(world)
        ]
        assert [len(rank[0]) for rank in ranks] == [
            len(range(rank, 5, world)) for rank in range(world)
        ]
        assert all(same(alone[step], joined([rank[step] for rank in ranks])) for step in range(6))


def test_going_on_at_a_step_gives_the_batches_of_the_straight_run(data):
    straight = dict(batches(data).from_step())
    for workers in (0, 2):
        resumed = list(batches(data, workers=workers).from_step(5))
        assert [step for step, _ in resumed] == list(range(5, 12))
        assert all(same(straight[step], batch) for step, batch in resumed)


@pytest.mark.parametrize("broken", ["crops", "sensor", "simulation"])
def test_a_draw_that_belongs_to_the_rank_would_be_noticed(data, monkeypatch, broken):
    """The comparisons above do fail where a draw follows the row in a process' part and not the
    position."""
    alone = batches(data, batch_size=4)
    if broken == "crops":
        choose = items_module.Items.choose
        monkeypatch.setattr(
            items_module.Items,
            "choose",
            lambda self, step, p, stream=0: choose(self, step, self.positions.index(p), stream),
        )
    else:
        function = {"sensor": "sensor_draws", "simulation": "simulation_draws"}[broken]
        draws = Batches._draws

        def of_the_row(self, draw, step, stream, *shape):
            own = slice(0, len(range(4)[self._own])) if draw.__name__ == function else self._own
            kept, self._own = self._own, own
            made = draws(self, draw, step, stream, *shape)
            self._own = kept
            return made

        monkeypatch.setattr(Batches, "_draws", of_the_row)
    ranks = [batches(data, batch_size=4, rank=rank, world=2) for rank in range(2)]
    steps = range(4)
    assert all(same(alone[step], batches(data, batch_size=4)[step]) for step in steps)
    assert not all(same(alone[step], joined([rank[step] for rank in ranks])) for step in steps)


def test_a_draw_from_global_state_would_be_noticed(data, monkeypatch):
    straight = [batch for _, batch in batches(data).from_step()]
    choose = items_module.Items.choose

    def careless(self, step, position, stream=0):
        return *choose(self, step, position, stream)[:2], np.random.default_rng(
            np.random.randint(2**31)
        )

    monkeypatch.setattr(items_module.Items, "choose", careless)
    assert not all(
        same(x, y) for x, (_, y) in zip(straight, batches(data, workers=3).from_step(), strict=True)
    )
    assert not all(same(straight[step], batch) for step, batch in batches(data).from_step(5))


def test_the_training_s_own_random_numbers_are_left_alone(data):
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(batches(data, workers=2).from_step(8))
    list(batches(data).from_step(8))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(
        before[1], np.random.get_state()[1]
    )


# ---- workers that fail


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_raised_here_with_its_name(tmp_path, workers):
    root = data_set(tmp_path, ENTRIES)
    for i in range(5):
        (root / "visible" / f"p{i}.png").write_bytes(b"no picture")
    with pytest.raises(PairsError, match=r"visible.p\d.png cannot be used") as raised:
        list(
            Batches(
                [Source(str(root)).opened()],
                batch_size=2,
                size=16,
                steps=6,
                workers=workers,
            ).from_step()
        )
    assert "Traceback" not in str(raised.value)


def test_the_workers_end_with_the_iterator(data):
    with closing(batches(data, workers=2, steps=1000).from_step()) as stream:
        next(stream)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_an_error_with_the_picture_s_name(data, monkeypatch):
    pictures = Pairs.pictures

    def deadly(self, i, kinds):
        if self.entries[i]["name"] == "p3":
            os.kill(os.getpid(), signal.SIGKILL)
        return pictures(self, i, kinds)

    monkeypatch.setattr(Pairs, "pictures", deadly)
    with pytest.raises(
        PairsError, match=r"step \d+: DataLoader worker .*It was at [^;]*pairs, p3\."
    ):
        list(batches(data, workers=2, steps=40).from_step())


def test_a_worker_that_dies_while_it_hands_a_batch_over(data, monkeypatch):
    """The connection breaks before the system tells of the worker's end."""

    def broken(ident):
        (worker,) = multiprocessing.active_children()
        threading.Timer(0.2, os.kill, (worker.pid, signal.SIGKILL)).start()
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(resource_sharer._ResourceSharer, "get_connection", staticmethod(broken))
    with pytest.raises(PairsError, match=r"step 0: DataLoader worker .* killed by signal"):
        list(batches(data, workers=1).from_step())


def test_a_read_that_hangs_is_an_error_after_a_while(data, monkeypatch):
    monkeypatch.setattr(batches_module, "PATIENCE", 1.0)
    monkeypatch.setattr(Pairs, "pictures", lambda self, i, kinds: time.sleep(60))
    started = time.monotonic()
    with pytest.raises(
        PairsError,
        match=r"step 0: .*timed out after 1.0 seconds.* It was at .*(pairs, p|photos, s)\d",
    ):
        list(batches(data, workers=1).from_step())
    assert time.monotonic() - started < 20


def test_a_signal_to_the_group_is_not_the_workers(data):
    """Ctrl-C and a scheduler's SIGTERM go to the whole process group: the training saves, with its
    workers alive."""
    with closing(batches(data, workers=1, steps=1000).from_step()) as stream:
        next(stream)
        (worker,) = multiprocessing.active_children()
        assert os.getpgid(worker.pid) != os.getpgid(0)


# ---- what is drawn


def test_shares_move_from_first_to_last(data):
    mixed = Batches(sources(data, ((1.0, 0.0), (0.0, 3.0))), batch_size=40, size=16, steps=101)

    def simulated(step: int) -> int:
        return sum(mixed._items.choose(step, position)[0] == 1 for position in range(40))

    assert simulated(0) == 0 and simulated(100) == 40
    assert sum(simulated(step) for step in range(20, 31)) / 440 == pytest.approx(
        0.5, abs=0.1
    )  # 3/4 to 1/4 x 3: half
    assert {name[0] for name in mixed[0].names} == {"p"} and {
        name[0] for name in mixed[100].names
    } == {"s"}


def test_the_frames_of_a_sequence_are_drawn_as_one_scene(tmp_path):
    entries = [{"name": str(i), "sequence": "clip" if i < 8 else None} for i in range(10)]
    items = Batches(
        [Source(str(data_set(tmp_path, entries))).opened()],
        batch_size=1000,
        size=16,
        steps=1,
    )._items
    drawn = [items.choose(0, position)[1] for position in range(1000)]
    assert sum(index < 8 for index in drawn) / 1000 == pytest.approx(1 / 3, abs=0.05)
    assert set(drawn) == set(range(10))


def test_an_epoch_takes_every_picture_once(data):
    source = Source(str(data / "pairs"), order="epoch").opened()
    names = [
        n
        for _, batch in Batches([source], batch_size=3, size=16, steps=10).from_step()
        for n in batch.names
    ]
    passes = [names[i : i + 5] for i in range(0, 30, 5)]  # over the ends of batches
    assert all(sorted(p) == [f"p{i}" for i in range(5)] for p in passes)
    assert len({tuple(p) for p in passes}) > 1
    ranks = [Batches([source], batch_size=3, size=16, steps=10, rank=r, world=2) for r in range(2)]
    assert [n for step in range(10) for n in joined([rank[step] for rank in ranks]).names] == names
    assert names != [
        n
        for _, b in Batches([source], batch_size=3, size=16, steps=10, seed=1).from_step()
        for n in b.names
    ]


def test_an_epoch_goes_with_a_single_source(data):
    both = sources(data)
    both[0].order = "epoch"
    with pytest.raises(ValueError, match="is epoch for one of 2 sources"):
        Batches(both, batch_size=3, size=16, steps=1)
    with pytest.raises(ValueError, match="order of pairs is 'random'; expected one of"):
        Source("pairs", order="random")


def test_without_sensor_effects_a_frame_is_only_stretched(data):
    plain = Source(str(data / "pairs"), sensor=False, aspect=1.0, scale=(1, 1)).opened()
    batch = Batches([plain], batch_size=6, size=24, steps=1)[0]
    items = Batches([plain], batch_size=6, size=24, steps=1)._items[0]
    assert torch.equal(batch.thermal, stretch(items["thermal"].float() / 255))
    mixed = Batches([plain, Source(plain.folder).opened()], batch_size=8, size=24, steps=1)
    sensed = mixed._items[0]["sensor"]
    assert sensed.any() and not sensed.all()
    untouched = stretch(mixed._items[0]["thermal"].float() / 255)
    equal = [torch.equal(a, b) for a, b in zip(mixed[0].thermal, untouched, strict=True)]
    assert equal == sensed.logical_not().tolist()


def test_gain_control_changes_the_frames_of_its_source_alone(data):
    plain = Source(str(data / "pairs"), sensor=False).opened()
    controlled = Source(str(data / "pairs"), sensor=False, gain_control=True).opened()
    with_it = Batches([plain, controlled], batch_size=8, size=24, steps=1, seed=3)
    without = Batches([plain, plain], batch_size=8, size=24, steps=1, seed=3)
    flags = with_it._items[0]["gain_control"]
    assert flags.any() and not flags.all()
    equal = [torch.equal(a, b) for a, b in zip(with_it[0].thermal, without[0].thermal, strict=True)]
    assert equal == flags.logical_not().tolist()
    assert torch.equal(with_it[0].visible, without[0].visible)
    parts = [
        Batches([plain, controlled], batch_size=8, size=24, steps=1, seed=3, rank=r, world=2)[0]
        for r in range(2)
    ]
    assert torch.equal(joined(parts).thermal, with_it[0].thermal)


def test_aspect_reaches_the_crop(data, monkeypatch):
    seen = []
    draw = items_module.Crop.draw
    monkeypatch.setattr(items_module.Crop, "draw", lambda *a: seen.append(draw(*a)) or seen[-1])
    source = Source(str(data / "pairs"), aspect=1.0).opened()
    Batches([source], batch_size=10, size=16, steps=1)[0]
    assert len(seen) == 10 and all(crop.height == crop.width for crop in seen)
    with pytest.raises(ValueError, match=r"aspect of .* is 0.5; expected a number from 1"):
        Source(source.folder, aspect=0.5)


@pytest.fixture(scope="module")
def plain_colours(tmp_path_factory) -> Pairs:
    """Pair i has a colour picture, and a thermal frame with a block, that tell i; two clips and one
    that is alone."""
    names = ["a1", "a2", "a3", "a10", "b1", "b2", "alone"]
    root = data_set(
        tmp_path_factory.mktemp("plain"),
        [{"name": n, "sequence": n[0] if n != "alone" else None} for n in names],
    )
    for i, name in enumerate(names):
        Image.fromarray(np.full((24, 32, 3), 20 + 30 * i, np.uint8)).save(
            root / "visible" / f"{name}.png"
        )
        Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * (i + 1)).save(
            root / "thermal" / f"{name}.png"
        )
        Image.fromarray(np.full((24, 32), i + 1, np.uint8)).save(root / "label" / f"{name}.png")
    return Pairs(root)


def given_tags(visible: torch.Tensor) -> torch.Tensor:
    """The i of ``plain_colours`` from (...,3,S,S)."""
    return (((visible.mean(dim=(-3, -2, -1)) + 1) * 127.5 - 20) / 30).round().long()


def test_unpaired_colour_is_drawn_independently(plain_colours):
    source = Source(str(plain_colours.root)).opened()
    mixed = Batches([source], batch_size=64, size=16, steps=1, unpaired=True)
    batch = mixed[0]
    thermal = torch.tensor(
        [[e["name"] for e in plain_colours.entries].index(n) for n in batch.names]
    )
    colour = given_tags(batch.visible)
    assert torch.equal(
        batch.label[:, 8, 8], thermal + 1
    )  # the label map goes with the thermal frame
    assert 0 < (colour == thermal).sum() < 40 and len(set(colour.tolist())) == 7
    paired = Batches([source], batch_size=64, size=16, steps=1)[0]
    assert paired.names == batch.names  # the same thermal frames
    assert torch.equal(paired.thermal, batch.thermal)
    own = torch.tensor([[e["name"] for e in plain_colours.entries].index(n) for n in paired.names])
    assert torch.equal(given_tags(paired.visible), own)


def test_unpaired_simulation_is_made_from_its_own_photo(data):
    photos = [Source(str(data / "photos"), simulate=True).opened()]
    paired, unpaired = (
        Batches(photos, batch_size=6, size=16, steps=1, unpaired=u)[0] for u in (False, True)
    )
    assert torch.equal(paired.thermal, unpaired.thermal) and torch.equal(
        paired.label, unpaired.label
    )
    assert not torch.equal(paired.visible, unpaired.visible)


@pytest.mark.parametrize("unpaired", [False, True])
def test_three_frames_are_neighbours_with_one_geometry(plain_colours, unpaired):
    batch = Batches(
        [Source(str(plain_colours.root)).opened()],
        batch_size=48,
        size=16,
        steps=1,
        frames=3,
        unpaired=unpaired,
    )[0]
    assert batch.thermal.shape == (48, 3, 1, 16, 16) and batch.visible.shape == (48, 3, 3, 16, 16)
    assert batch.label.shape == (48, 16, 16)
    triplets = {tuple(t) for t in plain_colours.triplets().tolist()}
    seen = {tuple(t) for t in given_tags(batch.visible).tolist()}
    assert seen <= triplets and {(0, 1, 2), (1, 2, 3), (6, 6, 6)} <= seen
    middle = torch.tensor(
        [[e["name"] for e in plain_colours.entries].index(n) for n in batch.names]
    )
    assert torch.equal(batch.label[:, 8, 8], middle + 1)
    assert torch.equal(given_tags(batch.visible)[:, 1], middle) != unpaired
    # every thermal frame is the same ramp: one crop, one flip, one polarity, and noise of their own
    assert (batch.thermal[:, 0] - batch.thermal[:, 1]).abs().mean() < 0.05
    assert not torch.equal(batch.thermal[:, 0], batch.thermal[:, 1])


def test_the_frames_of_a_sequence_have_one_size(tmp_path):
    root = data_set(tmp_path, [{"name": f"f{i}", "sequence": "clip"} for i in range(3)])
    data_set(tmp_path / "other", [{"name": "f0", "sequence": "clip"}], size=(16, 16))
    for kind in ("thermal", "visible", "label"):
        (tmp_path / "other" / kind / "f0.png").replace(root / kind / "f0.png")
    three = Batches([Source(str(root)).opened()], batch_size=8, size=16, steps=1, frames=3)
    with pytest.raises(
        PairsError, match=r"f1: its pictures are \(24, 32\), those of its neighbour .* \(16, 16\)"
    ):
        three[0]


def test_simulated_frames_come_from_the_photo_s_labels(tmp_path):
    root = data_set(tmp_path, [{"name": "a"}], size=(32, 32), colour="photo")
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(root / "photo" / "a.png")
    half = np.ones((32, 32), np.uint8)
    half[16:] = CLASSES.index("person")
    Image.fromarray(half).save(root / "label" / "a.png")
    batch = Batches(
        [Source(str(root), simulate=True, scale=(1, 1)).opened()],
        batch_size=16,
        size=32,
        steps=1,
    )[0]
    sky = (batch.label == 1).unsqueeze(1)
    person = (batch.label == CLASSES.index("person")).unsqueeze(1)
    difference = [
        (t[p].mean() - t[s].mean()).abs()
        for t, s, p in zip(batch.thermal, sky, person, strict=True)
    ]
    assert torch.stack(difference).median() > 0.5  # of the 2 from black to white


def one(root: Path, label: np.ndarray | None, **entry) -> Batch:
    data_set(root, [{"name": "a", **entry}], size=(40, 40))
    if label is None:
        (root / "label" / "a.png").unlink()
    else:
        Image.fromarray(label).save(root / "label" / "a.png")
    return Batches([Source(str(root), scale=(1, 1)).opened()], batch_size=1, size=40, steps=1)[0]


def test_tags_are_what_covers_a_hundredth_of_the_crop(tmp_path):
    label = np.full((40, 40), CLASSES.index("road"), np.uint8)
    label[:10] = CLASSES.index("sky")
    label[39, :30] = CLASSES.index("car")  # 1.9 % of the picture
    label[20, 20:24] = CLASSES.index("person")  # 0.25 %
    batch = one(tmp_path, label, lighting="dusk", sky="cloudy", tags=["from the index"])
    assert batch.tags == [
        ["road", "sky-other", "car", "dusk", "cloudy"]
    ] and batch.tagged.tolist() == [True]


def test_a_predicted_label_map_does_not_unsay_what_a_person_named(tmp_path):
    label = np.full((40, 40), CLASSES.index("road"), np.uint8)
    batch = one(tmp_path, label, tags=["dog", "road"], labels="predicted", lighting="day")
    assert batch.tags == [["road", "dog", "day"]]


def test_without_a_label_map_the_index_gives_the_tags(tmp_path):
    batch = one(
        tmp_path,
        None,
        tags=["road", "car", "road"],
        lighting="night",
        sky="none",
        caption="A road.",
    )
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
    simulated = Batches(
        [Source(str(tmp_path), simulate=True).opened()], batch_size=2, size=16, steps=1
    )[0]
    assert simulated.thermal.isfinite().all()


def test_a_class_that_is_not_known_is_an_error(tmp_path):
    with pytest.raises(
        PairsError, match=rf"a: label map with class 99; expected ids below {len(CLASSES)}"
    ):
        one(tmp_path, np.full((40, 40), 99, np.uint8))


def test_half_data_sets_are_refused_at_once(data, tmp_path):
    with pytest.raises(PairsError, match="4 of 4 entries have no picture thermal/NAME"):
        Source(str(data / "photos")).opened()
    root = data_set(tmp_path, ENTRIES)
    (root / "label" / "p3.png").unlink()
    assert Source(str(root)).opened().pairs is not None  # labels are an extra of real pairs
    with pytest.raises(PairsError, match=r"1 of 5 entries have no picture label/NAME .*'p3'"):
        Source(str(root), simulate=True).opened()


def test_split_gives_the_batch_in_parts(data):
    for mode in ({}, {"frames": 3}):
        whole = batches(data, batch_size=7, **mode)[0]
        assert whole.positions == list(range(7))
        for parts in (1, 2, 3, 7):
            split = whole.split(parts)
            assert len(split) == parts and max(map(len, split)) - min(map(len, split)) <= 1
            assert [p for part in split for p in part.positions] == list(range(7))
            assert same(joined(split), whole)
    for parts in (0, 8):
        with pytest.raises(
            ValueError, match=rf"{parts} parts of a batch of 7 pictures; expected 1 to 7"
        ):
            whole.split(parts)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"size": 20}, "crops are .*20.*; their sides must be multiples of 8"),
        ({"world": 4}, "batch_size is 3 for 4 processes; expected at least 4"),
        ({"world": 2, "rank": 2}, "rank is 2 of 2 processes; expected 0 to 1"),
        ({"frames": 2}, "frames is 2; expected 1 or 3"),
    ],
)
def test_what_makes_no_sense_is_refused(data, request_, message):
    with pytest.raises(ValueError, match=message):
        batches(data, **request_)


def test_the_index_may_hold_more_than_is_used(data):
    assert (
        json.loads((data / "pairs" / "index.jsonl").read_text().splitlines()[0])["caption"]
        == "caption 0"
    )
    captions = {caption for step in range(12) for caption in batches(data)[step].captions}
    assert captions <= {"", *(f"caption {i}" for i in range(5))} and len(captions) > 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_on_the_device_nothing_waits_and_ranks_agree(data, mode):
    list(batches(data, device="cuda", **mode).from_step(10))  # constants are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        straight = dict(batches(data, batch_size=5, device="cuda", workers=2, **mode).from_step())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ranks = [
        batches(data, batch_size=5, device="cuda", rank=rank, world=2, **mode) for rank in range(2)
    ]
    for step in range(12):
        whole = joined([rank[step] for rank in ranks])
        assert (
            torch.equal(whole.visible, straight[step].visible)
            and whole.names == straight[step].names
        )
        assert torch.allclose(whole.thermal, straight[step].thermal, atol=1e-4)


def test_every_step_has_one_of_the_shapes_and_things_keep_their_proportions(tmp_path):
    """A square of 12 pixels in the picture is as wide as high in crops of any shape, and as large
    as the zoom says."""
    picture = np.zeros((96, 200), np.uint8)
    picture[42:54, 94:106] = 255
    for kind, mode in (("thermal", "L"), ("visible", "RGB")):
        (tmp_path / kind).mkdir()
        Image.fromarray(picture).convert(mode).save(tmp_path / kind / "a.png")
    (tmp_path / "index.jsonl").write_text('{"name": "a"}\n')
    source = Source(str(tmp_path), zoom=(0.5, 0.5), aspect=1).opened()
    shapes = ((32, 64), (48, 64), (40, 80))
    found = Batches([source], batch_size=2, shapes=shapes, steps=30)
    seen = set()
    for step in range(30):
        batch = found[step]
        seen.add(size := tuple(batch.visible.shape[-2:]))
        assert batch.thermal.shape == (2, 1, *size) and batch.label.shape == (2, *size)
        bright = (batch.visible[:, 0] + 1) / 2
        assert bright.sum(dim=1).amax(dim=1) == pytest.approx(6, abs=0.2)  # as wide
        assert bright.sum(dim=2).amax(dim=1) == pytest.approx(6, abs=0.2)  # as high
    assert seen == set(shapes)
    # too small for the largest shape at zoom 0.2: enlarged until all of its height is in the crop
    far = Source(str(tmp_path), zoom=(0.2, 0.2), aspect=1).opened()
    crop = Batches([far], batch_size=1, shapes=[(48, 48)], steps=1)[0].crops[0]
    assert (crop.height, crop.width) == (96, 96)
