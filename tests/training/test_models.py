"""``cmmfnet models``: every method with its paper's sizes, known weights, and nothing of torch for
the plain list."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import warnings

import pytest

from cmmfnet.cli import main
from cmmfnet.methods import METHODS, method_class
from cmmfnet.weights.known import KNOWN

# as their papers' codes count them; where the default here differs, that of the code stands second
GENERATORS = {
    "pix2pix": (54_413_955,), "cyclegan": (11_378_179,), "ticcgan": (45_851_907,),
    "scgan": (57_270_525,),
    "pearlgan": (5_167_244 + 6_634_255,), "todaygan": (5_099_143 + 6_565_770,),
    "mugan": (37_741_816,),
    "lkatgan": (74_192_355, 83_635_241), "tir2lab": (1_462_275, 1_462_339), "i2vgan": (7_837_699,),
    "palette": (62_640_195,),
}  # fmt: skip
DISCRIMINATORS = {
    "pix2pix": 2_768_705, "cyclegan": 2_764_737, "ticcgan": 695_777, "scgan": 5_788_229,
    "pearlgan": 16_698_201,
    "todaygan": 16_698_201, "mugan": 695_777, "lkatgan": 2_767_809, "tir2lab": None,
    "i2vgan": 2_764_737, "palette": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def listed() -> dict:
    with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["models", "--json"]) == 0
    return json.loads(out.getvalue())


def test_every_method_is_listed_with_its_sizes(listed):
    methods = {each["name"]: each for each in listed["methods"]}
    assert methods.keys() == METHODS.keys() | {"cmmfnet-paper"}
    for name, counts in GENERATORS.items():
        assert (methods[name]["generator"], methods[name]["original_generator"]) == (
            counts[0],
            counts[-1],
        ), name
        assert methods[name]["discriminator"] == DISCRIMINATORS[name], name
        assert methods[name]["weights"] == []
    assert methods["i2vgan"]["trained"]["predictor_visible"] == 41_828_739
    assert methods["cmmfnet-paper"]["generator"] == pytest.approx(40.1e6, rel=0.01)
    assert methods["cmmfnet-paper"]["weights"] == [] and "cmmfnet" in methods["cmmfnet"]["weights"]
    assert [each["name"] for each in listed["models"]] == list(KNOWN)


def test_what_they_learn_from_and_take(listed):
    methods = {each["name"]: each for each in listed["methods"]}
    assert {name for name, each in methods.items() if not each["paired"]} == {
        "cyclegan",
        "pearlgan",
        "todaygan",
        "i2vgan",
    }
    assert {name for name, each in methods.items() if each["frames"] == 3} == {"i2vgan"}
    assert {name for name, each in methods.items() if each["fixed_size"]} == {"lkatgan"}
    assert methods["lkatgan"]["fixed_size"] == 256 and methods["pix2pix"]["multiple_of"] == 256
    assert methods["todaygan"]["training_size"] == 384
    for each in methods.values():
        assert each["title"] == method_class(each["method"]).title and len(each["paper"]) > 20


def test_the_plain_list_names_methods_without_torch(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*KNOWN, *METHODS])
    assert len(out.splitlines()) <= 10 * len(KNOWN) + 3 and max(map(len, out.splitlines())) <= 300
    code = (
        "import sys; from cmmfnet.cli import main; main(['models']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode
        == 0
    )


def test_one_model_as_json(capsys):
    name = next(iter(KNOWN))
    assert main(["models", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == KNOWN[name].sha256
