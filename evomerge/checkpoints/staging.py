"""A folder that appears whole or not at all, however its writer ends."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge.files import fsync

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary neighbour of `target` that takes its place, atomically, at the end.

    What stood at `target` is replaced. A writer holds the lock of a file beside its temporary
    folder; the kernel lets go of it however the writer dies, and the next one clears up.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target)
    lock_path, lock = _new_lock(target)
    temporary = lock_path.with_suffix(".part")
    try:
        temporary.mkdir()
        yield temporary
        fsync(temporary)
        _replace(temporary, target)
        fsync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock_path.unlink(missing_ok=True)
        os.close(lock)


def clear_leftovers(target: Path) -> None:
    """Remove what writers of `target` left behind when they were killed."""
    for lock_path in target.parent.glob(f".{glob.escape(target.name)}.*.lock"):
        lock = _try_lock(lock_path)
        if lock is None:
            continue  # its writer lives
        old = lock_path.with_suffix(".old")
        if old.exists() and not target.exists():
            old.rename(target)  # killed between the two renames of `_replace`
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(lock_path.with_suffix(".part"), ignore_errors=True)
        lock_path.unlink(missing_ok=True)
        os.close(lock)


def _new_lock(target: Path) -> tuple[Path, int]:
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.lock")
        lock = _try_lock(path, create=True)
        if lock is not None:
            return path, lock


def _try_lock(path: Path, *, create: bool = False) -> int | None:
    """The descriptor of a lock that is now ours; None if another has it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, another process may have cleared the file away.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _replace(temporary: Path, target: Path) -> None:
    """Put a folder at `target`; what was there is at `temporary` afterwards, or gone."""
    if not target.exists() or not any(target.iterdir()):
        temporary.rename(target)  # over nothing, or over an empty folder
    elif not _exchange(temporary, target):
        old = temporary.with_suffix(".old")
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)
