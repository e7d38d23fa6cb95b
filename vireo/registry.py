"""A dictionary of named things that answers a misspelt name with the nearest right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vireo.errors import UnknownNameError

Entry = TypeVar("Entry")
E2 = TypeVar("E2")


class Registry(Generic[Entry]):
    """Names to entries of one kind, in order of registration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[E2], E2]:
        """Decorator that files the decorated object under ``name``.

        Raises:
            ValueError: the name is taken.
        """

        def file_it(entry: E2) -> E2:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry  # type: ignore[assignment]  # decorators keep the exact type
            return entry

        return file_it

    def get(self, name: str) -> Entry:
        """The entry called ``name``.

        Raises:
            UnknownNameError: there is none; the message suggests the nearest names.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries) from None

    def names(self) -> tuple[str, ...]:
        """All names, in order of registration."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
