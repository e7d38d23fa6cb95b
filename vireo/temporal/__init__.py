"""Temporal modules, one file per paper. A new one costs its file and one import line here."""

from __future__ import annotations

from vireo.temporal import mstsm_tfdem, tei, tsm, tsn
from vireo.temporal.base import build_temporal, temporal_modules

__all__ = ["build_temporal", "mstsm_tfdem", "tei", "temporal_modules", "tsm", "tsn"]
