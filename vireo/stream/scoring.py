"""Windows slid over a video of any length, scored by a model.

For a GPU and for live sources, one thread reads, decodes and makes pictures while this one runs the network; between
them lie a few windows. From a recording nothing is left out: the reader waits. A live source doesn't wait: windows that
have lain there for longer than the latency budget are dropped, and counted. Where the network runs on the processor,
recordings are read in between: the network has all cores already, and a second thread only gets in its way.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from vireo.checkpoint import Checkpoint, load_checkpoint
from vireo.config import ViewConfig
from vireo.devices import choose_device
from vireo.errors import DecodeError, UsageError
from vireo.stream.live import LiveReader, Source, connect, parse_source
from vireo.stream.plan import SECOND, Window, WindowPlan
from vireo.stream.reading import Recording, announced_length, recording_windows
from vireo.stream.timeline import WindowScore

SEGMENT_WINDOW = 3.0
"""Default length of a window for models that were trained on whole clips: a checkpoint does not say how long these
were, seconds."""
_USUAL_FPS = 25.0
_GPU_BATCH = 8  # windows; a processor gains nothing from more than one


@dataclass(kw_only=True)
class StreamReport:
    """What has become of a source so far."""

    seconds: float = 0.0
    """End of the last window scored, s."""
    windows: int = 0
    """Windows scored."""
    dropped_windows: int = 0
    """Windows of a live source left out because the model was busy for longer than the latency budget."""
    dropped_frames: int = 0
    """Frames of a live source left out: those that were new in dropped windows, and those that were not decoded."""
    returned: int = 0
    """How often a live source was lost and came back."""
    worst_lag: float = 0.0
    """Longest time from a live window's last frame to its scores, s."""


class StepError(UsageError):
    """A step of windows that is too long for one video, and may not be for others.

    Attributes:
        reason: why, without the video's name.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class WindowStream(Iterator[WindowScore]):
    """The scores of a video's windows, as they come. Close it, or use it as a context manager, to end early.

    Attributes:
        plan: the windows.
        seconds: how long the video says it is, s; 0 = unknown, or live.
        live: whether it is a live source.
        report: what has become of it so far.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: Recording | LiveReader,
        plan: WindowPlan,
        *,
        view: ViewConfig,
        device: torch.device,
        batch_size: int,
        latency: float,
        limit: float,
    ) -> None:
        self._model, self._labels, self._device = checkpoint.model, checkpoint.labels, device
        self._batch = batch_size
        self._reader, self.plan = reader, plan
        self.report = StreamReport()
        self.live = isinstance(reader, LiveReader)
        if isinstance(reader, LiveReader):
            self.seconds = 0.0
            windows = reader.windows(plan, view, limit)
        else:
            self.seconds = min(reader.seconds, limit) if reader.seconds else 0.0
            windows = recording_windows(reader, plan, view, limit=limit)
        self._feed: _Feed | _Inline
        if device.type == "cpu" and not self.live:
            self._feed = _Inline(windows, reader.close)
        else:
            self._feed = _Feed(windows, reader.close, capacity=2 * batch_size, latency=latency if self.live else None)
        self._scored: deque[WindowScore] = deque()

    def __iter__(self) -> WindowStream:
        return self

    def __next__(self) -> WindowScore:
        """The next window's scores.

        Raises:
            DecodeError: the video can't be read further; the windows of what could be read have been given.
        """
        if not self._scored:
            self._score(self._feed.get(self._batch))
        score = self._scored.popleft()
        self.report.windows += 1
        self.report.seconds = score.end
        return score

    def __enter__(self) -> WindowStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_feed"):  # or the thread would wait for ever for somebody to take its windows
            self.close()

    def close(self) -> None:
        """End reading. What has been read and not been scored is dropped."""
        if isinstance(self._reader, LiveReader):
            self._reader.stop.set()
        self._feed.close()
        self._scored.clear()
        self._count_dropped()

    def _score(self, windows: list[Window]) -> None:
        self._count_dropped()
        if not windows:
            raise StopIteration
        clips = torch.stack([torch.stack(window.pictures) for window in windows])  # (N, T, S, S, C) memory
        with torch.inference_mode():
            logits: Tensor = self._model(clips.permute(0, 1, 4, 2, 3).to(self._device))
            probabilities = logits.float().softmax(1).cpu().numpy()
        if self.live:
            self.report.worst_lag = max(self.report.worst_lag, time.monotonic() - windows[-1].ready)
        for window, row in zip(windows, probabilities, strict=True):
            start, end = window.start / SECOND, window.end / SECOND
            self._scored.append(WindowScore(start=start, end=end, labels=self._labels, probabilities=np.array(row)))

    def _count_dropped(self) -> None:
        self.report.dropped_windows, frames = self._feed.dropped
        if isinstance(self._reader, LiveReader):
            self.report.dropped_frames = frames + self._reader.skipped
            self.report.returned = self._reader.returned


def predict_windows(
    checkpoint: Checkpoint | str | Path,
    video: str | Path,
    *,
    window: float | None = None,
    every: float | None = None,
    limit: float | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    latency: float = 0.5,
    retry: float = 60.0,
    tell: Callable[[str], None] = lambda message: None,
) -> WindowStream:
    """Slide a window over a video of any length, or over a live source, and score it.

    Memory does not grow with the video; each frame is decoded once, and made into a picture of the model's size at
    most once. Every moment lies in a window. A video shorter than the window is one window; of constant rate, it is
    sampled as `predict` samples a whole video.

    Args:
        checkpoint: a file that `vireo train` wrote, or one already loaded. Not one of optical flow.
        video: a file, ``camera:0``, a URL (rtsp, rtsps, http, https), or ``pipe:PATH``.
        window: length of a window, s. None: of a model trained by dense sampling, the length of its window at the
            video's frame rate; of others `SEGMENT_WINDOW`. Best is the usual length of the clips it was trained on.
        every: time from the beginning of a window to that of the next, s; None = a quarter of the window.
        limit: seconds after which it ends; None = with the video.
        device: ``auto``, ``cpu``, ``cuda``, ...
        batch_size: windows scored at once; None = 8 on a GPU, 1 elsewhere and for live sources.
        latency: of a live source: how old the newest frame of a window may be when its scoring begins, s. Older
            windows are dropped.
        retry: of a live source that vanishes: how long it is tried again, s.
        tell: is told when a live source goes and comes, in words.

    Returns:
        An iterator of `WindowScore`, in order.

    Raises:
        UsageError: a length or number that makes no sense, a model of optical flow, a URL of another scheme.
        StepError: ``every`` is longer than the window that goes with the video's frame rate.
        DecodeError: the video can't be opened. Where it breaks in the middle, the iterator raises it at that point.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    config, view = checkpoint.model.config, checkpoint.view
    if config.modality == "flow":
        raise UsageError("this model takes optical flow; windows over time need a model of frames (modality rgb)")
    for name, value, least in (("latency", latency, 0.0), ("retry", retry, 0.0), ("limit", limit, 1e-3)):
        if value is not None and not least <= value < math.inf:
            raise UsageError(f"{name} is {value} seconds; it must be {least:g} or more")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
    if window is None and view.sampling != "dense":
        window = SEGMENT_WINDOW
    if window is not None:
        WindowPlan.of(window, every, config.num_frames)  # said before anything is opened
    target = choose_device(device)
    checkpoint.model.to(target).eval()
    source = parse_source(str(video))
    shown = source.shown if source else str(video)
    reader = _open_reader(str(video), source, latency, retry, tell)
    try:
        if window is None:
            rate = reader.fps if 1 <= reader.fps <= 1000 else _USUAL_FPS
            window = view.window / rate
            if every is not None and every > window:
                raise StepError(
                    shown,
                    f"every is {every:g} seconds, longer than the window that the model was trained "
                    f"with, {window:.3g} ({view.window} frames at {rate:.4g} per second); set --window",
                )
        plan = WindowPlan.of(window, every, config.num_frames)
    except BaseException:
        reader.close()
        raise
    if batch_size is None:
        batch_size = _GPU_BATCH if target.type == "cuda" and isinstance(reader, Recording) else 1
    end = math.inf if limit is None else limit
    return WindowStream(
        checkpoint, reader, plan, view=view, device=target, batch_size=batch_size, latency=latency, limit=end
    )


def _open_reader(
    video: str, source: Source | None, latency: float, retry: float, tell: Callable[[str], None]
) -> Recording | LiveReader:
    if source is None:
        return Recording.of_file(video)
    container, stream = connect(source)
    if source.kind == "url" and announced_length(container, stream):
        return Recording(source.shown, container, stream)
    return LiveReader(source, (container, stream), latency=latency, retry=retry, tell=tell)


class _Inline:
    """Windows made when they are asked for.

    Args:
        windows: what is gone through.
        close: what is called at last.
    """

    dropped = (0, 0)

    def __init__(self, windows: Iterator[Window], close: Callable[[], None]) -> None:
        self._windows: Iterator[Window] | None = windows
        self._close = close
        self._error: DecodeError | None = None

    def get(self, count: int) -> list[Window]:
        """The next windows, fewer at the end, none behind it.

        Raises:
            DecodeError: what was met, once all windows before have been given.
        """
        found: list[Window] = []
        while self._windows is not None and len(found) < count:
            try:
                found.append(next(self._windows))
            except StopIteration:
                self.close()
            except DecodeError as fault:
                self._error = fault
                self.close()
        if not found and self._error is not None:
            error, self._error = self._error, None
            raise error
        return found

    def close(self) -> None:
        """End."""
        self._windows = None
        self._close()


class _Feed:
    """Windows made by a thread of their own.

    Args:
        windows: what the thread goes through.
        close: what it calls at last, whatever happens.
        capacity: windows that may lie here before the thread waits.
        latency: seconds that a window may lie here; then it is dropped and the thread never waits. None: all are kept.
    """

    def __init__(
        self, windows: Iterator[Window], close: Callable[[], None], *, capacity: int, latency: float | None
    ) -> None:
        self._capacity, self._latency = capacity, latency
        self._waiting: deque[Window] = deque()
        self._change = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._dropped = [0, 0]
        # A daemon: a read that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, args=(windows, close), name="vireo-reader", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> tuple[int, int]:
        """Windows dropped so far, and the frames that were new in them."""
        return self._dropped[0], self._dropped[1]

    def get(self, count: int) -> list[Window]:
        """The next windows: as many of a recording, fewer at its end; of a live source one. None behind the end.

        Raises:
            DecodeError: what the thread met, once all windows before have been given.
        """
        with self._change:
            wanted = count if self._latency is None else 1
            while len(self._waiting) < wanted and not self._ended:
                self._change.wait(0.5)  # a signal that another thread of the process got is seen when this one wakes
            self._drop(time.monotonic())
            found = [self._waiting.popleft() for _ in range(min(wanted, len(self._waiting)))]
            self._change.notify_all()
            if not found and self._error is not None:
                error, self._error = self._error, None
                raise error
            return found

    def close(self) -> None:
        """Let the thread end; waits for it only for a moment."""
        with self._change:
            self._closed = self._ended = True
            self._waiting.clear()
            self._change.notify_all()
        self._thread.join(1.0)

    def _run(self, windows: Iterator[Window], close: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            for window in windows:
                if not self._put(window):
                    break
        except BaseException as fault:  # a mistake of this program's own must not pass in silence either
            error = fault
        finally:
            close()
            with self._change:
                self._ended, self._error = True, error
                self._change.notify_all()

    def _put(self, window: Window) -> bool:
        with self._change:
            if self._latency is None:
                while len(self._waiting) >= self._capacity and not self._closed:
                    self._change.wait()
            if not self._closed:
                self._waiting.append(window)
                self._drop(window.ready)
                self._change.notify_all()
            return not self._closed

    def _drop(self, now: float) -> None:
        """Drop what has waited for too long; the newest stays."""
        while self._latency is not None and len(self._waiting) > 1 and now - self._waiting[0].ready > self._latency:
            self._dropped[0] += 1
            self._dropped[1] += self._waiting.popleft().frames
