"""The moving average of the weights, and readings of the losses."""

import torch
from torch import nn

from cmmfnet.training.averaging import EMA, Readings


def test_average_follows_parameters_and_buffers():
    network = nn.BatchNorm2d(3)
    average = EMA(network, 0.5)
    with torch.no_grad():
        network.weight.fill_(3)
        network.running_mean.fill_(7)
        network.num_batches_tracked.fill_(2)
    average.update(network, 1000)
    assert (
        average.network.weight.tolist() == [2] * 3
        and average.network.running_mean.tolist() == [7] * 3
    )
    assert average.network.num_batches_tracked == 2


def test_readings_find_the_first_that_is_not_finite():
    readings = Readings()
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        readings.note(step, None, {"l1": torch.tensor(1.0), "tv": torch.tensor(value)})
        assert (readings.not_finite(2) is None) == (step < 3)  # the nan is the last but two of four
    assert readings.not_finite(0)[0] == 1 and readings.not_finite(0)[0] == 1  # it stays
    assert readings.last["tv"] == 2
