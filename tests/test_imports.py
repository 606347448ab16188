"""The packages form a ladder: no module imports a higher package, and no two import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
ORDER = (
    "files", "thermal", "text", "nn", "methods", "weights", "data", "colorizer", "export",
    "evaluation", "training", "archive", "serve", "cli",
)  # fmt: skip
MODULES = {
    ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (SRC / "cmmfnet").rglob("*.py")
}


def imported(name: str) -> set[str]:
    """The modules of the package that a module imports, lazily or not; not for annotations."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[name].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & MODULES.keys() or {node.module or ""}
    return (found & MODULES.keys()) - {name}


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_no_package_imports_a_higher_one():
    upwards = [
        f"{name} imports {other}"
        for name in MODULES
        if package(name) in ORDER
        for other in imported(name)
        if package(other) in ORDER and ORDER.index(package(other)) > ORDER.index(package(name))
    ]
    assert not upwards, "\n".join(upwards)


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter({name: imported(name) for name in MODULES}).prepare()


@pytest.mark.parametrize("folder", ["scenes"])
def test_a_folder_with_a_door_is_entered_through_it(folder):
    inside = f"cmmfnet.data.{folder}."
    picked = [
        f"{name} imports {other}"
        for name in MODULES
        if not name.startswith(inside) and name != inside.rstrip(".")
        for other in imported(name)
        if other.startswith(inside)
    ]
    assert not picked, "\n".join(picked)


def test_only_nn_fast_imports_kernels():
    """The networks and their parts are plain PyTorch; methods know the twins by ``accelerate``."""
    kernels = {n for n in MODULES if "triton" in MODULES[n].read_text(encoding="utf-8")}
    kernels = {n for n in kernels if n.startswith("cmmfnet.nn.fast.")} - {"cmmfnet.nn.fast.modules"}
    users = {n for n in MODULES if imported(n) & kernels}
    assert len(kernels) > 5
    assert {n for n in users if not n.startswith("cmmfnet.nn.fast.")} == set()
    plain = {n for n in MODULES if n.startswith("cmmfnet.nn.") and ".fast" not in n}
    assert {n for n in plain for m in imported(n) if m.startswith("cmmfnet.nn.fast")} == set()


def test_the_method_loads_without_renderer_evaluation_and_file_formats():
    code = "import sys, cmmfnet.methods.cmmfnet.method; "
    code += "print(*(name for name in sys.modules if name.startswith('cmmfnet.')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert "cmmfnet.methods.cmmfnet.network" in loaded
    allowed = ("cmmfnet.files", "cmmfnet.text", "cmmfnet.nn", "cmmfnet.methods")
    assert [m for m in loaded if not m.startswith(allowed)] == []
