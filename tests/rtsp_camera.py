"""An RTSP camera on this machine, for tests: MPEG transport stream in RTP over the connection
itself (RFC 2326, RFC 2250)."""

from __future__ import annotations

import io
import socketserver
import struct
import time

import av
import numpy as np


def transport_stream(frames: list[np.ndarray]) -> bytes:
    """Grey frames (H, W) uint8 as MPEG-2 video in a transport stream, each a whole picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 1
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="gray").reformat(format="yuv420p")
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


class RtspCamera(socketserver.ThreadingTCPServer):
    """Sends ``frames`` to whoever asks, ``repeat`` times over."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, frames: list[np.ndarray], repeat: int = 50):
        self.content, self.repeat = transport_stream(frames), repeat
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.server_address[1]}/live"

    def handle_error(self, *_: object) -> None:
        """The client goes away."""


class _Handler(socketserver.StreamRequestHandler):
    server: RtspCamera

    def handle(self) -> None:
        while request := self.rfile.readline().decode().split():
            headers = {}
            while line := self.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            method, more, body = request[0], [], ""
            if method == "OPTIONS":
                more = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"]
            elif method == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
                body += "m=video 0 RTP/AVP 33\r\na=control:track\r\n"
                more = ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            elif method == "SETUP":
                more = [f"Transport: {headers['transport']}", "Session: 1"]
            elif method == "PLAY":
                more = ["Session: 1"]
            lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}", *more, "", body]
            self.wfile.write("\r\n".join(lines).encode())
            if method == "PLAY":
                return self.send()

    def send(self) -> None:
        number, size = 0, 7 * 188
        for _ in range(self.server.repeat):
            for start in range(0, len(self.server.content), size):
                part = self.server.content[start : start + size]
                packet = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 900, 7) + part
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                number += 1
                time.sleep(0.002)
