"""The newest frame of a camera in colour, again and again, as latest.jpg.

    pip install 'cmmfnet[video]'
    python camera_loop.py /dev/video0          # or rtsp://..., http://..., a video file

Frames that come while one is being coloured are dropped, so the picture is never old. A video file
is read as fast as it can be, so most of its frames are dropped; cmmfnet colorize keeps them all.
"""

import sys
import threading
import time
from pathlib import Path

import cv2

from cmmfnet import Colorizer


class Newest:
    """Reads a source in a thread of its own and keeps the newest frame."""

    def __init__(self, source: str):
        self.frame, self.ended = None, False
        self.video = cv2.VideoCapture(source)
        # counts of 16 bits, where the camera has them, and not false colours of 8
        self.video.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        if not self.video.isOpened():
            sys.exit(f"{source} cannot be opened; expected a device, an address or a video")
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        while True:
            there, frame = self.video.read()
            if not there:
                self.ended = True
                return
            self.frame = frame

    def take(self):
        """The newest frame, once; None where there is no new one."""
        frame, self.frame = self.frame, None
        return frame


def main(source: str, out: str = "latest.jpg") -> None:
    colorizer = Colorizer.from_pretrained("cmmfnet-small")
    camera, coloured, started = Newest(source), 0, time.perf_counter()
    while True:
        frame = camera.take()
        if frame is None:
            if camera.ended:
                break
            time.sleep(0.002)
            continue
        colour = colorizer(frame)  # (H, W, 3) uint8, RGB
        part = Path(out).with_suffix(".part.jpg")
        cv2.imwrite(str(part), colour[:, :, ::-1])
        part.replace(out)  # readers never see half a picture
        coloured += 1
    print(f"{coloured} frames in colour, {coloured / (time.perf_counter() - started):.1f} a second")


if __name__ == "__main__":
    main(*sys.argv[1:])
