"""The small network: its contract, the stem in factors, its training, and the pairs that a teacher
makes for it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cmmfnet import Colorizer
from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.scenes import write_pairs
from cmmfnet.data.source import Source
from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet.interaction import tone_channels
from cmmfnet.methods.cmmfnet.network import CMMFNet
from cmmfnet.methods.cmmfnet_small.method import CMMFNetSmallMethod
from cmmfnet.methods.cmmfnet_small.network import CMMFNetSmall, tones
from cmmfnet.methods.cmmfnet_small.stem import FactoredStem
from cmmfnet.methods.method import StepContext
from cmmfnet.nn.perceptual import Cropped, feature_layers
from cmmfnet.training import checkpoint, distilled, small_start
from cmmfnet.training.recipe import Recipe
from cmmfnet.training.train import train
from cmmfnet.weights.files import save_model

SMALL = {
    "method": "cmmfnet-small", "ranks": [2] * 13, "channels": [8, 8, 8, 8], "blocks": [1, 1, 1, 1],
    "tail": 4,
    "global_size": 32, "words": ["day", "night", "road"],
}  # fmt: skip
LOSSES = {"l1": 1.0}
OPTIONS = {"teacher": ""}
SIZE = 32


def network(**changes) -> CMMFNetSmall:
    torch.manual_seed(0)
    return build_network(SMALL | changes).eval()


def frames(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- the network


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (40, 72), (64, 24)])
def test_any_multiple_of_8_gives_a_picture_of_its_size(size):
    out = network()(frames(2, 1, *size))
    assert out.shape == (2, 3, *size) and out.abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 1, 12, 16), (1, 3, 16, 16), (1, 16, 16)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        network()(frames(*shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"ranks": [2] * 12}, "12 numbers"), ({"global_size": 40}, "multiple of 16"),
     ({"text": "clip-sentence"}, "clip-tags")],
)  # fmt: skip
def test_a_configuration_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


def with_text_that_matters(**changes) -> CMMFNetSmall:
    net = network(**changes)
    for module in (*(each.linear for each in net.modulations), *net.colours):
        nn.init.normal_(module.weight, std=0.5)
    return net


def test_masked_text_is_no_text_whatever_stands_in_it():
    net, x = with_text_that_matters(), frames(2, 1, 32, 32)
    text = torch.full((2, 3, net.text_width), torch.nan)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(net(x, text, mask), net(x))


def test_each_word_has_its_effect_on_its_own_frame():
    net, x = with_text_that_matters(), frames(1, 1, 32, 32).expand(3, -1, -1, -1)
    out = net(x, net.embed_tags(torch.tensor([[0], [1], [1]])), torch.ones(3, 1, dtype=torch.bool))
    assert torch.allclose(out[1], out[2], atol=1e-6) and (out[0] - out[1]).abs().max() > 1e-3


def test_without_text_there_is_no_table():
    net, x = network(text="none", words=[]), frames(1, 1, 32, 32)
    assert not hasattr(net, "word_vectors") and net(x).shape == (1, 3, 32, 32)


def test_tones_are_those_of_the_released_model_nearly():
    coarse = nn.functional.interpolate(frames(2, 1, 9, 11), (128, 160), mode="bicubic").clamp(-1, 1)
    mine, theirs = tones(coarse), tone_channels(coarse, window=33)
    assert torch.equal(mine[:, 0], theirs[:, 0])
    assert (mine - theirs).abs().mean() < 0.05


# --- the stem in factors


@pytest.fixture(scope="module")
def stem() -> nn.Sequential:
    torch.manual_seed(2)
    layers = feature_layers("vgg16")
    layers[0] = nn.Conv2d(2, 64, 3, padding=1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers.requires_grad_(False)


def whole_maps(stem: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for layer in stem:
        if isinstance(layer, nn.MaxPool2d):
            maps.append(x)
        x = layer(x)
    return [*maps, x]


def test_ranks_of_0_are_the_whole_stem(stem):
    mine, x = FactoredStem(2, [0] * 13), frames(1, 2, 32, 32)
    assert max(mine.fit(stem, x)) < 1e-9
    for a, b in zip(mine(x), whole_maps(stem, x), strict=False):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_more_rank_loses_less_and_less_than_the_mean(stem):
    x = frames(2, 2, 32, 32)
    lost = [FactoredStem(2, [0, rank, *[0] * 11]).fit(stem, x)[1] for rank in (2, 16, 64)]
    assert 1 > lost[0] > lost[1] > lost[2]
    assert lost[2] < 1e-3  # as many as the layer has outputs


def test_the_last_factor_makes_good_what_was_lost_before(stem):
    x = frames(2, 2, 32, 32)
    mine = FactoredStem(2, [0, 8, 16, *[0] * 10])
    fitted = mine.fit(stem, x)[2]
    target = stem[5](stem[4](stem[3](stem[2](stem[1](stem[0](x))))))
    entered = nn.functional.max_pool2d(mine.layers[1](mine.layers[0](x)), 2)
    values = target.transpose(0, 1).flatten(1)
    values = values - values.mean(dim=1, keepdim=True)
    basis = torch.linalg.eigh((values @ values.T).double())[1][:, -16:].float()
    plain = torch.einsum("or,brhw->bohw", basis, mine.layers[2][0](entered))
    plain = plain + (target - plain).mean(dim=(0, 2, 3), keepdim=True)
    assert fitted < float(((plain - target).var() / target.var()).detach())


# --- its training


def method(net: CMMFNetSmall | None = None, **options) -> CMMFNetSmallMethod:
    return CMMFNetSmallMethod(net or network(), LOSSES, **(OPTIONS | options))


def test_a_fresh_network_takes_over_the_stem_of_the_teacher(monkeypatch, tmp_path):
    teacher = {"method": "cmmfnet", "stem": "vgg16", "local_contrast": True, "global_size": 32,
               "vit_depth": 1, "vit_width": 16,
               "vit_heads": 2, "channels": [8, 8, 8], "encoder_blocks": [0, 0, 0],
               "decoder_blocks": [0, 0, 0],
               "text": "none"}  # fmt: skip
    torch.manual_seed(3)
    net = build_network(teacher)
    save_model(tmp_path / "teacher.safetensors", net, teacher)
    monkeypatch.setattr(small_start, "rendered", lambda side: frames(2, 1, side, side))
    pupil = network(ranks=[0] * 13)
    small_start.start(method(pupil, teacher=str(tmp_path / "teacher.safetensors")))
    x = frames(2, 1, 32, 32)
    mine, theirs = pupil.stem(tones(x)), whole_maps(net.image_encoder.stem, tones(x))
    assert all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(mine, theirs, strict=False)
    )


def test_a_teacher_without_a_stem_is_refused(tmp_path):
    config = SMALL
    save_model(tmp_path / "no.safetensors", network(), config)
    with pytest.raises(ValueError, match="has no VGG-16 stem"):
        small_start.start(method(teacher=str(tmp_path / "no.safetensors")))


def test_readouts_explain_colours_that_follow_from_the_frame():
    """The colours here are the frame's own levels, as the stem's first map after a halving has
    them."""
    net = network(ranks=[0] * 13)
    with torch.no_grad():
        for layer in net.stem.layers:
            nn.init.kaiming_normal_(layer[0].weight, nonlinearity="relu")
    thermal = nn.functional.interpolate(frames(24, 1, 8, 8), (32, 32), mode="bilinear")
    colour = (
        ((thermal * 0.5 + torch.tensor([0.1, 0.0, -0.2]).view(1, 3, 1, 1) + 1) * 127.5)
        .round()
        .byte()
    )
    before = (net(thermal) - (colour / 127.5 - 1)).abs().mean()
    errors = small_start.fit_readouts(net, thermal, colour)
    assert (net(thermal) - (colour / 127.5 - 1)).abs().mean() < 0.5 * before
    assert errors[0] < 0.1


def test_a_folder_to_fit_on_gives_a_fresh_network_its_colours(school, tmp_path, stem, monkeypatch):
    arguments, _ = school
    distilled.write_distilled(tmp_path / "out", count=4, night=0.0, **arguments)
    monkeypatch.setattr(small_start, "stem_of", lambda teacher: stem)
    pupil = network(ranks=[0] * 13)
    small_start.start(method(pupil, teacher="any", fit=str(tmp_path / "out")))
    assert all(readout.weight.abs().max() > 0 for readout in pupil.readouts)
    assert torch.isfinite(pupil(frames(1, 1, 32, 32))).all()


def test_frozen_layers_have_no_gradient_and_the_rest_of_the_stem_its_own_rate():
    one = method(frozen=2, stem_learning_rate=0.3)
    net = one.networks["generator"]
    assert not any(p.requires_grad for p in net.stem.layers[:2].parameters())
    groups = one.parameter_groups("generator", Recipe(SMALL, LOSSES, [Source(".")], steps=1))
    in_groups = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert set(in_groups) == {id(p) for p in net.parameters() if p.requires_grad}
    assert {in_groups[id(p)] for p in net.stem.layers[2:].parameters()} == {0.3}
    assert {in_groups[id(p)] for p in net.stages.parameters()} == {1.0}


def test_night_is_always_said_and_other_words_at_times():
    one = method(text_dropout=0.5)
    said = [
        one._given_tags(["road", "night", "unheard-of"], position, StepContext(0, 0, 1))
        for position in range(60)
    ]
    assert all(words[0] == "night" and set(words) <= {"night", "road"} for words in said)
    assert 5 < sum("road" in words for words in said) < 55
    assert method(text_dropout=1.0)._given_tags(["road"], 0, StepContext(0, 0, 1)) == []


def test_a_fresh_configuration_knows_every_word():
    assert "night" in CMMFNetSmallMethod.configuration({"method": "cmmfnet-small"})["words"]
    assert "words" not in CMMFNetSmallMethod.configuration(
        {"method": "cmmfnet-small", "text": "none"}
    )


def test_a_cropped_distance_sees_one_square_of_both():
    seen = []
    distance = Cropped(lambda x, y: seen.append((x, y)), 8)
    x = frames(2, 3, 32, 40)
    distance(x, x)
    distance(x[..., :4, :4], x[..., :4, :4])
    assert (
        seen[0][0].shape == (2, 3, 8, 8)
        and torch.equal(*seen[0])
        and seen[1][0].shape == (2, 3, 4, 4)
    )


def test_it_trains_resumes_exactly_and_colours(school, tmp_path):
    arguments, _ = school
    recipe = replace(
        arguments["config"], model=SMALL, options=OPTIONS, steps=2, batch_size=2, log_every=1
    )
    for out, more in (("straight", {}), ("parts", {"max_steps": 1}), ("parts", {})):
        torch.manual_seed(99)
        train(
            config=recipe,
            data=arguments["data"],
            out=tmp_path / out,
            device="cpu",
            workers=0,
            **more,
        )
    one, two = (checkpoint.load(tmp_path / out / "step-2.pt") for out in ("straight", "parts"))
    for part in ("networks", "ema"):
        a, b = (x[part].get("generator", x[part]) for x in (one, two))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    before = network().state_dict()
    assert any(
        not torch.equal(before[key], value) for key, value in one["networks"]["generator"].items()
    )
    colorizer = Colorizer.from_pretrained(tmp_path / "straight" / "model.safetensors", device="cpu")
    frame = np.random.default_rng(0).integers(0, 255, (45, 70), dtype=np.uint8)
    assert colorizer(frame, text="night").shape == (45, 70, 3)


# --- pairs made by a teacher


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A folder of scenes, and a teacher that knows "night"."""
    root = tmp_path_factory.mktemp("school")
    write_pairs(root / "scenes", 5, seed=1, size=(64, 80))
    config = {"method": "cmmfnet", "global_size": 32, "vit_depth": 1, "vit_width": 16,
              "vit_heads": 2, "channels": [8, 8, 8],
              "encoder_blocks": [0, 0, 0], "decoder_blocks": [0, 0, 0], "text": "clip-tags",
              "text_width": 16, "modulation": True,
              "words": ["night"], "ci": "image_query"}  # fmt: skip
    torch.manual_seed(4)
    teacher: CMMFNet = build_network(config)
    for modulation in teacher.modulations:
        nn.init.normal_(modulation.linear.weight)
    save_model(root / "teacher.safetensors", teacher, config)
    recipe = Recipe(
        {"method": "cmmfnet-small"},
        LOSSES,
        [Source("scenes", split="train")],
        steps=1,
        size=32,
    )
    return {"config": recipe, "data": str(root), "teacher": str(root / "teacher.safetensors"),
            "batch_size": 2,
            "device": "cpu"}, teacher.eval()  # fmt: skip


def test_the_colours_are_the_teachers(school, tmp_path):
    arguments, teacher = school
    index = distilled.write_distilled(tmp_path / "out", count=4, night=0.0, **arguments)
    pairs = Pairs(tmp_path / "out", "train")
    assert len(pairs) == 4 == len(index.read_text().splitlines())
    for pair in (pairs[i] for i in range(4)):
        thermal = torch.from_numpy(np.array(pair.thermal)).float()[None, None] / 127.5 - 1
        text = mask = None
        if pair.meta["lighting"] == "night":
            text, mask = teacher.embed_tags(torch.tensor([[0]])), torch.ones(1, 1, dtype=torch.bool)
        with torch.inference_mode():
            expected = ((teacher(thermal, text, mask)[0] + 1) * 127.5).permute(1, 2, 0).numpy()
        # 8-bit frames, and the teacher's arithmetic in bfloat16
        assert np.abs(pair.visible - expected).mean() < 4


def test_the_frames_have_the_shapes_of_the_recipe(school, tmp_path):
    arguments, _ = school
    narrow = arguments["config"]
    sources = [replace(source, zoom=(0.9, 1.1)) for source in narrow.sources]
    wide = replace(narrow, shapes=((32, 48),), sources=sources)
    found = [
        distilled.write_distilled(tmp_path / str(workers), count=4, workers=workers, **arguments
                                  | {"config": wide}).read_text()
        for workers in (0, 1)
    ]  # fmt: skip
    assert found[0] == found[1]
    pairs = Pairs(tmp_path / "0", "train")
    assert [pairs[i].visible.shape for i in range(4)] == [(32, 48, 3)] * 4


def test_some_frames_are_coloured_by_night_and_say_so(school, tmp_path):
    arguments, _ = school
    distilled.write_distilled(tmp_path / "out", count=4, night=1.0, **arguments)
    assert [json.loads(line)["lighting"] for line in (tmp_path / "out" / "index.jsonl").open()] == [
        "night"
    ] * 4


def test_it_goes_on_where_it_was_stopped(school, tmp_path):
    arguments, _ = school
    straight = distilled.write_distilled(tmp_path / "straight", count=4, **arguments)
    distilled.write_distilled(tmp_path / "parts", count=2, **arguments)
    parts = distilled.write_distilled(tmp_path / "parts", count=4, **arguments)
    assert straight.read_text() == parts.read_text()
    for file in (tmp_path / "straight").rglob("*.png"):
        assert (
            file.read_bytes()
            == (tmp_path / "parts" / file.relative_to(tmp_path / "straight")).read_bytes()
        )
    with pytest.raises(PairsError, match="no multiple of 3"):
        distilled.write_distilled(tmp_path / "parts", count=6, **(arguments | {"batch_size": 3}))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"night": 1.5}])
def test_a_request_out_of_range_is_refused(school, tmp_path, wrong):
    with pytest.raises(ValueError, match="expected 1 or more, and 0 to 1"):
        distilled.write_distilled(tmp_path / "out", **({"count": 2} | school[0] | wrong))
