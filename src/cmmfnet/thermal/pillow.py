"""What Pillow decodes, as numbers: grey of any depth stays grey, alpha becomes missing pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cmmfnet.thermal.missing import alpha_mask, no_data_mask, with_missing


def pillow_pixels(image: Image.Image) -> np.ndarray:
    """(H, W) for grey modes, else (H, W, 3); a masked array where pixels are missing. Never
    convert("L"), which clips 16 bits to white."""
    transparent = image.info.get("transparency")
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        pixels = np.asarray(image)
        missing = None
        if isinstance(transparent, int | float):  # the one value that a PNG names as transparent
            missing = no_data_mask(pixels, transparent, "")
        return with_missing(pixels, missing)
    if image.mode in ("LA", "La"):
        both = np.asarray(image)
        return with_missing(both[..., 0], alpha_mask(both[..., 1]))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("RGBA", "RGBa", "PA") or transparent is not None:
        return channels(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def channels(decoded: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 2), (H, W, 3) or (H, W, 4), with alpha last of 2 and 4 -> (H, W) or (H, W, 3),
    a masked array where alpha says so."""
    if decoded.ndim == 2 or decoded.shape[2] == 3:
        return decoded
    colours, alpha = decoded[..., :-1], decoded[..., -1]
    return with_missing(colours[..., 0] if colours.shape[2] == 1 else colours, alpha_mask(alpha))
