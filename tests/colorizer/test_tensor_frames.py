"""Frames as tensors, which is how a GPU has them: the same pictures as frames as arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_network import Fake
from test_explain import network

from cmmfnet.colorizer.torch import Colorizer

WORDS = ["car", None, "", "a tree and a road", "+road -tree"]


def both(make, **options) -> tuple[Colorizer, Colorizer]:
    """One network behind arrays, and behind tensors as on a GPU (here on the CPU)."""
    arrays, tensors = (
        Colorizer(make(), device="cpu", dtype=torch.float32, **options) for _ in range(2)
    )
    tensors.runtime.frames_are_tensors = True
    return arrays, tensors


def ragged(count: int, low: int, high: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of random sizes and types, many of which are padded to the same size."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        height, width = rng.integers(low, high, 2)
        rows, columns = np.mgrid[:height, :width]
        frame = 7000 + 8 * rows + 5 * columns + 300 * (columns > width // 2)
        frame = frame + rng.normal(0, 40, frame.shape)
        kind = i % 4
        if kind == 0:
            frame = frame.astype(np.uint16)
        elif kind == 1:
            frame = (frame / 100).astype(np.uint8)
        elif kind == 2:
            frame = (frame / 100 - 50).astype(np.float32)
        else:
            frame = frame.astype(np.float32)
            frame[0, 0] = np.nan
        found.append(frame)
    return found


def assert_close(one: np.ndarray, other: np.ndarray, levels: int = 1) -> None:
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    assert np.abs(one.astype(int) - other).max() <= levels


@pytest.mark.parametrize("batch_size", [1, 3, 8, 60])
@pytest.mark.parametrize("options", [{}, {"fixed_size": 48}, {"default_text": "predicted"}])
def test_frames_of_any_sizes_share_batches(options, batch_size):
    arrays, tensors = both(lambda: Fake(working_size=40, **options))
    frames = ragged(60, 1, 70)
    texts = [WORDS[i % len(WORDS)] for i in range(len(frames))]
    expected, seen = arrays(frames, text=texts, batch_size=batch_size, return_tags=True)
    found, also_seen = tensors(frames, text=texts, batch_size=batch_size, return_tags=True)
    assert len({shape[0] for shape in tensors.network.seen}) > (batch_size > 1)
    for i, picture in enumerate(found):
        assert picture.shape[:2] == frames[i].shape
        assert_close(picture, expected[i])
        assert also_seen[i].given_tags == seen[i].given_tags
        assert [name for name, _ in also_seen[i].predicted] == [n for n, _ in seen[i].predicted]


def test_frames_that_pad_to_one_size_go_through_the_network_together():
    _, tensors = both(lambda: Fake(working_size=64))
    tensors([np.ones(size, np.uint16) for size in ((33, 47), (48, 48), (40, 33))], batch_size=8)
    assert [shape[:3] for shape in tensors.network.seen] == [(3, 48, 48)]


@pytest.mark.parametrize("span", [(7000, 7600), "7100,7101"])
def test_a_span_stretches_tensors_as_arrays(span):
    arrays, tensors = both(lambda: Fake(working_size=40))
    frames = [frame for frame in ragged(24, 5, 60) if frame.dtype == np.uint16]
    for one, other in zip(
        tensors(frames, span=span, batch_size=4),
        arrays(frames, span=span, batch_size=4),
        strict=True,
    ):
        assert_close(one, other)


@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_cmmfnet_gives_the_same_pictures_behind_both(regions, guidance):
    torch.manual_seed(0)
    state = network(regions=regions).state_dict()

    def make() -> torch.nn.Module:
        made = network(regions=regions)
        made.load_state_dict(state)
        return made

    arrays, tensors = both(make, guidance=guidance)
    frames = ragged(9, 90, 150, seed=1)
    texts = ["a red car", None, "", "trees", "car, road", None, "night", "", "a blue car"]
    for one, other in zip(
        tensors(frames, text=texts, batch_size=4),
        arrays(frames, text=texts, batch_size=4),
        strict=True,
    ):
        assert_close(one, other)


def test_one_frame_the_tags_and_no_frame():
    arrays, tensors = both(Fake)
    (frame,) = ragged(1, 20, 40)
    assert_close(tensors(frame), arrays(frame))
    assert [name for name, _ in tensors.tags(frame)] == [name for name, _ in arrays.tags(frame)]
    assert tensors([]) == []
    with pytest.raises(FloatingPointError, match="use float32"):
        tensors.network.table.data.fill_(float("nan"))
        tensors(frame, text="car")


# --- on a card


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize(("model", "high"), [("cmmfnet-small", 640), ("cmmfnet", 300)])
def test_60_frames_of_random_sizes_have_the_pictures_of_the_cpu(model, high):
    frames = ragged(60, 60, high)
    frames += [frames[0][:-4, :-3], frames[1][:1], frames[1][:, :1], frames[2][:1, :1]]
    texts = [("a red car, snow", None, "", "trees by night")[i % 4] for i in range(len(frames))]
    texts = texts if model == "cmmfnet" else [None] * len(frames)
    expected = Colorizer.from_pretrained(model, device="cpu", dtype=torch.float32)(
        frames, text=texts
    )
    for dtype, mean, worst in ((torch.float32, 0.2, 0.5), (None, 0.8, 2.0)):
        on_card = Colorizer.from_pretrained(model, device="cuda", dtype=dtype)
        for _ in range(3):  # as it is, captured, replayed
            found = on_card(frames, text=texts)
            means = [
                np.abs(one.astype(int) - other).mean()
                for one, other in zip(found, expected, strict=True)
            ]
            assert np.mean(means) < mean and max(means[:60]) < worst
            assert max(means[60:]) < 4 * worst  # of one row, column or pixel: one value's rounding
