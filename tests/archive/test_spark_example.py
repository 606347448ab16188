"""The function of docs/scale.md for Spark, called as Spark calls it. Spark itself is not needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_archive import pictures

pandas = pytest.importorskip("pandas")
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_function_for_spark(source, tmp_path, archive, fake_model):
    text = PAGE.read_text(encoding="utf-8").partition("### Spark")[2]
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    names.update(SOURCE=str(source), OUT=str(tmp_path / "spark"), MODEL=fake_model)
    files = sorted(names["Scan"](str(source), names["Reader"]()).files())
    parts = [pandas.DataFrame({"file": files[:3]}), pandas.DataFrame({"file": files[3:]})]
    rows = pandas.concat(names["colour"](iter(parts)))
    assert sorted(rows["input"]) == files and rows["error"].isna().all()
    assert archive(source, tmp_path / "out") == 0
    assert pictures(tmp_path / "spark") == pictures(tmp_path / "out")
    assert dict(zip(rows["output"], rows["sha256"], strict=True)) == pictures(tmp_path / "out")
