"""Training on rendered scenes on the CPU: it learns, it stops and goes on exactly, and it says what
is wrong.

Also the commands around it: `cmmfnet train`, `cmmfnet evaluate`, `cmmfnet scenes`.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from fake_network import Fake
from PIL import Image
from run_checks import equal, log

from cmmfnet import cli, methods
from cmmfnet.cli import main
from cmmfnet.data.fields import RecipeError
from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.scenes import write_pairs
from cmmfnet.data.source import Source
from cmmfnet.evaluation.network_scores import by_default, centre_crops
from cmmfnet.methods import build_network
from cmmfnet.nn import losses
from cmmfnet.nn.perceptual import PretrainedError
from cmmfnet.training import checkpoint
from cmmfnet.training import train as training
from cmmfnet.training.checkpoint import CheckpointError
from cmmfnet.training.recipe import Recipe
from cmmfnet.training.run import NonFiniteLoss, Run
from cmmfnet.training.train import train
from cmmfnet.weights.files import load_model, save_model
from cmmfnet.weights.known import ModelError

SMALL = {
    "method": "cmmfnet", "channels": [8, 16, 24], "encoder_blocks": [1, 1, 1],
    "decoder_blocks": [1, 1, 1],
    "kernels": [5, 5, 5], "global_size": 32, "vit_depth": 1, "vit_width": 32, "vit_heads": 2,
    "tail": 8,
    "text": "clip-tags", "text_width": 16, "text_length": 16, "ci": "image_query",
    "modulation": True,
    "local_contrast": True, "classes": 25,
    "words": ["road", "tree", "car", "sky-other", "grass", "night", "day"],
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:no folder of pre-trained files")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Five scenes for training and one for validation."""
    return write_pairs(
        tmp_path_factory.mktemp("scenes") / "rendered", 6, seed=3, size=(64, 80)
    ).parent.parent


@pytest.fixture(autouse=True)
def no_pretrained_files(monkeypatch):
    monkeypatch.delenv("CMMFNET_PRETRAINED", raising=False)


def recipe(**changes) -> Recipe:
    """All losses that need no files, text dropout, real and simulated frames."""
    real = Source("rendered", share=(0.3, 0.8), split="train")
    simulated = Source("rendered", share=(0.7, 0.2), split="train", simulate=True, level=True)
    basic = {
        "model": SMALL, "sources": [real, simulated], "steps": 6, "batch_size": 2, "size": 32,
        "options": {"text_dropout": 0.5},
        "losses": {
            "l1": 1.0, "ssim": 0.5, "tv": 0.01, "tags": 0.02, "labels": 0.1, "adversarial": 0.01,
        },
        "learning_rate": 1e-3, "warmup": 2, "schedule": "cosine", "ema": 0.9, "log_every": 1,
        "seed": 1,
    }  # fmt: skip
    return Recipe(**(basic | changes))


def start(data: Path, out: Path, **more) -> dict:
    given = {"config": recipe(), "device": "cpu", "workers": 0} | more
    return train(data=data, out=out, **given)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """The folder of six steps without a stop, with a sheet and scores at the end."""
    out = tmp_path_factory.mktemp("straight")
    with pytest.warns(UserWarning, match="vectors of words start at random"):
        scores = start(data, out, config=recipe(validation=Source("rendered", split="val")))
    assert set(scores) == {"psnr", "ssim", "colour_share"} and 3 < scores["psnr"] < 30
    return out


@pytest.fixture(scope="module")
def trained(straight) -> dict:
    return checkpoint.load(straight / "step-6.pt")


# --- what a run leaves


def test_a_run_leaves_log_sheet_checkpoint_and_model(straight):
    names = sorted(str(p.relative_to(straight)) for p in straight.rglob("*") if p.is_file())
    assert names == [
        "best.safetensors",
        "log.jsonl",
        "model.safetensors",
        "recipe.json",
        "sheets/step-6.jpg",
        "step-6.pt",
    ]
    rows = [row for row in log(straight) if "validation" not in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    losses = {"l1", "ssim", "tv", "tags", "labels", "adversarial", "discriminator"}
    assert all(
        row.keys() == losses | {"step", "minutes", "rate", "norm", "images_per_second"}
        for row in rows
    )
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[0]["rate"] == pytest.approx(0.5) and rows[2]["rate"] == pytest.approx(0.75)
    assert log(straight)[-1]["validation"]["psnr"] > 0
    with Image.open(straight / "sheets" / "step-6.jpg") as sheet:
        assert sheet.size == (6 * 256, 256)  # one scene, and the black place of a second


def test_the_model_is_the_averaged_network(straight, trained):
    loaded = load_model(straight / "model.safetensors")
    averaged = build_network(trained["config"])
    averaged.load_state_dict(trained["ema"], strict=True)
    stored = loaded.network.state_dict()
    assert equal(stored, {k: v.half().float() for k, v in trained["ema"].items()})
    assert not equal(
        stored, {k: v.half().float() for k, v in trained["networks"]["generator"].items()}
    )
    x = torch.rand(1, 1, 64, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        error = (loaded.network(x) - averaged.eval()(x)).abs()
    assert (
        error.mean() < 3e-3 and error.max() < 0.05
    )  # float16 rounds weights to 11 bits, a picture to 8
    assert loaded.training["steps"] == 6 and loaded.training["recipe"]["losses"]["ssim"] == 0.5


def test_it_learns_two_scenes(tmp_path):
    write_pairs(tmp_path / "rendered", 2, seed=11, size=(64, 80), val_fraction=0)
    made = recipe(
        sources=[Source("rendered", scale=(0.8, 1.0))], losses={"l1": 1.0}, steps=60,
        batch_size=4, ema=0.0,
        learning_rate=4e-3, model=SMALL | {"text": "none", "words": []},
    )  # fmt: skip
    start(tmp_path, tmp_path / "out", config=made)
    l1 = [row["l1"] for row in log(tmp_path / "out")]
    assert np.mean(l1[-10:]) < 0.5 * np.mean(l1[:3])
    # the saved model knows the colours, too: better than the best single colour for each picture
    pairs = Pairs(tmp_path / "rendered")
    colour = by_default(load_model(tmp_path / "out" / "model.safetensors").network)
    theirs, flat = [], []
    for thermal, truth, meta in centre_crops(pairs, 64):
        theirs.append(np.abs(colour(thermal, meta).astype(float) - truth).mean())
        flat.append(np.abs(np.median(truth, axis=(0, 1)) - truth).mean())
    assert np.mean(theirs) < 0.8 * np.mean(flat)


# --- stopping and going on


def clock(monkeypatch) -> None:
    """One minute a step."""
    seconds, update = [0.0], Run.update

    def slow(self, step, batch):
        update(self, step, batch)
        seconds[0] += 60

    monkeypatch.setattr(Run, "update", slow)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: seconds[0]))


PARTS = ("networks", "ema", "optimisers", "pools", "step")


def same_end(trained: dict, out: Path) -> bool:
    state = checkpoint.load(out / "step-6.pt")
    return all(equal(trained[part], state[part]) for part in PARTS)


def test_stopped_by_the_time_cap_and_gone_on_is_the_straight_run(
    data, tmp_path, trained, straight, monkeypatch
):
    clock(monkeypatch)
    start(data, tmp_path, max_minutes=2.5)
    assert checkpoint.latest(tmp_path).name == "step-3.pt"
    assert load_model(tmp_path / "model.safetensors").training["steps"] == 3
    torch.manual_seed(99)  # the second half may run in any state of the process
    np.random.seed(99)
    start(data, tmp_path)
    assert same_end(trained, tmp_path)
    assert [p.name for p in tmp_path.glob("step-*.pt")] == ["step-6.pt"]
    model, other = (
        load_model(folder / "model.safetensors").network.state_dict()
        for folder in (tmp_path, straight)
    )
    assert equal(model, other)
    keys = ("step", "rate", "norm", "l1", "adversarial", "discriminator")
    theirs = [[row[k] for k in keys] for row in log(straight) if "norm" in row]
    assert [[row[k] for k in keys] for row in log(tmp_path)] == theirs


def test_crashed_and_gone_on_is_the_straight_run(data, tmp_path, trained, monkeypatch):
    update = Run.update

    def crash(self, step, batch):
        if step == 4:
            raise MemoryError("as good as any")
        update(self, step, batch)

    monkeypatch.setattr(Run, "update", crash)
    with pytest.raises(MemoryError):
        start(data, tmp_path, config=recipe(save_every=3))
    assert checkpoint.latest(tmp_path).name == "step-3.pt"
    monkeypatch.setattr(Run, "update", update)
    start(data, tmp_path)
    assert same_end(trained, tmp_path)


@pytest.fixture(scope="module")
def half(data, tmp_path_factory) -> Path:
    """A run of six steps that was stopped after three."""
    out = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        clock(patch)
        start(data, out, max_minutes=2.5)
    return out


@pytest.mark.parametrize("lost", ["nothing", "step", "ema", "generator", "discriminator"])
def test_going_on_without_a_part_of_the_state_is_noticed(data, tmp_path, trained, half, lost):
    """The comparison above is able to fail: it does where a part of the state is not restored."""
    state = checkpoint.load(half / "step-3.pt")
    if lost == "step":
        state["step"] = 2  # the data and the text dropout of another step
    elif lost == "ema":
        state["ema"] = state["networks"]["generator"]
    elif lost in state["optimisers"]:
        for moments in state["optimisers"][lost]["state"].values():
            moments["exp_avg"].zero_()
    checkpoint.save(tmp_path / f"step-{state['step']}.pt", state)
    start(data, tmp_path)
    assert same_end(trained, tmp_path) == (lost == "nothing")


def test_a_finished_run_says_so(data, straight):
    with pytest.raises(
        RecipeError,
        match=r"is at step 6 of 6 already; --config.steps with a larger number trains on",
    ):
        start(data, straight)


def test_resume_never_refuses_a_folder_with_a_checkpoint(data, half):
    before = (half / "step-3.pt").read_bytes()
    with pytest.raises(
        FileExistsError, match=r"already has step-3.pt; choose another folder, or --resume auto"
    ):
        start(data, half, resume="never")
    assert (half / "step-3.pt").read_bytes() == before


def test_going_on_with_another_model_or_other_losses_is_refused(data, half):
    with pytest.raises(RecipeError, match=r"trains the model .*'tail': 8.*'tail': 16.*--from"):
        start(data, half, config=recipe(model=SMALL | {"tail": 16}))
    with pytest.raises(RecipeError, match=r"has or lacks discriminator: its losses are"):
        start(data, half, config=recipe(losses={"l1": 1.0}))


# --- what breaks


def shorter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def edited(change):
    """Writes the checkpoint again after ``change`` of its state."""

    def edit(file: Path) -> None:
        state = torch.load(file, weights_only=True)
        changed = change(state)
        torch.save(changed if isinstance(changed, dict | list) else state, file)

    return edit


DAMAGE = {
    "empty": (lambda f: f.write_bytes(b""), "is damaged or no checkpoint"),
    "cut off": (shorter, "is damaged or no checkpoint"),
    "noise": (lambda f: f.write_bytes(bytes(range(256)) * 40), "is damaged or no checkpoint"),
    "text": (lambda f: f.write_text("step 3\n"), "is damaged or no checkpoint"),
    "a list": (edited(lambda s: [1, 2]), "is not a checkpoint of cmmfnet train"),
    "weights alone": (
        edited(lambda s: s["networks"]["generator"]), "is not a checkpoint of cmmfnet train",
    ),
    "older": (edited(lambda s: s.pop("pools") and None), "another version of cmmfnet: its 'pools'"),
    "step": (edited(lambda s: s.update(step="3")), "another version of cmmfnet: its 'step' is str"),
    "renamed": (edited(lambda s: s.update(step=2)), "is of step 2, which is not that of its name"),
    "config": (
        edited(lambda s: s["config"].update(vit_depth=2)), "does not fit its own network: its tens",
    ),
    "huge config": (
        edited(lambda s: s["config"].update(vit_depth=10**6)), "vit_depth is 1000000; expected",
    ),
    "weights": (
        edited(lambda s: s["networks"]["generator"].popitem()),
        "does not fit its own network: .* 1 missing",
    ),
    "nan": (
        edited(lambda s: next(iter(s["networks"]["generator"].values())).fill_(float("nan"))),
        "holds NaN or infinite values",
    ),
    "nan in ema": (
        edited(lambda s: next(iter(s["ema"].values())).fill_(float("inf"))),
        "holds NaN or infinite values",
    ),
    "ema": (edited(lambda s: s["ema"].popitem()), "does not fit: ema"),
    "moments": (
        edited(lambda s: s["optimisers"]["generator"]["state"][0].update(exp_avg=torch.zeros(3))),
        "does not fit: optimisers generator: exp_avg is",
    ),
    "groups": (
        edited(lambda s: s["optimisers"]["generator"].update(param_groups=[])),
        "does not fit: optimisers generator",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_is_no_use_says_so_and_the_way_on(data, tmp_path, half, damage):
    edit, message = DAMAGE[damage]
    file = tmp_path / "step-3.pt"
    shutil.copy(half / "step-3.pt", file)
    edit(file)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        start(data, tmp_path)
    assert str(caught.value).startswith(f"{file} ") and len(str(caught.value)) < 1500
    assert "Move it away" in str(caught.value) and "--from" in str(caught.value)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_weights_that_are_not_finite_do_not_replace_the_good_checkpoint(
    data, tmp_path, monkeypatch
):
    """The losses of the step are finite; the update that they lead to is not."""
    update = Run.update

    def diverge(self, step, batch):
        update(self, step, batch)
        if step == 3:
            with torch.no_grad():
                next(self.networks["generator"].parameters()).view(-1)[0] = float("inf")

    monkeypatch.setattr(Run, "update", diverge)
    with pytest.raises(NonFiniteLoss, match=r"step 4: weights of the generator are not finite"):
        start(data, tmp_path, config=recipe(save_every=2))
    assert [p.name for p in tmp_path.glob("step-*.pt")] == ["step-2.pt"]
    assert load_model(tmp_path / "model.safetensors").training["steps"] == 2
    monkeypatch.setattr(Run, "update", update)
    start(data, tmp_path)
    assert [p.name for p in tmp_path.glob("step-*.pt")] == ["step-6.pt"]


def test_a_full_disk_leaves_the_older_checkpoint(data, tmp_path, monkeypatch):
    save = checkpoint.save

    def full(file, state):
        if state["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, state)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left"):
        start(data, tmp_path, config=recipe(save_every=2))
    assert [p.name for p in tmp_path.glob("step-*.pt")] == ["step-2.pt"]


def test_hyperparameters_are_those_of_the_recipe_after_a_restart(data, tmp_path, half, monkeypatch):
    shutil.copy(half / "step-3.pt", tmp_path)
    groups = []
    update = Run.update
    monkeypatch.setattr(
        Run, "update",
        lambda self, *a: (groups.append(self.optimisers["generator"].param_groups[0].copy()),
                          update(self, *a)),
    )  # fmt: skip
    start(data, tmp_path, config=recipe(betas=(0.7, 0.8), weight_decay=0.5))
    assert groups[0]["betas"] == (0.7, 0.8) and groups[0]["weight_decay"] == 0.5


def test_limits_that_make_no_sense_are_refused(data, tmp_path, half):
    for limits, message in (
        ({"max_steps": 0}, "--max-steps is 0; expected 1 or more"),
        ({"max_steps": -1}, "--max-steps is -1; expected 1 or more"),
        ({"max_minutes": 0.0}, "--max-minutes is 0.0; expected more than 0"),
        ({"max_minutes": float("nan")}, "--max-minutes is nan; expected more than 0"),
        ({"workers": -1}, "--workers is -1; expected 0 to 1024"),
    ):
        with pytest.raises(RecipeError, match=message):
            start(data, tmp_path / "out", **limits)
    shutil.copy(half / "step-3.pt", tmp_path)
    with pytest.raises(RecipeError, match=r"is at step 3 already, --max-steps is 3; a larger"):
        start(data, tmp_path, max_steps=3)


@pytest.mark.parametrize("save_every", [2, 100])
def test_a_loss_that_is_not_finite_stops_with_its_batch_saved(
    data, tmp_path, monkeypatch, save_every
):
    batches, l1 = [], losses.l1

    def broken(x, y):
        batches.append(y)
        return l1(x, y) * (float("nan") if len(batches) == 4 else 1.0)

    monkeypatch.setattr(losses, "l1", broken)
    with pytest.raises(
        NonFiniteLoss,
        match=r"step 4: .*l1 nan.*non-finite-4.pt. Lower learning_rate or set precision",
    ):
        start(data, tmp_path, config=recipe(save_every=save_every, log_every=100))
    saved = torch.load(tmp_path / "non-finite-4.pt", weights_only=True)
    assert torch.equal(saved["visible"], batches[3]) and saved["thermal"].shape == (2, 1, 32, 32)
    assert len(saved["names"]) == 2
    newest = checkpoint.latest(tmp_path)
    if save_every == 2:  # the good state is kept, and training goes on from it
        assert (
            newest.name == "step-2.pt"
            and load_model(tmp_path / "model.safetensors").training["steps"] == 2
        )
        monkeypatch.setattr(losses, "l1", l1)
        start(data, tmp_path)
        assert checkpoint.latest(tmp_path).name == "step-6.pt"
    else:
        assert newest is None and not (tmp_path / "model.safetensors").exists()


def test_attention_is_not_cudnns_whose_gradients_can_be_nan(data, tmp_path):
    torch.backends.cuda.enable_cudnn_sdp(True)
    start(data, tmp_path, config=recipe(steps=1))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_discriminator_waits_for_its_turn(data, tmp_path):
    start(data, tmp_path, config=recipe(options={"adversarial_start": 0.5}))
    rows = log(tmp_path)
    assert ["adversarial" in row for row in rows] == [False] * 3 + [True] * 3
    judge = [row["discriminator"] for row in rows]
    assert judge[0] > 1.5 and judge[2] < judge[0] - 0.5  # it learns from the start


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"model": {"method": "cmmfnt"}},
            RecipeError,
            "method is 'cmmfnt'; expected one of .*cmmfnet",
        ),
        ({"model": SMALL | {"dept": 3}}, RecipeError, "unexpected keyword argument 'dept'"),
        ({"model": SMALL | {"ci": "both"}}, RecipeError, "ci is 'both'; expected"),
        ({"losses": {"l2": 1.0}}, RecipeError, "unknown loss l2; expected some of l1, perceptual"),
        ({"sources": [Source("gone")]}, PairsError, "gone/index.jsonl does not exist"),
        (
            {"sources": [Source("rendered", split="trian")]},
            PairsError,
            "no entry with split='trian'",
        ),
        (
            {"validation": Source("rendered", lighting=("noon",))},
            PairsError,
            r"lighting=\('noon',\)",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_written(data, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        start(data, tmp_path / "out", config=recipe(**changes))
    assert not (tmp_path / "out").exists()


def test_pretrained_files_that_are_missing(data, tmp_path, monkeypatch):
    def offline(*arguments, **more):
        raise OSError("no network here")

    monkeypatch.setattr("cmmfnet.nn.perceptual.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with pytest.raises(PretrainedError, match="vgg19 was not found"):
        start(data, tmp_path / "out", config=recipe(losses={"perceptual": 1.0}))
    monkeypatch.setenv(
        "CMMFNET_PRETRAINED", str(tmp_path)
    )  # a folder without tag vectors is a mistake, too
    with pytest.raises(
        FileNotFoundError, match=r"no file of tag vectors at .*clip-vitb16-cocostuff171"
    ):
        start(data, tmp_path / "out")


# --- fine-tuning


def test_start_from_takes_weights_and_network_of_a_model(data, tmp_path, straight):
    model = straight / "model.safetensors"
    still = recipe(steps=1, learning_rate=1e-12, weight_decay=0.0)
    start(data, tmp_path / "a", config=still, start_from=str(model))
    before, after = load_model(model), load_model(tmp_path / "a" / "model.safetensors")
    assert (
        equal(before.network.state_dict(), after.network.state_dict())
        and before.config == after.config
    )
    # a recipe for another size: the model's own network is what is trained, and that is said
    with pytest.warns(
        UserWarning, match=r"model.safetensors keeps its own tail, which the recipe has otherwise"
    ):
        other = replace(still, model=SMALL | {"tail": 16})
        start(data, tmp_path / "b", config=other, start_from=str(model))
    assert load_model(tmp_path / "b" / "model.safetensors").config["tail"] == 8
    # it learns from there, and what is stopped goes on without the model
    start(data, tmp_path / "c", config=recipe(steps=2), start_from=str(model))
    start(data, tmp_path / "c", config=recipe(steps=3))
    state = load_model(tmp_path / "c" / "model.safetensors").network.state_dict()
    assert not equal(state, before.network.state_dict())
    assert all((state[k] - v).abs().max() < 0.1 for k, v in before.network.state_dict().items())


def test_start_from_a_model_that_does_not_fit(data, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"no model file gone.safetensors"):
        start(data, tmp_path / "out", start_from="gone.safetensors")
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:FakeMethod")
    fake = save_model(tmp_path / "fake.safetensors", Fake(), {"method": "fake"})
    with pytest.raises(RecipeError, match="is a fake, the recipe trains a cmmfnet"):
        start(data, tmp_path / "out", start_from=str(fake))


# --- commands


@pytest.fixture
def file(tmp_path) -> Path:
    """A recipe on disk."""
    text = {
        "model": SMALL, "losses": {"l1": 1.0},
        "sources": [{"folder": "rendered", "split": "train"}], "steps": 50,
        "batch_size": 1, "size": 32,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "recipe.yaml"


def command(file: Path, data: Path, *arguments: str) -> list[str]:
    given = [
        "--config",
        str(file),
        "--data",
        str(data),
        "--out",
        str(file.parent / "run"),
        "--device",
        "cpu",
    ]
    return ["train", *given, *arguments]


def test_train_by_command_and_single_fields(data, file, capsys):
    arguments = (
        "--config.steps",
        "2",
        "--config.losses",
        "{l1: 0.5, ssim: 1.0}",
        "--config.log_every=1",
    )
    assert main(command(file, data, *arguments)) == 0
    run = file.parent / "run"
    assert [row["step"] for row in log(run)] == [1, 2] and "ssim" in log(run)[0]
    out = capsys.readouterr().out
    assert "step 2 of 2: norm " in out and f"model {run / 'model.safetensors'}" in out
    assert main(command(file, data, "--config.steps", "3", "--max-minutes", "5")) == 0
    assert checkpoint.latest(run).name == "step-3.pt"


@pytest.mark.parametrize(
    ("edit", "arguments", "message"),
    [
        (("steps: 50", "steps: 50\nstepz: 7"), (), "'stepz'"),
        (("folder:", "foldr:"), (), "'foldr'"),
        (
            ("", ""),
            ("--config.steps", "many"),
            "steps is 'many'; expected a whole number from 1 to",
        ),
        (
            ("", ""),
            ("--config.schedule", "cosin"),
            "schedule is 'cosin'; expected one of constant, linear, cosine",
        ),
        (("folder: rendered", "folder: gone"), (), "gone/index.jsonl does not exist"),
        (("", ""), ("--start-from", "gone.safetensors"), "no model file gone.safetensors"),
        (
            ("", ""),
            ("--device", "cuda:7"),
            "device is 'cuda:7'; use cuda, and CUDA_VISIBLE_DEVICES=7",
        ),
    ],
)
def test_mistakes_get_one_line(data, file, capsys, edit, arguments, message):
    file.write_text(file.read_text().replace(*edit) if edit[0] else file.read_text())
    try:
        status = main(command(file, data, *arguments))
    except SystemExit as stop:
        status = stop.code
    error = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert (
        status == 2 and len(error) == 1 and message in error[0] and error[0].startswith("cmmfnet")
    )


def test_a_used_folder_and_a_nan_get_one_line(data, file, capsys, monkeypatch):
    assert main(command(file, data, "--config.steps", "1")) == 0
    capsys.readouterr()
    assert main(command(file, data, "--resume", "never")) == 1
    assert capsys.readouterr().err.startswith("cmmfnet: error: ")
    monkeypatch.setattr(losses, "l1", lambda x, y: (x - y).mean() * float("nan"))
    assert main(command(file, data, "--config.steps", "5")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cmmfnet: error: step 2: ") and "l1 nan" in error


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from cmmfnet.cli import main\n"
        "for name in ('train', 'evaluate', 'scenes'):\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as e: assert e.code == 0\n"
        "print('heavy:', [m for m in ('torch', 'accelerate', 'skimage') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    for option in ("--config.steps", "--from", "--max-minutes", "--lighting", "--json", "--count"):
        assert option in done.stdout


def test_scenes_writes_a_data_set_and_overwrites_none(tmp_path, capsys):
    assert (
        main(["scenes", str(tmp_path / "new"), "--count", "2", "--seed", "5", "--size", "48,64"])
        == 0
    )
    pairs = Pairs(tmp_path / "new")
    assert [entry["name"] for entry in pairs.entries] == ["rendered_000005", "rendered_000006"]
    assert pairs[0].thermal.shape == (48, 64)
    assert main(["scenes", str(tmp_path / "new"), "--count", "1"]) == 1
    assert "is a data set already" in capsys.readouterr().err and len(Pairs(tmp_path / "new")) == 2
    for bad in (
        ["--count", "0"],
        ["--count", "1", "--size", "48"],
        ["--count", "1", "--size", "8,64"],
    ):
        assert main(["scenes", str(tmp_path / "other"), *bad]) == 2
    assert not (tmp_path / "other").exists()
