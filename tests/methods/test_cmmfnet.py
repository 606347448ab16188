"""CMMF-Net: sizes, text, gradients and training losses, on networks of a few thousand weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmmfnet.data.batches import Batch
from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet.interaction import (
    CrossModalInteraction,
    ImageEncoder,
    tone_channels,
)
from cmmfnet.methods.cmmfnet.method import CMMFNetMethod
from cmmfnet.methods.cmmfnet.network import PAPER, RELEASED
from cmmfnet.methods.method import StepContext, in_full_precision
from cmmfnet.nn import perceptual
from cmmfnet.nn.blocks import PatchDiscriminator
from cmmfnet.nn.fast.modules import accelerate
from cmmfnet.nn.perceptual import feature_layers
from cmmfnet.text.labels import CLASSES, IGNORE
from cmmfnet.text.sentences import DEFAULT_PROMPT
from cmmfnet.text.vocabulary import MAX_TAGS, WORDS

TINY = {
    "method": "cmmfnet", "channels": (4, 8, 16), "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 1, 0),
    "kernels": (5, 5, 3), "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
    "text_width": 12,
    "text_length": 6, "tail": 4,
}  # fmt: skip
NAMES = ("road", "tree", "car", "night", "day")
TAGS = TINY | {"ci": "image_query", "text": "clip-tags", "words": NAMES}
MODES = ("text_query", "image_query", "text_key", "add", "none")
TEXT_MODES = MODES[:-1]


def tiny(seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(TINY | options).eval()


def frames(batch: int = 2, height: int = 32, width: int = 40, seed: int = 1) -> Tensor:
    return (
        torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )


def sentence(batch: int = 2, length: int = 4, seed: int = 2) -> Tensor:
    return torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(seed))


def wake(network: nn.Module) -> nn.Module:
    """Modulations start as the identity; give them the weights that training would."""
    for modulation in network.modulations:
        nn.init.normal_(modulation.linear.weight, std=0.2)
    return network


def count(*parts: nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)


def parts(network: nn.Module, *names: str) -> int:
    return count(*(getattr(network, name) for name in names))


# ---- sizes of the two models


def test_paper_model_has_40_million_parameters():
    network = build_network(PAPER)
    assert count(network) == 39_969_475
    assert 39.9e6 < count(network) < 40.2e6
    # LKAT-GAN's encoder has 3,441,088: its first 1x1 convolution takes three channels, and ours one
    assert (
        parts(network, "down1", "encode1", "down2", "encode2", "down3", "encode3")
        == 3_440_960
        == 3_441_088 - 2 * 64
    )
    assert parts(network, "image_encoder") == 28_635_136
    assert count(network.interaction.blocks) == 6_308_864
    assert (
        count(
            network.interaction.mix,
            network.interaction.project,
            network.interaction.norm,
            network.fuse,
        )
        == 344_064
    )
    decoder = parts(network, "up3", "skip2", "decode2", "up2", "skip1", "decode1", "up1", "last")
    assert decoder == 1_239_939
    assert network.text_projection.state_dict() == {}  # CLIP's width is the ViT's


def test_released_model_is_smaller_than_28_million():
    network = build_network(RELEASED | {"words": WORDS})
    assert len(WORDS) == 177
    assert count(network) == 27_629_133 < 28e6
    assert network.predicts_tags and network.word_vectors.shape == (177, 512)


# ---- output


@pytest.mark.parametrize("ci", MODES)
@pytest.mark.parametrize("skip", ["concat", "add"])
@pytest.mark.parametrize("output", ["tanh", "clip"])
def test_output_of_every_mode(ci, skip, output):
    network = tiny(ci=ci, skip=skip, output=output)
    colour = network(frames(), sentence())
    assert (colour.shape, colour.dtype) == ((2, 3, 32, 40), torch.float32)
    assert colour.isfinite().all() and colour.std() > 1e-3
    with torch.no_grad():
        network.last.bias.copy_(torch.tensor([9.0, -9.0, 0.0]))
        red, green, _ = network(frames(), sentence()).unbind(dim=1)
    # clip reaches its ends; tanh keeps off them
    assert red.max() <= 1 and green.min() >= -1
    assert (bool((red == 1).all()), bool((green == -1).all())) == (output == "clip",) * 2
    assert red.min() > 0.99 and green.max() < -0.99


@pytest.mark.parametrize("ci", MODES)
def test_output_of_a_network_without_text(ci):
    network = tiny(ci=ci, text="none")
    assert network.interaction.mode == "none"
    assert torch.equal(network(frames()), network(frames(), sentence()))


@pytest.mark.parametrize("size", [(8, 8), (8, 264), (264, 8), (40, 24), (16, 72)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"ci": ci} for ci in MODES]
    + [{"stem": "vgg16", "local_contrast": True, "modulation": True, "ci": "image_query"}],
    ids=lambda o: o.get("stem", o["ci"]),
)
def test_any_multiple_of_8_keeps_its_size(options, size):
    with torch.inference_mode():
        colour = tiny(**options)(frames(1, *size), sentence(1))
    assert colour.shape == (1, 3, *size) and colour.isfinite().all()


@pytest.mark.parametrize(
    "shape", [(1, 1, 12, 16), (1, 1, 16, 17), (1, 3, 16, 16), (1, 16, 16)], ids=str
)
def test_other_shapes_raise(shape):
    with pytest.raises(
        ValueError, match=re.escape(f"{shape}; expected (B,1,H,W) with H and W multiples of 8")
    ):
        tiny()(torch.zeros(shape))


def test_heads_give_tags_and_labels():
    network = build_network(TAGS | {"classes": 7})
    colour, tags, labels = network(frames(), heads=True)
    assert (colour.shape, tags.shape, labels.shape) == ((2, 3, 32, 40), (2, 5), (2, 7, 4, 5))
    assert tiny()(frames(), heads=True)[1:] == (None, None)


@pytest.mark.parametrize("ci", TEXT_MODES)
def test_pictures_of_a_batch_do_not_know_each_other(ci):
    network = wake(tiny(ci=ci, modulation=True))
    x, text = frames(3), sentence(3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    with torch.inference_mode():
        together = network(x, text, mask)
        for i in range(3):
            alone = network(x[i : i + 1], text[i : i + 1], mask[i : i + 1])
            assert (together[i] - alone[0]).abs().max() < 1e-4
        assert (together[0] - together[1]).abs().max() > 1e-2


def test_evaluation_is_deterministic_and_has_no_batch_statistics():
    network = wake(
        build_network(
            TAGS | {"stem": "vgg16", "modulation": True, "local_contrast": True, "classes": 3}
        )
    )
    with torch.inference_mode():
        first = network.eval()(frames(), network.embed_tags(torch.tensor([[0, 1], [2, 3]])))
        assert torch.equal(
            first, network(frames(), network.embed_tags(torch.tensor([[0, 1], [2, 3]])))
        )
        # nothing behaves differently in training mode either
        assert torch.equal(
            first, network.train()(frames(), network.embed_tags(torch.tensor([[0, 1], [2, 3]])))
        )
    method = CMMFNetMethod(network, {"adversarial": 1.0})
    for module in (*network.modules(), *method.networks["discriminator"].modules()):
        assert not isinstance(
            module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd
        ), module
    assert list(network.buffers()) == []


@pytest.mark.parametrize("size", [(8, 8), (8, 264), (72, 80)], ids=str)
def test_inference_gives_what_training_gives(size):
    """Without gradients the CPU takes another path through the large-kernel blocks."""
    network = wake(build_network(TAGS | {"modulation": True, "local_contrast": True})).eval()
    x, text = frames(2, *size), sentence()
    with torch.inference_mode():
        fast = network(x, text)
    assert (fast - network(x, text)).abs().max() < 1e-4


# ---- text


@pytest.mark.parametrize("ci", TEXT_MODES)
def test_text_changes_the_output(ci):
    network = tiny(ci=ci)
    with torch.inference_mode():
        none, one, other = (network(frames(), t) for t in (None, sentence(), sentence(seed=9)))
    assert (one - none).abs().max() > 1e-3 and (one - other).abs().max() > 1e-3


def test_modulation_starts_as_the_identity_and_then_lets_the_text_through():
    """With ci="none" modulation is the only path that text has."""
    network, x = tiny(ci="none", modulation=True), frames()
    with torch.inference_mode():
        plain = network(x)
        assert torch.equal(plain, network(x, sentence()))
        modulations, network.modulations = network.modulations, None
        assert torch.equal(plain, network(x))
        network.modulations = modulations
        wake(network)
        assert (network(x) - network(x, sentence())).abs().max() > 1e-2


@pytest.mark.parametrize("modulation", [False, True])
@pytest.mark.parametrize("ci", MODES)
@pytest.mark.parametrize("filling", ["noise", "huge", "nan", "inf"])
def test_padding_rows_hold_what_they_like(ci, modulation, filling):
    network = tiny(ci=ci, modulation=modulation)
    if modulation:
        wake(network)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    text = sentence()
    other = text.clone()
    noise = torch.randn(int((~mask).sum()), 12, generator=torch.Generator().manual_seed(5))
    other[~mask] = {
        "noise": noise,
        "huge": noise * 1e18,
        "nan": noise * torch.nan,
        "inf": noise * torch.inf,
    }[filling]
    with torch.inference_mode():
        assert torch.equal(network(frames(), text, mask), network(frames(), other, mask))


@pytest.mark.parametrize("ci", MODES)
def test_number_of_padding_rows_does_not_matter(ci):
    network = wake(tiny(ci=ci, modulation=True))
    text = sentence(length=6)
    mask = torch.arange(6).expand(2, 6) < 3
    with torch.inference_mode():
        short = network(frames(), text[:, :3])
        assert (network(frames(), text, mask) - short).abs().max() < 1e-5


@pytest.mark.parametrize("ci", MODES)
def test_no_text_equals_text_with_every_row_masked(ci):
    network = wake(tiny(ci=ci, modulation=True))
    with torch.inference_mode():
        masked = network(frames(), sentence(), torch.zeros(2, 4, dtype=torch.bool))
        assert (masked - network(frames())).abs().max() < 1e-5


def cross_block(
    block: nn.Module, query: Tensor, key: Tensor, value: Tensor, stream: Tensor | float
) -> Tensor:
    """Pre-norm softmax(q k / sqrt(d)) v of two heads and an MLP, both added to ``stream``."""
    inner = block.attention
    q, k, v = (
        inner.query(block.norm_q(query)),
        inner.key(block.norm_k(key)),
        inner.value(block.norm_v(value)),
    )
    heads = [
        (qh @ kh.transpose(1, 2) / 8**0.5).softmax(dim=2) @ vh
        for qh, kh, vh in zip(*(x.split(8, dim=2) for x in (q, k, v)), strict=True)
    ]
    x = stream + inner.out(torch.cat(heads, dim=2))
    return x + block.mlp(block.norm(x))


@pytest.mark.parametrize("ci", MODES)
def test_interaction_is_what_it_is_said_to_be(ci):
    """Three rows, "no text" among them, in a network that takes seven: here without any padding."""
    interaction = tiny(ci=ci).interaction
    image, text = torch.randn(2, 4, 16), torch.randn(2, 2, 16)
    t = torch.cat([interaction.no_text.expand(2, 1, 16), text], dim=1)
    if ci == "text_query":
        first, second = interaction.blocks
        state = cross_block(first, t, image, image, 0.0)
        state = cross_block(second, t, state, state, state)
        mix = interaction.mix
        tokens = torch.einsum("pl,bld->bpd", mix.weight[:, :3], state) + mix.bias[None, :, None]
    elif ci == "add":
        tokens = image + interaction.add(t.mean(dim=1, keepdim=True))
    else:
        tokens, key = image, t
        if ci == "text_key":
            key = torch.einsum("nl,bld->bnd", interaction.resample.weight[:, :3], t)
            key = key + interaction.resample.bias[None, :, None]
        for block in interaction.blocks:
            tokens = cross_block(
                block,
                tokens,
                tokens if ci == "none" else key,
                key if ci == "image_query" else tokens,
                tokens,
            )
    want = interaction.norm(interaction.project(tokens)).transpose(1, 2)
    found, pooled = interaction(image, text, None)
    assert found.shape == (2, 16, 4, 4) and torch.allclose(pooled, t.mean(dim=1), atol=1e-6)
    if ci == "text_query":
        assert torch.allclose(found.flatten(2), want, atol=1e-5)
    else:  # one token for each 16x16 patch, enlarged to the map at H/8
        want = nn.functional.interpolate(want.unflatten(2, (2, 2)), (4, 4), mode="bilinear")
        assert torch.allclose(found, want, atol=1e-5)


@pytest.fixture(scope="module")
def tokens_of_frames() -> Tensor:
    """What the paper's image encoder gives, at its size, of six frames."""
    torch.manual_seed(0)
    small = torch.randn(6, 1, 8, 8) + torch.linspace(-1, 1, 6).view(6, 1, 1, 1)
    made = nn.functional.interpolate(small, (256, 256), mode="bicubic").clamp(-1, 1)
    with torch.inference_mode():
        return ImageEncoder(1, 256, 512, 9, 8, "patch")(made)[0]


def states_of_clip(count: int) -> tuple[Tensor, Tensor]:
    """One sentence for all frames, with the statistics of CLIP's hidden states: channels of
    deviation 1, a start token with two channels near -28 and 33, one large channel in the others,
    and padding, which holds numbers that nobody may read."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(1, 77, 512, generator=generator)
    states[:, 0, 80], states[:, 0, 133], states[:, 1:, 133] = -28.0, 33.0, 5.0
    mask = (torch.arange(77) < 45)[None]
    states[~mask] = 1e3
    return states.expand(count, -1, -1), mask.expand(count, -1)


def vectors_of_tags(count: int) -> tuple[Tensor, Tensor]:
    """The same eight names for all frames: vectors of unit length."""
    vectors = torch.randn(1, 8, 512, generator=torch.Generator().manual_seed(2))
    vectors = vectors / vectors.norm(dim=2, keepdim=True)
    return vectors.expand(count, -1, -1), torch.ones(count, 8, dtype=torch.bool)


@pytest.mark.parametrize("text", [states_of_clip, vectors_of_tags])
@pytest.mark.parametrize("ci", MODES)
def test_a_fresh_interaction_sees_the_frame(tokens_of_frames, ci, text):
    """At least a tenth of the variance of its map differs between frames, whatever the text; and
    a gradient reaches the ViT (with the text in the residual it was a twentieth of this)."""
    torch.manual_seed(3)
    interaction = CrossModalInteraction(ci, 512, 8, 2, 256, 32, 256, 77)
    tokens = tokens_of_frames.clone().requires_grad_()
    context, _ = interaction(tokens, *text(len(tokens)))
    assert context.var(dim=0).mean() / context.var() > 0.1
    way = torch.randn(context.shape, generator=torch.Generator().manual_seed(4))
    (gradient,) = torch.autograd.grad((way * context).sum(), tokens)
    assert gradient.norm() > 0.03 * way.norm()


def test_text_query_mixes_the_rows_that_are_there_only():
    """OutputProj leaves padding out: its weights for rows 3 and later do nothing for a text of two
    (and "no text")."""
    network = tiny(ci="text_query")
    text = sentence(length=2)
    with torch.inference_mode():
        before, long = network(frames(), text), network(frames(), sentence(length=6))
        network.interaction.mix.weight[:, 3:] = 7
        assert torch.equal(network(frames(), text), before)
        assert (network(frames(), sentence(length=6)) - long).abs().max() > 1e-3


@pytest.mark.parametrize("ci", ["text_query", "text_key"])
def test_too_long_text_raises(ci):
    network = tiny(ci=ci)
    network(frames(), sentence(length=6))
    with pytest.raises(ValueError, match="text has 7 tokens; this network takes at most 6"):
        network(frames(), sentence(length=7))


def test_fold_text_projection_keeps_the_output():
    config = TAGS | {"modulation": True}
    network = wake(build_network(config)).eval()
    ids = torch.tensor([[0, 3, 1], [2, 4, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    nn.init.normal_(network.text_projection.bias)
    with torch.inference_mode():
        before = network(frames(), network.embed_tags(ids), mask)
    changed = network.fold_text_projection()
    assert changed == {"text_width": 16} and network.text_width == 16
    with torch.inference_mode():
        assert (network(frames(), network.embed_tags(ids), mask) - before).abs().max() < 1e-5
    assert network.fold_text_projection() == {}
    # what was folded is a network of its own configuration, with no trace of the projection
    again = build_network(config | changed).eval()
    again.load_state_dict(network.state_dict(), strict=True)
    assert not any("text_projection" in key for key in network.state_dict())
    with torch.inference_mode():
        assert torch.equal(
            again(frames(), again.embed_tags(ids), mask),
            network(frames(), network.embed_tags(ids), mask),
        )


def test_fold_text_projection_leaves_sentences_alone():
    network = tiny(text="clip-sentence")
    assert network.fold_text_projection() == {} and isinstance(network.text_projection, nn.Linear)


def test_predict_tags():
    network = build_network(TAGS).eval()
    with torch.inference_mode():
        found = network.predict_tags(frames(3))
        assert found.shape == (3, 5) and found.dtype == torch.float32
        assert ((found > 0) & (found < 1)).all()
        assert torch.allclose(found, network(frames(3), heads=True)[1].sigmoid(), atol=1e-6)
        network.tag_head.bias.copy_(torch.tensor([50.0, -50.0, 0.0, 0.0, 0.0]))
        assert torch.allclose(network.predict_tags(frames(1))[0, :2], torch.tensor([1.0, 0.0]))
    assert not tiny().predicts_tags


def test_state_round_trip():
    config = TAGS | {"stem": "vgg16", "modulation": True, "local_contrast": True, "classes": 3}
    torch.manual_seed(0)
    network, other = wake(build_network(config)).eval(), build_network(config).eval()
    other.load_state_dict(network.state_dict(), strict=True)
    ids = torch.tensor([[0, 1], [2, 3]])
    with torch.inference_mode():
        given, found = (n(frames(), n.embed_tags(ids), heads=True) for n in (network, other))
    assert all(torch.equal(a, b) for a, b in zip(given, found, strict=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ci": "query"}, "ci is 'query'"), ({"stem": "vgg"}, "stem is 'vgg'"),
        ({"text": "clip"}, "text is 'clip'"),
        ({"skip": "sum"}, "skip is 'sum'"), ({"output": "sigmoid"}, "output is 'sigmoid'"),
        ({"kernels": (4, 5, 5)}, "kernel is 4"), ({"vit_heads": 3}, "not a multiple of heads 3"),
        ({"depth": 3}, "does not take this configuration"),
        ({"method": "cmmf"}, "method is 'cmmf'"),
    ],
)  # fmt: skip
def test_wrong_configuration_raises(options, text):
    with pytest.raises(ValueError, match=text):
        build_network(TINY | options)


# ---- gradients

# Weights that change nothing: biases ahead of an instance norm (as in LKAT-GAN), and those of keys,
# ahead of a softmax (resample's is one number for all of a key, which norm_k takes away).
IDLE = re.compile(
    r"(down\d\.(widen|stride)|code\d\.\d+\.(enter|leave|widen|narrow)|attention\.key|norm_k|resample)\.bias$"
)


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({"ci": "text_query"}, set()),
        ({"ci": "image_query", "skip": "add"}, set()),
        ({"ci": "text_key", "output": "clip"}, set()),
        ({"ci": "add"}, set()),
        # without modulation self-attention on the image has no use for text
        ({"ci": "none"}, {"interaction.no_text", "text_projection.weight", "text_projection.bias"}),
        ({"ci": "none", "modulation": True}, set()),
        ({"text": "none", "modulation": True}, set()),
        (TAGS | {"stem": "vgg16", "modulation": True, "local_contrast": True, "classes": 3}, set()),
    ],
    ids=[
        "text_query",
        "image_query",
        "text_key",
        "add",
        "none",
        "none, modulated",
        "no text",
        "like the released one",
    ],
)
def test_gradient_reaches_every_parameter(options, unused):
    """In float64, where a gradient that is zero in theory is far below every other."""
    torch.manual_seed(0)
    network = accelerate(build_network(TINY | options).double())
    if network.modulations is not None:
        wake(network)
    if network.text_source == "clip-tags":
        text = network.embed_tags(torch.tensor([[0, 1, 2], [3, 4, 0]]))
    else:
        text = sentence(length=6).double()
    outputs = [o for o in network(frames().double(), text, heads=True) if o is not None]
    loss = sum((o * torch.randn(o.shape, dtype=o.dtype)).mean() for o in outputs)
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters()}
    assert {name for name, gradient in found.items() if gradient is None} == unused
    sizes = {name: float(g.abs().max()) for name, g in found.items() if g is not None}
    idle = {name for name, size in sizes.items() if size < 1e-14}
    assert idle == {name for name in sizes if IDLE.search(name)}
    assert min(size for name, size in sizes.items() if name not in idle) > 1e-10


# ---- thermal channels and ImageNet


def test_tone_channels_by_hand():
    """Window of 3 in a 5x6 frame: the window is cut at the borders, and its mean is of what is
    left."""
    x = frames(1, 5, 6)
    found = tone_channels(x, window=3)
    assert found.shape == (1, 2, 5, 6) and torch.equal(found[:, :1], x)
    a = x[0, 0].double().numpy()
    for h in range(5):
        for w in range(6):
            near = a[max(0, h - 1) : h + 2, max(0, w - 1) : w + 2]
            want = np.tanh((a[h, w] - near.mean()) / (near.std() + 0.1) / 1.5)
            assert found[0, 1, h, w].item() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (40, 72)], ids=str)
@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 0.7, 1.0])
def test_tone_channels_of_a_flat_frame(value, size):
    found = tone_channels(torch.full((1, 1, *size), value))
    assert found.isfinite().all()
    assert (found[:, 0] == value).all() and found[:, 1].abs().max() < 1e-4


@pytest.mark.parametrize("channels", [1, 2])
def test_load_imagenet_copies_the_stem_and_sums_its_colours(channels):
    torch.manual_seed(0)
    features = feature_layers("vgg16")
    encoder = ImageEncoder(channels, 32, 16, 1, 2, "vgg16")
    encoder.load_imagenet(features)
    given, found = features.state_dict(), encoder.stem.state_dict()
    assert given.keys() == found.keys()
    for key in given.keys() - {"0.weight"}:
        assert torch.equal(given[key], found[key]), key
    grey = frames(1, 16, 16)
    want = features[0](2 * grey.repeat(1, 3, 1, 1))
    assert torch.allclose(encoder.stem[0](grey.repeat(1, channels, 1, 1)), want, atol=1e-5)
    first = found["0.weight"]
    assert torch.equal(first[:, :1].expand_as(first), first)


# ---- training


def batch(
    tags=(("road", "car", "day"), ("tree", "night")),
    captions=("A road at noon.", ""),
    size: int = 32,
) -> Batch:
    generator = torch.Generator().manual_seed(4)
    label = torch.randint(0, 3, (2, size, size), generator=generator)
    label[0, : size // 2] = IGNORE
    return Batch(
        thermal=frames(2, size, size),
        visible=torch.rand(2, 3, size, size, generator=generator) * 2 - 1, label=label,
        tags=[list(t) for t in tags], tagged=torch.tensor([True, False]), captions=list(captions),
        names=["a", "b"],
        positions=[0, 1],
    )  # fmt: skip


@pytest.fixture
def small_vgg(monkeypatch):
    """Random 1x1 convolutions in place of the loss network's pre-trained ones."""
    torch.manual_seed(3)
    stack = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).requires_grad_(False)
    monkeypatch.setattr(perceptual, "load_features", lambda name, folder: stack)
    monkeypatch.setitem(perceptual.TAPS, "vgg16", {"family": (1,), "lpips": (1,)})


ALL = {
    "l1": 1.0,
    "perceptual": 2.0,
    "tv": 0.5,
    "ssim": 3.0,
    "adversarial": 0.1,
    "tags": 0.2,
    "labels": 0.7,
}


def trained_network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(TAGS | {"classes": 3, "modulation": True})


def test_unknown_loss_raises():
    with pytest.raises(
        ValueError,
        match=r"unknown loss gan, l2; expected some of l1, perceptual, tv, ssim, adversarial",
    ):
        CMMFNetMethod(tiny(), {"l1": 1.0, "l2": 1.0, "gan": 1.0})


NOW = StepContext(seed=0, step=0, steps=10)


def losses_of(method: CMMFNetMethod, given: Batch | None = None) -> dict:
    """The generator's losses of one step."""
    name, losses = next(method.training_step(given or batch(), NOW))
    assert name == "generator"
    return losses


def test_losses_are_finite_scalars_times_their_weights(small_vgg):
    network = trained_network()
    vgg = {"perceptual": "vgg16"}
    weighted, plain = (CMMFNetMethod(network, w, **vgg) for w in (ALL, dict.fromkeys(ALL, 1.0)))
    plain.networks["discriminator"].load_state_dict(weighted.networks["discriminator"].state_dict())
    found = []
    for method in (weighted, plain):
        method.networks[
            "discriminator"
        ].eval()  # in training its spectral norms move on with every call
        found.append(losses_of(method))
    assert set(found[0]) == set(ALL)
    for name, weight in ALL.items():
        one, other = found[0][name], found[1][name]
        assert one.shape == () and one.dtype == torch.float32 and one.isfinite() and one.item() != 0
        assert one.item() == pytest.approx(weight * other.item(), rel=1e-5), name
    sum(found[0].values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_a_loss_without_weight_is_left_out_with_its_network():
    method = CMMFNetMethod(trained_network(), {"l1": 1.0, "adversarial": 0.0, "perceptual": 0.0})
    assert (
        list(method.networks) == list(method.optimisers) == ["generator"]
        and method.perceptual is None
    )
    assert list(losses_of(method)) == ["l1"]
    assert [name for name, _ in method.training_step(batch(), NOW)] == ["generator"]


def test_heads_that_nothing_trains_ask_for_no_gradient():
    network = trained_network()
    CMMFNetMethod(network, {"l1": 1.0})
    frozen = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"tag_head", "label_head"}


def test_the_adversarial_loss_waits_for_its_start():
    method = CMMFNetMethod(
        trained_network(), {"l1": 1.0, "adversarial": 0.1}, adversarial_start=0.3
    )
    for step, there in ((2, False), (3, True)):
        parts = dict(method.training_step(batch(), StepContext(0, step, 10)))
        assert ("adversarial" in parts["generator"]) is there and "discriminator" in parts[
            "discriminator"
        ]


def test_tag_loss_is_cross_entropy_of_pictures_whose_tags_are_complete():
    network = trained_network()
    given = batch()
    found = losses_of(CMMFNetMethod(network, {"tags": 1.0}), given)["tags"]
    p = network.predict_tags(given.thermal)[0].double()
    there = torch.tensor([n in given.tags[0] for n in NAMES])
    assert found.item() == pytest.approx(
        -torch.where(there, p, 1 - p).log().sum().item() / 2, rel=1e-5
    )


def test_label_loss_is_cross_entropy_of_labelled_pixels():
    network, given = trained_network(), batch()
    found = CMMFNetMethod(network, {"labels": 1.0}, text_dropout=1.0)
    loss = losses_of(found, given)["labels"]
    tokens, mask = found.text(given, NOW)
    p = network(given.thermal, tokens, mask, heads=True)[2].softmax(dim=1)
    want = []
    for b in range(2):
        for h in range(4):
            for w in range(4):
                label = int(given.label[b, 8 * h + 4, 8 * w + 4])
                if label != IGNORE:
                    want.append(-p[b, label, h, w].log().item())
    assert len(want) == 24 and loss.item() == pytest.approx(np.mean(want), rel=1e-5)
    given.label[:] = IGNORE
    assert losses_of(found, given)["labels"].item() == 0


def rows(method: CMMFNetMethod, given: Batch, seed: int) -> list[set[str]]:
    """The words that the tokens of each picture stand for."""
    tokens, mask = method.text(given, StepContext(seed, 0, 10))
    assert tokens.shape == (2, MAX_TAGS, 12) and mask.shape == (2, MAX_TAGS)
    table = method.networks["generator"].word_vectors
    return [
        {NAMES[int((table == t).all(dim=1).nonzero())] for t in tokens[i][mask[i]]}
        for i in range(2)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_night_keeps_its_word_when_all_text_is_dropped(seed):
    method = CMMFNetMethod(trained_network(), {"l1": 1.0}, text_dropout=1.0)
    assert rows(method, batch(), seed) == [set(), {"night"}]


def test_text_of_a_batch_is_some_of_its_tags_and_always_night():
    method = CMMFNetMethod(trained_network(), {"l1": 1.0}, text_dropout=0.5)
    seen = [rows(method, batch(), seed) for seed in range(60)]
    assert all("night" in night for _, night in seen)
    assert all(day <= {"road", "car", "day"} and night <= {"tree", "night"} for day, night in seen)
    assert 15 < sum(day == set() for day, _ in seen) < 45
    assert any(day == {"road", "car", "day"} for day, _ in seen) and any(
        len(day) in (1, 2) for day, _ in seen
    )
    assert rows(method, batch(), 3) == rows(method, batch(), 3)


def test_text_knows_only_the_networks_words_and_no_more_than_16():
    method = CMMFNetMethod(trained_network(), {"l1": 1.0})
    unknown = batch(tags=(("zebra", "kite"), ("zebra", "road")))
    assert all(
        day == set() and other <= {"road"}
        for day, other in (rows(method, unknown, s) for s in range(5))
    )
    names = tuple(f"thing {i}" for i in range(30))
    network = build_network(TAGS | {"words": (*names, "night")})
    many = CMMFNetMethod(network, {"l1": 1.0})
    tokens, mask = many.text(batch(tags=((*names, "night"), names)), NOW)
    assert mask.shape == (2, MAX_TAGS) and mask.all()
    assert torch.equal(tokens[0, -1], network.word_vectors[-1])  # night is not what is cut off


def test_night_is_no_tag_where_the_network_does_not_know_it():
    method = CMMFNetMethod(
        build_network(TAGS | {"words": ("road", "tree")}), {"l1": 1.0}, text_dropout=1.0
    )
    assert not method.text(batch(), NOW)[1].any()


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_sentences_of_night_pictures_are_kept(dropout):
    asked = []

    def encode(captions):
        asked.append(captions)
        return sentence(), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)

    method = CMMFNetMethod(tiny(), {"l1": 1.0}, text_dropout=dropout)
    method.sentences = encode
    tokens, mask = method.text(batch(), NOW)
    assert asked == [["A road at noon.", DEFAULT_PROMPT]] and torch.equal(tokens, sentence())
    assert mask.sum(dim=1).tolist() == [0 if dropout else 2, 3]


def test_a_sentence_network_keeps_its_prompt_and_the_control_goes_without():
    given = {"method": "cmmfnet"}
    assert CMMFNetMethod.configuration(given)["default_prompt"] == DEFAULT_PROMPT
    own = CMMFNetMethod.configuration(given | {"default_prompt": "a harbour"})
    assert own["default_prompt"] == "a harbour"
    for text in ("none", "learned"):
        assert "default_prompt" not in CMMFNetMethod.configuration(given | {"text": text})
    asked = []

    def encode(captions):
        asked.append(captions)
        return sentence(), torch.ones(2, 4, dtype=torch.bool)

    method = CMMFNetMethod(tiny(default_prompt="a harbour"), {"l1": 1.0})
    method.sentences = encode
    one = batch()
    one.captions = ["", None]  # without a caption; without text
    _, mask = method.text(one, NOW)
    assert asked == [["a harbour", "a harbour"]] and mask.sum(dim=1).tolist() == [4, 0]


def test_network_without_text_gets_none():
    assert CMMFNetMethod(tiny(text="none"), {"l1": 1.0}).text(batch(), NOW) == (None, None)


def test_discriminator_and_generator_learn_apart():
    network = trained_network()
    method = CMMFNetMethod(network, {"adversarial": 1.0})
    judge = method.networks["discriminator"]
    step = method.training_step(batch(), NOW)
    _, losses = next(step)
    losses["adversarial"].backward()
    assert network.last.weight.grad.abs().max() > 0
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())
    network.zero_grad(set_to_none=True)
    name, losses = next(step)
    loss = losses["discriminator"]
    loss.backward()
    assert name == "discriminator" and loss.shape == () and loss.isfinite()
    assert all(p.grad is None for p in network.parameters())
    for name, p in judge.named_parameters():
        # while every logit is within the margin, the last bias is pushed up by the true and down by
        # the made ones alike
        assert p.grad is not None and (name == "layers.8.bias" or p.grad.abs().max() > 0), name


def test_discriminator_is_a_70x70_patchgan_with_spectral_norm():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator()
    thermal = torch.zeros(1, 1, 256, 256, requires_grad=True)
    logits = discriminator(thermal, torch.zeros(1, 3, 256, 256))
    assert logits.shape == (1, 1, 30, 30)
    (gradient,) = torch.autograd.grad(logits[0, 0, 15, 15], thermal)
    seen = gradient[0, 0].nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]
    convolutions = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 5
    for m in convolutions:
        assert torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.15)


def test_discriminator_stays_in_float32_under_autocast():
    judge = PatchDiscriminator()
    with torch.autocast("cpu", torch.bfloat16):
        logits = in_full_precision(judge, batch().thermal, batch().visible.bfloat16())
        assert judge(batch().thermal, batch().visible).dtype == torch.bfloat16
    assert logits.dtype == torch.float32 and logits.shape == (2, 1, 2, 2)


# ---- training with regions


def regions_method(**options) -> CMMFNetMethod:
    torch.manual_seed(0)
    network = build_network(TAGS | {"modulation": True, "regions": True})
    return CMMFNetMethod(
        network, {"l1": 1.0, "tv": 0.0, "ssim": 0.0, "perceptual": 0.0, "regions": 0.5}, **options
    )


def told_batch() -> Batch:
    given = batch()
    given.colours, given.given_tags = [[("red", "car")], []], [["car"], []]
    return given


def test_regions_loss_and_gradients_of_every_part():
    method = regions_method()
    network = method.networks["generator"]
    wake(network)
    for value in network.regions.values:
        nn.init.normal_(value[-1].weight, std=0.2)
    (name, losses), *rest = list(method.training_step(told_batch(), StepContext(0, 0, 10)))
    assert name == "generator" and not rest and set(losses) == {"l1", "regions"}
    assert losses["regions"] > 0
    sum(losses.values()).backward()
    for part in (network.regions, network.interaction):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    assert network.attribute_vectors.grad.abs().sum() > 0


def test_the_spill_loss_compares_with_the_picture_without_things():
    method = regions_method(only_regions=True)
    method.weights = {"spill": 1.0}
    network = method.networks["generator"]
    wake(network)
    for value in network.regions.values:
        nn.init.normal_(value[-1].weight, std=0.2)
    given = told_batch()
    given.label = torch.full_like(given.label, CLASSES.index("road"))
    given.tags = [["car", "night"], ["night"]]
    _, losses = method.colour(given, StepContext(0, 0, 10))
    assert set(losses) == {"spill"} and losses["spill"] > 0
    losses["spill"].backward()
    assert network.regions.values[0][-1].weight.grad.abs().sum() > 0
    given.tags, given.colours, given.given_tags = [["night"]] * 2, [[], []], [[], []]
    assert method.colour(given, StepContext(0, 0, 10))[1]["spill"] == 0  # light is everywhere


def test_the_tokens_are_those_that_are_said():
    method, given = regions_method(text_dropout=1.0), told_batch()
    network, moment = method.networks["generator"], StepContext(0, 3, 10)
    assert (
        method.given_words(given, moment)
        == [[("car", "red")], [("night", None)]]
        == method.given_words(given, moment)
    )
    tokens, mask = method.text(given, moment)
    assert mask.sum(dim=1).tolist() == [1, 1] and tokens.shape == (2, MAX_TAGS, 12 + 1 + 25)
    assert torch.equal(tokens[1, 0, :12], network.word_vectors[3]) and tokens[1, 0, 12] == 1
    assert not torch.equal(tokens[0, 0, :12], network.word_vectors[2])  # it has its colour in it


def test_parts_of_regions_have_their_own_learning_rate():
    method = regions_method(text_learning_rate=5.0, stem_learning_rate=0.2)
    network = method.networks["generator"]
    factors = {
        id(p): group.get("factor", 1.0)
        for group in method.parameter_groups("generator", None)
        for p in group["params"]
    }
    assert {factors[id(p)] for p in [*network.regions.parameters(), network.attribute_vectors]} == {
        5.0
    }
    assert {factors[id(p)] for p in network.image_encoder.stem.parameters()} == {0.2}
    assert factors[id(network.last.weight)] == 1.0
    assert factors.keys() == {id(p) for p in network.parameters() if p.requires_grad}


def test_only_regions_leaves_the_rest_as_it_is():
    method = regions_method(only_regions=True)
    network = method.networks["generator"]
    wake(network)
    for value in network.regions.values:
        nn.init.normal_(value[-1].weight, std=0.2)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith(("regions.", "attribute_vectors")) for name in trained)
    groups = method.parameter_groups("generator", None)
    assert {id(p) for g in groups for p in g["params"]} == {
        id(p) for p in network.parameters() if p.requires_grad
    }
    (_, losses), *_ = list(method.training_step(told_batch(), StepContext(0, 0, 10)))
    sum(losses.values()).backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == trained
    with pytest.raises(ValueError, match="only_regions is true, but the network has none"):
        CMMFNetMethod(build_network(TAGS), {"l1": 1.0}, only_regions=True)


def test_a_regions_loss_needs_regions():
    with pytest.raises(ValueError, match="'regions' has a weight, but the network has no maps"):
        CMMFNetMethod(build_network(TAGS), {"l1": 1.0, "regions": 1.0})


# ---- windows of whole frames


def test_a_window_that_is_the_whole_frame_changes_nothing():
    for options in ({}, {"stem": "vgg16", "modulation": True}):
        network = tiny(**options)
        x = frames(2, 48, 64)
        rows, columns = torch.arange(6), torch.arange(8)
        torch.testing.assert_close(network(x, None, None, rows, columns), network(x))


def test_a_window_is_coloured_with_the_whole_frame_in_view():
    """The colour has the window's size and depends, by the image encoder, on the frame around
    it."""
    network = tiny(stem="vgg16")
    x = frames(1, 64, 64, seed=3)
    rows, columns = torch.arange(2, 5), torch.arange(4, 8)
    colour = network(x, None, None, rows, columns)
    assert colour.shape == (1, 3, 24, 32)
    around = x.clone()
    around[:, :, 40:] = around[:, :, 40:].flip(3)
    assert (network(around, None, None, rows, columns) - colour).abs().max() > 1e-4
    alone = network(x[:, :, 16:40, 32:64])
    assert alone.shape == colour.shape and (alone - colour).abs().max() > 1e-3


def test_the_losses_of_a_window_are_of_its_pixels():
    network = build_network(TAGS | {"modulation": True, "classes": 3}).eval()
    method = CMMFNetMethod(
        network, {"l1": 1.0, "perceptual": 0.0, "tv": 0.0, "ssim": 0.0, "labels": 1.0}, window=16
    )
    given, places = batch(size=48), set()
    for step in range(12):
        moment = StepContext(0, step, 12)
        (_, losses), *_ = list(method.training_step(given, moment))
        part, (whole, rows, columns) = method._windowed(given, moment)
        assert whole is given.thermal and part.visible.shape == (2, 3, 16, 16)
        top, left = 8 * int(rows[0]), 8 * int(columns[0])
        inside = (..., slice(top, top + 16), slice(left, left + 16))
        assert torch.equal(part.visible, given.visible[inside])
        assert torch.equal(part.label, given.label[inside])
        tokens, mask = method.text(given, moment)
        made = network(given.thermal, tokens, mask, rows, columns)
        torch.testing.assert_close(losses["l1"], (made - given.visible[inside]).abs().mean())
        places.add((top, left))
    assert len(places) > 5
    with pytest.raises(ValueError, match="window is 100; expected 0 or a multiple of 8"):
        CMMFNetMethod(network, {"l1": 1.0}, window=100)


def test_micro_batches_of_a_step_have_one_window_each_of_their_own_pictures():
    network = build_network(TAGS).eval()
    method = CMMFNetMethod(
        network, {"l1": 1.0, "perceptual": 0.0, "tv": 0.0, "ssim": 0.0}, window=16
    )
    parts = batch(size=32).split(2)
    alone = [next(method.training_step(part, NOW))[1]["l1"] for part in parts]
    steps = [method.training_step(part, NOW) for part in parts]  # all begun before any is asked
    torch.testing.assert_close([next(step)[1]["l1"] for step in steps], alone)


def test_frozen_words_stay_as_they_are():
    method = regions_method(frozen_words=True)
    network = method.networks["generator"]
    wake(network)
    (_, losses), *_ = list(method.training_step(told_batch(), StepContext(0, 0, 10)))
    losses["l1"].backward()
    kept = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert {"word_vectors", "attribute_vectors"} < kept
    assert all(name.startswith(("regions.", "word_", "attribute_", "tag_")) for name in kept)
    assert network.last.weight.grad is not None
    with pytest.raises(ValueError, match="frozen_words is true, but text is 'none'"):
        CMMFNetMethod(build_network(TINY | {"text": "none"}), {"l1": 1.0}, frozen_words=True)
