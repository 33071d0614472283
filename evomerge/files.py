"""Folders that evomerge reads and writes, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import DiskFull


def cache_folder() -> Path:
    """Where trained zoos and checksums are kept: $EVOMERGE_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("EVOMERGE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "evomerge"


def catalogue_folder(kind: str) -> Path:
    """The folder of a catalogue (`search_spaces`, `fitness`, ...), installed or cloned."""
    package = Path(__file__).resolve().parent
    installed = package / "catalogues" / kind
    return installed if installed.is_dir() else package.parent / kind


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary neighbour of `target` that takes its name once it is written and synced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with disk_errors(target):
            yield temporary
            fsync(temporary)
            temporary.replace(target)
            fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fsync(path: Path) -> None:
    """Make a file, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn "no space left" into DiskFull, with the path and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        stat = os.statvfs(target.parent)
        free_mb = stat.f_bavail * stat.f_frsize / 1e6
        raise DiskFull(f"{target}: no space left on the disk ({free_mb:.0f} MB free)") from error
