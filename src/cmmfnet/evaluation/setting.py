"""The options of an evaluation: pairs, geometry, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmmfnet.evaluation.protocol import DEFAULT_GEOMETRY


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The options that ``cmmfnet evaluate`` and ``cmmfnet compare`` share.

    Attributes:
        data: a folder of pairs (docs/data.md)
        split: train, val or test, as in the folder's index
        lighting: only pairs with this lighting; several with commas: day,dusk
        sources: only pairs from these sources, with commas
        geometry: how frames are cut: short-256-crop-256, kaist-a, kaist-b, whole or whole-256
            (docs/evaluation.md)
        text: text given to models: default (each model's own default text, mostly none), none, or
            caption or tags from the index
        metrics: with commas, from psnr, ssim, lpips, lpips_vgg, delta_e, colourfulness,
            colour_share, apce, flicker, still_flicker, warping_error, niqe, fid (default: psnr,
            ssim, colour_share, and lpips if its files are found)
        ssim: window of SSIM: skimage-u7 or gauss-11
        preset: lkat scores as LKAT-GAN's code does, for comparison with its family's papers:
            decimals of pictures cut off, and a run's best validated model in place of its last;
            not our protocol (docs/evaluation.md)
        pretrained: folder with the files for LPIPS (default: environment variable
            CMMFNET_PRETRAINED)
        seed: random seed of bootstrap and permutations
        device: auto, cpu, cuda, cuda:1 or mps
    """

    data: str | None = None
    split: str = "val"
    lighting: str | None = None
    sources: str | None = None
    geometry: str = DEFAULT_GEOMETRY
    text: str = "default"
    metrics: str | None = None
    ssim: str = "skimage-u7"
    preset: Literal["lkat"] | None = None
    pretrained: Path | None = None
    seed: int = 0
    device: str = "auto"
