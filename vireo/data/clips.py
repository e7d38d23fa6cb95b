"""One clip of a list, whatever it lies in: a video file or a folder of frame images."""

from __future__ import annotations

import os

from vireo.data.decode import Backend, Mode, Plan, decoder_name, read_frames
from vireo.data.flow import flow_reader_name
from vireo.data.frames import frame_reader_name, read_frame_folder
from vireo.data.pictures import Frames
from vireo.data.table import ClipRecord, ClipTable
from vireo.errors import DecodeError


def reader_name(table: ClipTable, *, modality: str = "rgb", mode: Mode = "exact", backend: Backend = "auto") -> str:
    """What reads the clips of a list, with versions, for the record of a result. The first clip tells what they are.

    Raises:
        MissingDependencyError: the backend asked for is not installed.
    """
    if modality == "flow":
        return flow_reader_name()
    if len(table) and os.path.isdir(table.paths[0]):
        return frame_reader_name()
    return decoder_name(mode, backend)


def read_clip(record: ClipRecord, plan: Plan, *, mode: Mode = "exact", backend: Backend = "auto") -> Frames:
    """Read the frames of a clip that a plan asks for.

    Args:
        record: a row of a `ClipTable`.
        plan: called with the clip's number of frames F, gives the wanted indices in [0, F), sorted.
        mode: of `read_frames`; images are exact in either.
        backend: of `read_frames`.

    Returns:
        Upright RGB frames.

    Raises:
        DecodeError: the clip can't be read.
    """
    if not os.path.isdir(record.path):
        return read_frames(record.path, plan, start=record.start, end=record.end, mode=mode, backend=backend)
    if record.start is not None or record.end is not None:
        raise DecodeError(record.path, "start and end are seconds of a video; a folder of frames has no times")
    return read_frame_folder(record.path, plan, frame_count=record.frame_count)
