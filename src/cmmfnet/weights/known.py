"""Known models and where their files are: the bundled weights, and the Hugging Face hub."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cmmfnet.files.errors import UserError

BUNDLED = Path(__file__).parent / "bundled"
HUB_FILE = "model.safetensors"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<commit>[^/]+))?(?:/(?P<file>.+))?")


class ModelError(UserError):
    """A model that cannot be found, trusted or loaded; the message says what to do instead."""


@dataclass(frozen=True)
class Known:
    """One row of the table of known weights."""

    file: str  # in BUNDLED
    sha256: str
    licence: str
    summary: str


KNOWN: dict[str, Known] = {
    "cmmfnet": Known(
        file="cmmfnet.safetensors",
        sha256="3249f7de744757297196850f40c3581e3d3de266d359a554da3683451f6f9b43",
        licence="research use (the terms of the training data); see docs/model-card.md",
        summary="CMMF-Net, the released recipe: VGG-16 hybrid ViT, large-kernel U-Net, "
        "pseudo-thermal co-training, words by region",
    ),
    "cmmfnet-small": Known(
        file="cmmfnet-small.safetensors",
        sha256="26d2e8f427eb4de6723ae86becefa9436d3e6a6b339b196bb05806097c34b680",
        licence="research use (the terms of the training data); see docs/model-card-small.md",
        summary="for live colour on a CPU, at a cost in quality: a network distilled from cmmfnet",
    ),
}


def parts(name: str | Path) -> list[str | Path]:
    """ "cmmfnet+cmmfnet-small" -> its two models; a list of one for any other name. A file that has
    a + in its path is one model.

    Raises ModelError for more than two, and for a part without a name.
    """
    if not isinstance(name, str) or "+" not in name or Path(name).exists():
        return [name]
    found = name.split("+")
    if len(found) != 2 or not all(found):
        raise ModelError(f"model is {name!r}; expected one, or two as in cmmfnet+cmmfnet-small")
    return list(found)


def find(name: str | Path) -> tuple[Path, Known | None]:
    if isinstance(name, str) and name in KNOWN:
        path = BUNDLED / KNOWN[name].file
        if not path.is_file():
            raise ModelError(
                f"the bundled model {name!r} is not in this installation ({path}); install "
                "cmmfnet again"
            )
        return path, KNOWN[name]
    if isinstance(name, str) and name.startswith("hf:"):
        return _from_hub(name), None
    path = Path(name)
    if path.suffix.lower() in PICKLES:
        raise ModelError(pickle_message(path))
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.safetensors"))
        raise ModelError(
            f"{path} is a folder; give the model file inside it"
            + (f": {', '.join(inside)}" if inside else ", but it holds no .safetensors file")
        )
    if path.is_file():
        return path, None
    if isinstance(name, Path) or os.sep in name or "/" in name or path.suffix == ".safetensors":
        raise ModelError(f"no model file {path} (looked in {path.absolute().parent})")
    close = difflib.get_close_matches(str(name), KNOWN, cutoff=0.4)
    raise ModelError(
        f"unknown model {str(name)!r}{f'; did you mean {close[0]!r}?' if close else '.'} "
        f"Known: {', '.join(KNOWN) or 'none'}. Otherwise give the path of a .safetensors file, or "
        "hf:OWNER/REPO@COMMIT"
    )


def _from_hub(name: str) -> Path:
    match = _HUB.fullmatch(name)
    if match is None:
        raise ModelError(
            f"{name!r} is not of the form hf:OWNER/REPO@COMMIT or "
            "hf:OWNER/REPO@COMMIT/FILE.safetensors"
        )
    repo, commit, file = match["repo"], match["commit"], match["file"] or HUB_FILE
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ModelError(
            f"{name!r} is not pinned to a commit, so its weights could change under you (found "
            f"revision {commit!r}); "
            f"write hf:{repo}@ followed by the 40-digit commit shown at "
            f"https://huggingface.co/{repo}/commits/main"
        )
    if Path(file).suffix.lower() in PICKLES:
        raise ModelError(pickle_message(Path(file)))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, revision=commit))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"{name}: the hub did not give {file}: {error}") from error


def pickle_message(path: Path) -> str:
    return (
        f"{path} is a pickle, and loading a pickle runs whatever code is in it; only safetensors "
        "are loaded. "
        "Use the .safetensors file that `cmmfnet train` wrote, or build the network in Python, "
        "load the weights with "
        "torch.load(..., weights_only=True) and write it with cmmfnet.weights.files.save_model"
    )
