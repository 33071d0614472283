"""Searchers by name: evomerge's own, and those of installed packages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from evomerge import installed

WANTED = ("summary", "Options", "multi_objective", "needs", "resumes_on_drift")
METHODS = ("ask", "tell", "recommend")


class Searchers(Mapping[str, type[Any]]):
    """evomerge's own first; those of installed packages are imported when they are looked up."""

    def __init__(self, own: Mapping[str, type[Any]]) -> None:
        self._own = dict(own)

    def __getitem__(self, kind: str) -> type[Any]:
        return self._own[kind] if kind in self._own else _installed(kind)

    def __contains__(self, kind: object) -> bool:
        return kind in self._own or kind in installed.named("searchers")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._own, *installed.named("searchers"))))

    def __len__(self) -> int:
        return len(list(iter(self)))


class OptionsOf(Mapping[str, type[BaseModel]]):
    """The options that stand beside each searcher's kind."""

    def __init__(self, searchers: Mapping[str, type[Any]]) -> None:
        self._searchers = searchers

    def __getitem__(self, kind: str) -> type[BaseModel]:
        options: type[BaseModel] = self._searchers[kind].Options
        return options

    def __contains__(self, kind: object) -> bool:
        return kind in self._searchers

    def __iter__(self) -> Iterator[str]:
        return iter(self._searchers)

    def __len__(self) -> int:
        return len(self._searchers)


def _installed(kind: str) -> type[Any]:
    """An installed package's searcher.

    Raises:
        KeyError: there is none of that name.
        ConfigurationError: it cannot be imported, or lacks what a searcher has.
    """
    found = installed.load("searchers", kind)
    if not isinstance(found, type):
        what = f"should be a class, got {type(found).__name__}"
        raise installed.refused("searchers", kind, what)
    if missing := [name for name in (*WANTED, *METHODS) if not hasattr(found, name)]:
        what = f"a searcher has {', '.join((*WANTED, *METHODS))}; {found.__name__} has no "
        raise installed.refused("searchers", kind, what + ", ".join(missing))
    return found
