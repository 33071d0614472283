"""A disk of any size, for real: a file system in memory that only this test's children see."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
MS_REMOUNT, MS_PRIVATE_AND_ALL = 32, (1 << 18) | (1 << 14)


def _mount(kind: bytes | None, folder: Path, flags: int, data: str = "") -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(kind, os.fsencode(folder), kind, flags, data.encode() or None):
        raise OSError(ctypes.get_errno(), "cannot mount", str(folder))


def _own_mounts() -> None:
    """From here on this process's mounts are its own; needs root, or a namespace of users."""
    library = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER
    if library.unshare(flags):
        raise OSError(ctypes.get_errno(), "cannot have mounts of its own")
    _mount(None, Path("/"), MS_PRIVATE_AND_ALL)


def resize(folder: Path, size_bytes: int) -> None:
    """Change the size of the disk, which keeps what it holds."""
    _mount(None, folder, MS_REMOUNT, f"size={size_bytes}")


def on_disk_of(size_bytes: int, folder: Path, work: Callable[[], Any]) -> Any:
    """Do the work in a child in which `folder` is a disk of that size; what it returns.

    Raises:
        PermissionError: this machine lets nobody mount anything.
        AssertionError: the work failed; its traceback was printed.
    """
    folder.mkdir(exist_ok=True)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            try:
                _own_mounts()
                _mount(b"tmpfs", folder, 0, f"size={size_bytes}")
            except OSError as error:
                answer: Any = PermissionError(str(error))
            else:
                answer = work()
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(answer, stream)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    assert told, "the child has failed"
    answer = pickle.loads(told)  # noqa: S301 - our own child's
    if isinstance(answer, PermissionError):
        raise answer
    return answer
