"""Model files: exact or within the storage's rounding, strict, never a pickle, never half a
file."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_network import Fake
from safetensors.torch import load_file, safe_open, save_file

from cmmfnet import methods
from cmmfnet.weights import files as weights
from cmmfnet.weights import known
from cmmfnet.weights.files import describe, load_model, save_model
from cmmfnet.weights.header import STORAGES
from cmmfnet.weights.known import Known, ModelError

CONFIG = {"method": "fake"}


@pytest.fixture(autouse=True)
def fake_method(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:FakeMethod")


@pytest.fixture
def saved(tmp_path):
    """(network, path) of a model stored as float32."""
    torch.manual_seed(0)
    network = Fake()
    return network, save_model(
        tmp_path / "model.safetensors", network, CONFIG, {"data": "none", "licence": "test only"}
    )


def rewrite(path: Path, change) -> Path:
    """Apply ``change(tensors)`` to a model file, leaving its metadata alone."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    return path


# --- storage


def test_float32_comes_back_bit_for_bit(saved):
    network, path = saved
    model = load_model(path)
    assert (
        model.config == CONFIG
        and model.training == {"data": "none", "licence": "test only"}
        and model.name == "model"
    )
    assert not model.network.training and not any(
        p.requires_grad for p in model.network.parameters()
    )
    for key, tensor in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], tensor), key


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_small_storages_come_back_as_float32_within_their_rounding(tmp_path, storage):
    torch.manual_seed(0)
    network = Fake()
    network.big.weight.data[3] = 0  # a channel without any scale of its own
    network.big.weight.data[4] *= 100  # and one that must not spoil the others
    loaded = load_model(
        save_model(tmp_path / "m.safetensors", network, CONFIG, storage=storage)
    ).network
    before, after = network.big.weight.data.flatten(1), loaded.big.weight.data.flatten(1)
    assert after.dtype == torch.float32
    bound = before.abs().amax(1, keepdim=True) * (0.501 / 127 if storage == "int8" else 2**-11)
    assert ((before - after).abs() <= bound + 1e-7).all()
    assert torch.equal(after[3], torch.zeros_like(after[3]))
    assert not torch.equal(before, after)  # it was in fact stored in fewer bits
    torch.testing.assert_close(
        loaded.table, network.table, rtol=1e-3, atol=1e-3
    )  # small: never int8
    assert loaded.steps.item() == 7 and loaded.steps.dtype == torch.int64


def test_int8_is_about_a_quarter_of_the_size_and_float16_half(tmp_path):
    network = Fake(width=400)
    sizes = {
        storage: save_model(tmp_path / f"{storage}.safetensors", network, CONFIG, storage=storage)
        .stat()
        .st_size
        for storage in STORAGES
    }
    assert sizes["float16"] < 0.51 * sizes["float32"]
    assert sizes["int8"] < 0.27 * sizes["float32"]
    stored = load_file(tmp_path / "int8.safetensors")
    assert stored["big.weight"].dtype == torch.int8 and stored["big.weight.scale"].shape == (400,)
    assert stored["big.bias"].dtype == torch.float16


def test_tied_weights_are_stored(tmp_path):
    network = Fake()
    network.again = network.big
    path = save_model(tmp_path / "m.safetensors", network, CONFIG)
    assert {"big.weight", "again.weight"} <= load_file(path).keys()


@pytest.mark.parametrize(
    ("value", "storage", "message"),
    [
        (float("nan"), "float32", "big.weight holds NaN"),
        (1e6, "float16", "big.weight holds values beyond float16"),
    ],
)
def test_values_that_cannot_be_stored_are_refused_before_anything_is_written(
    tmp_path, value, storage, message
):
    network = Fake()
    network.big.weight.data[0, 0] = value
    with pytest.raises(ModelError, match=message):
        save_model(tmp_path / "m.safetensors", network, CONFIG, storage=storage)
    assert list(tmp_path.iterdir()) == []


def test_wrong_storage_and_suffix_are_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"unknown storage 'int4'; choose one of float32, float16, int8"
    ):
        save_model(tmp_path / "m.safetensors", Fake(), CONFIG, storage="int4")
    with pytest.raises(ModelError, match=r"name it m\.safetensors"):
        save_model(tmp_path / "m.pt", Fake(), CONFIG)


# --- atomic


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(
    saved, monkeypatch, disk_full_while_writing, step
):
    _, path = saved
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        disk_full_while_writing()
    with pytest.raises(OSError, match="No space left"):
        save_model(path, Fake(width=90), {"method": "fake", "width": 90})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_the_file_has_ordinary_permissions(saved):
    _, path = saved
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


# --- strict


def test_a_missing_tensor_is_named(saved):
    with pytest.raises(ModelError, match=r"1 missing: big\.bias"):
        load_model(rewrite(saved[1], lambda tensors: tensors.pop("big.bias")))


def test_an_extra_tensor_is_named(saved):
    with pytest.raises(ModelError, match=r"1 not in the network: stray"):
        load_model(rewrite(saved[1], lambda tensors: tensors.update(stray=torch.zeros(2))))


def test_a_misshapen_tensor_is_named_with_both_shapes(saved):
    with pytest.raises(
        ModelError, match=r"1 misshapen: big\.bias is \(3,\), the network has \(80,\)"
    ):
        load_model(rewrite(saved[1], lambda tensors: tensors.update({"big.bias": torch.zeros(3)})))


def test_integers_in_place_of_floats_are_refused(saved):
    with pytest.raises(ModelError, match=r"big\.bias is I32, the network has torch\.float32"):
        load_model(
            rewrite(
                saved[1],
                lambda tensors: tensors.update({"big.bias": torch.zeros(80, dtype=torch.int32)}),
            )
        )


def test_int8_without_its_scales_is_refused(tmp_path):
    path = save_model(tmp_path / "m.safetensors", Fake(), CONFIG, storage="int8")
    with pytest.raises(ModelError, match=r"its scales big\.weight\.scale are missing"):
        load_model(rewrite(path, lambda tensors: tensors.pop("big.weight.scale")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "gone"}, "gone"),
        ({"method": "fake", "depth": 3}, "depth"),
        ({}, "names no method"),
    ],
)
def test_a_configuration_that_builds_nothing_is_refused(tmp_path, config, message):
    with pytest.raises(ModelError, match=message):
        load_model(save_model(tmp_path / "m.safetensors", Fake(), config))


# --- damaged and hostile files


@pytest.mark.parametrize("keep", [0, 5, 8, 300, -1])
def test_a_truncated_file_is_refused(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"not a whole safetensors file|is damaged"):
        load_model(path)
    with pytest.raises(ModelError):
        describe(path)


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 64,
        b"\xff" * 64,
        b"hello, this is text\n" * 9,
        (9).to_bytes(8, "little") + b"[1, 2, 3]",
    ],
)
def test_junk_is_refused(tmp_path, junk):
    (tmp_path / "m.safetensors").write_bytes(junk)
    with pytest.raises(ModelError):
        load_model(tmp_path / "m.safetensors")


def test_safetensors_of_another_program_and_of_the_future_are_refused(saved):
    _, path = saved
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="is no cmmfnet model"):
        load_model(path)
    save_file({"x": torch.zeros(2)}, path, {"format": "cmmfnet-9"})
    with pytest.raises(ModelError, match="a newer cmmfnet wrote it"):
        load_model(path)


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt", "m.bin", "m.safetensors"])
@pytest.mark.parametrize(
    "writer", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))]
)
def test_a_pickle_is_refused_and_never_run(tmp_path, name, writer):
    mark = tmp_path / "ran"
    writer({"weight": Bomb(mark)}, tmp_path / name)
    with pytest.raises(
        ModelError,
        match=r"is a pickle, and loading a pickle runs whatever code is in it.*save_model",
    ):
        load_model(tmp_path / name)
    assert not mark.exists()


# --- names


@pytest.fixture
def bundled(saved, tmp_path, monkeypatch):
    """The saved model as a known one; returns its row."""
    row = Known("model.safetensors", weights._sha256(saved[1]), "research only", "a test")
    monkeypatch.setattr(known, "BUNDLED", tmp_path)
    monkeypatch.setattr(known, "KNOWN", {"street": row, "aerial": row})
    return row


def test_a_known_name_loads_and_describes(bundled):
    assert load_model("street").name == "street"
    found = describe("street")
    assert (
        found["name"] == "street"
        and found["licence"] == "research only"
        and found["sha256"] == bundled.sha256
    )
    assert found["parameters"] == sum(p.numel() for p in Fake().parameters())
    assert (
        found["storage"] == "float32"
        and found["training"]["data"] == "none"
        and found["method"] == "fake"
    )


def test_a_changed_bundled_file_is_refused(bundled, tmp_path):
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # one bit of one weight: everything but the digest is as it should be
    path.write_bytes(data)
    for use in (load_model, describe):
        with pytest.raises(ModelError, match=rf"sha256 [0-9a-f]{{64}}, expected {bundled.sha256}"):
            use("street")


def test_an_unknown_name_lists_the_known_and_the_closest(bundled):
    with pytest.raises(
        ModelError, match=r"unknown model 'stret'; did you mean 'street'\? Known: street, aerial"
    ):
        load_model("stret")


@pytest.mark.parametrize("name", ["gone.safetensors", "runs/gone", Path("gone")])
def test_a_path_that_is_not_there_is_called_a_path(name):
    with pytest.raises(ModelError, match="no model file"):
        load_model(name)


def test_a_folder_points_at_the_file_inside(saved):
    with pytest.raises(
        ModelError, match=r"is a folder; give the model file inside it: model\.safetensors"
    ):
        load_model(saved[1].parent)


def test_a_folder_named_like_a_known_model_does_not_hide_it(bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("street").mkdir()
    assert load_model("street").name == "street"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@0123456"])
def test_the_hub_needs_a_pinned_commit_and_says_how(revision, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("must not be asked")
    )
    with pytest.raises(
        ModelError, match=r"not pinned to a commit.*write hf:someone/street@.*40-digit"
    ):
        load_model(f"hf:someone/street{revision}")


def test_the_hub_is_asked_for_exactly_that_commit(saved, monkeypatch):
    asked = []

    def download(repo, file, *, revision):
        asked.append((repo, file, revision))
        return str(saved[1])

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_model(f"hf:someone/street@{COMMIT}").name == f"hf:someone/street@{COMMIT}"
    load_model(f"hf:someone/street@{COMMIT}/small/int8.safetensors")
    assert asked == [
        ("someone/street", "model.safetensors", COMMIT),
        ("someone/street", "small/int8.safetensors", COMMIT),
    ]


def test_hub_pickles_malformed_names_and_failures_are_model_errors(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ModelError, match="is a pickle"):
        load_model(f"hf:someone/street@{COMMIT}/pytorch_model.bin")
    with pytest.raises(ModelError, match="not of the form hf:OWNER/REPO@COMMIT"):
        load_model("hf:street")
    with pytest.raises(
        ModelError, match=r"the hub did not give model\.safetensors: no route to host"
    ):
        load_model(f"hf:someone/street@{COMMIT}")


def test_describing_does_not_import_torch(saved):
    code = (
        "import json, sys; from cmmfnet.weights.files import describe; found = "
        "describe(sys.argv[1]); "
        "print(json.dumps(found | {'torch': 'torch' in sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(weights.__file__).parents[2])}
    command = [sys.executable, "-c", code, saved[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout)["torch"] is False
