"""Reference saliency for SCGAN: maps from a folder, or a built-in estimate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import PICTURES
from cmmfnet.methods.tir2lab import rgb_to_lab
from cmmfnet.nn.blur import blur

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch


@torch.no_grad()
def frequency_tuned(colour: Tensor) -> Tensor:
    """Saliency by the frequency-tuned method (Achanta et al., CVPR 2009, eq. 1): the distance
    of a pixel's slightly blurred colour from the picture's mean colour in CIELAB. (B,3,H,W) in
    [-1,1] -> (B,1,H,W) in [0,1], 1 at each picture's maximum (if it is visible: at least one unit
    of CIELAB)."""
    picture = rgb_to_lab(colour)
    soft = blur(picture, picture.new_ones(picture.shape[0]))
    distance = torch.linalg.vector_norm(
        soft - picture.mean(dim=(2, 3), keepdim=True), dim=1, keepdim=True
    )
    return distance / distance.amax(dim=(2, 3), keepdim=True).clamp_min(1.0)


class SaliencyMaps:
    """Maps out of ``folder``, NAME.png (or another picture) for the frame NAME: 8-bit grey, of the
    frame's size.

    ``maps(batch) -> (B,1,h,w) float32 in [0,1]``, cropped and mirrored as the batch's pictures
    (``Batch.crops``). Raises :class:`UserError` if a map is missing or not of its frame's size.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(
                f"{folder} is no folder; it should have a saliency map NAME.png for every frame "
                "NAME"
            )
        self.files = {p.stem: p for p in self.folder.iterdir() if p.suffix.lower() in PICTURES}

    def __call__(self, batch: Batch) -> Tensor:
        size = tuple(batch.visible.shape[-2:])
        maps = []
        for name, crop in zip(batch.names, batch.crops, strict=True):
            if name not in self.files:
                raise UserError(
                    f"{self.folder} has no map for the frame {name}; expected {name}.png, 8-bit "
                    "grey"
                )
            with Image.open(self.files[name]) as picture:
                whole = np.asarray(picture.convert("L"))
            if whole.shape[0] < crop.top + crop.height or whole.shape[1] < crop.left + crop.width:
                raise UserError(
                    f"{self.files[name]} is {whole.shape} (height, width), smaller than its "
                    "frame; save the maps at the size "
                    "of the frames"
                )
            maps.append(torch.from_numpy(np.ascontiguousarray(crop.apply(whole, size))))
        return torch.stack(maps).unsqueeze(1).to(batch.visible.device) / 255
