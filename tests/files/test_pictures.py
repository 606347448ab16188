"""Which pictures a source names, and where their results go: links, brackets, folders, results."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import (
    is_result,
    list_sources,
    plan_outputs,
    write_picture,
)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def listed(source, root):
    return [str(path.relative_to(root)) for path in list_sources(source)]


def test_a_link_to_the_folder_itself_is_followed_once(tmp_path):
    touch(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "loop").symlink_to(".")
    assert listed(f"{tmp_path}/**/*.png", tmp_path) == ["a.png", "sub/b.png"]
    assert listed(f"{tmp_path}/loop/**/*.png", tmp_path) == ["loop/a.png", "loop/sub/b.png"]


def test_two_links_to_one_picture_are_two_pictures(tmp_path):
    touch(tmp_path, "store/x.png")
    for name in ("one.png", "two.png"):
        (tmp_path / name).symlink_to("store/x.png")
    assert listed(tmp_path, tmp_path) == ["one.png", "two.png"]


def test_brackets_in_folders_of_a_glob(tmp_path):
    touch(tmp_path, "runs [2024]/a.png", "runs [2024]/b.png", "runs 2/c.png")
    assert listed(f"{tmp_path}/runs [2024]/*.png", tmp_path) == [
        "runs [2024]/a.png",
        "runs [2024]/b.png",
    ]
    assert listed(f"{tmp_path}/runs [0-9]/*.png", tmp_path) == ["runs 2/c.png"]
    touch(tmp_path, "f[1].png")
    with pytest.raises(UserError, match=r"\[\.\.\.\] stands for one character; write \[\[\]"):
        list_sources(f"{tmp_path}/f[2].png")


def test_links_that_lead_nowhere_are_named(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(".git/annex/objects/xx/SHA256E-s1--1.png")
    assert listed(tmp_path, tmp_path) == ["a.png", "b.png"]
    assert listed(f"{tmp_path}/*.png", tmp_path) == ["a.png", "b.png"]
    with pytest.raises(UserError, match=r"b\.png is a link to .*, which is not there; git annex"):
        list_sources(tmp_path / "b.png")


def test_results_are_known_by_their_notes(tmp_path):
    rgb = np.zeros((4, 5, 3), np.uint8)
    for suffix in ("png", "jpg", "webp", "tif"):
        ours = write_picture(tmp_path / f"ours.{suffix}", rgb, {"Model": "cmmfnet"})
        other = write_picture(tmp_path / f"scene.{suffix}", rgb)  # written by us, of no model
        Image.fromarray(rgb).save(tmp_path / f"plain.{suffix}")
        assert is_result(ours) and not is_result(other)
        assert not is_result(tmp_path / f"plain.{suffix}")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cmmfnet rubbish")
    assert not is_result(tmp_path / "bad.png") and not is_result(tmp_path / "gone.png")


@pytest.mark.parametrize("out", ["colour.gif", "o1.txt", "clip.mp4", "page.html", "x.jp2"])
@pytest.mark.parametrize("source", ["in/a.png", "in"])
def test_a_result_named_like_another_kind_of_file_is_refused(tmp_path, source, out):
    touch(tmp_path, "in/a.png")
    message = r"is named like a file of a kind that cannot be written; give a folder, such as"
    with pytest.raises(UserError, match=message):
        plan_outputs(tmp_path / source, [tmp_path / "in/a.png"], tmp_path / out)
    (tmp_path / out).mkdir()  # unless there is such a folder
    assert plan_outputs(tmp_path / source, [tmp_path / "in/a.png"], tmp_path / out)


@pytest.mark.parametrize("out", ["out", "run.v2", "frames.2024", "a.b"])
def test_folders_may_have_dots(tmp_path, out):
    touch(tmp_path, "in/a.png")
    planned = plan_outputs(tmp_path / "in", [tmp_path / "in/a.png"], tmp_path / out)
    assert planned == [tmp_path / out / "a.png"]


def test_a_text_of_any_characters_can_be_noted(tmp_path):
    path = write_picture(
        tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8), {"Model": os.fsdecode(b"m\xff")}
    )
    assert Image.open(path).text["Model"] == r"m\udcff"
