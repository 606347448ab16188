"""configs/released.sh makes its trainings in turn: with a stand-in for `cmmfnet` that notes its
calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "configs" / "released.sh"
COMMAND = """#!/bin/sh
echo "$@" >> CALLS
[ $1 = train ] || { mkdir -p $2 && touch $2/index.jsonl; exit; }
while [ "$1" != --out ]; do shift; done
mkdir -p $2
echo '{"steps": 2}' > $2/recipe.json
echo $2 > $2/model.safetensors
[ "$(basename $2)" = "$STOPPED" ] && touch $2/step-1.pt || touch $2/step-2.pt
"""
LAST = """#!/bin/sh
[ "$1" = - ] || exec PYTHON -S "$@"
cat > /dev/null
if [ -n "$3" ]; then touch $3; else touch $2/cmmfnet.safetensors; fi
"""


@pytest.fixture
def released(tmp_path):
    programs, calls = tmp_path / "programs", tmp_path / "calls.txt"
    programs.mkdir()
    (programs / "cmmfnet").write_text(COMMAND.replace("CALLS", str(calls)))
    (programs / "python").write_text(LAST.replace("PYTHON", sys.executable))  # no model to join
    for program in programs.iterdir():
        program.chmod(0o755)

    def run(*options: str, stopped: str = "") -> tuple[subprocess.CompletedProcess, list[str]]:
        calls.write_text("")
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", SCRIPT, tmp_path / "data", tmp_path / "weights", tmp_path / "out", *options],
            env=os.environ | {"PATH": path, "STOPPED": stopped}, capture_output=True, text=True,
        )  # fmt: skip
        trained = [
            Path(words[words.index("--out") + 1]).name
            for words in map(str.split, calls.read_text().splitlines())
            if words[0] == "train"
        ]
        return done, trained

    return run


def test_trainings_follow_each_other_and_none_is_made_twice(released, tmp_path):
    done, trained = released()
    assert done.returncode == 0, done.stderr
    assert trained[0] == "base" and trained[-1] == "text" and len(trained) == len(set(trained))
    assert (tmp_path / "out/cmmfnet.safetensors").exists()
    done, again = released()
    assert done.returncode == 0 and not again


def test_a_stopped_training_is_not_built_on(released, tmp_path):
    """`cmmfnet train` saves and ends without an error where a signal stops it."""
    done, trained = released(stopped="whole")
    assert done.returncode == 1 and trained == ["base", "whole"]
    assert "whole was stopped before step 2; the same command goes on" in done.stderr
    assert not (tmp_path / "out/cmmfnet.safetensors").exists()
    done, rest = released()
    assert done.returncode == 0 and rest[0] == "whole" and rest[-1] == "text"


def test_other_options_train_again(released):
    released()
    assert released("--config.steps", "3")[1][0] == "base"
