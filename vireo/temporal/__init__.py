"""Temporal modules, one file per paper. A new one costs its file and one import line here."""

# ruff: noqa: I001  # in the order of their publication, which is the order in which they are listed

from __future__ import annotations

from vireo.temporal import tsn
from vireo.temporal import tsm
from vireo.temporal import tei
from vireo.temporal import mstsm_tfdem
from vireo.temporal import tefe
from vireo.temporal import stw
from vireo.temporal import kpsem
from vireo.temporal.base import build_temporal, temporal_modules

__all__ = ["build_temporal", "kpsem", "mstsm_tfdem", "stw", "tefe", "tei", "temporal_modules", "tsm", "tsn"]
