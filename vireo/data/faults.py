"""Clips that can't be read: named, counted, and how many there may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vireo.config import ReadConfig
from vireo.errors import DataError


class Failure(NamedTuple):
    """One clip that can't be read."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    """Its row in the table."""
    path: str
    reason: str


class TooManyFailuresError(DataError):
    """More clips can't be read than the settings allow.

    Attributes:
        failures: all that failed so far.
    """

    def __init__(self, message: str, failures: tuple[Failure, ...]) -> None:
        super().__init__(message)
        self.failures = failures


class FailureCount:
    """Counts the clips of one part that failed, each once however often it is tried.

    Args:
        part: what they are, e.g. "training".
        clips: how many there are.
        read: what is to happen when some fail.
    """

    def __init__(self, part: str, clips: int, read: ReadConfig) -> None:
        self._part, self._clips, self._read = part, clips, read
        self._allowed = read.allowed_failures(clips)
        self._failed: dict[int, Failure] = {}

    def note(self, failures: Iterable[Failure]) -> None:
        """Add failures.

        Raises:
            TooManyFailuresError: there are now more than allowed.
        """
        for failure in failures:
            self._failed.setdefault(failure.index, failure)
        if len(self._failed) <= self._allowed:
            return
        failed, first = tuple(self._failed.values()), next(iter(self._failed.values()))
        if self._read.on_error == "fail":
            raise TooManyFailuresError(
                f"{first.path}: {first.reason} (on_error is fail; --on-error skip goes on without the clip)", failed
            )
        if len(failed) == self._clips:
            raise TooManyFailuresError(
                f"No {self._part} clip could be read; the first: {first.path}: {first.reason}", failed
            )
        raise TooManyFailuresError(
            f"{len(failed)} of {self._clips} {self._part} clips could not be read, more than max_failed "
            f"{self._read.max_failed} allows (--max-failed sets it; `vireo data check` finds them all); "
            f"the first: {first.path}: {first.reason}",
            failed,
        )
