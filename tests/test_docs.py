"""The documents against the code: links, names, defaults, parameter counts, and the drawing."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import operator
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import yaml

from cmmfnet.data.pairs import Pairs
from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet.method import CMMFNetMethod
from cmmfnet.methods.cmmfnet.network import PAPER, RELEASED, CMMFNet
from cmmfnet.nn import losses
from cmmfnet.text.vocabulary import WORDS
from cmmfnet.training.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MAP = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its fenced code, where brackets are not links."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)


def section(title: str) -> str:
    """A level-2 section of architecture.md."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", ARCHITECTURE, re.M | re.S)[1]


def rows(text: str) -> list[list[str]]:
    """Cells of the table rows in ``text``, without heads and rules. A ``|`` inside a cell is not
    supported."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    heads = {i - 1 for i, row in enumerate(found) if re.fullmatch(r"[-: ]+", row[0])}
    return [row for i, row in enumerate(found) if i not in heads and i - 1 not in heads]


def anchor(heading: str) -> str:
    """GitHub's address of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


# --- links


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_point_to_files_and_headings(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8")))
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or not path.is_relative_to(ROOT):
            broken.append(target)
        elif heading:
            headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.M)
            if heading not in map(anchor, headings):
                broken.append(target)
    assert not broken


def test_every_page_under_docs_can_be_parsed_for_links():
    """Guards the test above: a page that has links yields links."""
    assert re.findall(
        r"\]\(([^)\s]+)\)", prose("see [a](b.md) and\n```\nx[0](1)\n```\n[c](d#e)")
    ) == ["b.md", "d#e"]
    assert len(re.findall(r"\]\(([^)\s]+)\)", prose(ARCHITECTURE))) > 50


# --- names


def test_names_linked_to_a_source_file_are_in_it():
    named = re.compile(r"\[`([\w.]+)`\]\((?:\.\./)?src/([\w/]+)\.py\)")
    links = named.findall(ARCHITECTURE) + named.findall(MAP)
    assert len(links) > 60
    assert len(named.findall(ARCHITECTURE)) == len(re.findall(r"\]\(\.\./src/", ARCHITECTURE)), (
        "a link to source that names nothing"
    )
    for name, file in links:
        if "/fast/" in file and importlib.util.find_spec("triton") is None:  # kernels need it
            tree = ast.parse((ROOT / "src" / f"{file}.py").read_text(encoding="utf-8"))
            assert name in {getattr(node, "name", "") for node in tree.body}, f"{name} in {file}"
            continue
        module = importlib.import_module(file.replace("/", "."))
        thing = operator.attrgetter(name)(module)
        origin = getattr(thing, "__module__", module.__name__)
        assert origin == module.__name__, (
            f"{name} is linked to {module.__name__}, it is defined in {origin}"
        )


FILE = re.compile(r"\.(yaml|safetensors|onnx|svg|png|md|py|zip)$")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_dotted_names_and_source_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?:`|from |import |-m )(cmmfnet(?:\.\w+)+)", text):
        if not FILE.search(name):
            pkgutil.resolve_name(name)  # raises where a part is missing
    code = [*(ROOT / "src").rglob("*"), *ROOT.glob("[bcdt]*/**/*")]
    known = {"/" + path.relative_to(ROOT).as_posix() for path in code}
    files = re.findall(r"`((?:src/|[a-z_]+/)*[a-z_]+\.py)`", text)
    gone = {file for file in files if not any(path.endswith("/" + file) for path in known)}
    assert not gone, f"{page.name} names files that are not in the repository"


def test_the_map_lists_every_package():
    here = ROOT / "src" / "cmmfnet"
    packages = {path.name for path in here.iterdir() if (path / "__init__.py").exists()}
    assert packages and packages == set(re.findall(r"^\| `(\w+)/` \|", MAP, re.M))


def test_the_code_on_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```$", ARCHITECTURE, re.M | re.S)
    assert blocks
    for block in blocks:
        with torch.device("meta"):
            exec(block, {})


# --- defaults

OWNERS = {
    "CMMFNet": CMMFNet,
    "CMMFNetMethod": CMMFNetMethod,
    "Recipe": Recipe,
    "Pairs": Pairs,
    "total_variation": losses.total_variation,
    "ssim": losses.ssim,
}


def keywords(expression: str) -> tuple[str, dict]:
    """``Name(a=1)`` -> ("Name", {"a": 1})"""
    call = ast.parse(expression, mode="eval").body
    return call.func.id, {k.arg: ast.literal_eval(k.value) for k in call.keywords}


def test_defaults_stated_for_open_choices_are_those_of_the_code():
    table = rows(section("What the paper leaves open"))
    assert [row[0] for row in table] == [str(i) for i in range(1, 20)]
    checked = 0
    for row in table:
        for expression in re.findall(r"`(\w+\(.+?\))`", row[3]):
            name, stated = keywords(expression)
            parameters = inspect.signature(OWNERS[name]).parameters
            for keyword, value in stated.items():
                assert parameters[keyword].default == value, f"row {row[0]}: {name}({keyword}=...)"
                checked += 1
    assert checked >= 25


def test_keywords_of_the_released_model_are_all_in_the_table_and_right():
    stated: dict = {}
    for row in rows(section("Where the released model departs")):
        for expression in re.findall(r"`(\w+=.+?)`", row[0]):
            stated |= keywords(f"x({expression})")[1]
    assert {"method": "cmmfnet", **stated} == RELEASED
    defaults = inspect.signature(CMMFNet).parameters
    assert all(defaults[k].default != v for k, v in stated.items())


def test_the_paper_configuration_is_the_defaults():
    assert PAPER == {"method": "cmmfnet"}


def test_the_training_settings_quoted_are_those_of_the_recipe():
    quoted = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```$", ARCHITECTURE, re.M | re.S)[1])
    recipe = yaml.safe_load((ROOT / "configs" / "cmmfnet.yaml").read_text(encoding="utf-8"))
    assert {k: recipe[k] for k in quoted} == quoted
    shares = [s["share"] for s in recipe["sources"] if s.get("simulate")]
    start, end = (sum(s[i] for s in shares) for i in (0, 1))
    assert f"{start:.0%}".replace("%", " %") + " of a batch at the start" in ARCHITECTURE
    assert f"{end:.0%}".replace("%", " %") + " at the end" in ARCHITECTURE


# --- parameters


def test_parameter_counts():
    with torch.device("meta"):
        networks = [build_network({**PAPER}), build_network({**RELEASED, "words": WORDS})]
    counts = [{name: p.numel() for name, p in network.named_parameters()} for network in networks]
    *parts, whole, folded = rows(section("Parameters"))
    seen: list[str] = []
    for row in parts:
        prefixes = re.findall(r"`([\w.]+)`", row[0])
        assert prefixes, row[0]
        seen += prefixes
        for count, stated in zip(counts, row[1:], strict=True):
            found = sum(
                n
                for name, n in count.items()
                if any(name == p or name.startswith(p + ".") for p in prefixes)
            )
            assert stated == f"{found:,}", row[0]
    assert len(seen) == len(set(seen))
    assert [f"{sum(count.values()):,}" for count in counts] == whole[1:]
    # every parameter is in exactly one part
    for column, count in enumerate(counts, 1):
        assert sum(int(row[column].replace(",", "")) for row in parts) == sum(count.values())

    for network in networks:
        network.fold_text_projection()
    assert [f"{sum(p.numel() for p in network.parameters()):,}" for network in networks] == folded[
        1:
    ]


# --- the drawing


def test_the_drawing_is_what_its_script_writes():
    folder = ROOT / "docs" / "figures"
    spec = importlib.util.spec_from_file_location(
        "make_architecture", folder / "make_architecture.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (folder / "architecture.svg").read_text(encoding="utf-8") == script.svg(), (
        "run: python docs/figures/make_architecture.py"
    )


@pytest.mark.parametrize("config", [PAPER, {**RELEASED, "words": WORDS}], ids=["paper", "released"])
def test_shapes_in_the_drawing_are_those_of_the_network(config):
    """The labels that name a module's output, for a frame whose H and W differ."""
    height, width = 64, 96
    drawing = (ROOT / "docs" / "figures" / "architecture.svg").read_text(encoding="utf-8")
    outputs: dict[str, tuple[int, ...]] = {}

    def keep(name: str):
        def hook(_module, _inputs, output) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                outputs[name] = tuple(first.shape[1:])

        return hook

    with torch.device("meta"):
        network = build_network(config)
        for name, module in network.named_children():
            module.register_forward_hook(keep(name))
        network(torch.zeros(1, 1, height, width), heads=True)
        maps = network.image_encoder(
            torch.zeros(1, 2 if network.local_contrast else 1, height, width)
        )[1]

    for channels, part, names in (
        (64, 2, ("encode1", "decode1")),
        (128, 4, ("encode2", "decode2")),
        (256, 8, ("encode3", "fuse")),
    ):
        assert f"{channels} × H/{part} × W/{part}" in drawing
        for name in names:
            assert outputs[name] == (channels, height // part, width // part), name
    assert outputs["last"] == (3, height, width) and "3 × H × W<" in drawing
    assert (
        outputs["interaction"] == (256, 32, 32) and ">256 ×<" in drawing and ">32 × 32<" in drawing
    )
    assert "D = 512 | 320" in drawing
    if config is PAPER:
        assert outputs["image_encoder"] == (256, 512)
    else:
        assert outputs["image_encoder"] == (256, 320)
        assert (
            outputs["label_head"] == (25, height // 8, width // 8) and "25 × H/8 × W/8" in drawing
        )
        assert outputs["tag_head"] == (177,) and "177 probabilities" in drawing
        for tap, shape in zip(("relu2_2", "relu3_3", "relu4_3"), maps, strict=True):
            assert f"{tap}: {' × '.join(map(str, shape.shape[1:]))}" in drawing
