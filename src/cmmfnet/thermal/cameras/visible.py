"""The visible photo inside a FLIR file, and the part of it that the thermal frame shows.

The thermal camera sees the middle of the photo, moved by ``dx`` and ``dy``: ``ratio`` is how many
times wider the photo's view is. FLIR calls these numbers Real2IR, OffsetX and OffsetY.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from cmmfnet.thermal.limits import MAX_PIXELS, ThermalFileError, check_size


@dataclass(frozen=True)
class Visible:
    """A photo as the camera file holds it.

    Attributes:
        data: the photo, JPEG or PNG.
        ratio: width of the photo's view over the thermal frame's; 0 where not known.
        dx: middle of the thermal frame, to the right of the photo's middle, in photo pixels.
        dy: the same downwards.
        turns: quarter turns, against the clock, that bring photo and thermal frame upright.
    """

    data: bytes
    ratio: float = 0.0
    dx: int = 0
    dy: int = 0
    turns: int = 0

    def pixels(self, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """(H, W, 3) uint8 RGB of the whole photo, upright.

        Raises:
            ThermalFileError: damaged, or larger than ``max_pixels``.
        """
        return np.rot90(np.asarray(self._open(max_pixels)), self.turns)

    def aligned(self, shape: tuple[int, int], max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The part that the thermal frame shows, at the frame's size.

        Args:
            shape: (H, W) of the upright thermal frame.
            max_pixels: larger photos are refused.

        Returns:
            (H, W, 3) uint8 RGB; black where the thermal frame sees more than the photo.

        Raises:
            ThermalFileError: damaged, too large, or the file does not say where the frame lies.
        """
        if not self.ratio:
            raise ThermalFileError(
                "the file does not say which part of its photo the thermal frame shows"
            )
        height, width = shape if self.turns % 2 == 0 else shape[::-1]
        photo = self._open(max_pixels)
        across = photo.width / self.ratio
        down = across * height / width
        left = photo.width / 2 + self.dx - across / 2
        top = photo.height / 2 + self.dy - down / 2
        part = photo.transform(
            # averaged in a second step where the photo is finer than the frame
            (max(width, round(across)), max(height, round(down))),
            Image.Transform.EXTENT,
            (left, top, left + across, top + down),
            Image.Resampling.BILINEAR,
        ).resize((width, height), Image.Resampling.BOX)
        return np.rot90(np.asarray(part), self.turns)

    def covers(
        self, shape: tuple[int, int], max_pixels: int = MAX_PIXELS
    ) -> tuple[int, int, int, int]:
        """The part of a thermal frame (H, W) that the photo shows, too.

        Returns:
            (left, top, right, bottom) in the frame's pixels, right and bottom excluded; all 0 where
            there is none.
        """
        height, width = shape if self.turns % 2 == 0 else shape[::-1]
        photo = self._open(max_pixels)
        inside = np.zeros((height, width), bool)
        if self.ratio:
            size = photo.width / self.ratio / width  # photo pixels for each of the frame's
            left, top = (
                np.arange(n) * size + side / 2 + d - n / 2 * size
                for n, side, d in (
                    (width, photo.width, self.dx),
                    (height, photo.height, self.dy),
                )
            )
            columns = (left > -0.5) & (left + size < photo.width + 0.5)
            rows = (top > -0.5) & (top + size < photo.height + 0.5)
            inside = rows[:, None] & columns[None, :]
        y, x = np.nonzero(np.rot90(inside, self.turns))
        if not y.size:
            return 0, 0, 0, 0
        return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1

    def _open(self, max_pixels: int) -> Image.Image:
        """RGB, as it lies."""
        png = self.data[:4] == b"\x89PNG"
        try:
            opener = PngImagePlugin.PngImageFile if png else JpegImagePlugin.jpeg_factory
            image = opener(io.BytesIO(self.data), "")
            check_size("the embedded photo", *image.size, max_pixels)
            image = image.convert("RGB")
        except ThermalFileError:
            raise
        except Exception as error:  # decoders raise almost anything on hostile bytes
            raise ThermalFileError(f"the embedded photo is damaged ({error})") from error
        if png:  # FLIR stores Y, Cb and Cr where PNG has red, green and blue
            image = Image.frombytes("YCbCr", image.size, image.tobytes()).convert("RGB")
        return image
