"""Loss networks: which file is taken, what is refused, and LPIPS against a second implementation.

The files here have the form of the real ones, with narrow and random layers. LPIPS is checked on
the real ones too where they are at hand.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from cmmfnet.nn import perceptual
from cmmfnet.nn.perceptual import (
    FILES,
    HEADS,
    TAPS,
    Perceptual,
    PretrainedError,
    feature_layers,
    find_weights,
    load_features,
    tapped,
)

ROOT = Path(__file__).parents[2]
ALEX_STRIDES = {
    0: (4, 2),
    3: (1, 2),
    6: (1, 1),
    8: (1, 1),
    10: (1, 1),
}  # module number -> stride, padding


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no pre-trained files of this machine, layers of 1/32 of their width."""

    def refuse(url, timeout):
        raise URLError("no network in tests")

    monkeypatch.setattr(perceptual, "urlopen", refuse)
    monkeypatch.delenv("CMMFNET_PRETRAINED", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, table in list(perceptual._VGG.items()):
        monkeypatch.setitem(perceptual._VGG, name, [c if c == "M" else c // 32 for c in table])


def state_of(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, large enough that deep features are not all
    bias."""
    torch.manual_seed(seed)
    layers = feature_layers(name)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return {f"features.{k}": v for k, v in layers.state_dict().items()}


def write_local(monkeypatch, folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A float16 .safetensors file as in the local folder; its checksum is put into FILES."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() for k, v in state_of(name).items()}
    (file,), url, original = FILES[name][0], *FILES[name][1:]
    save_file(state, folder / file)
    monkeypatch.setitem(FILES, name, ({file: digest(folder / file)}, url, original))
    return state


def write_original(monkeypatch, folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A .pth file as torchvision's, classifier included; the first 8 digits of its checksum are put
    into FILES."""
    folder.mkdir(parents=True, exist_ok=True)
    state = state_of(name, seed=1)
    local, url, _ = FILES[name]
    path = folder / url.rsplit("/", 1)[1]
    torch.save(state | {"classifier.0.weight": torch.zeros(3, 3)}, path)
    monkeypatch.setitem(FILES, name, (local, url, digest(path)[:8]))
    return state


def write_heads(monkeypatch, folder: Path, name: str) -> None:
    widths = (
        [64, 192, 384, 256, 256] if name == "alex" else [c // 32 for c in (64, 128, 256, 512, 512)]
    )
    torch.manual_seed(2)
    file = HEADS[name][0]
    save_file(
        {f"lin{i}.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(widths)}, folder / file
    )
    monkeypatch.setitem(HEADS, name, (file, digest(folder / file)))


def assert_holds(layers: nn.Sequential, state: dict[str, torch.Tensor]) -> None:
    found = layers.state_dict()
    assert {f"features.{k}" for k in found} == set(state)
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.equal(
            tensor, state[f"features.{key}"].float()
        )
    assert not layers.training and not any(p.requires_grad for p in layers.parameters())


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize("name", ["vgg16", "alex"])
def test_local_safetensors_file(monkeypatch, tmp_path, name, by):
    state = write_local(monkeypatch, tmp_path / "weights", name)
    if by == "environment":
        monkeypatch.setenv("CMMFNET_PRETRAINED", str(tmp_path / "weights"))
    assert_holds(load_features(name, tmp_path / "weights" if by == "argument" else None), state)


@pytest.mark.parametrize("where", ["folder", "torch/hub/checkpoints"])
@pytest.mark.parametrize("name", ["vgg19", "vgg16"])
def test_original_pth_file_in_the_folder_or_in_the_cache(monkeypatch, tmp_path, name, where):
    state = write_original(monkeypatch, tmp_path / where, name)
    assert_holds(load_features(name, tmp_path / "folder"), state)


def test_local_file_goes_before_the_original(monkeypatch, tmp_path):
    write_original(monkeypatch, tmp_path, "vgg16")
    state = write_local(monkeypatch, tmp_path, "vgg16")
    assert_holds(load_features("vgg16", tmp_path), state)


@pytest.mark.parametrize("write", [write_local, write_original])
def test_file_with_another_checksum_is_refused(monkeypatch, tmp_path, write):
    write(monkeypatch, tmp_path, "vgg16")
    (path,) = tmp_path.glob("vgg16*")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(
        PretrainedError, match=f"{path.name} has sha256 {digest(path)[:16]}.*expected"
    ):
        load_features("vgg16", tmp_path)


def test_missing_file_without_network_says_what_was_looked_for(tmp_path):
    with pytest.raises(PretrainedError) as caught:
        find_weights("vgg16", tmp_path)
    text = str(caught.value)
    wanted = [str(tmp_path), "vgg16-features-fp16.safetensors", "vgg16-397923af.pth"]
    for part in [
        *wanted,
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "no network in tests",
    ]:
        assert part in text
    assert not list((tmp_path / "torch").rglob("*.p*"))


def test_missing_file_without_a_folder_names_the_variable():
    with pytest.raises(
        PretrainedError, match=r"CMMFNET_PRETRAINED \(not set\).*vgg19-dcbb9e9d.pth"
    ):
        find_weights("vgg19")


def test_download_is_checked_and_kept(monkeypatch, tmp_path):
    state = write_original(monkeypatch, tmp_path / "server", "vgg19")
    (served,) = (tmp_path / "server").iterdir()
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return io.BytesIO(served.read_bytes())

    monkeypatch.setattr(perceptual, "urlopen", serve)
    for _ in range(2):  # the second time from the cache
        assert_holds(load_features("vgg19"), state)
    assert asked == ["https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"]
    assert [p.name for p in (tmp_path / "torch/hub/checkpoints").iterdir()] == [
        "vgg19-dcbb9e9d.pth"
    ]


def test_download_of_something_else_is_refused_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(
        perceptual, "urlopen", lambda url, timeout: io.BytesIO(b"<html>log in first</html>")
    )
    with pytest.raises(PretrainedError, match="sha256"):
        find_weights("vgg19")
    assert list((tmp_path / "torch/hub/checkpoints").iterdir()) == []


def test_lpips_needs_its_heads(monkeypatch, tmp_path):
    write_local(monkeypatch, tmp_path, "vgg16")
    file = HEADS["vgg16"][0]
    with pytest.raises(PretrainedError, match=f"heads not found.*{file}"):
        Perceptual("vgg16", "lpips", tmp_path)
    write_heads(monkeypatch, tmp_path, "vgg16")
    Perceptual("vgg16", "lpips", tmp_path)
    (tmp_path / file).write_bytes(b"other")
    with pytest.raises(PretrainedError, match=f"{file} has sha256"):
        Perceptual("vgg16", "lpips", tmp_path)


def test_lpips_without_heads_downloads_nothing(monkeypatch):
    """Evaluation without pre-trained files leaves LPIPS out: it must not fetch 233 MB to find that
    out."""
    monkeypatch.setattr(perceptual, "urlopen", lambda url, timeout: pytest.fail(f"asked for {url}"))
    with pytest.raises(PretrainedError, match="heads not found"):
        Perceptual("alex", "lpips")


@pytest.mark.parametrize(
    ("network", "mode", "text"),
    [
        ("vgg19", "lpips", "no heads for vgg19"),
        ("vgg17", "l1", "'vgg17'.*vgg16, vgg19, alex"),
        ("vgg16", "l2", "'l2'"),
    ],
)
def test_unknown_network_or_mode(network, mode, text):
    with pytest.raises(ValueError, match=text):
        Perceptual(network, mode)


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "alex"])
def test_taps_are_the_relus_that_they_are_said_to_be(name):
    """LPIPS: the last ReLU of each level. Family: the second ReLU of levels 1 and 2, the last of
    levels 3 and 4."""
    layers = feature_layers(name)
    for taps in TAPS[name].values():
        assert all(isinstance(layers[i], nn.ReLU) for i in taps)
    if name != "alex":
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        assert TAPS[name]["lpips"] == tuple(i - 1 for i in [*pools, len(layers)])
        assert TAPS[name]["family"] == TAPS[name]["lpips"][:4]


def alex_lpips(x, y, features: dict, heads: dict) -> torch.Tensor:
    """LPIPS v0.1 by torch.nn.functional in float64, from the paper and the weights' names alone.
    (B,3,H,W) -> (B,)."""

    def maps(p):
        p = (
            p.double() - torch.tensor([-0.030, -0.088, -0.188]).double().view(3, 1, 1)
        ) / torch.tensor([0.458, 0.448, 0.450]).double().view(3, 1, 1)
        for i, (stride, padding) in ALEX_STRIDES.items():
            if i in (3, 6):
                p = F.max_pool2d(p, 3, 2)
            weight, bias = (
                features[f"features.{i}.weight"].double(),
                features[f"features.{i}.bias"].double(),
            )
            p = F.relu(F.conv2d(p, weight, bias, stride, padding))
            yield p / (p.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)

    total = torch.zeros(len(x), dtype=torch.float64)
    for level, (a, b) in enumerate(zip(maps(x), maps(y), strict=True)):
        total += F.conv2d((a - b) ** 2, heads[f"lin{level}.weight"].double()).mean(dim=(1, 2, 3))
    return total


def pair(size=(75, 90)):
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    return x, (
        x
        + torch.randn(2, 3, *size, generator=generator) * torch.tensor([0.1, 0.5]).view(2, 1, 1, 1)
    ).clamp(-1, 1)


def check_alex(folder: Path) -> None:
    distance = Perceptual("alex", "lpips", folder)
    features, heads = (
        load_file(folder / next(iter(FILES["alex"][0]))),
        load_file(folder / HEADS["alex"][0]),
    )
    x, y = pair()
    with torch.no_grad():
        assert distance(x, x).tolist() == [0, 0]
        found = distance(x, y)
    want = alex_lpips(x, y, features, heads)
    assert found.shape == (2,) and want.min() > 0.001
    assert (found - want).abs().max() < 1e-5


def test_lpips_on_random_weights(monkeypatch, tmp_path):
    write_local(monkeypatch, tmp_path, "alex")
    write_heads(monkeypatch, tmp_path, "alex")
    check_alex(tmp_path)


WEIGHTS = Path(os.environ.get("CMMFNET_PRETRAINED") or ROOT.parent / "shared" / "weights")


@pytest.mark.skipif(
    not (WEIGHTS / HEADS["alex"][0]).is_file()
    or not (WEIGHTS / next(iter(FILES["alex"][0]))).is_file(),
    reason=f"no pre-trained AlexNet and LPIPS heads in {WEIGHTS} (set CMMFNET_PRETRAINED)",
)
def test_lpips_on_the_real_weights():
    check_alex(WEIGHTS)


def test_unit_mode_against_the_formula(monkeypatch, tmp_path):
    """Squared difference of unit vectors, summed over channels, mean over positions, then over the
    five levels."""
    write_local(monkeypatch, tmp_path, "vgg16")
    distance = Perceptual("vgg16", "unit", tmp_path)
    x, y = pair((40, 48))
    want = torch.zeros(2)
    with torch.no_grad():
        for a, b in zip(distance.features(x), distance.features(y), strict=True):
            cosine = F.cosine_similarity(a.double(), b.double(), dim=1, eps=1e-12)
            lit = (a.norm(dim=1) > 0).double() + (
                b.norm(dim=1) > 0
            ).double()  # |u - v|^2 = |u|^2 + |v|^2 - 2 u.v
            want = want + (lit - 2 * cosine).mean(dim=(1, 2)) / 5
        assert distance(x, y).tolist() == pytest.approx(want.tolist(), abs=1e-5)
        assert distance(x, x).tolist() == [0, 0]


@pytest.mark.parametrize("mode", ["lpips", "unit", "l1"])
def test_gradient_reaches_the_first_picture_only(monkeypatch, tmp_path, mode):
    write_local(monkeypatch, tmp_path, "vgg16")
    write_heads(monkeypatch, tmp_path, "vgg16")
    distance = Perceptual("vgg16", mode, tmp_path)
    x, y = (p.requires_grad_() for p in pair((32, 32)))
    distance(x, y).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    assert y.grad is None and all(p.grad is None for p in distance.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_unit_distance_of_dark_positions_is_finite(dtype):
    """After a ReLU a position can be zero in every channel: it has no direction, and no gradient
    passes the ReLU."""
    torch.manual_seed(0)
    leaf = torch.randn(1, 8, 4, 4)
    leaf[:, :, :2] = -1
    leaf = leaf.to(dtype).requires_grad_()
    b = torch.rand(1, 8, 4, 4).to(dtype)
    b[:, :, 1:3] = 0
    found = perceptual.unit_distance(F.relu(leaf), b, torch.ones(1, 8, 1, 1))
    found.sum().backward()
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert leaf.grad.isfinite().all() and leaf.grad[:, :, 2:].abs().max() > 0


@pytest.mark.parametrize("name", ["vgg16", "alex"])
def test_maps_are_tapped_behind_any_layer(name):
    layers = feature_layers(name)[:12]
    x = torch.randn(1, 3, 70, 70)
    expected = []
    for layer in layers:
        expected.append(layer(expected[-1] if expected else x))
    for taps in [(i,) for i in range(12)] + [(1, 3, 8), (0, 1, 2), ()]:
        last, found = tapped(layers, x, taps)
        assert len(found) == len(taps)
        assert all(torch.equal(a, expected[i]) for a, i in zip(found, taps, strict=True))
        assert torch.equal(last, expected[-1])
