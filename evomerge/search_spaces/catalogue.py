"""The search spaces that come with evomerge, as their files describe themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from evomerge.documents import read_yaml
from evomerge.files import catalogue_folder

SHAPE = re.compile(r"^(\d+) experts?, (\d+) layers -> (?:.* = )?([\d,]+) genes?\.$")


@dataclass(frozen=True)
class Entry:
    """A file of the catalogue: what its comment says, and how many genes it has for which shapes.

    shapes: (experts, layers, genes).
    """

    name: str
    path: Path
    kind: str
    text: str
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def summary(self) -> str:
        """The first sentence, without the paper that it may end with."""
        first = re.split(r"(?<=[a-z0-9)?])(?<!et al)\.(?:\s|$)", self.text, maxsplit=1)[0]
        plain = re.sub(r",? \(?(?:as in M2N2: )?[A-Z]\w+ (?:& \w+|et al\.) \d{4}.*$", "", first)
        return plain.rstrip(" .(") + "."


def entries() -> list[Entry]:
    """All files, by name."""
    return [_entry(path) for path in sorted(catalogue_folder("search_spaces").glob("*.yaml"))]


def _entry(path: Path) -> Entry:
    document = read_yaml(path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    shapes = [match for line in lines if (match := SHAPE.match(line))]
    return Entry(
        name=path.stem,
        path=path,
        kind=str(document.data["kind"]),
        text=" ".join(line for line in lines if not SHAPE.match(line)),
        shapes=tuple((int(m[1]), int(m[2]), int(m[3].replace(",", ""))) for m in shapes),
    )
