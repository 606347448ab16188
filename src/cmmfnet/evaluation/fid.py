"""FID, the Frechet distance between the features of two sets of pictures in Inception-v3.

Heusel et al., NeurIPS 2017. The network and its weights are torch-fidelity's
(``pip install 'cmmfnet[fid]'``), which computes the features of the original TensorFlow code and
fetches the weights (91 MB, github.com) on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

FEATURES = 2048
"""Features of a picture. A set of fewer pictures has a singular covariance."""
_BATCH = 32


def inception(device: str) -> Callable[[Tensor], Tensor]:
    """The network: pictures (B,3,H,W) uint8 -> features (B,2048) float32.

    Raises ``ImportError`` without torch-fidelity, ``PretrainedError`` where its weights cannot
    be fetched.
    """
    try:
        from torch_fidelity import FeatureExtractorInceptionV3

        from cmmfnet.nn.perceptual import PretrainedError
    except ImportError as error:
        raise ImportError(
            f"FID needs torch-fidelity: pip install 'cmmfnet[fid]' ({error})"
        ) from error
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", [str(FEATURES)])
    except OSError as error:
        raise PretrainedError(
            f"torch-fidelity could not fetch the weights of Inception-v3: {error}"
        ) from error
    network = network.to(device)
    return lambda pictures: network(pictures.to(device))[0]


class Fid:
    """FID of several methods' pictures to the true pictures of the same frames: :meth:`add` each
    picture (h,w,3) uint8, then :meth:`distance`."""

    TRUTH = None
    """The name of the true pictures, which no method has."""

    def __init__(self, network: Callable[[Tensor], Tensor]):
        self.network = network
        self.features: dict[str | None, list[np.ndarray]] = {}
        self._waiting: list[tuple[str | None, np.ndarray]] = []

    def add(self, name: str | None, picture: np.ndarray) -> None:
        if self._waiting and self._waiting[0][1].shape != picture.shape:
            self._compute()
        self._waiting.append((name, picture))
        if len(self._waiting) == _BATCH:
            self._compute()

    def _compute(self) -> None:
        import torch

        if not self._waiting:
            return
        pictures = torch.from_numpy(np.stack([picture for _, picture in self._waiting]))
        with torch.inference_mode():
            found = self.network(pictures.permute(0, 3, 1, 2)).cpu().numpy()
        for (name, _), one in zip(self._waiting, found, strict=True):
            self.features.setdefault(name, []).append(one)
        self._waiting = []

    def distance(self, name: str) -> float | None:
        """FID of the method ``name``; None for fewer than two pictures."""
        self._compute()
        theirs, own = self.features[self.TRUTH], self.features[name]
        return frechet_distance(np.stack(own), np.stack(theirs)) if len(own) > 1 else None


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Between normal distributions with the means and covariances of x (N,F) and y (M,F), N and M
    above 1: ``|mean x - mean y|^2 + tr(X + Y - 2 (X Y)^(1/2))``.

    With centred features scaled to A'A = X and B'B = Y, the root's trace is the sum of the singular
    values of A B'. That needs no root of a matrix of rank below F, as of few pictures.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    gap = x.mean(axis=0) - y.mean(axis=0)
    a, b = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    a, b = (np.linalg.qr(z, mode="r") if len(z) > z.shape[1] else z for z in (a, b))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, gap @ gap + (a**2).sum() + (b**2).sum() - 2 * root))
