"""Text by region: maps, modulation, targets, and that a network without it stays what it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet.method import CMMFNetMethod
from cmmfnet.methods.cmmfnet.region_losses import (
    colour_loss,
    region_loss,
    region_targets,
    spill_loss,
)
from cmmfnet.methods.cmmfnet.regions import RegionText, WordTokens
from cmmfnet.methods.cmmfnet.training_words import draw_words
from cmmfnet.text.attributes import ATTRIBUTES, attribute_weights
from cmmfnet.text.labels import CLAIMS, CLASSES, PLACES
from cmmfnet.text.prompt import read_prompt
from cmmfnet.text.tags import tag_ids
from cmmfnet.text.vocabulary import WORDS
from cmmfnet.weights.files import load_model, save_model

NAMES = ("road", "tree", "car", "grass", "snow", "night", "day")
SMALL = {
    "method": "cmmfnet", "channels": (8, 12, 16), "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 1, 0),
    "kernels": (5, 5, 3), "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
    "text_width": 16,
    "text_length": 6, "tail": 8, "ci": "image_query", "text": "clip-tags", "words": NAMES,
    "modulation": True,
}  # fmt: skip
IGNORE = 255


def small(**options):
    torch.manual_seed(0)
    return build_network(SMALL | options).eval()


def awake(**options):
    """With the last layers that training would have moved away from zero."""
    network = small(regions=True, **options)
    for value in network.regions.values:
        torch.nn.init.normal_(value[-1].weight, std=0.3)
    return network


def frames(batch: int = 1, side: int = 32) -> torch.Tensor:
    return torch.rand(batch, 1, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def tokens(network, names: list[str], colours: list[str | None] | None = None):
    ids, mask = tag_ids([names], network.words)
    weights = torch.from_numpy(
        np.stack([[attribute_weights(c) for c in colours or [None] * len(names)]])
    )
    return network.embed_tags(ids, weights), mask


# ---- what was there before stays


def test_networks_without_regions_have_no_part_of_it():
    network = small()
    assert network.regions is None and not network.takes_colours
    assert not [key for key in network.state_dict() if "region" in key or "attribute" in key]
    assert network.embed_tags(torch.tensor([[0, 1]])).shape == (1, 2, 16)


def test_regions_leave_what_the_bundled_model_makes_without_them():
    """Taken away, without text, it gives the same bits; new ones added again change nothing even
    with text, as long as words for things still reach the whole frame, too."""
    loaded = load_model("cmmfnet")
    config = {k: v for k, v in loaded.config.items() if not k.startswith("regions")}
    plain = build_network(config).eval()
    plain.load_state_dict(
        {k: v for k, v in loaded.network.state_dict().items() if k in plain.state_dict()}
    )
    torch.manual_seed(0)
    larger, extended = CMMFNetMethod.extended(plain, config, {"method": "cmmfnet", "regions": True})
    asked = {"method": "cmmfnet", "regions": True, "regions_alone": True}
    assert extended == config | {"regions": True}
    assert CMMFNetMethod.extended(plain, config, asked)[1] == loaded.config
    ids, mask = tag_ids([["car", "road", "night"]], plain.words)
    x = frames(1, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.network(x), plain(x)) and torch.equal(larger.eval()(x), plain(x))
        before = plain(x, plain.embed_tags(ids), mask)
        assert torch.equal(larger(x, larger.embed_tags(ids), mask), before)
        assert not torch.equal(loaded.network(x, loaded.network.embed_tags(ids), mask), before)


def test_extending_changes_nothing_where_nothing_is_asked_for():
    network = small()
    assert CMMFNetMethod.extended(network, {"a": 1}, {}) == (network, {"a": 1})
    larger = small(regions=True)
    assert CMMFNetMethod.extended(larger, {"regions": True}, {"regions": True})[0] is larger


def test_regions_need_words():
    with pytest.raises(ValueError, match="regions need words"):
        small(regions=True, text="clip-sentence", words=())


def test_a_saved_network_with_regions_comes_back(tmp_path):
    network = awake()
    path = save_model(
        tmp_path / "m.safetensors", network, SMALL | {"regions": True, "words": list(NAMES)}
    )
    again = load_model(path).network
    said = tokens(network, ["car", "night"], ["red", None])
    with torch.inference_mode():
        assert torch.allclose(again(frames(), *said), network(frames(), *said), atol=1e-5)


def test_folding_the_projection_keeps_colours():
    network = awake(text_width=12)
    said = tokens(network, ["car", "tree"], ["dark red", None])
    with torch.inference_mode():
        before = network(frames(), *said)
        assert network.fold_text_projection() == {"text_width": 16}
        after = network(frames(), *tokens(network, ["car", "tree"], ["dark red", None]))
    assert (before - after).abs().max() < 1e-4


# ---- maps


def test_maps_of_things_share_a_position_and_light_is_everywhere():
    network = awake()
    text, mask = tokens(network, ["car", "tree", "night"])
    with torch.inference_mode():
        _, _, _, levels = network(frames(), text, mask, heads=True, maps=True)
        assert [tuple(x.shape) for x in levels] == [(1, 4, 4, 4), (1, 4, 8, 8), (1, 4, 16, 16)]
        share = network.regions.maps(levels[-1], network.word_tokens(text, mask))
    assert (share[:, 2] == 1).all()
    assert ((share[:, :2].sum(dim=1) < 1) & (share[:, :2] >= 0).all(dim=1)).all()


def test_words_change_the_colours_and_so_do_their_colours():
    network = awake()
    with torch.inference_mode():
        plain, car, red, blue = (
            network(frames(), *said) if said else network(frames())
            for said in (
                None,
                tokens(network, ["car"]),
                tokens(network, ["car"], ["red"]),
                tokens(network, ["car"], ["blue"]),
            )
        )
    for a, b in ((plain, car), (car, red), (red, blue)):
        assert (a - b).abs().max() > 1e-3


def test_padding_and_order_do_not_matter():
    network = awake()
    text, mask = tokens(network, ["car", "tree"], ["red", None])
    padded = torch.cat([text, torch.full_like(text[:, :2], float("nan"))], dim=1)
    with torch.inference_mode():
        want = network(frames(), text, mask)
        assert torch.allclose(
            network(frames(), padded, torch.nn.functional.pad(mask, (0, 2))), want, atol=1e-5
        )
        assert torch.allclose(
            network(frames(), *tokens(network, ["tree", "car"], [None, "red"])), want, atol=1e-5
        )


def test_a_given_place_moves_the_map_there():
    network = awake()
    text, mask = tokens(network, ["car", "tree"])
    places = torch.zeros(1, 2, 32, 32)
    places[:, 0] = -1
    places[:, 0, 8:24, 8:24] = 1
    with torch.inference_mode():
        *_, levels = network(frames(), text, mask, heads=True, maps=True, places=places)
        share = network.regions.maps(levels[-1], network.word_tokens(text, mask, places))[0, 0]
    assert share[5:11, 5:11].min() > 0.9 and share[:3].max() < 0.1 and share[:, 13:].max() < 0.1


def test_a_fresh_module_is_the_identity():
    module = RegionText(8, (4, 6), 5)
    said = WordTokens(
        torch.randn(2, 3, 8),
        torch.zeros(2, 3, dtype=torch.bool),
        torch.zeros(2, 3, 25),
        torch.ones(2, 3).bool(),
    )
    x, last = torch.randn(2, 4, 5, 5), torch.randn(2, 5, 20, 20)
    assert torch.equal(module(x, said), x) and len(said.levels) == 1
    assert torch.equal(module.finish(last, said), last)


def test_the_label_head_says_where_a_word_may_be():
    """Features that know nothing: what is left is the label head's share of each word's classes."""
    network = small(regions=True, classes=len(CLASSES))
    for key in network.regions.keys:
        torch.nn.init.zeros_(key[-1].weight)
        torch.nn.init.zeros_(key[-1].bias)
    labels = torch.full((1, len(CLASSES), 1, 4), -20.0)
    for column, name in enumerate(("car", "vegetation", "road", "grass")):
        labels[0, CLASSES.index(name), 0, column] = 5
    for names, want in (
        (["car", "tree"], [[1, 0, 0, 0], [0, 1, 0, 0]]),
        (["snow"], [[0, 0, 1, 1]]),  # it claims grass and road
        (["snow", "grass"], [[0, 0, 1, 1 / 6], [0, 0, 0, 5 / 6]]),
    ):
        said = network.word_tokens(*tokens(network, names))
        found = network.regions.maps(
            network.regions.logits(torch.zeros(1, 16, 1, 4), said, labels), said
        )
        assert torch.allclose(found[0, :, 0], torch.tensor(want, dtype=torch.float32), atol=0.02)


# ---- targets


def label_of(*names: str) -> torch.Tensor:
    """(1, 1, N): one pixel a class."""
    return torch.tensor([[[CLASSES.index(name) if name else IGNORE for name in names]]])


def targets(names: list[str], label: torch.Tensor, length: int = 4) -> torch.Tensor:
    return region_targets(label, [names], length, IGNORE)[0][0, :, 0]


def test_a_pixel_goes_to_the_word_of_its_class_else_to_none():
    found = targets(["car", "tree"], label_of("car", "vegetation", "road"))
    assert found.T.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_words_of_one_class_share_it_and_snow_claims_only_free_ground():
    assert targets(["tree", "leaves"], label_of("vegetation"))[:, 0].tolist() == [0, 0.5, 0.5, 0, 0]
    for ground in ("grass", "terrain", "road", "pavement", "roof"):
        assert targets(["snow"], label_of(ground))[:, 0].tolist() == [0, 1, 0, 0, 0]
    for ground in ("car", "building", "vegetation"):
        assert targets(["snow"], label_of(ground))[:, 0].tolist() == [1, 0, 0, 0, 0]
    named = targets(["grass", "snow"], label_of("grass", "road"))
    assert named.T.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]


def test_names_and_claims_are_of_the_vocabulary():
    assert set(PLACES) <= set(WORDS) and set(CLAIMS) <= set(PLACES)
    assert {number for places in PLACES.values() for number in places} == set(
        range(1, len(CLASSES) - 1)
    )


def test_unlabelled_pixels_weigh_nothing_and_rare_classes_more():
    label = label_of("road", "road", "road", "car", "")
    _, weight, known = region_targets(label, [["car"]], 1, IGNORE)
    assert (
        weight[0, 0, 4] == 0 and weight[0, 0, 3] > weight[0, 0, 0] > 0 and known.tolist() == [True]
    )
    assert region_targets(label_of("", ""), [["car"]], 1, IGNORE)[2].tolist() == [False]


def test_the_loss_is_least_for_the_right_map_and_zero_without_labels():
    label = torch.full((1, 8, 8), CLASSES.index("road"))
    label[:, 4:] = CLASSES.index("car")
    mask, light = torch.tensor([[True, True]]), torch.tensor([[False, True]])
    right = torch.zeros(1, 3, 4, 4)
    right[:, 0, :2], right[:, 1, 2:] = 9, 9
    loss = [
        float(region_loss([x], label, [["car", "night"]], mask, light, IGNORE))
        for x in (right, torch.zeros_like(right), right.flip(2))
    ]
    assert loss[0] < 0.01 < loss[1] < loss[2]
    assert region_loss([right], torch.full_like(label, IGNORE), [["car"]], mask, light, IGNORE) == 0


# ---- what is said


def said(
    seed: int,
    drop: bool = False,
    labelled: bool = True,
    given_tags=("snow",),
    colours=(("red", "car"),),
    most: int = 16,
):
    rng = np.random.default_rng(seed)
    return draw_words(
        rng,
        ["snow", "car", "road"],
        colours,
        given_tags,
        WORDS,
        drop=drop,
        labelled=labelled,
        most=most,
    )


def test_told_names_are_always_said_with_their_colour():
    for seed in range(40):
        assert ("snow", None) in said(seed)
        assert said(seed, drop=True) == [("snow", None)]
        assert said(seed, drop=True, given_tags=("car",)) == [("car", "red")]
        assert ("snow", None) in said(seed, most=1)


def test_absent_names_are_said_only_where_labels_show_that_they_are_absent():
    known = {name for seed in range(60) for name, _ in said(seed)}
    unknown = {name for seed in range(60) for name, _ in said(seed, labelled=False)}
    assert unknown == {"snow", "car", "road"} and len(known) > 8
    there = {number for name in ("snow", "car", "road") for number in PLACES[name]}
    for name in known - {"snow", "car", "road"}:
        assert not there & {*PLACES.get(name, ()), *CLAIMS.get(name, ())}


def test_colours_are_said_sometimes():
    colours = [dict(said(seed, given_tags=())).get("car") for seed in range(60)]
    assert 5 < colours.count("red") < 45


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a red car", {"car": "red"}),
        ("a bare tree", {"tree": "bare"}),
        ("trees without leaves", {"tree": "bare"}),
        ("leafless trees and a dark green hedge", {"tree": "bare", "bush": "dark green"}),
        ("a tree with leaves", {"tree": "green", "leaves": "green"}),
        ("a tree with yellow leaves", {"tree": "yellow", "leaves": "yellow"}),
        ("a red tree, leaves", {"tree": "red", "leaves": "red"}),
        ("fallen leaves by a brown tree and yellow leaves", {"leaves": "yellow", "tree": "brown"}),
    ],
)
def test_what_a_text_says_of_a_name(text, want):
    prompt = read_prompt(text)
    assert dict(zip(prompt.names(), prompt.colours_of(prompt.names()), strict=True)) == want


def test_attribute_weights():
    assert attribute_weights(None).sum() == 0
    half = dict(zip(ATTRIBUTES, attribute_weights("pale blue-grey"), strict=True))
    assert {k: v for k, v in half.items() if v} == {"blue": 0.5, "grey": 0.5, "pale": 1.0}
    assert attribute_weights("bare")[ATTRIBUTES.index("bare")] == 1


@pytest.mark.parametrize(
    ("colour", "low", "high"), [("green", 20, 50), ("orange", 6, 34), ("bare", 0, 0)]
)
def test_trees_have_leaves_of_their_colour_now_and_then(colour, low, high):
    rng = np.random.default_rng(0)
    rows = [
        dict(
            draw_words(
                rng,
                ["tree"],
                [(colour, "tree")],
                ["tree"],
                WORDS,
                drop=True,
                labelled=False,
                most=16,
            )
        )
        for _ in range(60)
    ]
    leafy = [row for row in rows if "leaves" in row]
    assert low <= len(leafy) <= high and all(set(row.values()) == {colour} for row in rows)


def test_a_change_outside_of_the_words_regions_is_spill():
    label = torch.full((1, 32, 32), IGNORE)
    label[:, :, :8], label[:, :, 8:16] = CLASSES.index("car"), CLASSES.index("road")
    plain = torch.zeros(1, 3, 32, 32)
    for columns, names, spill in (
        (slice(0, 8), ["car"], 0), (slice(8, 16), ["car"], 0.4), (slice(16, 32), ["car"], 0),
        (slice(8, 16), ["car", "road"], 0), (slice(0, 8), [], 3 * 0.2),
    ):  # fmt: skip
        made = plain.clone()
        made[..., columns] = 0.4
        assert spill_loss(made, plain, label, [names], 4, IGNORE) == pytest.approx(spill, abs=1e-6)


@pytest.mark.parametrize(("columns", "weight"), [(16, 1), (8, 1.732), (2, 3)])
def test_what_spills_around_a_small_thing_weighs_more(columns, weight):
    label = torch.full((1, 32, 32), CLASSES.index("road"))
    label[:, :, :columns] = CLASSES.index("car")
    plain = torch.zeros(1, 3, 32, 32)
    spilt = spill_loss(plain + 0.4, plain, label, [["car"]], 4, IGNORE)
    assert spilt == pytest.approx(0.4 * weight, rel=1e-3)


def test_mean_colours_of_regions_count_alike_whatever_their_size():
    label = torch.full((1, 32, 32), IGNORE)
    label[:, :, :8], label[:, :, 8:] = CLASSES.index("car"), CLASSES.index("road")
    true = torch.zeros(1, 3, 32, 32)
    for where in (slice(0, 8), slice(8, 32)):
        made = true.clone()
        made[..., where] += 0.4
        assert colour_loss(made, true, label, [["car", "road"]], 4, IGNORE) == pytest.approx(
            0.2, abs=1e-5
        )
    assert colour_loss(made, true, label, [["tree"]], 4, IGNORE) == 0
    noise = torch.randn(1, 3, 32, 32)
    noise -= noise.mean(dim=3, keepdim=True)
    assert (
        colour_loss(noise, true, torch.full_like(label, CLASSES.index("car")), [["car"]], 4, IGNORE)
        < 1e-5
    )


def test_each_class_of_a_word_is_a_region_of_its_own():
    """A little snow on a roof counts as much as all the snow on the ground."""
    label = torch.full((1, 32, 32), CLASSES.index("grass"))
    label[:, :4] = CLASSES.index("roof")
    true = torch.zeros(1, 3, 32, 32)
    made = true.clone()
    made[:, :, :4] += 0.4
    for names, loss in ((["snow"], 0.2), (["roof"], 0.4), (["grass"], 0.0), (["car"], 0.0)):
        assert colour_loss(made, true, label, [names], 4, IGNORE) == pytest.approx(loss, abs=1e-5)


def test_words_for_things_can_be_kept_to_their_regions():
    """Where no map has them, they change nothing, while words for light still do."""
    for alone in (False, True):
        network = awake(regions_alone=alone)
        for module in network.modulations:
            torch.nn.init.normal_(module.linear.weight, std=0.1)
        with torch.inference_mode():
            nowhere = network.regions.maps
            network.regions.maps = lambda logits, tokens: torch.zeros_like(logits[:, 1:])
            plain, car, night = (
                network(frames(), *said) if said else network(frames())
                for said in (None, tokens(network, ["car"]), tokens(network, ["night"]))
            )
            network.regions.maps = nowhere
            in_its_region = network(frames(), *tokens(network, ["car"]))
        assert torch.allclose(car, plain, atol=1e-5) == alone
        assert not torch.allclose(night, plain, atol=1e-3)
        assert not torch.allclose(in_its_region, plain, atol=1e-3)
