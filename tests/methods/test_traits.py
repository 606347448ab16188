"""Traits: what a network is to its callers, from its class, its configuration and graphs."""

from __future__ import annotations

import pytest
import torch
from fake_network import Fake

from cmmfnet.methods import METHODS, build_network
from cmmfnet.methods.traits import SETTINGS, Traits, traits_of
from cmmfnet.weights.files import ModelError, load_model, save_model

TINY = {
    "method": "cmmfnet", "channels": (8, 8, 8), "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 1, 1), "kernels": (3, 3, 3), "global_size": 32, "vit_depth": 1,
    "vit_width": 16, "vit_heads": 2, "text_width": 16, "ci": "image_query",
}  # fmt: skip


def test_a_plain_module_has_the_defaults():
    assert traits_of(torch.nn.Identity()) == Traits()


def test_the_class_gives_the_structure_and_the_configuration_the_settings():
    network = build_network(
        TINY | {"text": "clip-tags", "words": ["car", "road"], "text_length": 16,
                "working_size": 300, "tag_threshold": 0.25, "default_text": "predicted"}
    )  # fmt: skip
    traits = traits_of(network)
    assert traits == Traits(
        multiple_of=8, least_size=256, working_size=300, text_source="clip-tags",
        words=("car", "road"), text_length=16, text_width=16, predicts_tags=True,
        tag_threshold=0.25, default_text="predicted", takes_float32=True, heads=True,
    )  # fmt: skip
    assert traits.takes_names and traits.can_correct and traits.step == 8
    assert not any(hasattr(network, name) for name in set(SETTINGS) - {"least_size"})


def test_every_method_has_traits():
    small = {"pix2pix": {"width": 8}}
    for name in METHODS:
        if name.startswith("cmmfnet"):
            continue
        with torch.device("meta"):
            traits = traits_of(build_network({"method": name} | small.get(name, {})))
        assert traits.text_source == "none" and traits.step >= 1
        assert traits.capturable == (name not in ("palette", "tir2lab"))
    assert traits_of(build_network({"method": "lkatgan"})).step == 256


def test_settings_are_kept_in_the_model_file(tmp_path):
    config = TINY | {"default_prompt": "a street at night"}
    save_model(tmp_path / "m.safetensors", build_network(config), config)
    assert traits_of(load_model(tmp_path / "m.safetensors").network).default_prompt == (
        "a street at night"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"working_size": 10**6}, "working_size is 1000000; expected a whole number from 1 to"),
        ({"working_size": 2.5}, "working_size is 2.5; expected a whole number"),
        ({"least_size": True}, "least_size is True; expected a whole number"),
        ({"tag_threshold": "0.5"}, "tag_threshold is '0.5'; expected a number from 0 to 1"),
        ({"tag_threshold": float("nan")}, "tag_threshold is nan"),
        ({"default_text": "tags"}, "default_text is 'tags'; expected one of none, predicted"),
        ({"default_prompt": ["a"]}, "default_prompt is no text"),
        ({"default_prompt": "x" * 2001}, "default_prompt is no text of at most 2,000"),
        ({"default_prompt": "a", "default_text": "predicted"}, "can have one of them"),
        ({"default_prompt": "a", "text": "none"}, "takes no text"),
    ],
)
def test_settings_of_a_wrong_type_or_range_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build_network(TINY | change)
    network = build_network(TINY | {k: v for k, v in change.items() if k == "text"})
    save_model(tmp_path / "m.safetensors", network, TINY | change)
    with pytest.raises(
        ModelError, match="takes no text" if "text" in change else next(iter(change))
    ):
        load_model(tmp_path / "m.safetensors")


def test_traits_pass_through_the_metadata_of_a_graph():
    traits = traits_of(Fake(default_prompt="car, road", fixed_size=48))
    strings = traits.to_strings()
    assert all(isinstance(value, str) for value in strings.values())
    read = Traits.from_strings(strings)
    assert read.words == ("car", "road", "tree") and read.default_prompt == "car, road"
    assert (read.fixed_size, read.multiple_of, read.predicts_tags) == (48, 16, True)
    old = {k: v for k, v in strings.items() if k not in ("takes_colours", "default_prompt")}
    assert Traits.from_strings(old).default_prompt == ""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("words", '"car"', "words is not a list of strings"),
        ("words", "[1]", "words is not a list of strings"),
        ("words", "[" * 100_000, "words is no JSON"),
        ("multiple_of", "null", "multiple_of is None"),
        ("fixed_size", "0", "fixed_size is 0"),
        ("predicts_tags", "1", "predicts_tags is 1; expected true or false"),
        ("text_source", "clip", "text_source is 'clip'"),
        ("working_size", None, "working_size missing"),
    ],
)
def test_metadata_of_wrong_types_are_value_errors(key, value, message):
    strings = traits_of(Fake()).to_strings() | {key: value}
    with pytest.raises(ValueError, match=message):
        Traits.from_strings({k: v for k, v in strings.items() if v is not None})
