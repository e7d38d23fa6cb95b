"""Live sources: what is taken, what is dropped when the model is slow, what comes back, what gives up."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.rtsp_server import RtspServer
from tests.video_tools import FPS, write_video
from vireo.checkpoint import Checkpoint, save_checkpoint
from vireo.config import ModelConfig, ViewConfig
from vireo.errors import DecodeError, UsageError
from vireo.model import create_model
from vireo.predict import predict_command
from vireo.stream.live import parse_source
from vireo.stream.scoring import predict_windows


class Brightness(nn.Module):
    """Two classes: dark and bright. It may take its time."""

    def __init__(self, frames: int = 4, seconds: float = 0.0) -> None:
        super().__init__()
        self.config, self.seconds, self.began = ModelConfig(num_frames=frames), seconds, []

    def forward(self, clips: Tensor) -> Tensor:
        self.began.append(time.monotonic())
        time.sleep(self.seconds)
        mean = clips.float().mean((1, 2, 3, 4)) / 255
        return 10 * torch.stack([0.5 - mean, mean - 0.5], 1)


def checkpoint_of(model: nn.Module) -> Checkpoint:
    return Checkpoint(model=model, labels=("dark", "bright"), view=ViewConfig(size=16))  # type: ignore[arg-type]


class Server:
    """Serves bytes over HTTP without saying how many: as fast as told, and dead when told."""

    def __init__(self, data: bytes, *, seconds: float, length: bool = False) -> None:
        self.data, self.seconds, self.length = data, seconds, length
        self.requests = 0
        self.stop_after: float | None = None  # share of the bytes after which the connection is cut
        self.stall_after: float | None = None  # share of the bytes after which no more come
        self.stalled = threading.Event()
        self.port = 0
        self.http: ThreadingHTTPServer | None = None

    def start(self) -> Server:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                data = outer.data
                first = 0
                if outer.length and (ranged := self.headers.get("Range")):
                    first = int(ranged.removeprefix("bytes=").partition("-")[0])
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                else:
                    self.send_response(200)
                if outer.length:
                    self.send_header("Accept-Ranges", "bytes")
                    self.send_header("Content-Length", str(len(data) - first))
                self.send_header("Content-Type", "video/mp2t")
                self.end_headers()
                pieces = 100
                size = -(-len(data) // pieces)
                with contextlib.suppress(OSError):
                    for at in range(first, len(data), size):
                        if outer.stop_after is not None and at >= outer.stop_after * len(data):
                            break
                        if outer.stall_after is not None and at >= outer.stall_after * len(data):
                            outer.stalled.wait(60)
                        self.wfile.write(data[at : at + size])
                        time.sleep(outer.seconds / pieces)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
            self.http = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/live.ts"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Four seconds of MPEG-TS, a keyframe every fifth of a second."""
    path = tmp_path_factory.mktemp("live") / "live.ts"
    options = {"g": "5", "bf": "0", "preset": "ultrafast", "tune": "zerolatency"}
    return write_video(path, 4 * FPS, options=options).read_bytes()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*args: Any, **options: Any) -> Server:
        servers.append(Server(*args, **options).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stalled.set()
        server.stop()


# --- what is a source -----------------------------------------------------------------------------------------


def test_sources_are_told_from_files() -> None:
    def kind(text: str) -> tuple[str, str] | None:
        source = parse_source(text)
        return None if source is None else (source.kind, source.address)

    assert kind("camera:0") == ("camera", "/dev/video0")
    assert kind("camera:/dev/video3") == ("camera", "/dev/video3")
    assert kind("pipe:/tmp/x") == ("pipe", "/tmp/x") and kind("pipe:-") == ("pipe", "-")
    assert kind("RTSP://cam/stream?x=1") == ("url", "RTSP://cam/stream?x=1")
    for file in ("clip.mp4", "./camera:0", "a:b.mp4", "folder/http:x", "/dev/video0"):
        assert kind(file) is None


@pytest.mark.parametrize(
    "text",
    [
        *("file:///etc/passwd", "ftp://h/x", "concat://a", "udp://1.2.3.4:5", "data://x"),
        *("camera:x", "camera:-1", "pipe:", "http://", "http:///x"),
        *("rtsp://h:99999/x", "http://h/a b", "http://h/\n", "https://" + "x" * 5000),
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_source(text)


def test_passwords_are_not_shown() -> None:
    source = parse_source("rtsp://user:s3cret@cam/stream")
    assert source is not None and "s3cret" in source.address
    assert source.shown == "rtsp://user:***@cam/stream"
    with pytest.raises(UsageError) as refused:
        parse_source("ftp://user:s3cret@cam/stream")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://user:p@ssw0rd@cam", "rtsp://user:***@cam"),
        ("rtsp://us@er:p:ss@w0rd@[::1]:8554/1@2", "rtsp://us@er:***@[::1]:8554/1@2"),
        ("HTTP://:ssw0rd@cam/1", "HTTP://:***@cam/1"),
        ("rtsp://user@cam:554/a:b@c", "rtsp://user@cam:554/a:b@c"),
        ("http://cam:80/a:b@c?d=e@f", "http://cam:80/a:b@c?d=e@f"),
        ("rtsp://[::1]:554/1", "rtsp://[::1]:554/1"),
    ],
)
def test_the_whole_password_is_masked_and_nothing_else(text: str, shown: str) -> None:
    source = parse_source(text)
    assert source is not None and (source.address, source.shown) == (text, shown)


@pytest.mark.parametrize(
    "text",
    ["rtsp://u:p/ssw0rd@cam/1", "http://u:p]ssw0rd@cam/", "rtsp://u:p@x:y/ssw0rd@cam/1", "ftp://u:1/ss@w0rd@cam/1"],
)
def test_a_refused_url_shows_no_part_of_its_password(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_source(text)
    assert "://u:***@cam" in str(refused.value)
    assert "ss" not in str(refused.value).replace("https", "") and "w0rd" not in str(refused.value)


def test_errors_do_not_repeat_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://user:p@ssw0rd@127.0.0.1:9/x"

    def refuse(*args: Any, **options: Any) -> Any:
        raise ValueError(f"can't open {url}")

    monkeypatch.setattr("vireo.stream.live.av.open", refuse)
    with pytest.raises(DecodeError) as told:
        predict_windows(checkpoint_of(Brightness()), url)
    assert told.value.reason == "can't open http://user:***@127.0.0.1:9/x"


def test_what_does_not_answer_says_so(tmp_path: Path, serve: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = checkpoint_of(Brightness())
    for url in (f"http://127.0.0.1:{port}/x", f"rtsp://127.0.0.1:{port}/x"):
        with pytest.raises(DecodeError, match="refused"):
            predict_windows(model, url)
    with pytest.raises(DecodeError, match="no video"):
        predict_windows(model, serve(b"<html>no video</html>" * 100, seconds=0).url)
    with pytest.raises(DecodeError, match="there is no camera at /dev/video987"):
        predict_windows(model, "camera:987")
    with pytest.raises(DecodeError, match="No such file"):
        predict_windows(model, f"pipe:{tmp_path}/nothing")
    file = write_video(tmp_path / "file.ts", 5)
    with pytest.raises(DecodeError, match="no pipe"):
        predict_windows(model, f"pipe:{file}")


def test_a_playlist_does_not_reach_files(tmp_path: Path, serve: Any) -> None:
    secret = write_video(tmp_path / "secret.ts", 25)
    for address in (f"file://{secret}", f"file:{secret}", str(secret), f"subfile,,start,0,end,0,,:{secret}"):
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
        server = serve(playlist.encode(), seconds=0, length=True)
        with pytest.raises(DecodeError):
            list(predict_windows(checkpoint_of(Brightness()), server.url.replace(".ts", ".m3u8"), retry=0))


def test_a_playlist_over_http_is_read(stream: bytes, serve: Any) -> None:
    segment = serve(stream, seconds=0, length=True)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{segment.url}\n#EXT-X-ENDLIST\n"
    server = serve(playlist.encode(), seconds=0, length=True)
    scores = list(predict_windows(checkpoint_of(Brightness()), server.url.replace(".ts", ".m3u8"), window=1.0))
    assert scores[-1].end == pytest.approx(4, abs=0.1)  # a recording: it says how long it is, and ends
    assert segment.requests >= 1


# --- reading ------------------------------------------------------------------------------------------------------


def test_a_url_that_says_its_length_is_a_recording(tmp_path: Path, serve: Any) -> None:
    file = write_video(tmp_path / "a.mp4", 60, container_options={"movflags": "faststart"})
    server = serve(file.read_bytes(), seconds=0, length=True)
    model = checkpoint_of(Brightness())
    remote = list(predict_windows(model, server.url.replace(".ts", ".mp4"), window=0.8))
    local = list(predict_windows(model, file, window=0.8))
    assert [(s.start, s.end, s.probabilities.tolist()) for s in remote] == [
        (s.start, s.end, s.probabilities.tolist()) for s in local
    ]


def test_a_recording_that_stalls_says_so(tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vireo.stream.live.SILENCE", 1.0)
    monkeypatch.setattr("vireo.stream.reading.SILENCE", 1.0)
    noise = np.random.default_rng(0).integers(0, 255, (100, 240, 320, 3), dtype=np.uint8)
    options = {"g": "10", "preset": "ultrafast"}
    file = write_video(
        tmp_path / "a.mp4", noise, size=(320, 240), options=options, container_options={"movflags": "faststart"}
    )
    server = serve(file.read_bytes(), seconds=0, length=True)
    server.stall_after = 0.5
    scores = []
    with pytest.raises(DecodeError) as told:
        for score in predict_windows(checkpoint_of(Brightness()), server.url.replace(".ts", ".mp4"), window=0.4):
            scores.append(score)
    assert told.value.reason == "no data for 1 s" and len(scores) > 5


def test_a_source_that_dies_comes_back(stream: bytes, serve: Any) -> None:
    server = serve(stream, seconds=4)
    server.stop_after = 0.4
    said: list[str] = []
    began = time.monotonic()

    def revive(message: str) -> None:
        said.append(message)
        if message.startswith("lost") and len(said) == 1:
            server.stop()  # refuses for a while
            threading.Timer(1.0, server.start).start()

    with predict_windows(
        checkpoint_of(Brightness()), server.url, window=0.4, every=0.1, latency=5, limit=5, tell=revive
    ) as windows:
        scores = list(windows)
    assert said[0].startswith("lost: ") and "trying again for 60 s" in said[0] and said[1] == "back"
    assert windows.report.returned >= 1
    gaps = [b.start - a.end for a, b in itertools.pairwise(scores)]
    assert max(gaps) > 0.9  # nothing is said of the time without a source
    assert sum(gap > 0.05 for gap in gaps) == windows.report.returned
    assert scores[-1].end == pytest.approx(time.monotonic() - began, abs=2)  # times go on with the clock


def test_time_does_not_run_back_when_a_source_comes_back(stream: bytes, serve: Any) -> None:
    server = serve(stream, seconds=0.2)  # its four seconds in a fifth of one
    with predict_windows(checkpoint_of(Brightness()), server.url, window=1.0, latency=30, limit=6) as windows:
        scores = list(windows)
    assert windows.report.returned == 1
    assert all(b.start > a.start for a, b in itertools.pairwise(scores))
    (gap,) = [i for i, (a, b) in enumerate(itertools.pairwise(scores)) if b.start - a.start > 0.3]
    assert scores[gap + 1].start >= scores[gap].end  # none spans the two
    assert scores[-1].end == pytest.approx(6, abs=1e-6)


def test_standard_input_that_is_closed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DecodeError, match="standard input is closed"):
        predict_windows(checkpoint_of(Brightness()), "pipe:-")


def test_a_source_that_stays_away_is_given_up(stream: bytes, serve: Any) -> None:
    server = serve(stream, seconds=1)
    server.stop_after = 0.5
    said: list[str] = []

    def kill(message: str) -> None:
        said.append(message)
        server.stop()

    with predict_windows(
        checkpoint_of(Brightness()), server.url, window=0.4, latency=5, retry=1.5, tell=kill
    ) as windows:
        scores = []
        with pytest.raises(DecodeError, match=r"gone for 2 s: .*refused"):
            for score in windows:
                scores.append(score)
    assert scores and len(said) == 1


def test_a_slow_model_does_not_lag_behind(stream: bytes, serve: Any) -> None:
    model = Brightness(seconds=0.6)
    server = serve(stream, seconds=4)
    with predict_windows(
        checkpoint_of(model), server.url, window=0.4, every=0.1, latency=0.3, limit=3, retry=0
    ) as windows:
        scores = list(windows)
    report = windows.report
    assert report.windows == len(scores) < 10  # of about 27 that there were
    assert report.dropped_windows >= 10 and report.dropped_frames >= 20
    assert report.worst_lag < 4  # without dropping, the last of 27 windows would be a dozen seconds late
    ends = [score.end for score in scores]
    assert ends == sorted(ends)


def test_a_fast_model_drops_nothing(stream: bytes, serve: Any) -> None:
    server = serve(stream, seconds=2)
    with predict_windows(
        checkpoint_of(Brightness()), server.url, window=0.4, every=0.2, latency=5, limit=1.5
    ) as windows:
        scores = list(windows)
    assert (windows.report.dropped_windows, windows.report.dropped_frames) == (0, 0)
    assert [score.start for score in scores[:-1]] == pytest.approx([0.2 * i for i in range(len(scores) - 1)])


def test_a_pipe_is_read_to_its_end(stream: bytes, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(stream), daemon=True)
    writer.start()
    with predict_windows(checkpoint_of(Brightness()), f"pipe:{pipe}", window=0.5, latency=30) as windows:
        scores = list(windows)
    assert scores[-1].end == pytest.approx(4, abs=0.5)
    assert scores[0].start < 0.5
    writer.join(5)


# --- a camera on the network ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Four seconds of H.264, dark, then bright, with a keyframe every fifth of a second."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 320, 240, "yuv420p", Fraction(FPS)
    encoder.time_base = Fraction(1, FPS)
    encoder.options = {"g": "5", "bf": "0", "preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=5"}
    found = []
    noise = np.random.default_rng(0).integers(0, 60, (240, 320, 3), dtype=np.uint8)
    for i in range(4 * FPS):
        frame = av.VideoFrame.from_ndarray(noise + np.uint8(20 if i < 2 * FPS else 180), format="rgb24")
        frame.pts = i
        found += [bytes(packet) for packet in encoder.encode(frame.reformat(format="yuv420p"))]
    assert len(found) == 4 * FPS
    return found


@pytest.fixture
def camera(pictures: list[bytes]) -> Iterator[RtspServer]:
    server = RtspServer(pictures, fps=FPS).start()
    yield server
    server.stop()


def test_a_camera_over_rtsp_is_followed(camera: RtspServer) -> None:
    with predict_windows(
        checkpoint_of(Brightness()), camera.url, window=0.4, every=0.2, latency=5, limit=3.5
    ) as windows:
        scores = list(windows)
    assert windows.live and (windows.report.dropped_windows, windows.report.dropped_frames) == (0, 0)
    assert [score.start for score in scores[:-1]] == pytest.approx([0.2 * i for i in range(len(scores) - 1)])
    told = [(score.end <= 1.9, score.start >= 2.1, score.label) for score in scores]
    assert {label for before, _, label in told if before} == {"dark"}
    assert {label for _, behind, label in told if behind} == {"bright"}


def test_a_camera_over_rtsp_that_dies_comes_back(camera: RtspServer) -> None:
    camera.stop_after = FPS
    said: list[str] = []
    with predict_windows(
        checkpoint_of(Brightness()), camera.url, window=0.4, latency=5, limit=3, tell=said.append
    ) as windows:
        scores = list(windows)
    assert said[0].startswith("lost: ") and said[1] == "back"
    assert windows.report.returned == camera.played - 1 >= 1
    assert scores[-1].end >= 2.5


def test_a_camera_that_wants_a_password(pictures: list[bytes], capsys: pytest.CaptureFixture[str], saved: Path) -> None:
    server = RtspServer(pictures, fps=FPS, password="anna:secret").start()
    try:
        with_it = server.url.replace("//", "//anna:secret@")
        assert predict_command(saved, [with_it], window=0.4, limit=1, json=True) == 0
        with pytest.raises(DecodeError, match="401"):
            list(predict_windows(checkpoint_of(Brightness()), server.url))
        wrong = server.url.replace("//", "//anna:other@")
        assert predict_command(saved, [wrong], window=0.4, limit=1) == 1
    finally:
        server.stop()
    out, err = capsys.readouterr()
    assert "secret" not in out + err and "other" not in out + err and "anna:***@" in out + err


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("tsn", "resnet10t", num_classes=2, num_frames=4)
    torch.nn.init.normal_(model.classifier.weight)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, model, labels=("dark", "bright"), view=ViewConfig(size=32), provenance={})
    return path


def test_the_command_follows_a_source(
    saved: Path, stream: bytes, serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(stream, seconds=3)
    out = tmp_path / "live.csv"
    code = predict_command(saved, [server.url], window=0.5, limit=1.5, latency=5, write=("json",), out=out, json=True)
    assert code == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"window", "segment", "summary"} == {line["kind"] for line in lines}
    assert lines == [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    assert lines[-1]["dropped_windows"] == 0 and lines[-1]["seconds"] > 1
    assert out.read_text().startswith("start,end,label,probability")
    with pytest.raises(UsageError, match="on files only"):
        predict_command(saved, [server.url], write=("mp4",))
    with pytest.raises(UsageError, match="alone"):
        predict_command(saved, [server.url, server.url])


def test_ctrl_c_ends_in_order(
    saved: Path, stream: bytes, serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(stream, seconds=8)
    lines = tmp_path / "x.jsonl"

    def interrupt() -> None:
        while not lines.exists() or not lines.stat().st_size:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    code = predict_command(saved, [server.url], window=0.2, out=tmp_path / "x.srt", write=("json",), json=True)
    assert code == 0  # the usual way to end it
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "summary"
    assert (tmp_path / "x.srt").read_text().startswith("1\n00:00:00,")


@pytest.mark.slow
def test_ctrl_c_ends_a_program_that_waits_for_data(saved: Path, stream: bytes, serve: Any, tmp_path: Path) -> None:
    server = serve(stream, seconds=6)
    server.stall_after = 0.7
    command = ["predict", str(saved), server.url, "--window", "0.2", "--out", str(tmp_path / "x.srt"), "--json"]
    code = f"import sys; from vireo.cli import main; sys.exit(main({command!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["kind"] == "window"
    time.sleep(4.5)  # it waits for data now
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(out.splitlines()[-1])["kind"] == "summary"
    assert "Traceback" not in errors
    assert (tmp_path / "x.srt").read_text().startswith("1\n00:00:00,")
