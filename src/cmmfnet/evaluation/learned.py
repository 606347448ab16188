"""Metrics that look at pictures through a pre-trained network: LPIPS and a Frechet distance on
VGG-16 features.

The pre-trained files are those of perceptual.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def as_tensor(picture: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """(H,W,3) uint8 -> (1,3,H,W) float32 in [-1,1]."""
    import torch

    return (
        torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None].to(device)
    )


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

        folder = folder or os.environ.get("CMMFNET_PRETRAINED")
        return folder is not None and (Path(folder) / HEADS["alex"][0]).is_file()

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        import torch

        with torch.inference_mode():
            return float(self.network(as_tensor(x, self.device), as_tensor(y, self.device)))


class VggFeatures:
    """What :func:`frechet_distance` compares: VGG-16's relu5_3 on ImageNet-normalised pictures,
    mean over positions."""

    def __init__(self, folder: str | Path | None = None, device: torch.device | str = "cpu"):
        from cmmfnet.nn.perceptual import Perceptual

        self.network, self.device = Perceptual("vgg16", "unit", folder).to(device), device

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(H,W,3) uint8 -> (512,) float64."""
        import torch

        with torch.inference_mode():
            relu5_3 = self.network.features(as_tensor(picture, self.device))[-1]
        return relu5_3.mean(dim=(2, 3))[0].double().cpu().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """``|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` of two sets of features (n,D) and
    (m,D), n, m >= 2.

    Heusel et al., NeurIPS 2017, equation 6, there on Inception features: only then it is called
    FID. The estimate grows as sets shrink, so that only distances on equally many pictures can be
    compared.

    With centred features A, B divided by the root of their number less one, S = A'A, and the trace
    of the root is the sum of the singular values of AB': no root of a matrix that has no full rank.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"a Frechet distance needs two pictures or more on each side, found {len(a)} and "
            f"{len(b)}"
        )
    roots = [np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r") for x in (a, b)]
    mean = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    traces = sum(np.square(r).sum() for r in roots)
    nuclear = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(max(0.0, mean + traces - 2 * nuclear))
