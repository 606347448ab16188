"""Loss networks: VGG-16, VGG-19 and AlexNet convolutions, perceptual distances on their features,
LPIPS.

The pre-trained files come from a local folder (``CMMFNET_PRETRAINED`` or an explicit path) or from
the usual download address; both are checked by sha256. VGG-16/19: Simonyan & Zisserman, 2015;
LPIPS: Zhang et al., CVPR 2018.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.request import urlopen

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cmmfnet.files.atomic import atomic_write

# Layer tables: number = 3x3 convolution with that many channels, "M" = 2x2 max pooling
# (torchvision's numbering of modules).
_VGG = {
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512],
    "vgg19": [64, 64, "M", 128, 128, "M", *4 * [256], "M", *4 * [512], "M", *4 * [512]],
}
# Layers whose features are compared, by the number of their ReLU: LPIPS takes the last ReLU of each
# level; TIC-CGAN, MUGAN, LKAT-GAN and CMMF-Net's default take four of them ("family").
TAPS = {
    "vgg16": {"lpips": (3, 8, 15, 22, 29), "family": (3, 8, 15, 22)},
    "vgg19": {"lpips": (3, 8, 17, 26, 35), "family": (3, 8, 17, 26)},
    "alex": {"lpips": (1, 4, 7, 9, 11), "family": (1, 4, 7, 9)},
}
# name -> (local file names in order of preference with their sha256, download address of the
# original with its sha256)
FILES: dict[str, tuple[dict[str, str], str, str]] = {
    "vgg16": (
        {
            "vgg16-features-fp16.safetensors": (
                "302ac2487aa735ba4f7f426f111a3dfc80ae4f4f35559a4e507641aac9ddb84a"
            )
        },
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af",
    ),
    "vgg19": ({}, "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d"),
    "alex": (
        {
            "alexnet-features-fp16.safetensors": (
                "62f5c7727927418bc887f2478580aeef35e2c84032869f2c0f3cb82fe42c4007"
            )
        },
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be79",
    ),
}
HEADS = {
    "vgg16": (
        "lpips-v0.1-vgg-linear.safetensors",
        "61f275f169341672e38949c908473e2079207da7c2e17a378734a4409fb5b090",
    ),
    "alex": (
        "lpips-v0.1-alex-linear.safetensors",
        "b2eb412ca050d6762cf9e5c851f7a0a326eeffc4ff14d11c6b5a16a245e13bf7",
    ),
}


class PretrainedError(FileNotFoundError):
    """A pre-trained file of a loss network is missing or is not the file it should be."""


def feature_layers(name: str) -> nn.Sequential:
    """The convolutions of ``name`` ("vgg16", "vgg19", "alex") with torchvision's module numbers,
    randomly initialised."""
    if name == "alex":
        return nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
    layers: list[nn.Module] = []
    width = 3
    for item in _VGG[name]:
        if item == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
            width = item
    return nn.Sequential(*layers)


def layer_numbers(name: str, layers: Sequence[str]) -> tuple[int, ...]:
    """The module numbers of layers by their names in the VGG paper, such as "relu4_3" or "conv3_3".

    Raises ``ValueError`` for a network other than a VGG, for an unknown name, for names that are
    not in the order of the network, and for none.
    """
    if name not in _VGG:
        raise ValueError(f"layers of {name} have no names; expected one of {', '.join(_VGG)}")
    known, level, place, number = {}, 1, 1, 0
    for item in _VGG[name]:
        if item == "M":
            level, place, number = level + 1, 1, number + 1
        else:
            known |= {f"conv{level}_{place}": number, f"relu{level}_{place}": number + 1}
            place, number = place + 1, number + 2
    if unknown := [layer for layer in layers if layer not in known]:
        raise ValueError(
            f"{name} has no layer {', '.join(map(str, unknown))}; expected some of "
            f"{', '.join(known)}"
        )
    found = tuple(known[layer] for layer in layers)
    if not found or list(found) != sorted(set(found)):
        raise ValueError(
            f"layers are {list(layers)}; expected one or more, each once, in the network's order"
        )
    return found


def tapped(layers: nn.Sequential, x: Tensor, taps: Collection[int]) -> tuple[Tensor, list[Tensor]]:
    """``layers(x)`` of :func:`feature_layers`, and the outputs of the layers numbered ``taps``."""
    found = []
    for i, layer in enumerate(layers):
        x = layer(x)
        if i in taps:
            found.append(x)
    return x, found


def _checked(path: Path, expected: str) -> Path:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise PretrainedError(
            f"{path} has sha256 {found[:16]}..., expected {expected[:16]}...; delete it and fetch "
            "it anew"
        )
    return path


def find_weights(name: str, folder: str | Path | None = None) -> Path:
    """Path of the checked pre-trained file of ``name``: local folder first, then the cache, then
    the download address.

    ``folder`` defaults to the environment variable ``CMMFNET_PRETRAINED``. Raises
    :class:`PretrainedError`.
    """
    local, url, digest = FILES[name]
    folder = folder or os.environ.get("CMMFNET_PRETRAINED")
    for file, expected in local.items():
        if folder and (Path(folder) / file).is_file():
            return _checked(Path(folder) / file, expected)
    original = url.rsplit("/", 1)[1]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for place in ([Path(folder)] if folder else []) + [cache]:
        if (place / original).is_file():
            return _checked(place / original, digest)
    try:
        with atomic_write(cache / original) as file, urlopen(url, timeout=30) as response:
            shutil.copyfileobj(response, file)
            file.flush()
            _checked(Path(file.name), digest)
    except OSError as error:
        raise PretrainedError(
            f"the loss network {name} was not found in {folder or 'CMMFNET_PRETRAINED (not set)'} "
            "(looked for "
            f"{', '.join([*local, original])}) and {url} gave: {error}. Put the file there, or "
            "choose another perceptual network"
        ) from error
    return cache / original


def load_features(name: str, folder: str | Path | None = None) -> nn.Sequential:
    """The pre-trained, frozen convolutions of ``name`` in evaluation mode, float32."""
    path = find_weights(name, folder)
    state = (
        load_file(path)
        if path.suffix == ".safetensors"
        else torch.load(path, map_location="cpu", weights_only=True)
    )
    prefix = "features."
    layers = feature_layers(name)
    wanted = layers.state_dict().keys()
    layers.load_state_dict({k: state[prefix + k].float() for k in wanted}, strict=True)
    return layers.eval().requires_grad_(False)


class Perceptual(nn.Module):
    """Distance between two pictures on features of a frozen network; 0 for equal pictures.

    ``forward(x, y (B,3,H,W) in [-1,1]) -> (B,)`` float32; no gradient reaches ``y``.

    ``mode``: "lpips" = unit-normalised features, squared difference weighted by the learned LPIPS
    heads (Zhang et al., eq. 1); "unit" = the same without learned heads (squared differences summed
    over channels, mean over positions and layers); "l1" = mean absolute difference of each layer's
    features, summed over layers (the loss of TIC-CGAN, LKAT-GAN and CMMF-Net, eq. 4).

    ``layers``: names of the layers that are compared, such as ("relu4_3",); or "family", the four
    layers of TIC-CGAN and its successors (the last ReLU of levels 1 to 4); or "lpips", the five
    layers of LPIPS (levels 1 to 5). None takes "family" for "l1" and "lpips" for the other modes.
    ``layer_weights``: one factor for each of ``layers``; None weighs all 1. ``imagenet``: whether
    pictures are normalised by ImageNet's mean and deviation first, as in the training of these
    networks; False feeds pictures in [-1,1] as they are (the code of TIC-CGAN and pix2pixHD).

    Raises ``ValueError`` for an unknown network, mode or layer, for weights that do not fit the
    layers, and for LPIPS on a network that has no heads or on layers of one's own;
    :class:`PretrainedError` for a file that is not there.
    """

    def __init__(
        self,
        network: str = "vgg16",
        mode: str = "lpips",
        folder: str | Path | None = None,
        *,
        layers: Sequence[str] | str | None = None,
        layer_weights: Sequence[float] | None = None,
        imagenet: bool = True,
    ):
        super().__init__()
        if network not in TAPS or mode not in ("lpips", "unit", "l1"):
            expected = f"one of {', '.join(TAPS)}, with mode 'lpips', 'unit' or 'l1'"
            raise ValueError(f"network is {network!r}, mode is {mode!r}; expected {expected}")
        if mode == "lpips" and network not in HEADS:
            raise ValueError(
                f"LPIPS has no heads for {network}; use one of {', '.join(HEADS)}, or mode 'unit' "
                "or 'l1'"
            )
        if mode == "lpips" and (layers is not None or not imagenet):
            raise ValueError(
                "LPIPS was fitted to its own five layers of ImageNet-normalised pictures; use mode "
                "'unit' or 'l1' for others"
            )
        if layers is None:
            layers = "family" if mode == "l1" else "lpips"
        if isinstance(layers, str):
            if layers not in TAPS[network]:
                raise ValueError(f"layers is {layers!r}; expected family, lpips or a list of names")
            self.taps = TAPS[network][layers]
        else:
            self.taps = layer_numbers(network, layers)
        given = [1.0] * len(self.taps) if layer_weights is None else list(layer_weights)
        if len(given) != len(self.taps) or not all(weight > 0 for weight in given):
            raise ValueError(
                f"layer_weights are {given}; expected {len(self.taps)} numbers above 0, one for "
                "each layer"
            )
        self.layer_weights = tuple(float(weight) for weight in given)
        if mode == "lpips":  # first: small, and in no place to download from
            folder = folder or os.environ.get("CMMFNET_PRETRAINED")
            file, digest = HEADS[network]
            path = Path(folder or ".") / file
            if not path.is_file():
                raise PretrainedError(
                    f"LPIPS heads not found: {path}; they are the linear layers of LPIPS v0.1 "
                    f"({network})"
                )
            heads = load_file(_checked(path, digest))
            for i, key in enumerate(sorted(heads)):
                self.register_buffer(f"head{i}", heads[key].float())
        self.layers = load_features(network, folder).to(memory_format=torch.channels_last)
        self.mode, self.distance = mode, unit_distance
        # LPIPS' own shift and scale, which are ImageNet's mean and deviation for inputs in [-1,1]
        shift, scale = (
            ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
            if imagenet
            else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        )
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        # channels last: twice as fast on tensor cores, the same numbers
        x = ((x - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        return tapped(self.layers[: max(self.taps) + 1], x, self.taps)[1]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = self.features(y)
        total = x.new_zeros(x.shape[0], dtype=torch.float32)
        levels = zip(self.features(x), theirs, self.layer_weights, strict=True)
        for i, (a, b, weight) in enumerate(levels):
            if self.mode == "l1":
                # channels first: they lie side by side in memory
                found = (a - b).abs().mean(dim=1, dtype=torch.float32).mean(dim=(1, 2))
            elif self.mode == "lpips":
                found = self.distance(a, b, getattr(self, f"head{i}"))
            else:
                found = self.distance(a, b, None) / len(self.taps)
            total = total + (found if weight == 1 else found * weight)
        return total


def unit_distance(a: Tensor, b: Tensor, head: Tensor | None) -> Tensor:
    """Squared distance of features (B,C,H,W) scaled to unit length over C, weighted by ``head``
    (1,C,1,1): (B,) float32.

    The arithmetic stays in the features' dtype (float32 in evaluation, bfloat16 in mixed-precision
    training, where the maps are what costs); norms and sums are accumulated in float32.
    """
    with torch.autocast(a.device.type, enabled=False):
        difference = _unit(a) - _unit(b)
        squares = difference.square() if head is None else difference.square() * head.to(a.dtype)
        return squares.sum(dim=1, dtype=torch.float32).mean(dim=(1, 2))


def _unit(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide)
    # for a zero vector 1e8, which is infinite in float16, and 0 * inf is NaN
    inverse = (1 / (norm + 1e-8)).clamp_max(torch.finfo(x.dtype).max)
    return x * inverse.to(x.dtype)


class Cropped(nn.Module):
    """A distance of pictures on one random square of ``size`` pixels, the same for the whole
    batch."""

    def __init__(self, distance: nn.Module, size: int):
        super().__init__()
        self.distance, self.size = distance, size

    def cut(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same random square of both pictures; every call draws another one."""
        top, left = (int(torch.randint(max(1, side - self.size + 1), ())) for side in x.shape[-2:])
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        return x[window], y[window]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.distance(*self.cut(x, y))
