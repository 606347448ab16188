"""Training by CUDA graphs: the steps of training without them."""

import copy
import threading

import pytest
import torch

from cmmfnet.methods import build_network
from cmmfnet.nn import perceptual
from cmmfnet.nn.fast import modules
from cmmfnet.nn.fast.cast_weights import CastWeights
from cmmfnet.nn.fast.graphed import GraphedTraining
from cmmfnet.nn.fast.modules import accelerate
from cmmfnet.nn.losses import PictureLosses

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TINY = dict(
    method="cmmfnet", channels=(8, 16, 16), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1),
    kernels=(5, 5, 5), vit_depth=1,
    vit_width=32, vit_heads=2, global_size=32, text="clip-tags", words=["tree", "car"],
    text_width=24, text_length=16,
    modulation=True, classes=25, regions=True,
)  # fmt: skip


LEARNED = TINY | dict(words=[], text="learned", regions=False, text_width=32)


class InOrder:
    """Instead of SideStream: nothing is beside anything."""

    def __init__(self, x):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def join(self, *results):
        pass


class Shared(torch.nn.Module):
    """A layer registered twice, a weight of two layers, and one that is also an embedding's, which
    autocast does not cast."""

    def __init__(self):
        super().__init__()
        self.first = self.second = torch.nn.Linear(8, 8)
        self.third = torch.nn.Linear(8, 8)
        self.third.weight = self.first.weight
        self.table, self.out = torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5)
        self.out.weight = self.table.weight
        self.frozen = torch.nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x):
        return self.out(
            self.frozen(self.third(self.second(self.first(x).relu())))
            + self.table.weight.sum(dim=0)
        )


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
    network = accelerate(build_network(TINY).cuda().train())
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

    graphed = GraphedTraining(network, **options)
    found = steps(network, graphed)
    assert graphed.captured
    assert found == pytest.approx(steps(other, lambda *x: other(*x, **options)), rel=1e-3)
    assert found[-1] < found[0]
    for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@cuda
@pytest.mark.parametrize("config", [TINY, LEARNED | dict(stem="vgg16")])
def test_gradients_are_the_same_with_the_encoder_beside(config, monkeypatch):
    torch.manual_seed(0)
    network = build_network(config | dict(channels=(64, 128, 128), vit_depth=4)).cuda().train()
    accelerate(network)
    thermal = torch.rand(4, 2, 1, 128, 128).cuda()
    ids, mask = torch.tensor([[0, 1], [1, 0]]).cuda(), torch.ones(2, 2, dtype=torch.bool).cuda()
    parameters = [p for p in network.parameters() if p.requires_grad]

    def found():
        """Output and gradients of some steps."""
        call, steps = GraphedTraining(network), []
        for x in thermal:
            with torch.autocast("cuda", torch.bfloat16):
                text = (network.embed_tags(ids).detach(), mask) if config["words"] else (None, None)
                y = call(x, *text)
            of = torch.autograd.grad(y.float().square().mean(), parameters, allow_unused=True)
            # detached: a node of autograd that lives on would keep the other capture from its
            # streams
            steps.append([y.detach().clone(), *(d.clone() for d in of if d is not None)])
        assert call.captured
        return steps

    beside = found()
    monkeypatch.setattr(modules, "SideStream", InOrder)
    in_order = found()
    for ours, theirs in zip(beside, in_order, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=2e-2)
        largest = max(float(d.abs().max()) for d in theirs[1:])
        for a, b in zip(
            ours[1:], theirs[1:], strict=True
        ):  # some, of keys' biases, are nothing but rounding
            torch.testing.assert_close(
                a, b, rtol=0, atol=2e-2 * float(b.abs().max()) + 1e-3 * largest
            )


@pytest.mark.parametrize("config", [TINY, LEARNED, TINY | dict(stem="vgg16", regions=False)])
def test_copied_weights_are_those_of_autocast(config):
    torch.manual_seed(0)
    network = accelerate(build_network(config).train())
    copied = CastWeights(network, torch.bfloat16)
    copies = {id(c) for c in copied.copies}
    assert len(copies) > 40
    assert all(id(copied.leaf(p)) not in copies for p in network.encode1.parameters())
    assert id(copied.leaf(network.fuse.weight)) in copies
    assert copied.leaf(network.image_encoder.positions) is network.image_encoder.positions
    thermal, ids = torch.rand(2, 1, 64, 64), torch.tensor([[0, 1], [1, 0]])
    parameters = [p for p in network.parameters() if p.requires_grad]
    inputs = [thermal]
    if config["words"]:
        inputs += [network.embed_tags(ids).detach(), torch.tensor([[True, True], [True, False]])]

    def of(call, wanted):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y, tags, labels = call(*inputs, heads=True)
        loss = sum(t.float().square().mean() for t in (y, tags, labels) if t is not None)
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        return [y, *CastWeights.alike(found, parameters)]

    expected = of(network, parameters)
    for _ in range(2):
        found = of(copied, [copied.leaf(p) for p in parameters])
        assert torch.equal(found[0], expected[0])
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                # gradients of a weight used more than once are summed in 16 bits
                torch.testing.assert_close(
                    a, b, rtol=2e-2, atol=1e-2 * float(b.detach().abs().max())
                )
        with torch.no_grad():  # the optimiser's work is seen by the next call
            for p in parameters:
                p.mul_(1.1)
        expected = of(network, parameters)


def test_copies_of_shared_weights():
    torch.manual_seed(0)
    network, x = Shared(), torch.randn(4, 8)
    copied = CastWeights(network, torch.bfloat16)
    assert {id(p) for p in copied.originals} == {
        id(p) for p in (*network.first.parameters(), network.third.bias, network.out.bias)
    }
    before = dict(network.named_parameters(remove_duplicate=False))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert torch.equal(copied(x), network(x))
        (found,) = torch.autograd.grad(copied(x).sum(), [copied.leaf(network.second.weight)])
        (expected,) = torch.autograd.grad(network(x).sum(), [network.second.weight])
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=1e-2)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        assert parameter is before[name]


@cuda
def test_a_later_capture_changes_nothing():
    """As after a resume: draws and batch statistics are those of a training that went on."""
    torch.manual_seed(0)
    network = Noisy().cuda().train()
    thermal = torch.rand(5, 2, 1, 64, 64).cuda()

    def draw(out):
        return out[0].float().square().mean()

    def train(network, graphed_again_at=None):
        graphed, losses = GraphedTraining(network), []
        for step in range(5):
            if step == graphed_again_at:
                graphed = GraphedTraining(network)
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
    graphed, x = GraphedTraining(network), torch.rand(1, 1, 8, 8).cuda()
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
            graphed = GraphedTraining(network)
            graphed(torch.rand(2, 1, 64, 64).cuda(), None)[0].sum().backward()
            assert graphed.captured
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not failed


@cuda
def test_every_shape_has_its_own_graph():
    """Crops of several shapes train in turn, each as a graph, with one set of weights."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.GELU(), torch.nn.Conv2d(8, 1, 3, padding=1)
    ).cuda()
    other = copy.deepcopy(network)
    graphed = GraphedTraining(network)
    frames = [torch.rand(2, 1, *shape).cuda() for shape in ((32, 64), (48, 48), (32, 64), (48, 48))]
    for x in frames:
        for net, call in ((network, graphed), (other, other)):
            net.zero_grad()
            call(x).square().mean().backward()
            for p in net.parameters():
                p.data -= 0.1 * p.grad
    assert graphed.captured == 2
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@cuda
def test_losses_by_graph_are_those_without(monkeypatch):
    monkeypatch.setattr(
        perceptual,
        "load_features",
        lambda name, folder: perceptual.feature_layers(name).eval().requires_grad_(False),
    )
    torch.manual_seed(0)
    names = ("l1", "perceptual", "tv", "ssim")
    losses = PictureLosses(names, perceptual.Perceptual("vgg16", "l1")).cuda()
    fast = accelerate(copy.deepcopy(losses))
    x = (torch.rand(2, 3, 64, 80, device="cuda") * 2 - 1).bfloat16().requires_grad_()
    y = torch.rand(2, 3, 64, 80, device="cuda") * 2 - 1
    graphed, results = GraphedTraining(fast), []
    for call in (losses, fast, graphed, graphed):
        with torch.autocast("cuda", torch.bfloat16):
            found = call(x, y)
        (dx,) = torch.autograd.grad(sum(found.values()), x)
        results.append([*(found[name].detach().clone() for name in names), dx.clone()])
    assert graphed.captured
    for other in results[2:]:
        assert all(torch.equal(a, b) for a, b in zip(results[1], other, strict=True))
    for a, b in zip(results[0][:-1], results[1][:-1], strict=True):
        assert float(b) == pytest.approx(float(a), rel=1e-2)
