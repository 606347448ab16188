"""Frames on a CUDA GPU: stretched as NumPy stretches them, and the same pictures with and without a
graph."""

import re
import threading

import numpy as np
import pytest
import torch

from cmmfnet.colorizer import tensors
from cmmfnet.colorizer.sizes import pad
from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.nn.fast.graphs import GraphedInference
from cmmfnet.thermal.frame import ThermalFileError, read_thermal
from cmmfnet.thermal.stretch import normalise
from cmmfnet.thermal.stretch_cuda import normalised

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]


def frames() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    counts = rng.normal(8000, 300, (120, 161))
    holes = counts.astype(np.float32)
    holes[3, 4], holes[5, 6], holes[7, 8] = np.nan, np.inf, -np.inf
    return {
        "16 bits": counts.astype(np.uint16),
        "grey levels": rng.integers(0, 256, (97, 130)).astype(np.uint8),
        "signed": (counts - 8000).astype(np.int16),
        "degrees": (counts / 100 - 273.15).astype(np.float32),
        "dead pixels": holes,
        "whole numbers and a half": np.where(counts > 8900, 8000.5, counts.round()).astype(
            np.float32
        ),
        "every count": np.arange(65536, dtype=np.uint16).reshape(256, 256),
        "too many levels": np.array([[0.0, 70000.0], [1.0, 2.0]], np.float32),
        "constant": np.full((9, 8), 7000, np.uint16),
        "two values, one rare": np.pad(np.full((1, 1), 9, np.uint16), ((0, 39), (0, 39))),
        "all NaN": np.full((8, 8), np.nan, np.float32),
        "above a megapixel": rng.integers(7000, 7400, (1100, 1001)).astype(np.uint16),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("span", [None, (7000.0, 8200.5), (7000.0, 7001.0)])
@pytest.mark.parametrize("kind", frames())
def test_a_frame_is_stretched_as_numpy_does_it(kind, span, device):
    frame = read_thermal(frames()[kind])
    try:
        expected = normalise(frame, span)
    except ThermalFileError as error:  # nothing of the frame lies in the span
        with pytest.raises(ThermalFileError, match=re.escape(str(error))):
            normalised(frame, span, torch.device(device))
        return
    found = normalised(frame, span, torch.device(device))
    assert found.dtype == torch.float32
    assert found.device.type == device
    np.testing.assert_array_equal(found.cpu().numpy(), expected)


def test_a_frame_is_known_to_be_of_whole_numbers_only_where_it_is():
    kinds = {kind for kind, frame in frames().items() if read_thermal(frame).whole}
    assert kinds == {
        "16 bits", "grey levels", "signed", "every count", "constant", "two values, one rare",
        "above a megapixel"
    }  # fmt: skip
    grey = np.random.default_rng(0).integers(0, 256, (9, 8), np.uint8)
    assert read_thermal(np.stack([grey] * 3, axis=2)).whole
    with pytest.warns(UserWarning, match="luminance"):
        assert not read_thermal(np.stack([grey, grey[::-1], grey], axis=2)).whole
    assert not read_thermal(grey.astype(np.int32)).whole


def test_a_span_that_is_none_is_refused_as_by_normalise():
    frame = read_thermal(frames()["16 bits"])
    with pytest.raises(ValueError, match="below the high end"):
        normalised(frame, (8000.0, 7000.0), torch.device("cpu"))


@pytest.mark.parametrize("shape", [(1, 1), (3, 21), (16, 24), (31, 8)])
def test_tensors_are_padded_as_arrays_are(shape):
    frame = np.random.default_rng(0).random(shape, dtype=np.float32)
    np.testing.assert_array_equal(tensors.pad(torch.from_numpy(frame), 8).numpy(), pad(frame, 8))


@cuda
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_graph_gives_what_the_network_gives(dtype):
    graphed = Colorizer.from_pretrained(device="cuda", dtype=dtype)
    plain = Colorizer.from_pretrained(device="cuda", dtype=dtype)
    plain.runtime.forward = plain.network
    rng = np.random.default_rng(0)
    for _ in range(3):  # as it is, captured, replayed
        for shape in ((128, 160), (250, 201)):
            for text in ("", "a red car, snow", "trees by night"):
                frame = rng.integers(7000, 9000, shape).astype(np.uint16)
                expected, seen = plain(frame, text=text, return_tags=True)
                found, also_seen = graphed(frame, text=text, return_tags=True)
                np.testing.assert_array_equal(found, expected)
                assert [name for name, _ in also_seen.predicted] == [
                    name for name, _ in seen.predicted
                ]
                np.testing.assert_array_equal(graphed(frame, text=text), expected)
    assert 0 < len(graphed.runtime.forward._kept) <= GraphedInference.KEPT


@cuda
def test_threads_share_a_graph():
    colorizer = Colorizer.from_pretrained(device="cuda")
    frames = np.random.default_rng(0).integers(7000, 9000, (4, 256, 256)).astype(np.uint16)
    expected = [colorizer(frame) for frame in frames]
    found: list[bool] = []

    def colour(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found.extend(np.array_equal(colorizer(frames[i]), expected[i]) for _ in range(20))

    threads = [threading.Thread(target=colour, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == [True] * 80


@cuda
def test_large_batches_and_what_cannot_be_captured_run_as_they_are():
    class Waits(torch.nn.Module):
        def forward(self, x, text=None, mask=None):
            return x * float(x.amax())  # the host has to know

    graphs = GraphedInference(Waits().cuda())
    x = torch.rand(1, 1, 8, 8, device="cuda")
    with torch.inference_mode():
        torch.testing.assert_close(graphs(x, None, None), x * x.amax())
        with pytest.warns(UserWarning, match="no CUDA graph"):
            torch.testing.assert_close(graphs(x, None, None), x * x.amax())
        torch.testing.assert_close(graphs(x, None, None), x * x.amax())
        large = torch.zeros(2, 1, 1024, 1024, device="cuda")
        for _ in range(3):
            graphs(large, None, None)
        torch.nn.functional.dropout(torch.rand(8, device="cuda"))  # draws go on
    assert not graphs._kept
