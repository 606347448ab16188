"""Recipes: what is refused, the learning rate over time, and the YAML files of configs/."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cmmfnet.data.fields import RecipeError
from cmmfnet.data.source import Source
from cmmfnet.training.recipe import Recipe, find_config, read_recipe

CONFIGS = Path(__file__).parents[2] / "configs"


def recipe(**changes) -> Recipe:
    basic = {
        "model": {"method": "cmmfnet"},
        "losses": {"l1": 1.0},
        "sources": [Source("pairs")],
        "steps": 100,
    }
    return Recipe(**(basic | changes))


def read(name: str) -> Recipe:
    return read_recipe(CONFIGS / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "schedule is 'cosin'; expected one of constant, linear, cosine"),
        ({"precision": "int8"}, "precision is 'int8'; expected one of no, bf16, fp16"),
        ({"precision": False}, "precision is False; expected one of"),
        ({"epochs": 2}, "epochs is 2; give one of the two"),
        ({"optimiser": "sgd"}, "optimiser is 'sgd'; expected one of adam, adamw"),
        ({"training": "mine"}, "training is 'mine'; expected one of null, matched"),
        ({"accumulate": 0}, "accumulate is 0; expected a whole number from 1 to 65,536"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1 to 1,000,000,000 or null"),
        ({"steps": 1.5}, "steps is 1.5; expected a whole number"),
        ({"steps": True}, "steps is True; expected a whole number"),
        ({"epochs": float("inf"), "steps": None}, "epochs is inf; expected a number above 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10**9}, "batch_size is 1000000000; expected a whole number from 1 to"),
        ({"save_every": 0}, "save_every is 0"),
        ({"sheet_every": -1}, "sheet_every is -1"),
        ({"log_every": "often"}, "log_every is 'often'; expected a whole number"),
        ({"validation_pictures": 0}, "validation_pictures is 0"),
        ({"validation": "pairs"}, "validation is 'pairs'; expected keys and values or null"),
        ({"size": 100}, "size is 100; expected a multiple of 8"),
        ({"shapes": ((64, 100),)}, "shapes are .*100.*; expected multiples of 8"),
        ({"shapes": ((64, 8),)}, "shapes is .*; expected a list of a list of 2 values, each"),
        ({"shapes": ((64, 96),)}, "pairs has no zoom and the recipe has shapes; expected both"),
        (
            {"sources": [{"folder": "pairs", "zoom": (1.0, 1.0)}]},
            "pairs has a zoom and .* no shapes",
        ),
        ({"size": 10**9}, "size is 1000000000; expected a whole number from 16 to 4,096"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number above 0 to 10"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": 10**400}, "learning_rate is 1"),
        ({"warmup": -3}, "warmup is -3; expected a whole number from 0 to 1,000,000,000"),
        ({"betas": (0.9, 1.0)}, "betas is .0.9, 1.0.; expected a list of 2 values, each a number"),
        ({"betas": (0.9,)}, "betas is .0.9,.; expected a list of 2"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected a number from 0 to 10"),
        ({"clip_norm": -1}, "clip_norm is -1"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"ema": 1.0}, "ema is 1.0; expected a number from 0 to below 1"),
        ({"milestones": (0.5, 1.5)}, "milestones is"),
        ({"model": "cmmfnet"}, "model is 'cmmfnet'; expected keys and values"),
        ({"options": []}, "options is"),
        ({"losses": {}}, "at least one needs a weight"),
        ({"losses": {"l1": 0.0}}, "at least one needs a weight"),
        ({"losses": {"l1": -1.0}}, "losses is {'l1': -1.0}; expected keys with a number from 0"),
        ({"losses": {"l1": "much"}}, "losses is"),
        ({"sources": []}, "sources is empty; name at least one folder"),
        ({"sources": [{"folder": "a", "share": (1, -1)}]}, "share of a is .1, -1.; expected"),
        (
            {"sources": [{"folder": "a", "share": (1, 0)}, {"folder": "b", "share": (1, 0)}]},
            "may not all be 0 at the start or the end",
        ),
        ({"sources": [{"folder": "a", "scale": (0.8, 0.5)}]}, r"scale of a is \(0.8, 0.5\)"),
        (
            {"sources": [{"folder": "a", "scale": (0.5, 1.5)}]},
            "scale of a is .*; expected a list of 2 values, each a number above 0 to 1",
        ),
        ({"sources": [{"folder": "a", "aspect": 10**6}]}, "aspect of a is 1000000; expected"),
        ({"sources": [{"folder": "a", "lighting": "day"}]}, "lighting of a is 'day'; expected a"),
        ({"sources": [{"folder": 3}]}, "folder of 3 is 3; expected a text"),
        ({"sources": [{"folder": "a", "order": "random"}]}, "order of a is 'random'; expected one"),
    ],
)
def test_a_recipe_that_cannot_be_trained_says_why(changes, message):
    with pytest.raises(RecipeError, match=message):
        if "sources" in changes:
            changes = {"sources": [Source(**each) for each in changes["sources"]]}
        recipe(**changes)


BASIC = "model: {method: x}\nlosses: {l1: 1}\nsources: [{folder: a}]\nsteps: 3\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "the recipe is .1.; expected keys and values"),
        ("", "the recipe is None; expected keys and values"),
        ("a: &x [*x]", r"the recipe is no YAML \(alias \*x; write the value out"),
        ("[" * 100_000, "the recipe is no YAML .maximum recursion depth"),
        ("steps: " + "9" * 5000, "the recipe is no YAML .Exceeds the limit"),
        ("\0", "the recipe is no YAML"),
        ("#" * 1_000_001, "has 1,000,001 bytes; a recipe has 1,000,000 at most"),
        ("model: {method: x}", "losses is missing"),
        (BASIC + "stepz: 3", "unknown key 'stepz'; did you mean steps"),
        (BASIC + "7: 3", "unknown key 7; there are model, losses"),
        (
            BASIC + "sources: [{folder: a, aspekt: 3}]",
            r"unknown key 'aspekt' of sources\[0\]; did ",
        ),
        (BASIC + "sources: [{aspect: 3}]", r"folder of sources\[0\] is missing"),
        (BASIC + "sources: {folder: a}", "sources is .*; expected a list of keys and values"),
        (BASIC + "sources: [a]", "sources is .'a'.; expected a list of keys and values"),
        (BASIC + "ema: .nan", "ema is nan"),
    ],
)
def test_a_file_that_is_no_recipe_says_why(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(file)
    assert str(caught.value).startswith(f"{file}") and len(str(caught.value)) < 700


def test_yaml_values_are_those_of_yaml_1_2_and_fields_can_be_changed(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(BASIC + "precision: no\nlearning_rate: 1e-4\n")
    made = read_recipe(
        file,
        {"betas": "[0.5, .9]", "losses.ssim": "2", "model.text": "none", "validation.folder": "b"},
    )
    assert (made.precision, made.learning_rate, made.betas) == ("no", 1e-4, (0.5, 0.9))
    assert made.losses == {"l1": 1, "ssim": 2} and made.model == {"method": "x", "text": "none"}
    assert made.validation.folder == "b" and made.sources[0].share == (1.0, 1.0)
    assert read_recipe(find_config("tiny"), {"validation": "null"}).validation is None
    for changes, message in (
        ({"steps.more": "1"}, "steps.more: steps is no group of keys"),
        ({"steps": "many"}, "steps is 'many'; expected a whole number"),
        ({"steps": "["}, "steps is no YAML"),
    ):
        with pytest.raises(RecipeError, match=message):
            read_recipe(file, changes)


def rates(**changes) -> list[float]:
    made = recipe(**changes)
    return [made.learning_rate_at(step) for step in range(100)]


def test_linear_is_flat_for_the_first_half_and_falls_to_0():
    values = rates(schedule="linear")
    assert values[:51] == [1.0] * 51
    assert values[75] == pytest.approx(0.5) and values[99] == pytest.approx(0.02)


def test_cosine_constant_and_warm_up():
    assert rates(schedule="constant") == [1.0] * 100
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and 0 < cosine[99] < 1e-3
    warm = rates(schedule="constant", warmup=10)
    assert (
        warm[0] == pytest.approx(0.1) and warm[4] == pytest.approx(0.5) and warm[9:] == [1.0] * 91
    )


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_every_config_is_a_recipe(file):
    assert read(file.name).with_steps(1000).steps > 0


def test_the_paper_s_recipe_builds_the_paper_s_network():
    import torch

    from cmmfnet.methods import build_network

    paper = read("cmmfnet-paper.yaml")
    with torch.device("meta"):
        network = build_network(paper.model)
    count = sum(p.numel() for p in network.parameters())
    assert count == pytest.approx(40.1e6, rel=0.02)  # about 40 M without the frozen text encoder
    assert (network.text_source, network.interaction.mode, network.concat) == (
        "clip-sentence",
        "text_query",
        True,
    )
    assert paper.losses == {"l1": 1.0, "perceptual": 1.0, "tv": 1.0, "ssim": 1.0}
    assert paper.options == {
        "perceptual": "vgg19",
        "perceptual_mode": "unit",
        "perceptual_layers": "family",
    }
    assert (paper.batch_size, paper.learning_rate, paper.betas) == (1, 5e-4, (0.5, 0.999))
    assert (paper.schedule, paper.ema, paper.precision, paper.epochs) == ("linear", 0.0, "no", 20)
    assert 527740 % 20 == 0
    literal = read("cmmfnet-paper-literal.yaml")  # differs in the perceptual loss alone
    assert literal.options == paper.options | {"perceptual_mode": "l1"}
    assert replace(literal, options=paper.options, notes=paper.notes) == paper
