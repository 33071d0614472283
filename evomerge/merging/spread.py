"""Which device a model goes to; and which part of it to which, where one GPU is too small.

The plan is accelerate's, without its offloading: what does not fit on the GPUs is refused, since a
recipe's tensors are written where they lie, and those on a disk lie nowhere.

Not verified on several real GPUs: plans are tested with invented memory, and what is spread with a
device that is made up in Python.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.merging.module import empty_module_of

AUTO = "auto"
SHARE = 0.9  # of a GPU's free memory: the rest is for activations and for tensors in the making
_ROOMS = (1.05, 1.2, 1.5)  # of an even share of the model, for each GPU: parts are not split


def located(
    origin: Checkpoint, dtype: torch.dtype | None, device: str, cache_bytes: int
) -> torch.device | dict[str, int | str]:
    """The device of a model, or the device of each of its parts.

    Args:
        origin: the base.
        dtype: that it will have; None for its own.
        device: as torch calls it, or "auto".
        cache_bytes: that are to be left for prepared data, on all GPUs together.

    Raises:
        ConfigurationError: there is no such device, or the GPUs have too little memory.
    """
    if device != AUTO:
        return _checked(device)
    if not torch.cuda.is_available():
        what = "no GPU is visible here"
        raise ConfigurationError(Problem(f"device {device}", what, "device cpu needs none"))
    count = torch.cuda.device_count()
    free = {n: int(torch.cuda.mem_get_info(n)[0] * SHARE) for n in range(count)}
    if size_of(origin, dtype) + cache_bytes <= free[0]:
        return torch.device("cuda", 0)
    left = {n: max(0, room - cache_bytes // count) for n, room in free.items()}
    return device_map_of(origin, dtype, left)


def device_map_of(
    origin: Checkpoint, dtype: torch.dtype | None, memory_bytes: Mapping[int, int]
) -> dict[str, int | str]:
    """A device for each part of a transformers model, as even as its parts allow.

    Args:
        origin: the model.
        dtype: that it will have; None for its own.
        memory_bytes: that the model may take, by the number of the GPU.

    Raises:
        ConfigurationError: it does not fit, or accelerate is not there.
    """
    try:
        import accelerate
    except ImportError:
        hint = "pip install 'evomerge[gpu]'"
        what = "a model that spans several GPUs needs accelerate"
        raise ConfigurationError(Problem(f"device {AUTO}", what, hint)) from None
    stored = next(
        (origin.dtype(n) for n in origin.names if origin.dtype(n).is_floating_point), None
    )
    module = empty_module_of(origin, dtype or stored)
    tie = getattr(module, "tie_weights", None)
    if tie is not None:
        tie()
    whole = getattr(module, "_no_split_modules", None)
    even = size_of(origin, dtype) / max(1, len(memory_bytes))
    for room in (*_ROOMS, float("inf")):
        allowed = {n: min(float(free), even * room) for n, free in memory_bytes.items()}
        found: dict[str, int | str] = accelerate.infer_auto_device_map(
            module,
            max_memory={n: int(free) for n, free in allowed.items()},
            no_split_module_classes=list(whole or ()),
            dtype=dtype,
        )
        if all(isinstance(place, int) for place in found.values()):
            return found
    free = ", ".join(f"{free / 1e9:.1f}" for free in memory_bytes.values())
    what = f"needs {size_of(origin, dtype) / 1e9:.1f} GB, and the GPUs have room for {free} GB"
    raise ConfigurationError(Problem(origin.where, what, "nothing is offloaded to memory or disk"))


def room_for_models(
    where: torch.device | Mapping[str, int | str], planned: int | None, taken: int
) -> dict[torch.device, int]:
    """Bytes of each GPU that copies of the models may take beside the measured one.

    Args:
        where: the device of the measured model, or of each of its parts.
        planned: on all of them together, the same on each; None for half of what CUDA has left.
        taken: of that, what others are going to take, on all together.
    """
    places = where.values() if isinstance(where, Mapping) else [where]
    devices = {torch.device(place) for place in places}
    gpus = {torch.device(d.type, d.index or 0) for d in devices if d.type != "cpu"}
    if planned is not None:
        return dict.fromkeys(gpus, planned // max(1, len(gpus)))
    each = taken // max(1, len(gpus))
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in gpus if gpu.type == "cuda"}
    return {gpu: max(0, room - each) // 2 for gpu, room in free.items()}


def _checked(device: str) -> torch.device:
    """A device that is there."""
    try:
        found = torch.device(device)
    except RuntimeError:
        hint = nearest(device, ["cpu", "cuda", "mps", AUTO])
        raise ConfigurationError(Problem(f"device {device!r}", "no such device", hint)) from None
    missing = ""
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            missing = f"this process sees {count} CUDA devices"
    elif found.type == "mps" and not torch.backends.mps.is_available():
        missing = "this machine has no MPS"
    if missing:
        raise ConfigurationError(Problem(f"device {device}", missing))
    return found


def size_of(origin: Checkpoint, dtype: torch.dtype | None) -> int:
    """Bytes of a model in a dtype."""
    total = 0
    for name in origin.names:
        stored, count = origin.dtype(name), torch.Size(origin.shape(name)).numel()
        cast = dtype is not None and stored.is_floating_point
        total += count * (dtype if cast and dtype is not None else stored).itemsize
    return total
