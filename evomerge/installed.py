"""What other installed packages bring: operators and searchers, named by their entry points.

A package that is installed beside evomerge may declare, in its pyproject.toml,

    [project.entry-points."evomerge.searchers"]
    coordinates = "my_package:Coordinates"

and has that name everywhere: in files, on the command line, in workers, and in runs that are
resumed. To install a package is to trust it, so no further leave is asked for. Nothing of it is
imported before its name is used, and no name of evomerge's own can be taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from evomerge.errors import ConfigurationError, Problem

GROUPS = {"operators": "evomerge.operators", "searchers": "evomerge.searchers"}


@cache
def named(kind: str) -> dict[str, EntryPoint]:
    """Name -> what stands for it; kind: a key of GROUPS."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUPS[kind]))}


def load(kind: str, name: str) -> object:
    """What a package has under that name.

    Raises:
        KeyError: no package has it.
        ConfigurationError: the package cannot be imported, or has not what it says.
    """
    entry = named(kind)[name]
    try:
        return entry.load()
    except Exception as error:
        what = f"cannot be imported: {type(error).__name__}: {error}"
        raise refused(kind, name, what) from error


def refused(kind: str, name: str, what: str) -> ConfigurationError:
    """That a package's own is not what it should be: names the package."""
    entry = named(kind)[name]
    package = entry.dist.name if entry.dist is not None else "an installed package"
    return ConfigurationError(Problem(f"{name} ({entry.value} of {package})", what))


def versions() -> Iterator[tuple[str, str]]:
    """The packages that bring something, with their versions."""
    for kind in GROUPS:
        for entry in named(kind).values():
            if entry.dist is not None:
                yield entry.dist.name, entry.dist.version
