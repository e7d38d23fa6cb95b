"""What `vireo predict` does with long and live video."""

from __future__ import annotations

import json as jsonlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text

from vireo import progress
from vireo.checkpoint import Checkpoint
from vireo.errors import DecodeError, UsageError, writing
from vireo.progress import printable
from vireo.stream.live import Source, parse_source
from vireo.stream.overlay import draw_labels
from vireo.stream.plan import SECOND
from vireo.stream.scoring import StepError, StreamReport, WindowStream, predict_windows
from vireo.stream.timeline import Segment, Segmenter, Smoother, WindowScore, check_smooth, check_threshold
from vireo.stream.writers import CsvWriter, Format, JsonWriter, SrtWriter, clock, label_of, output_paths


@dataclass(frozen=True, kw_only=True)
class TimelineOptions:
    """How videos become timelines."""

    window: float | None = None
    """Length of a window, s; None = by the checkpoint."""
    every: float | None = None
    """Step of the windows, s; None = a quarter of the window."""
    smooth: float | None = None
    """Seconds over which scores are smoothed; None = half a window, 0 = none."""
    threshold: float = 0.0
    """Least probability for a label."""
    write: tuple[Format, ...] = ()
    """Files to write."""
    out: Path | None = None
    """Where."""
    limit: float | None = None
    """Seconds of each video; None = all."""
    latency: float = 0.5
    """Of a live source, s."""
    retry: float = 60.0
    """Of a live source, s."""
    top_k: int = 5
    """Classes named with each window."""

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.smooth is not None:
            check_smooth(self.smooth)
        if self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}; it must be at least 1")


def timeline_command(
    checkpoint: Checkpoint, videos: Sequence[str | Path], options: TimelineOptions, *, device: str, json: bool
) -> int:
    """Slide windows over videos, one after the other, and write what they show.

    Returns:
        Exit code: 1 if a video could not be read to its end, 130 if a recording was interrupted. To interrupt a live
        source is the usual way to end it: 0.

    Raises:
        UsageError: options that don't go together.
        StorageError: a file can't be written.
    """
    sources = [parse_source(str(video)) for video in videos]
    if any(sources) and len(videos) > 1:
        raise UsageError("a camera, URL or pipe goes on and on; give it alone")
    if sources[0] is not None and "mp4" in options.write:
        raise UsageError("labels are drawn on files only; record the source, then predict with --write mp4")
    names = [_name_of(video, source) for video, source in zip(videos, sources, strict=True)]
    files = [Path(video) for video, source in zip(videos, sources, strict=True) if source is None]
    paths = output_paths(names, options.write, options.out, files)
    if sources[0] is not None and "mp4" in paths[0]:
        raise UsageError(
            f"{options.out}: labels are drawn on files only; give a name that ends in .jsonl, .csv or .srt"
        )
    code = 0
    for video, source, wanted in zip(videos, sources, paths, strict=True):
        shown = source.shown if source else str(video)
        job = _Job(checkpoint, video, shown, options, wanted, device, json)
        code = max(code, job.run())
        if code == 130:
            break
    return code


def _name_of(video: str | Path, source: Source | None) -> str:
    """What the files of a video are called, without ending."""
    if source is None:
        return Path(video).stem
    address = source.shown
    if source.kind == "url":
        parts = urlsplit(source.address)
        address = f"{parts.hostname}{parts.path}"
    return re.sub(r"\W+", "-", address).strip("-")[:100] or "live"


@dataclass
class _Job:
    """One video."""

    checkpoint: Checkpoint
    video: str | Path
    shown: str
    options: TimelineOptions
    paths: dict[Format, Path]
    device: str
    json: bool
    output: Console = field(default_factory=progress.make_console)
    errors: Console = field(default_factory=lambda: progress.make_console(stderr=True))
    segments: list[Segment] = field(default_factory=list)

    def run(self) -> int:
        """Score it, write it; returns the exit code."""
        options = self.options
        try:
            stream = predict_windows(
                self.checkpoint,
                self.video,
                window=options.window,
                every=options.every,
                limit=options.limit,
                latency=options.latency,
                retry=options.retry,
                device=self.device,
                tell=lambda message: self._complain(f"{self.shown}: {message}"),
            )
        except (DecodeError, StepError) as error:
            self._fail(error, None)
            return 1
        fault: DecodeError | None = None
        interrupted = False
        with stream, self._files() as outputs:
            smooth = options.smooth if options.smooth is not None else stream.plan.window / 2 / SECOND
            smoother = Smoother(stream.plan.every / SECOND, smooth, live=stream.live)
            segmenter = Segmenter(self.checkpoint.labels, options.threshold)
            timeline = _Timeline(self, outputs, smoother, segmenter, stream.live)
            with self._consoles(stream) as reach:
                if not self.json:
                    self.output.print(Text(printable(self.shown), "bold"), soft_wrap=True)
                try:
                    for score in stream:
                        timeline.add(score)
                        reach(score.end)
                except DecodeError as error:
                    fault = error
                except KeyboardInterrupt:
                    interrupted = True
                stream.close()
                timeline.finish()
            if fault is not None:
                self._fail(fault, outputs, stream.report.seconds)
            found = stream.report.windows > 0 or (fault is None and not interrupted)
            outputs.finish(keep=found)  # before the MP4, which takes its time
            drawn = False
            if not interrupted:
                try:
                    drawn = self._draw(outputs)
                except KeyboardInterrupt:
                    interrupted = True
            kept: dict[Format, bool] = {"json": True, "csv": found, "srt": found, "mp4": drawn}
            files = [str(path) for kind, path in self.paths.items() if kept[kind]]
            self._sum_up(outputs, stream.report, stream.live, files)
        if interrupted and not stream.live:
            return 130
        return 0 if fault is None else 1

    @contextmanager
    def _consoles(self, stream: WindowStream) -> Iterator[Callable[[float], object]]:
        """A bar for what has a length, and the consoles that go with it; gives what to tell of the seconds done."""
        if not stream.seconds:
            yield lambda seconds: None
            return
        with progress.bar("predict", math.ceil(stream.seconds), unit="s") as bar:
            self.output, self.errors = bar.output, bar.errors
            try:
                yield lambda seconds: bar.reach(min(int(seconds), math.ceil(stream.seconds)))
            finally:
                self.output, self.errors = progress.make_console(), progress.make_console(stderr=True)

    @contextmanager
    def _files(self) -> Iterator[_Outputs]:
        """The files. What `_Outputs.finish` has not put in its place by the end is given up."""
        outputs = _Outputs(self)
        with ExitStack() as stack:
            for path in self.paths.values():
                with writing(path.parent):
                    path.parent.mkdir(parents=True, exist_ok=True)
            if "json" in self.paths:
                outputs.lines = JsonWriter(self.paths["json"])
                stack.callback(outputs.lines.close)
            stack.callback(outputs.finish, keep=False)
            for kind, writer in (("csv", CsvWriter), ("srt", SrtWriter)):
                if kind in self.paths:
                    outputs.texts.append(writer(self.paths[kind]))
            yield outputs

    def _draw(self, outputs: _Outputs) -> bool:
        """The MP4, if it is wanted; it needs the whole timeline, so the video is read once more."""
        path = self.paths.get("mp4")
        if path is None or not self.segments:
            return False
        try:
            with progress.bar("draw", math.ceil(self.segments[-1].end), unit="s") as bar:
                draw_labels(self.video, path, self.segments, advance=lambda seconds: bar.reach(int(seconds)))
        except DecodeError as error:
            self._fail(error, outputs)
            return False
        return True

    def _complain(self, message: str) -> None:
        self.errors.print(Text(printable(message), "yellow"), soft_wrap=True)

    def _fail(self, error: DecodeError | StepError, outputs: _Outputs | None, seconds: float = 0.0) -> None:
        line = {"kind": "error", "path": self.shown, "error": error.reason, "seconds": round(seconds, 3)}
        if outputs is not None:
            outputs.line(line)
        elif self.json:
            _print_json(self.output, line)
        if not self.json:
            after = f" (after {clock(seconds)})" if seconds else ""
            told = printable(f"  {self.shown}: {error.reason}{after}")
            self.errors.print(Text.assemble(("failed", "red"), told), soft_wrap=True)

    def _sum_up(self, outputs: _Outputs, report: StreamReport, live: bool, files: list[str]) -> None:
        line: dict[str, Any] = {
            "kind": "summary",
            "path": self.shown,
            "seconds": round(report.seconds, 3),
            "windows": report.windows,
            "segments": outputs.segments,
        }
        if live:
            line |= {
                "dropped_windows": report.dropped_windows,
                "dropped_frames": report.dropped_frames,
                "returned": report.returned,
                "worst_lag": round(report.worst_lag, 3),
            }
        outputs.line(line | {"files": files})
        if self.json:
            return
        words = [f"{clock(report.seconds)} in {_some(report.windows, 'window')}", _some(outputs.segments, "segment")]
        if live:
            words.append(
                f"dropped {_some(report.dropped_windows, 'window')} and {_some(report.dropped_frames, 'frame')}"
            )
            if report.returned:
                words.append(f"came back {_some(report.returned, 'time')}")
        if files:
            words.append("wrote " + ", ".join(files))
        self.output.print(Text(printable(f"  {'; '.join(words)}"), "dim"), soft_wrap=True)


class _Outputs:
    """Where lines and segments go."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self.lines: JsonWriter | None = None
        self.texts: list[CsvWriter | SrtWriter] = []
        self.segments = 0

    def line(self, data: dict[str, Any]) -> None:
        """A line of JSON, if JSON is wanted."""
        if self.lines is not None:
            self.lines.line(data)
        if self._job.json:
            _print_json(self._job.output, data)

    def segment(self, segment: Segment) -> None:
        """A segment for the files."""
        self.segments += 1
        for text in self.texts:
            text.segment(segment)

    def finish(self, *, keep: bool) -> None:
        """Put CSV and SRT in their places; or leave what was there before."""
        while self.texts:
            self.texts.pop().close(keep=keep)


class _Timeline:
    """Scores in, lines and segments out."""

    def __init__(self, job: _Job, outputs: _Outputs, smoother: Smoother, segmenter: Segmenter, live: bool) -> None:
        self._job, self._outputs, self._live = job, outputs, live
        self._smoother, self._segmenter = smoother, segmenter

    def add(self, score: WindowScore) -> None:
        """The next window."""
        line = {"kind": "window", "path": self._job.shown, **score.as_dict(self._job.options.top_k)}
        self._outputs.line(line)
        for moment in self._smoother.add(score):
            for segment in self._segmenter.add(moment):
                self._end(segment)
            if self._live and not self._job.json and (began := self._segmenter.began()):
                self._print(f"{clock(began.start)}  {label_of(began)}", began)

    def finish(self) -> None:
        """What is left."""
        for moment in self._smoother.finish():
            for segment in self._segmenter.add(moment):
                self._end(segment)
        for segment in self._segmenter.finish():
            self._end(segment)

    def _end(self, segment: Segment) -> None:
        self._outputs.segment(segment)
        self._outputs.line({"kind": "segment", "path": self._job.shown, **segment.as_dict()})
        if "mp4" in self._job.paths:
            self._job.segments.append(segment)
        if not self._live and not self._job.json:
            self._print(f"{clock(segment.start)} – {clock(segment.end)}  {label_of(segment)}", segment)

    def _print(self, line: str, segment: Segment) -> None:
        self._job.output.print(Text(printable(f"  {line}"), "" if segment.label else "dim"), soft_wrap=True)


def _print_json(console: Console, data: dict[str, Any]) -> None:
    console.print(Text(jsonlib.dumps(data, ensure_ascii=False)), soft_wrap=True)
    console.file.flush()


def _some(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
