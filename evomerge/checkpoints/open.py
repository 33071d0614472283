"""A model opened lazily: names, shapes and dtypes at once, tensors when they are asked for."""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch

from evomerge.checkpoints.checksums import Survey, non_finite, survey
from evomerge.checkpoints.folder import read_folder, read_pickle
from evomerge.checkpoints.headers import Entry, StoredFile, read_header
from evomerge.errors import ModelError, Problem, nearest

# Reserving no swap lets one file be larger than the memory. Python names the flag from 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Checkpoint:
    """A model's stored tensors; see `open_checkpoint`.

    Tensors from files are private, copy-on-write views of the mapped files: reading them costs no
    copy, and writing into one never reaches the disk.

    Attributes:
        name: what recipes and messages call the model.
        path: the folder or file; None for a state dict in memory.
        config: the parsed config.json; {} if there is none.
        names: the stored tensors' names, sorted.
    """

    def __init__(
        self,
        name: str,
        stored: Mapping[str, Entry | torch.Tensor],
        *,
        path: Path | None = None,
        config: Mapping[str, Any] | None = None,
        files: tuple[StoredFile, ...] = (),
    ) -> None:
        self.name = name
        self.path = path
        self.config: dict[str, Any] = dict(config or {})
        self.names: tuple[str, ...] = tuple(sorted(stored))
        self.files = files
        self._stored = dict(stored)
        self._maps: dict[Path, torch.Tensor] = {}
        self._survey: Survey | None = None
        self._non_finite: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {len(self.names)} tensors, {self.size_bytes} bytes)"

    @property
    def where(self) -> str:
        """How a message names the model: its path, else its name."""
        return str(self.path) if self.path is not None else self.name

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding (`tie_word_embeddings`); it is then not stored.

        transformers left the key out of config.json where it was True, its default.
        """
        if not self.config:
            return False
        text = self.config.get("text_config")
        nested = text.get("tie_word_embeddings", True) if isinstance(text, dict) else True
        return bool(self.config.get("tie_word_embeddings", nested))

    @cached_property
    def size_bytes(self) -> int:
        """What all tensors take, as they are stored."""
        return sum(math.prod(self.shape(name)) * self.dtype(name).itemsize for name in self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._find(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's stored dtype."""
        return self._find(name).dtype

    def is_made(self, name: str) -> bool:
        """Whether a tensor is computed when it is asked for, in a dtype of nobody's choice."""
        self._find(name)
        return False

    def stored_at(self, name: str) -> Hashable:
        """Where a tensor is stored: equal for tied tensors, of which there is one."""
        stored = self._find(name)
        if isinstance(stored, torch.Tensor):
            return stored.data_ptr(), stored.dtype, stored.shape, stored.stride()
        return stored.file.path, stored.start, stored.stop

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, memory-mapped where it comes from a file.

        Raises:
            ModelError: if there is no such tensor, or the file has changed since it was opened.
        """
        stored = self._find(name)
        if isinstance(stored, torch.Tensor):
            return stored
        if stored.start == stored.stop:
            return torch.empty(stored.shape, dtype=stored.dtype)
        data = self._map(stored.file)[stored.start : stored.stop]
        if stored.start % stored.dtype.itemsize:
            data = data.clone()  # older writers did not align the data
        return data.view(stored.dtype).view(stored.shape)

    def stretches(self, name: str, starts: Sequence[int], length: int) -> torch.Tensor:
        """Some of a tensor's entries: `length` from each start on, end to end.

        They are read and not mapped, since mapped pages are read far ahead: for a few thousand
        entries here and there it is hundreds of times faster.

        Raises:
            ModelError: as for `tensor`.
        """
        stored = self._find(name)
        if isinstance(stored, torch.Tensor):
            flat = stored.reshape(-1)
            return torch.cat([flat[start : start + length] for start in starts])
        self._check_unchanged(stored.file)
        width = stored.dtype.itemsize
        with stored.file.path.open("rb", buffering=0) as stream:
            read = [
                os.pread(stream.fileno(), length * width, stored.start + start * width)
                for start in starts
            ]
        return torch.frombuffer(bytearray(b"".join(read)), dtype=stored.dtype)

    def sha256(self, progress: Callable[[int, int], None] | None = None) -> str:
        """A hash of names, dtypes, shapes and bytes: files, shards and paths do not matter.

        Computed once per file state (path, size, times) and cached on disk.

        Args:
            progress: called with the bytes done and the bytes in all.
        """
        return self.survey(progress).sha256

    def survey(self, progress: Callable[[int, int], None] | None = None) -> Survey:
        """The hash and the tensors that are not finite, from one reading of the model."""
        if self._survey is None:
            self._survey = survey(self, progress)
        return self._survey

    def non_finite(self, progress: Callable[[int, int], None] | None = None) -> tuple[str, ...]:
        """The tensors with a NaN or an Inf, without the checksum if it is not known."""
        if self._survey is not None:
            return self._survey.non_finite
        if self._non_finite is None:
            self._non_finite = non_finite(self, progress)
        return self._non_finite

    def close(self) -> None:
        """Let go of the mapped files; tensors that were handed out stay valid."""
        self._maps.clear()

    def _find(self, name: str) -> Entry | torch.Tensor:
        found = self._stored.get(name)
        return self._missing(name) if found is None else found

    def _missing(self, name: str) -> NoReturn:
        what = f"has no tensor {name!r}"
        raise ModelError(Problem(self.where, what, nearest(name, self.names)))

    def _check_unchanged(self, file: StoredFile) -> None:
        if StoredFile.of(file.path) != file:
            raise ModelError(Problem(str(file.path), "has changed since it was opened"))

    def _map(self, file: StoredFile) -> torch.Tensor:
        """All bytes of a file, shape (size_bytes,)."""
        if file.path not in self._maps:
            self._check_unchanged(file)
            with file.path.open("rb") as stream:
                mapped = mmap.mmap(
                    stream.fileno(),
                    file.size_bytes,
                    flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
            self._maps[file.path] = torch.frombuffer(mapped, dtype=torch.uint8)
        return self._maps[file.path]


def open_checkpoint(
    source: str | Path | Mapping[str, torch.Tensor], *, name: str, allow_pickle: bool = False
) -> Checkpoint:
    """Open a model without reading its data.

    Args:
        source: a Hugging Face folder, a .safetensors file (without its folder's config.json), a
            weights-only .pt, .pth or .bin file, or a state dict in memory.
        name: what recipes and messages call the model.
        allow_pickle: whether pickled weights may be read; even then nothing in them is executed.

    Raises:
        ModelError: naming the file, and the tensor, that is missing, damaged or not supported.
    """
    if isinstance(source, Mapping):
        return Checkpoint(name, _checked_state_dict(source, name))
    path = Path(source).expanduser()
    try:
        return _open_path(path, name, allow_pickle=allow_pickle)
    except OSError as error:
        raise ModelError(Problem(str(path), f"cannot be read: {error.strerror}")) from None


def _open_path(path: Path, name: str, *, allow_pickle: bool) -> Checkpoint:
    if not path.exists():
        raise ModelError(Problem(name, f"{path} does not exist", _sibling_hint(path)))
    stored: Mapping[str, Entry | torch.Tensor]
    config: dict[str, Any] = {}
    if path.is_dir():
        stored, config = read_folder(path.resolve(), allow_pickle=allow_pickle)
    elif path.suffix == ".safetensors":
        stored = read_header(path.resolve())
    else:
        stored = read_pickle(path.resolve(), allow_pickle=allow_pickle)
    entries = [entry for entry in stored.values() if isinstance(entry, Entry)]
    files = dict.fromkeys(entry.file for entry in entries)
    return Checkpoint(name, stored, path=path, config=config, files=tuple(files))


def _checked_state_dict(state: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    problems = [
        Problem(f"{name}: {key!r}", f"expected a tensor, got {type(value).__name__}")
        for key, value in state.items()
        if not isinstance(value, torch.Tensor)
    ]
    if problems:
        raise ModelError(problems)
    return {str(key): value.detach().cpu() for key, value in state.items()}


def _sibling_hint(path: Path) -> str:
    """The neighbour whose name comes closest, from the first folder above that exists."""
    parent = path.absolute().parent
    if not parent.is_dir():
        return f"neither does {parent}"
    return nearest(path.name, (entry.name for entry in parent.iterdir()))
