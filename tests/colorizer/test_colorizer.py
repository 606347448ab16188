"""Colorizer: any picture in, colour of the same size out; text, batches, devices."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_network import Fake
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmmfnet.colorizer import tensors
from cmmfnet.colorizer import torch as module
from cmmfnet.colorizer.sizes import box_mean, guided_upsample, pad, resize
from cmmfnet.colorizer.torch import Colorizer, DeviceError
from cmmfnet.thermal.frame import ThermalFileError, read_thermal
from cmmfnet.thermal.stretch import normalise


def make(**options) -> Colorizer:
    return Colorizer(Fake(**options), device="cpu", name="fake")


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(7000, 8000, (height, width), dtype=np.uint16)


def red(thermal: np.ndarray) -> np.ndarray:
    """What Fake makes of a frame in its red channel."""
    return np.round((normalise(thermal) + 1) * 127.5).astype(np.uint8)


# --- size


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 2),
        (2, 1),
        (1, 300),
        (7, 3),
        (15, 17),
        (16, 16),
        (33, 63),
        (64, 200),
        (65, 65),
        (129, 97),
    ],
)
def test_output_size_is_input_size(size):
    result = make()(frame(*size))
    assert result.shape == (*size, 3) and result.dtype == np.uint8


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 260), multiple=st.sampled_from([1, 8, 32]))
def test_output_size_is_input_size_for_any_size(height, width, multiple):
    network = Fake(working_size=40)
    network.multiple_of = multiple
    colorizer = Colorizer(network, device="cpu")
    assert colorizer(frame(height, width)).shape == (height, width, 3)


@pytest.mark.parametrize("size", [(16, 32), (15, 17), (3, 50), (1, 1), (63, 64)])
def test_padding_neither_moves_nor_changes_a_pixel(size):
    thermal = frame(*size)
    np.testing.assert_array_equal(make()(thermal)[..., 0], red(thermal))


def test_padding_mirrors_and_repeats_a_single_pixel():
    padded = pad(np.arange(3.0)[None], 8)
    assert padded.shape == (8, 8)
    assert padded[5].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_a_network_of_one_size_gets_that_size_and_the_frame_comes_back_at_its_own():
    colorizer = make(fixed_size=48)
    for size in [(100, 80), (20, 30), (48, 48), (20, 90)]:
        assert colorizer(frame(*size)).shape == (*size, 3)
    assert {seen[1:3] for seen in colorizer.network.seen} == {(48, 48)}


# --- large frames


def scene(height: int, width: int) -> np.ndarray:
    """Three regions of different temperature with sharp edges between them, and a little noise."""
    y, x = np.mgrid[:height, :width]
    values = np.where(x + y // 3 > width * 0.45, 200.0, 60.0) - np.where(
        y > height * 0.7, 40.0, 0.0
    )
    return values + np.random.default_rng(0).normal(0, 1, values.shape)


def test_large_frames_are_coloured_at_working_size():
    colorizer = make(working_size=64)
    assert colorizer(frame(320, 400)).shape == (320, 400, 3)
    assert colorizer.network.seen == [(1, 64, 80, 0)]


def test_very_long_frames_stay_within_four_working_squares():
    colorizer = make(working_size=64)
    assert colorizer(frame(60, 6000)).shape == (60, 6000, 3)
    (_, height, width, _) = colorizer.network.seen[0]
    assert height * width < 4 * 64 * 64 * 1.5  # 1.5: padding to multiples of 16


def test_fine_edges_come_back_at_full_size():
    """Fake's red is the thermal value itself, so the right full-size answer is known. Bicubic is
    far from it."""
    thermal = scene(256, 320)
    colorizer = make(working_size=64)
    truth = red(thermal).astype(float)
    error = np.abs(colorizer(thermal)[..., 0] - truth)
    bicubic = resize(colorizer.prepare(thermal).low, truth.shape, "bicubic")
    plain = np.abs((bicubic + 1) * 127.5 - truth)
    edges = plain > 30
    assert 0.01 < edges.mean() < 0.2
    assert error[edges].mean() < 0.4 * plain[edges].mean()  # edges are back
    assert (
        error[~edges].mean() < plain[~edges].mean() + 0.5
    )  # and nothing beside them got worse: no halo


def test_colour_that_has_nothing_to_do_with_temperature_is_kept():
    """A patch of its own colour on a flat thermal background: the filter proper of He & Sun would
    wash it out."""
    low = np.zeros((1, 32, 32), dtype=np.float32)
    colour = np.zeros((3, 32, 32), dtype=np.float32)
    colour[0, 8:24, 8:24] = 1.0
    full = np.random.default_rng(0).normal(0, 0.02, (1, 128, 128)).astype(np.float32)
    up = np.abs(guided_upsample(colour, low, full))
    assert up[0, 50:78, 50:78].mean() > 0.97 and up[0, :16].max() < 0.05 and up[1:].max() < 0.05


def test_upsampling_of_tensors_as_on_a_gpu_equals_that_of_arrays():
    rng = np.random.default_rng(0)
    colour, low = (rng.uniform(-1, 1, (c, 30, 41)).astype(np.float32) for c in (3, 1))
    full = resize(low, (77, 90), "bicubic") + rng.normal(0, 0.1, (1, 77, 90)).astype(np.float32)
    given = [torch.from_numpy(x) for x in (colour, low, full)]
    on_gpu = guided_upsample(*given, resize=tensors.resize, box_mean=tensors.box_mean).numpy()
    np.testing.assert_allclose(on_gpu, guided_upsample(colour, low, full), atol=1e-4)
    for mode in ("bilinear", "bicubic"):
        for size in ((17, 90), (64, 20)):
            np.testing.assert_allclose(
                tensors.resize(given[0], size, mode).numpy(),
                resize(colour, size, mode),
                atol=1e-5,
            )
    np.testing.assert_allclose(
        tensors.box_mean(given[0], 2).numpy(), box_mean(colour, 2), atol=1e-5
    )


# --- inputs


def test_paths_bytes_arrays_and_thermals_give_the_same(tmp_path):
    thermal = frame(20, 30)
    Image.fromarray(thermal).save(tmp_path / "a.png")
    colorizer = make()
    expected = colorizer(thermal)
    path = tmp_path / "a.png"
    for same in (path, str(path), path.read_bytes(), read_thermal(path)):
        np.testing.assert_array_equal(colorizer(same), expected)


def test_channels_are_red_green_blue():
    rgb = make()(np.array([[0, 255]], dtype=np.uint8))
    assert rgb[0].tolist() == [
        [0, 0, 128],
        [255, 0, 128],
    ]  # red: thermal; green: no text, -1; blue: 0


def test_a_span_is_taken_as_numbers_or_text_and_clips():
    thermal = np.array([[0.0, 20.0, 35.0, 99.0]])
    result = make()(thermal, span=(20, 35))
    np.testing.assert_array_equal(result[0, :, 0], [0, 0, 255, 255])
    np.testing.assert_array_equal(make()(thermal, span="20,35"), result)


@pytest.mark.parametrize("fill", [0, 65535, np.nan, np.inf, -np.inf])
def test_constant_and_broken_frames_give_finite_pictures(fill):
    assert make(working_size=16)(np.full((40, 50), fill, dtype=np.float32)).shape == (40, 50, 3)


def test_what_is_no_picture_is_a_thermal_file_error():
    with pytest.raises(ThermalFileError):
        make()(b"not a picture")
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    with pytest.raises(ThermalFileError):
        make()([buffer.getvalue(), b"not a picture"])


# --- batches


def test_a_list_gives_a_list_in_order_whatever_the_sizes():
    frames = [frame(20 + 7 * (i % 3), 30, seed=i) for i in range(9)]
    colorizer = make()
    together = colorizer(frames, batch_size=2)
    assert isinstance(together, list)
    for thermal, rgb in zip(frames, together, strict=True):
        np.testing.assert_array_equal(rgb, colorizer(thermal))
    assert make()([]) == []


def test_frames_of_equal_size_share_batches_up_to_the_limit():
    colorizer = make()
    colorizer(
        [frame(20, 30), frame(40, 30), frame(20, 31), frame(20, 30), frame(20, 30)], batch_size=3
    )
    assert sorted(seen[:3] for seen in colorizer.network.seen) == [
        (1, 32, 32),
        (1, 48, 32),
        (3, 32, 32),
    ]


def test_one_frame_at_a_time_on_the_cpu_by_default():
    colorizer = make()
    colorizer([frame(16, 16)] * 3)
    assert [seen[0] for seen in colorizer.network.seen] == [1, 1, 1]


# --- text


def green(rgb: np.ndarray) -> int:
    (value,) = np.unique(rgb[..., 1])
    return int(value)


def expected_green(colorizer: Colorizer, *names: str) -> int:
    rows = [colorizer.network.words.index(name) for name in names]
    return round((colorizer.network.table[rows, 0].mean().item() + 1) * 127.5)


def test_text_reaches_the_network_as_the_vectors_of_the_things_named():
    colorizer = make()
    assert green(colorizer(frame(16, 16), text="a car on a road")) == expected_green(
        colorizer, "car", "road"
    )
    assert green(colorizer(frame(16, 16), text="trees")) == expected_green(colorizer, "tree")
    assert green(colorizer(frame(16, 16))) == 0


def test_each_picture_may_have_its_own_text():
    colorizer = make()
    results = colorizer(
        [frame(16, 16)] * 4, text=["a car and a road", None, "tree", ""], batch_size=8
    )
    expected = [expected_green(colorizer, "car", "road"), 0, expected_green(colorizer, "tree"), 0]
    assert [green(rgb) for rgb in results] == expected
    with pytest.raises(ValueError, match="2 texts for 1 pictures"):
        colorizer([frame(16, 16)], text=["car", "road"])


def test_arguments_of_another_type_are_named():
    with pytest.raises(TypeError, match="text is 5; expected a string or None"):
        make()([frame(8, 8)] * 2, text=["a street", 5])
    with pytest.raises(TypeError, match=r"dtype is 'float16'; expected a torch\.dtype"):
        Colorizer(Fake(), device="cpu", dtype="float16")


def test_unknown_words_are_warned_about_and_the_others_used():
    colorizer = make()
    with pytest.warns(UserWarning, match="zeppelin"):
        rgb = colorizer(frame(16, 16), text="car, zeppelin")
    assert green(rgb) == expected_green(colorizer, "car")
    with pytest.warns(UserWarning, match="zeppelin"):
        assert green(colorizer(frame(16, 16), text="zeppelin")) == 0


def test_a_colour_without_a_thing_is_warned_about():
    with pytest.warns(UserWarning, match=r"'red' stands with no thing .* such as 'red car'"):
        make(words=("car",))(frame(8, 8), text="car (red)")


def test_a_text_is_embedded_once(monkeypatch):
    colorizer = make()
    calls = []
    real = colorizer.network.embed_tags
    monkeypatch.setattr(colorizer.network, "embed_tags", lambda ids: calls.append(ids) or real(ids))
    for _ in range(3):
        colorizer([frame(16, 16)] * 4, text="a car", batch_size=2)
    assert len(calls) == 1


def test_predicted_tags_stand_in_for_text_where_the_network_says_so():
    colorizer = make(default_text="predicted")
    hot, cold = np.full((16, 16), 40.0), np.full((16, 16), 10.0)
    results = colorizer([hot, cold], span=(10, 40), batch_size=2)
    assert [green(rgb) for rgb in results] == [expected_green(colorizer, "car", "road", "tree"), 0]
    assert green(colorizer(hot, span=(10, 40), text="")) == 0  # asked for no text
    assert green(colorizer(hot, span=(10, 40), text="tree")) == expected_green(colorizer, "tree")


def test_a_default_prompt_stands_in_for_text_that_is_not_given():
    colorizer = make(default_prompt="a road")
    (given, other, none) = colorizer([frame(16, 16)] * 3, text=[None, "a car", ""], batch_size=3)
    assert green(given) == expected_green(colorizer, "road")
    assert green(other) == expected_green(colorizer, "car") and green(none) == 0


def test_warnings_point_at_the_caller():
    for colorizer, text in ((make(), "zeppelin"), (make(text="none", words=()), "a car")):
        with pytest.warns(UserWarning) as caught:
            colorizer(frame(16, 16), text=text)
        assert [each.filename for each in caught] == [__file__]


def test_the_steps_of_a_call_are_public():
    colorizer = make(working_size=32)
    frames = [colorizer.prepare(frame(*size), (7000, 8000)) for size in ((70, 90), (69, 89))]
    assert frames[0].full.shape == (70, 90) and frames[0].low.shape == (32, 41)
    colours, seen = colorizer.run(frames, ["a car", "+road -tree"], tags=True)
    assert [tuple(colour.shape) for colour in colours] == [(3, 32, 41), (3, 32, 41)]
    assert seen[0].given_tags is None and seen[1].given_tags[0] == "road"
    expected = colorizer(
        [frame(70, 90), frame(69, 89)], text=["a car", "+road -tree"], span=(7000, 8000)
    )
    for colour, each, picture in zip(colours, frames, expected, strict=True):
        np.testing.assert_array_equal(colorizer.finish(colour, each), picture)
    probabilities = colorizer.predict(frames)[1]
    given = colorizer.text_input("+road -tree", probabilities)
    assert list(given.names) == seen[1].given_tags and len(given.tokens[0]) == len(given.names)
    with pytest.raises(ValueError, match="must pad to one size, found 32x48, 32x64"):
        colorizer.run([frames[0], colorizer.prepare(frame(32, 60))], [None, None])
    with pytest.raises(ValueError, match="batch_size is 0; expected 1 or more"):
        colorizer(frame(16, 16), batch_size=0)


def test_sentences_go_through_the_encoder_once(monkeypatch):
    made, encoded = [], []

    class Encoder:
        def __init__(self, *args, **kwargs):
            made.append(self)

        def __call__(self, texts):
            encoded.append(texts)
            mask = torch.zeros(1, 77, dtype=torch.bool)
            mask[:, :4] = True
            return torch.full((1, 77, 512), 0.5), mask

    monkeypatch.setattr(module, "SentenceEncoder", Encoder)
    colorizer = make(text="clip-sentence", words=())
    for _ in range(2):
        assert green(colorizer(frame(16, 16), text="a quiet road")) == round(1.5 * 127.5)
    assert len(made) == 1 and encoded == [["a quiet road"]]
    assert green(colorizer(frame(16, 16))) == 0


def test_text_for_a_network_without_text_warns():
    colorizer = make(text="none", words=())
    with pytest.warns(UserWarning, match="takes no text"):
        assert green(colorizer(frame(16, 16), text="a car")) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colorizer(frame(16, 16))


def test_tags_are_names_and_probabilities_best_first():
    tags = make().tags(frame(20, 30), top=2)
    assert [name for name, _ in tags] == ["tree", "road"]
    assert 1 >= tags[0][1] > tags[1][1] >= 0
    assert len(make().tags(frame(20, 30), top=99)) == 3
    with pytest.raises(ValueError, match="predicts no tags"):
        make(words=()).tags(frame(20, 30))


# --- device and numbers


def test_devices_that_are_not_there_are_refused_with_the_way_out():
    with pytest.raises(DeviceError, match="unknown device 'gpu'; expected auto, cpu, cuda"):
        Colorizer(Fake(), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r"no usable CUDA GPU.*use --device cpu, or auto"):
            Colorizer(Fake(), device="cuda")
        assert module.pick_device("auto").type in ("cpu", "mps")
    else:
        assert module.pick_device("auto").type == "cuda"
        with pytest.raises(DeviceError, match="this machine has"):
            Colorizer(Fake(), device="cuda:99")


def test_a_wrong_device_is_found_before_the_model_is_loaded(tmp_path):
    with pytest.raises(DeviceError):
        Colorizer.from_pretrained(tmp_path / "gone.safetensors", device="gpu")


def test_bfloat16_computes_in_bfloat16_and_gives_the_same_kind_of_result():
    colorizer = Colorizer(Fake(), device="cpu", dtype=torch.bfloat16)
    rgb = colorizer(frame(20, 30), text="car")
    assert colorizer.network.table.dtype == torch.bfloat16
    assert np.abs(rgb[..., 0].astype(int) - red(frame(20, 30))).max() <= 2


def test_nan_from_the_network_is_an_error_not_a_black_picture():
    colorizer = make()
    colorizer.network.table.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="use float32"):
        colorizer(frame(16, 16), text="car")


def test_threads_may_share_one_colorizer():
    colorizer = make()
    texts = ["car", "road", "tree", ""]
    expected = {text: colorizer(frame(16, 16), text=text) for text in texts}
    wrong: list[str] = []

    def work(text: str) -> None:
        for _ in range(20):
            if not np.array_equal(colorizer(frame(16, 16), text=text), expected[text]):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_gives_the_same_pictures_with_weights_of_its_own(copied):
    colorizer = Colorizer(Fake(), device="cpu", name="fake", guidance=2.0)
    expected = colorizer(frame(20, 30), text="a car")
    copy_ = copied(colorizer)
    np.testing.assert_array_equal(copy_(frame(20, 30), text="a car"), expected)
    assert copy_.name == "fake" and copy_.runtime.guidance == 2.0
    with torch.no_grad():
        copy_.network.table.fill_(0.0)
    np.testing.assert_array_equal(colorizer(frame(20, 30), text="a car"), expected)


FORKED = """
import multiprocessing, sys, numpy as np, torch
from fake_network import Fake
from cmmfnet.colorizer.torch import Colorizer

colorizer, frame = Colorizer(Fake(), device="cpu"), np.zeros((64, 64), np.uint8)
torch.set_num_threads(2)
colorizer(frame)

def colour(threads):
    torch.set_num_threads(threads)
    try:
        print("coloured", colorizer(frame).shape, flush=True)
    except RuntimeError as error:
        print(error, flush=True)

for threads in (2, 1):
    child = multiprocessing.get_context("fork").Process(target=colour, args=(threads,))
    child.start()
    child.join(60)
    print("ended" if child.exitcode == 0 else "hangs", flush=True)
    child.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_gets_an_error_and_does_not_hang():
    paths = [str(Path(__file__).parents[1]), *sys.path]
    result = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stderr
    assert "was forked from one that had coloured pictures" in lines[0] and "'spawn'" in lines[0]
    assert lines[1:] == ["ended", "coloured (64, 64, 3)", "ended"]


@pytest.mark.parametrize("text", ["", "a red car and trees"])
def test_weights_of_16_bits_keep_the_contrast_of_a_frame(text):
    """A hot spot presses the rest into few levels, which 16 bits would tear apart before the
    network sees them."""
    x = np.random.default_rng(0).normal(8000, 40, (256, 256)).astype(np.uint16)
    x[:9, :9] = 20000
    full = Colorizer.from_pretrained(device="cpu", dtype=torch.float32)(
        x, text=text, span=(7800, 20000)
    )
    half = Colorizer.from_pretrained(device="cpu", dtype=torch.bfloat16)(
        x, text=text, span=(7800, 20000)
    )
    assert np.abs(full.astype(int) - half).mean() < 1


def test_a_text_that_was_read_before_gives_the_same_picture():
    """Outside of a call it is encoded with the number types of a call."""
    frame = np.arange(96 * 128, dtype=np.uint16).reshape(96, 128)
    colorizers = [Colorizer.from_pretrained(device="cpu") for _ in range(2)]
    colorizers[0].text_input("a red car")
    first, second = (each(frame, text="a red car") for each in colorizers)
    np.testing.assert_array_equal(first, second)
