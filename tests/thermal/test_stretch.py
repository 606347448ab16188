"""Stretching a thermal frame to [-1, 1]: percentiles, spans, dead pixels, constant frames."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cmmfnet.thermal.frame import ThermalFileError, read_thermal
from cmmfnet.thermal.stretch import normalise, parse_span, quantiles_of_counts, to_8_bits

FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
FRAMES = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16, np.int16, np.int64, np.float16, np.float32, np.float64]),
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
)


@pytest.mark.parametrize("levels", [2, 3, 256, 5000, 65536])
@pytest.mark.parametrize(
    ("span", "percentiles"),
    [(None, (1, 99)), (None, (2.5, 60)), (None, (0, 100)), ((0.2, 0.7), (1, 99))],
)
def test_whole_numbers_are_stretched_to_the_bit_as_any_others(levels, span, percentiles):
    """They go by their histogram, which must not be noticed."""
    rng = np.random.default_rng(levels)
    for least, shape in ((0, (7, 9)), (0, (48, 64)), (-40, (30, 20))):
        counts = rng.integers(0, levels, shape).astype(np.float64) + least
        ends = None
        if span is not None:  # as shares of the range
            ends = tuple(least + share * levels for share in span)
        low, high = ends or np.percentile(counts, percentiles)
        if low == high:
            continue
        want = ((np.clip(counts, low, high) - low) / (high - low) * 2 - 1).astype(np.float32)
        np.testing.assert_array_equal(normalise(counts, ends, percentiles), want)
        # half a level higher: no whole numbers, so the other way
        shifted = normalise(counts + 0.5, (low + 0.5, high + 0.5) if ends else None, percentiles)
        np.testing.assert_allclose(shifted, want, atol=2e-4 if levels == 65536 else 1e-6)


@settings(FUZZ, max_examples=400)
@given(FRAMES, st.one_of(st.none(), st.tuples(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))))
def test_any_frame_gives_finite_values_of_its_own_size(frame, low_and_width):
    # three columns are the channels of a row of pixels
    frame = frame[:, :2] if frame.shape[1] == 3 else frame
    span = (
        None if low_and_width is None else (low_and_width[0], low_and_width[0] + low_and_width[1])
    )
    try:
        stretched = normalise(frame, span=span)
    except ThermalFileError as error:
        assert "leaves nearly nothing" in str(error)
        values = frame.astype(np.float64)
        assert not np.any((values >= span[0]) & (values <= span[1]))
        return
    assert stretched.shape == frame.shape and stretched.dtype == np.float32
    assert np.isfinite(stretched).all() and np.abs(stretched).max() <= 1


@settings(FUZZ, max_examples=100)
@given(hnp.arrays(np.uint16, (9, 8)))
def test_stretching_keeps_the_order(frame):
    stretched = normalise(frame).ravel()[np.argsort(frame, axis=None)]
    assert (np.diff(stretched) >= 0).all()


def test_percentiles_map_to_the_ends():
    frame = np.arange(10001, dtype=np.float32).reshape(73, 137)
    stretched = normalise(frame)
    np.testing.assert_allclose(stretched, np.clip((frame - 100) / 9800 * 2 - 1, -1, 1), atol=1e-5)
    wider = normalise(frame, percentiles=(0, 100))
    assert wider.min() == -1 and wider.max() == 1 and (stretched == 1).sum() == 101


def test_span_is_in_the_units_of_the_frame():
    frame = np.array([[10.0, 20.0, 27.5, 35.0, 50.0, np.nan, np.inf, -np.inf]])
    np.testing.assert_allclose(
        normalise(frame, span=(20, 35))[0], [-1, -1, 0, 1, 1, 0, 1, -1], atol=1e-6
    )
    assert (normalise(np.full((2, 2), 35.0), span=(20, 35)) == 1).all()


@pytest.mark.parametrize("value", [0, 65535, -3.5, 1e30])
def test_constant_frames_are_mid_grey(value):
    for shape in ((1, 1), (1, 10000), (10000, 1), (7, 9)):
        thermal = read_thermal(np.full(shape, value))
        assert thermal.fill == ()
        with pytest.warns(UserWarning, match="every pixel is .* colours mean nothing"):
            assert (normalise(thermal) == 0).all()


def test_frames_without_ordinary_values():
    assert (normalise(np.full((3, 4), np.nan)) == 0).all()
    assert (normalise(np.full((3, 4), np.nan), span=(0, 1)) == 0).all()
    np.testing.assert_array_equal(
        normalise(np.array([[np.inf, -np.inf], [np.nan, np.inf]])), [[1, -1], [0, 1]]
    )
    np.testing.assert_array_equal(
        normalise(np.array([[np.inf, -np.inf], [np.nan, 4.0]])), [[1, -1], [0, 0]]
    )
    for span in ((0, 1e-310), (-2e38, 2e38)):
        assert np.isfinite(normalise(np.array([[0.0, 1e-44], [5.0, np.inf]]), span=span)).all()
    np.testing.assert_array_equal(
        normalise(np.array([[3e38, -3e38]], np.float32), percentiles=(0, 100)), [[1, -1]]
    )


def test_dead_pixels_do_not_change_the_others():
    frame = np.random.default_rng(0).normal(300, 5, (64, 80)).astype(np.float32)
    damaged = frame.copy()
    damaged[5, 6], damaged[7, 8], damaged[9, 10] = np.nan, np.inf, -np.inf
    before, after = normalise(frame), normalise(damaged)
    good = np.isfinite(damaged)
    np.testing.assert_allclose(after[good], before[good], atol=0.01)
    assert abs(after[5, 6] - np.median(before)) < 0.01 and after[7, 8] == 1 and after[9, 10] == -1


def test_a_hot_spot_on_a_flat_frame_is_seen():
    frame = np.full((100, 100), 7000, np.uint16)
    frame[50, 50] = 9000  # both percentiles are 7000
    stretched = normalise(frame)
    assert stretched[50, 50] == 1 and stretched[0, 0] == -1


def test_a_large_frame_is_sampled_evenly_deterministically_and_fast():
    random = np.random.default_rng(0)
    columns = random.normal(
        0, 40, 2560
    )  # column noise of a microbolometer; 2560 is a multiple of the plain step
    frame = (8000 + columns + random.normal(0, 10, (2048, 2560))).astype(np.float32)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        stretched = normalise(frame)
        seconds.append(time.process_time() - start)
    low, high = np.percentile(frame, (1, 99))
    np.testing.assert_allclose(
        stretched, np.clip((frame - low) / (high - low) * 2 - 1, -1, 1), atol=0.01
    )
    np.testing.assert_array_equal(stretched, normalise(frame))
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    "span",
    [(35, 20), (5, 5), (np.nan, 3), (0, np.inf), (0, 1e39), (1,), (1, 2, 3), "ab", 7, (None, 2)],
)
def test_impossible_spans_are_refused(span):
    with pytest.raises(ValueError, match="span"):
        normalise(np.arange(12, dtype=np.uint8).reshape(3, 4), span=span)


@pytest.mark.parametrize("percentiles", [(99, 1), (-1, 50), (0, 101), (50, 50), (0,)])
def test_impossible_percentiles_are_refused(percentiles):
    with pytest.raises(ValueError, match="percentiles"):
        normalise(np.arange(12, dtype=np.uint8).reshape(3, 4), percentiles=percentiles)


def test_parse_span():
    assert parse_span("20,35") == (20.0, 35.0)
    assert parse_span(" -10.5 , 4e1 ") == (-10.5, 40.0)
    for text in ("", "20", "20,", "20;35", "20,5,35,5", "a,b"):
        with pytest.raises(ValueError, match="is not LOW,HIGH; expected two numbers"):
            parse_span(text)
    with pytest.raises(ValueError, match="type 20,35"):
        parse_span("35,20")
    for text in ("nan,3", "0,inf"):
        with pytest.raises(ValueError, match="not finite"):
            parse_span(text)


# ---- 8 bits, and quantiles of a histogram


def slowly(frame: np.ndarray) -> np.ndarray:
    return np.round((normalise(frame) + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "size", [(1, 1), (3, 5), (48, 64), (1000, 1201)]
)  # normalise samples the last
def test_8_bits_is_what_normalise_gives(dtype, size):
    rng = np.random.default_rng(size[0])
    top = np.iinfo(dtype).max
    frames = [
        rng.integers(0, top + 1, size),
        rng.normal(top / 3, top / 30, size).clip(0, top),
        np.full(size, top // 2),
    ]
    spiked = np.full(size, 9)
    spiked[0, 0] = 200  # equal percentiles of unequal pixels
    for frame in [*frames, spiked]:
        frame = frame.astype(dtype)
        assert np.array_equal(to_8_bits(read_thermal(frame)), slowly(frame))


def test_8_bits_takes_floats_and_the_luminance_of_colour(recwarn):
    frame = np.random.default_rng(0).normal(20, 5, (20, 30)).astype(np.float32)
    frame[3, 4] = np.nan
    assert np.array_equal(to_8_bits(read_thermal(frame)), slowly(frame))
    colour = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(to_8_bits(read_thermal(colour)), slowly(colour))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.floats(0, 1))
def test_quantile_of_a_histogram_is_numpy_s_to_the_bit(values, q):
    assert quantiles_of_counts(np.bincount(values), q) == [
        np.quantile(np.array(values, np.float64), q)
    ]
