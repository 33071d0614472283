"""The fenced code blocks of the documentation, and what is said of them in comments before."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = ("sh", "python", "yaml", "toml", "json", "text")  # text: what is printed, and trees
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}) *(?P<language>[\w+-]*) *(?P<rest>.*)$")
MARK = re.compile(r"^ *<!-- (?P<name>not run|yaml|fails): (?P<text>.+?) -->$")
TITLE = re.compile(r'title="([^"]+)"')
REASONS = (  # why a block may stand there without being run
    "needs a GPU",
    "needs a cluster",
    "needs a hub",  # models or data from the network
    "needs another machine",
    "needs a browser",
    "installs packages",
    "serves until Ctrl-C",
    "logs to a tracker",
    "takes hours",
    "takes minutes",  # what CI runs by itself, or `make test-slow`
    "shows the idea",
)


@dataclass
class Block:
    """One block.

    title: the file that it is, if it is one. marks: `not run`, `yaml` and `fails`, with their text.
    """

    page: Path
    line: int
    language: str
    text: str
    title: str = ""
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """All that people read: the README, what one has to know to contribute, and docs/."""
    found = sorted(p for p in (ROOT / "docs").rglob("*.md") if "notebooks" not in p.parts)
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *found]


def blocks_of(page: Path) -> Iterator[Block]:
    """The page's fenced blocks, in order.

    Raises:
        ValueError: a fence that is not closed.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    marks: dict[str, str] = {}
    at = 0
    while at < len(lines):
        if mark := MARK.match(lines[at]):
            marks[mark["name"]] = mark["text"]
        elif fence := FENCE.match(lines[at]):
            end = at + 1
            while end < len(lines) and lines[end].strip() != fence["ticks"]:
                end += 1
            if end == len(lines):
                raise ValueError(f"{page}:{at + 1}: the block is not closed")
            width = len(fence["indent"])
            text = "\n".join(line[width:] for line in lines[at + 1 : end]) + "\n"
            title = TITLE.search(fence["rest"])
            name = title[1] if title else ""
            yield Block(page, at + 1, fence["language"], text, name, marks)
            marks, at = {}, end
        elif lines[at].strip():
            marks = {}
        at += 1


def indented_commands(page: Path) -> list[str]:
    """Commands in blocks that are indented instead of fenced, which nothing would run."""
    found, fenced = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line) and line.strip().startswith("```"):
            fenced = not fenced
        elif not fenced and re.match(r"^ {4,}(evomerge|make|pip|python|ray) [a-z-]", line):
            found.append(f"{page.name}:{number}")
    return found


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command of a shell block; comments are left out."""
    joined = block.text.replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in lines if words]
