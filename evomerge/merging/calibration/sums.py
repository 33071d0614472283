"""Running sums in a file that is mapped: they take no more memory than the system has to spare."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evomerge.files import check_room

_ALIGNED = 64  # bytes; the data begin at a multiple


class Sums:
    """Float32 zeros of given shapes in a safetensors file, to add to.

    The file is the result as it will be read: nothing has to be written at the end.

    Raises:
        DiskFull: there is no room for it.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        header: dict[str, object] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + 4 * sizes[name]
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNED)
        self.nbytes = start
        check_room(path, start)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + start)
            if hasattr(os, "posix_fallocate") and start:
                # A hole that finds no room when it is written ends the process.
                os.posix_fallocate(file.fileno(), 8 + len(text), start)
        self.tensors: dict[str, Tensor] = {}
        if not start:
            return
        data = np.memmap(path, np.float32, "r+", offset=8 + len(text), shape=(start // 4,))
        stops = np.cumsum(list(sizes.values())).tolist()
        for (name, shape), stop in zip(shapes.items(), stops, strict=True):
            self.tensors[name] = torch.from_numpy(data[stop - sizes[name] : stop]).view(shape)
        self._data = data

    def close(self) -> None:
        """Bring everything to the file; the tensors must not be used any more."""
        self.tensors.clear()
        if self.nbytes:
            self._data.flush()
            del self._data
