"""``cmmfnet import-weights``: checkpoints of the authors' own code as model files.

Pickles are read with ``weights_only``, so that no code of theirs runs. Every tensor of the network
must be in the checkpoint, and every tensor of the checkpoint in the network, in one shape; running
statistics of norms, which no method here keeps, and fixed blur filters are left out.

Key names: junyanz/pytorch-CycleGAN-and-pix2pix (pix2pix, CycleGAN), Kuangxd/TICCGAN at f7c83fc,
FuyaLuo/PearlGAN at ce221ad, BIT-DA/I2V-GAN at c828cf1, models/networks.py of each.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cmmfnet.files.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
LEFT_OUT = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked|filt)$")


def import_weights(*files: Path, method: str, out: Path) -> Path:
    """Convert a checkpoint of a method's official code to a model file.

    The result colours frames with every command that takes --model. Only the generator from
    thermal to colour is needed: latest_net_G.pth of pix2pix and TIC-CGAN, the generator of that
    direction of CycleGAN (G_A or G_B) and I2V-GAN; for PearlGAN the encoder of the thermal domain
    and the decoder of the colour domain, in this order.

    Args:
        files: the checkpoint, .pth; two of pearlgan
        method: pix2pix, cyclegan, ticcgan, pearlgan or i2vgan
        out: the model to write, .safetensors

    Raises:
        UserError: an unknown method, another number of files, a file that is no such checkpoint.
    """
    from cmmfnet.methods import build_network
    from cmmfnet.weights.files import save_model

    if method not in IMPORTERS:
        raise UserError(f"method is {method!r}; expected one of {', '.join(IMPORTERS)}")
    count, read = IMPORTERS[method]
    if len(files) != count:
        raise UserError(f"{method} is given {len(files)} files; expected {count}")
    states = [_read(Path(file)) for file in files]
    names = " and ".join(str(file) for file in files)
    try:
        config, found = read(*states)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{names} is no checkpoint of the official {method} generator: {error} not found"
        ) from error
    network = build_network({"method": method} | config)
    wanted = network.state_dict()
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise UserError(
            f"{names} is no checkpoint of the official {method} generator: {len(missing)} tensors "
            f"are missing{_first(missing)}, {len(extra)} are not known{_first(extra)}"
        )
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            raise UserError(
                f"{names}: {key} is {tuple(tensor.shape)}; expected {tuple(wanted[key].shape)}"
            )
    network.load_state_dict(found)
    about = {"imported": [Path(file).name for file in files], "summary": f"{method}, imported"}
    path = save_model(out, network.eval(), {"method": method} | config, about)
    print(f"model {path}")
    return path


def _first(keys: list[str]) -> str:
    return f" (the first is {keys[0]})" if keys else ""


def _read(file: Path) -> State:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the kinds of pickle that torch does not expect
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"{file} is no checkpoint of plain tensors: it is damaged, of another format, or holds "
            "Python objects, which could run code and are not loaded. Expected a file of "
            "torch.save(network.state_dict(), FILE)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{file} holds no dictionary of tensors; expected a state_dict")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    return {key: value.float() for key, value in state.items() if not LEFT_OUT.search(key)}


def _renamed(state: State, *changes: tuple[str, str]) -> State:
    """With each pattern replaced in every key, in this order."""
    found = {}
    for key, value in state.items():
        for pattern, by in changes:
            key = re.sub(pattern, by, key)
        found[key] = value
    return found


def _blocks(state: State, prefix: str) -> int:
    return sum(bool(re.fullmatch(rf"{prefix}\.\d+\.conv_block\.1\.weight", key)) for key in state)


BLOCK = (r"\.conv_block\.", ".layers.")


def _cyclegan(state: State) -> tuple[dict, State]:
    width, inputs = state["model.1.weight"].shape[:2]
    last = max(int(key.split(".")[1]) for key in state)
    config = {
        "inputs": inputs,
        "outputs": len(state[f"model.{last}.bias"]),
        "width": width,
        "blocks": _blocks(state, "model"),
    }
    return config, _renamed(state, (r"^model\.", "layers."), BLOCK)


def _i2vgan(state: State) -> tuple[dict, State]:
    config = {"width": len(state["model.1.weight"]), "blocks": _blocks(state, "model")}
    return config, _renamed(state, (r"^model\.", "layers."), BLOCK)


def _ticcgan(state: State) -> tuple[dict, State]:
    width, inputs = state["model1_1.1.weight"].shape[:2]
    config = {
        "inputs": inputs,
        "width": width,
        "global_blocks": _blocks(state, "model"),
        "local_blocks": _blocks(state, "model1_2"),
    }
    parts = ((r"^model1_1\.", "fine_in."), (r"^model1_2\.", "fine_out."), (r"^model\.", "coarse."))
    return config, _renamed(state, *parts, BLOCK)


def _pix2pix(state: State) -> tuple[dict, State]:
    """The original's levels lie in one another: the outermost is conv 0, inner level 1, transposed
    conv 3; others conv 1, norm 2, inner level 3, conv 5, norm 6; the innermost conv 1, conv 3,
    norm 4."""
    places = ["model.model"]
    while any(
        key.startswith(f"{places[-1]}.{3 if len(places) > 1 else 1}.model.") for key in state
    ):
        places.append(f"{places[-1]}.{3 if len(places) > 1 else 1}.model")
    levels = len(places)
    width, inputs = state["model.model.0.weight"].shape[:2]
    moves = {}
    for i, place in enumerate(places):
        up = f"ups.{levels - 1 - i}"
        if i == 0:
            pairs = {0: "downs.0.0", 3: f"{up}.1"}
        elif i == levels - 1:
            pairs = {1: f"downs.{i}.1", 3: f"{up}.1", 4: f"{up}.2"}
        else:
            pairs = {1: f"downs.{i}.1", 2: f"downs.{i}.2", 5: f"{up}.1", 6: f"{up}.2"}
        moves |= {f"{place}.{number}": ours for number, ours in pairs.items()}
    found = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        found[f"{moves[layer]}.{kind}" if layer in moves else key] = value
    outputs = state["model.model.3.weight"].shape[1]
    return {"inputs": inputs, "outputs": outputs, "levels": levels, "width": width}, found


def _pearlgan(encoder: State, decoder: State) -> tuple[dict, State]:
    """Of the original's attention, bottlenec1 looks at the coarsest scale; ours count from the
    finest."""
    attention = [(r"\.conv\.", ".enter.")]
    attention += [(rf"\.bottlenec{4 - i}\.1\.", f".look.{i}.") for i in range(4)]
    count = _blocks(decoder, "model")
    config = {
        "width": len(encoder["model.1.weight"]),
        "encoder_blocks": _blocks(encoder, "model_postfix"),
        "decoder_blocks": count,
    }
    found = _renamed(
        encoder, (r"^model\.10\.", "encoder.1."), (r"^model\.", "encoder.0."),
        (r"^model_postfix\.", "encoder.2."), *attention, BLOCK,
    )  # fmt: skip
    for key, value in _renamed(decoder, (r"^model_att\.", "decoder.0."), *attention).items():
        match = re.fullmatch(r"model\.(\d+)\.(.*)", key)
        if match and int(match[1]) < count:
            key = f"decoder.1.{match[1]}.{match[2]}".replace(".conv_block.", ".layers.")
        elif match:
            key = f"decoder.2.{int(match[1]) - count}.{match[2]}"
        found[key] = value
    return config, found


IMPORTERS: dict[str, tuple[int, Callable[..., tuple[dict, State]]]] = {
    "pix2pix": (1, _pix2pix),
    "cyclegan": (1, _cyclegan),
    "ticcgan": (1, _ticcgan),
    "pearlgan": (2, _pearlgan),
    "i2vgan": (1, _i2vgan),
}
"""Method -> how many files, and what makes a configuration and our key names of their states."""
