"""Training by CUDA graphs: the steps of training without them."""

import copy
import threading

import pytest
import torch

from cmmfnet.methods import build_network
from cmmfnet.methods.graphed import Graphed

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TINY = dict(
    method="cmmfnet", channels=(8, 16, 16), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1), kernels=(5, 5, 5), vit_depth=1,
    vit_width=32, vit_heads=2, global_size=32, text="clip-tags", words=["tree", "car"], text_width=24, text_length=16,
    modulation=True, classes=25, regions=True,
)  # fmt: skip


class Noisy(torch.nn.Module):
    """With batch statistics, dropout, and an output that is None."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.Dropout(0.5),
            torch.nn.Conv2d(8, 3, 1),
        )

    def forward(self, x, text=None):
        return self.layers(x), None


@cuda
def test_steps_by_graph_are_those_without():
    torch.manual_seed(0)
    network = build_network(TINY).cuda().train()
    other = copy.deepcopy(network)
    thermal = torch.rand(5, 2, 1, 64, 64).cuda()
    ids = torch.tensor([[0, 1], [1, 0]]).cuda()
    mask = torch.tensor([[True, True], [True, False]]).cuda()
    options = {"heads": True, "maps": True}

    def steps(network, call):
        optimiser, losses = torch.optim.SGD(network.parameters(), 1e-3), []
        for x in thermal:
            optimiser.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                colour, tags, labels, levels = call(x, network.embed_tags(ids), mask)
                loss = sum(y.float().square().mean() for y in (colour, tags, labels, *levels))
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    graphed = Graphed(network, **options)
    found = steps(network, graphed)
    assert graphed._replay is not None
    assert found == pytest.approx(steps(other, lambda *x: other(*x, **options)), rel=1e-3)
    assert found[-1] < found[0]
    for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@cuda
def test_a_later_capture_changes_nothing():
    """As after a resume: draws and batch statistics are those of a training that went on."""
    torch.manual_seed(0)
    network = Noisy().cuda().train()
    thermal = torch.rand(5, 2, 1, 64, 64).cuda()

    def draw(out):
        return out[0].float().square().mean()

    def train(network, graphed_again_at=None):
        graphed, losses = Graphed(network), []
        for step in range(5):
            if step == graphed_again_at:
                graphed = Graphed(network)
            losses += steps_of(network, graphed, thermal[step], step, draw)
        return losses

    def steps_of(network, call, x, step, draw):
        torch.manual_seed(step)
        loss = draw(call(x, None))
        for parameter, gradient in zip(
            network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True
        ):
            parameter.data -= 1e-3 * gradient
        return [loss.item()]

    other = copy.deepcopy(network)
    assert train(network) == train(other, graphed_again_at=3)
    for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@cuda
def test_what_cannot_be_captured_trains_as_it_is():
    class Waits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.weight * float(x.amax())  # the host has to know

    network = Waits().cuda()
    graphed, x = Graphed(network), torch.rand(1, 1, 8, 8).cuda()
    with pytest.warns(UserWarning, match="no CUDA graph"):
        y = graphed(x)
    torch.testing.assert_close(y, x * x.amax())
    graphed(x).sum().backward()
    assert network.weight.grad is not None
    torch.nn.functional.dropout(torch.rand(8, device="cuda"))  # draws go on


@cuda
def test_another_thread_may_pin_memory_meanwhile():
    """As a loader's does; what make_graphed_callables forbids."""
    stop, failed = threading.Event(), []

    def pin() -> None:
        while not stop.is_set():
            try:
                torch.rand(1 << 20).pin_memory()
            except RuntimeError as error:
                failed.append(error)
                return

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        network = Noisy().cuda().train()
        for _ in range(3):
            graphed = Graphed(network)
            graphed(torch.rand(2, 1, 64, 64).cuda(), None)[0].sum().backward()
            assert graphed._replay is not None
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not failed
