"""A camera that speaks RTSP (RFC 2326), for tests: H.264 (RFC 6184) interleaved with its control connection."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator, Sequence

CLOCK = 90_000
_MOST = 1200  # bytes of a NAL unit that travels whole


def nal_units(data: bytes) -> Iterator[bytes]:
    """The units of an Annex B byte stream."""
    for part in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1"):
        if part:
            yield part


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


class RtspServer:
    """Plays frames to whoever asks, over and over or once, at their rate.

    Args:
        frames: encoded pictures, Annex B.
        fps: their rate, 1/s.
        password: ``user:password`` without which it answers 401.
    """

    def __init__(self, frames: Sequence[bytes], *, fps: float, password: str = "") -> None:
        self.frames, self.fps = frames, fps
        self.key = "Basic " + base64.b64encode(password.encode()).decode() if password else ""
        self.stop_after: int | None = None  # frames after which the connection is cut
        self.played = 0  # how often PLAY was asked for
        self.refused = 0
        self.port = 0
        self._server: socketserver.ThreadingTCPServer | None = None

    def start(self) -> RtspServer:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    outer._talk(self)

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/camera"

    def _talk(self, peer: socketserver.StreamRequestHandler) -> None:
        while first := peer.rfile.readline().decode().split():
            headers = dict[str, str]()
            while line := peer.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            answer, body, status = [f"CSeq: {headers.get('cseq', '0')}"], "", "200 OK"
            if self.key and headers.get("authorization") != self.key and first[0] != "OPTIONS":
                status, self.refused = "401 Unauthorized", self.refused + 1
                answer.append('WWW-Authenticate: Basic realm="camera"')
            elif first[0] == "OPTIONS":
                answer.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif first[0] == "DESCRIBE":
                body = (
                    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"
                )
                answer += ["Content-Type: application/sdp", f"Content-Base: {self.url}/"]
            elif first[0] == "SETUP":
                answer += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
            else:
                answer.append("Session: 1")
            answer.append(f"Content-Length: {len(body)}")
            peer.wfile.write(("\r\n".join([f"RTSP/1.0 {status}", *answer, "", body])).encode())
            if first[0] == "PLAY" and status.startswith("200"):
                self.played += 1
                self._play(peer)
                return
            if first[0] == "TEARDOWN":
                return

    def _play(self, peer: socketserver.StreamRequestHandler) -> None:
        begin, sequence = time.monotonic(), 0
        for number, frame in enumerate(self.frames):
            if self.stop_after is not None and number >= self.stop_after:
                break
            time.sleep(max(0.0, begin + number / self.fps - time.monotonic()))
            payloads = [payload for unit in nal_units(frame) for payload in _payloads(unit)]
            for i, payload in enumerate(payloads):
                last = 0x80 if i == len(payloads) - 1 else 0
                header = struct.pack(">BBHII", 0x80, 96 | last, sequence & 0xFFFF, int(number * CLOCK / self.fps), 7)
                sequence += 1
                peer.wfile.write(struct.pack(">cBH", b"$", 0, len(header) + len(payload)) + header + payload)
        peer.connection.shutdown(socket.SHUT_RDWR)


def _payloads(unit: bytes) -> Iterator[bytes]:
    """A NAL unit as RTP payloads: whole, or in fragments (FU-A)."""
    if len(unit) <= _MOST:
        yield unit
        return
    kind, rest = unit[0], unit[1:]
    for at in range(0, len(rest), _MOST):
        begin, end = 0x80 * (at == 0), 0x40 * (at + _MOST >= len(rest))
        yield bytes([kind & 0xE0 | 28, begin | end | kind & 0x1F]) + rest[at : at + _MOST]
