"""LPIPS, a metric computed by a pre-trained network (files: nn/perceptual.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.files.errors import UserError

if TYPE_CHECKING:
    import torch


def as_tensor(picture: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """(H,W,3) uint8 -> (1,3,H,W) float32 in [-1,1]."""
    import torch

    return (
        torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None].to(device)
    )


def pretrained_folder(folder: str | Path | None = None) -> Path | None:
    """The folder of pre-trained files: ``folder``, or else that of the environment variable
    CMMFNET_PRETRAINED; None without either.

    Raises:
        UserError: it is not there, which may be a slip of the pen.
    """
    given = folder or os.environ.get("CMMFNET_PRETRAINED")
    if given and not Path(given).is_dir():
        source = "--pretrained" if folder else "CMMFNET_PRETRAINED"
        raise UserError(
            f"no folder {given} of pre-trained files ({source}); leave it out to do without, or "
            "see docs/training.md"
        )
    return Path(given) if given else None


class Lpips:
    """LPIPS v0.1 (Zhang et al., CVPR 2018) on uint8 pictures (H,W,3), with AlexNet ("alex") or
    VGG-16 ("vgg16").

    0 for equal pictures, lower is better. Raises :class:`PretrainedError` where the files are
    missing.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        network: str = "alex",
        device: torch.device | str = "cpu",
    ):
        from cmmfnet.nn.perceptual import Perceptual

        self.network, self.device = Perceptual(network, "lpips", folder).to(device), device

    @staticmethod
    def at_hand(folder: str | Path | None = None) -> bool:
        """Whether the learned heads are in ``folder`` (default: CMMFNET_PRETRAINED), which nothing
        downloads."""
        from cmmfnet.nn.perceptual import HEADS

        found = pretrained_folder(folder)
        return found is not None and (found / HEADS["alex"][0]).is_file()

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        import torch

        with torch.inference_mode():
            return float(self.network(as_tensor(x, self.device), as_tensor(y, self.device)))
