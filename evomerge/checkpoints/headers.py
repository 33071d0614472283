"""The header of a safetensors file, read by hand and distrusted, before anything is mapped.

A file is eight bytes of length (little endian), that many bytes of JSON, and the data:

    {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [..], "data_offsets": [a, b]}}

The offsets count from the end of the header, and the tensors must cover the data without a hole
and without an overlap. What is not covered: dtypes narrower than a byte.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import ModelError, Problem

MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 100_000
MAX_PROBLEMS = 20  # of one file; more would hide the first

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredFile:
    """A file of tensors as it was when its header was read."""

    path: Path
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        """The file's present state; only regular files have tensors (a FIFO would block)."""
        try:
            info = path.stat()
        except OSError as error:
            raise ModelError(Problem(str(path), _reason(error))) from None
        if not stat.S_ISREG(info.st_mode):
            raise ModelError(Problem(str(path), "is not a regular file"))
        return cls(path, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


@dataclass(frozen=True)
class Entry:
    """Where one tensor's bytes are: [start, stop) counts from the beginning of the file."""

    file: StoredFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, Entry]:
    """The entries of one file, checked; no data is read.

    Raises:
        ModelError: naming the file, and the tensors, that do not hold together.
    """
    file = StoredFile.of(path)
    text = _header_text(file)
    data_start = 8 + len(text)
    header = _parsed(path, text)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ModelError(Problem(str(path), f"{len(header)} tensors; at most {MAX_TENSORS}"))
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    for name, value in header.items():
        problem, entry = _entry(file, value, data_start)
        if entry is not None:
            entries[name] = entry
        else:
            problems.append(Problem(f"{path}: tensor {name!r}", problem))
    problems += _cut(file, entries)
    problems = problems or _gaps(file, entries, data_start)
    if problems:
        raise ModelError(shortened(problems))
    return entries


def read_json(path: Path, *, what: str, max_values: int = 10 * MAX_TENSORS) -> dict[str, Any]:
    """A small JSON object that belongs to a model.

    Raises:
        ModelError: if it is missing, too large, no JSON object, or has a key twice.
    """
    file = StoredFile.of(path)
    if file.size_bytes > MAX_HEADER_BYTES:
        raise ModelError(
            Problem(str(path), f"{what} of {file.size_bytes} bytes; at most {MAX_HEADER_BYTES}")
        )
    try:
        return _parsed(path, path.read_bytes(), max_values)
    except OSError as error:
        raise ModelError(Problem(str(path), _reason(error))) from None


def shortened(problems: list[Problem]) -> list[Problem]:
    """The first problems, and how many more there are."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    more = len(problems) - MAX_PROBLEMS
    return [*problems[:MAX_PROBLEMS], Problem("", f"... and {more} more problems")]


def _header_text(file: StoredFile) -> bytes:
    path = file.path
    try:
        with path.open("rb") as stream:
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise ModelError(
                    Problem(str(path), f"is cut off: {file.size_bytes} bytes hold no header")
                )
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                what = f"a header of {length} bytes; at most {MAX_HEADER_BYTES}"
                raise ModelError(Problem(str(path), what, "not a safetensors file?"))
            text = stream.read(length)
    except OSError as error:
        raise ModelError(Problem(str(path), _reason(error))) from None
    if len(text) < length:
        what = f"is cut off: a header of {length} bytes in a file of {file.size_bytes}"
        raise ModelError(Problem(str(path), what))
    if not text.startswith(b"{"):
        raise ModelError(Problem(str(path), "the header is not a JSON object"))
    return text


def _parsed(path: Path, text: bytes, max_values: int = 10 * MAX_TENSORS) -> dict[str, Any]:
    """JSON with every key once; refused unparsed where it would cost far more than its bytes."""
    if text.count(b'"data_offsets"') > MAX_TENSORS + 1:
        raise ModelError(Problem(str(path), f"lists more than {MAX_TENSORS} tensors"))
    if max(text.count(b","), text.count(b"["), text.count(b"{")) > max_values:
        raise ModelError(Problem(str(path), "the JSON has far too many values"))
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        if b"\\ud" in text.lower():  # half a character would be no name that can be written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _TwiceError as error:
        raise ModelError(Problem(f"{path}: {error.key!r}", "the name stands twice")) from None
    except (ValueError, RecursionError) as error:
        # ValueError: no JSON, no UTF-8, half a character, or a number of thousands of digits
        what = str(error).splitlines()[0][:120]
        raise ModelError(Problem(str(path), f"is not valid JSON: {what}")) from None
    if not isinstance(value, dict):
        raise ModelError(Problem(str(path), "is not a JSON object"))
    return value


class _TwiceError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _TwiceError(key)
            seen.add(key)
    return made


def _entry(file: StoredFile, value: Any, data_start: int) -> tuple[str, Entry | None]:
    """An entry, or what is wrong with it."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        return "expected exactly dtype, shape and data_offsets", None
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        return f"unknown dtype {value['dtype']!r}", None
    shape, offsets = value["shape"], value["data_offsets"]
    if not _counts(shape):
        return f"the shape must be a list of integers >= 0, got {_short(shape)}", None
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets must be two ascending integers, got {_short(offsets)}", None
    start, stop = offsets[0] + data_start, offsets[1] + data_start
    needed = math.prod(shape) * dtype.itemsize
    if needed != stop - start:
        what = f"{value['dtype']} of shape {_short(shape)} needs {_short(needed)} bytes"
        return f"{what}, but {stop - start} are stored", None
    return "", Entry(file, dtype, tuple(shape), start, stop)


def _cut(file: StoredFile, entries: dict[str, Entry]) -> list[Problem]:
    """One line for a file that ends before its tensors do, however many they are."""
    beyond = [name for name, entry in entries.items() if entry.stop > file.size_bytes]
    if not beyond:
        return []
    promised = max(entries[name].stop for name in beyond)
    first = min(beyond, key=lambda name: entries[name].stop)
    counted = "1 tensor ends" if len(beyond) == 1 else f"{len(beyond)} tensors end"
    what = f"is cut off at byte {file.size_bytes} of {promised}"
    hint = f"{counted} after it, first {first!r}"
    return [Problem(str(file.path), what, hint)]


def _gaps(file: StoredFile, entries: dict[str, Entry], data_start: int) -> list[Problem]:
    """Overlaps, and bytes that belong to no tensor: room for something hidden."""
    problems = []
    end, before = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        where = f"{file.path}: tensor {name!r}"
        if entry.start < end:
            problems.append(Problem(where, f"overlaps {before}"))
        elif entry.start > end:
            problems.append(Problem(where, f"a hole of {entry.start - end} bytes before it"))
        end, before = max(end, entry.stop), repr(name)
    if not problems and end < file.size_bytes:
        what = f"{file.size_bytes - end} bytes after the last tensor belong to none"
        problems.append(Problem(str(file.path), what))
    return problems


def _counts(value: Any) -> bool:
    """Whether it is a list of integers from 0 to 2^63 - 1."""
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(error: OSError) -> str:
    return f"cannot be read: {os.strerror(error.errno)}" if error.errno else "cannot be read"
