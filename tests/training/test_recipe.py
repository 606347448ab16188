"""Recipes: what is refused, the learning rate over time, and the YAML files of configs/."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import pytest

from cmmfnet.data.source import Source
from cmmfnet.training.recipe import Recipe, RecipeError

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
    """As the command line reads it: unknown keys and wrong types are errors."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--recipe", type=Recipe, required=True)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(parser.parse_args(["--recipe", str(CONFIGS / name)])).recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "schedule is 'cosin'; expected one of constant, linear, cosine"),
        ({"precision": "int8"}, "precision is 'int8'; expected one of no, bf16, fp16"),
        ({"epochs": 2}, "epochs is 2; give one of the two"),
        ({"optimiser": "sgd"}, "optimiser is 'sgd'; expected one of adam, adamw"),
        ({"accumulate": 0}, "accumulate is 0; expected 1 or more"),
        ({"steps": 0}, "steps is 0; expected 1 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"save_every": 0}, "save_every is 0"),
        ({"size": 100}, "size is 100; expected a multiple of 8"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"milestones": (0.5, 1.5)}, "milestones are"),
        ({"losses": {}}, "at least one needs a weight"),
        ({"losses": {"l1": 0.0}}, "at least one needs a weight"),
        ({"sources": []}, "sources is empty; name at least one folder"),
        ({"sources": [{"folder": "a", "share": (1, -1)}]}, "none may be negative"),
        (
            {"sources": [{"folder": "a", "share": (1, 0)}, {"folder": "b", "share": (1, 0)}]},
            "nor all 0 at the start or",
        ),
        ({"sources": [{"folder": "a", "scale": (0.8, 0.5)}]}, r"scale of a is \(0.8, 0.5\)"),
        (
            {"sources": [{"folder": "a", "scale": (0.5, 1.5)}]},
            "expected 0 < smallest <= largest <= 1",
        ),
    ],
)
def test_a_recipe_that_cannot_be_trained_says_why(changes, message):
    with pytest.raises(RecipeError, match=message):
        if "sources" in changes:
            changes = {"sources": [Source(**each) for each in changes["sources"]]}
        recipe(**changes)


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
    assert count == pytest.approx(
        40.1e6, rel=0.02
    )  # notes, section 15: 40.12 M beside the frozen text encoder
    assert (network.text_source, network.interaction.mode, network.concat) == (
        "clip-sentence",
        "text_query",
        True,
    )
    assert paper.losses == {"l1": 1.0, "perceptual": 1.0, "tv": 1.0, "ssim": 1.0}
    assert paper.options == {"perceptual": "vgg19", "perceptual_mode": "l1"}
    assert (paper.batch_size, paper.learning_rate, paper.betas) == (1, 5e-4, (0.5, 0.999))
    assert (paper.schedule, paper.ema, paper.precision, paper.epochs) == ("linear", 0.0, "no", 20)
    assert 527740 % 20 == 0
