"""Folders that evomerge reads and writes, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.errors import DiskFull, Problem
from evomerge.wording import in_bytes

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or the user's share of it
EXPERIMENT = "experiment.yaml"  # in a run folder, from the beginning
REPORT = "report.html"  # in a run folder, at the end
ROOM = 1.2  # times what is to be written must be free before it is begun


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
def atomic_path(target: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary neighbour of `target` that takes its name once it is written and synced.

    Raises:
        DiskFull: it does not fit (`needed_bytes` is for the message); the old file is as it was.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with disk_errors(target, needed_bytes):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync(temporary)
            temporary.replace(target)
            fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(target, text.encode())


def write_bytes(target: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(target, len(data)) as temporary:
        temporary.write_bytes(data)


def fsync(path: Path) -> None:
    """Make a file, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(target: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn "no space left" into DiskFull, with the path, what is needed and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise disk_full(target, needed_bytes) from error


def disk_full(target: Path, needed_bytes: int = 0) -> DiskFull:
    """The error of something that does not fit; of what is unknown, at least a byte is needed."""
    needed, free = max(needed_bytes, 1), free_bytes(target)
    what = f"no space left on the disk: needs {in_bytes(needed)}, {in_bytes(free)} free"
    return DiskFull(Problem(str(target), what, "make room there, then do the same again"))


def check_room(target: Path, projected_bytes: float) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        DiskFull: there is less than 1.2 x the projected size.
    """
    needed = round(ROOM * projected_bytes)
    if free_bytes(target) < needed:
        raise disk_full(target, needed)


def free_bytes(path: Path) -> int:
    """What this user may still write to the disk of a path, which need not exist."""
    while not path.exists() and path != path.parent:
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
