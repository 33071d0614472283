"""A PEFT LoRA adapter as a model: its base, with scale * B @ A added to what it adapts.

Low-rank changes are added in float32: many of them are smaller than half a step of bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from evomerge.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterSettings, read_settings
from evomerge.checkpoints.adapter_tensors import AdapterTensors, LowRank, read_adapter_tensors
from evomerge.checkpoints.derived import Derived, Made
from evomerge.checkpoints.folder import inside, read_pickle
from evomerge.checkpoints.headers import Entry, read_header
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem

ADAPTER_MODEL = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
Factors = tuple[torch.Tensor, torch.Tensor, float]  # A (r, in), B (out, r), and their factor
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, read.

    Attributes:
        folder: where it is.
        settings: its adapter_config.json.
        stored: its file's tensors, by the file's names.
        tensors: what they do to the base's.
    """

    folder: Path
    settings: AdapterSettings
    stored: Checkpoint
    tensors: AdapterTensors

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """A (r, in), B (out, r) and the scale of a base tensor's change, in float32."""
        change = self.tensors.low_rank[name]
        a, b = self.stored.tensor(change.a), self.stored.tensor(change.b)
        return a.float(), b.float(), change.scale


class Adapted(Derived):
    """A base seen through an adapter; `adapter` has the low-rank factors."""

    def __init__(self, name: str, base: Checkpoint, adapter: Adapter) -> None:
        self.adapter = adapter
        tensors: dict[str, str | Made] = {key: key for key in base.names}
        changes = adapter.tensors
        for key in changes.names:
            source = changes.replaced.get(key)
            shape = base.shape(key) if source is None else adapter.stored.shape(source)
            dtype = base.dtype(key) if source is None else adapter.stored.dtype(source)
            if key in changes.low_rank or key in changes.added:
                dtype = torch.promote_types(dtype, torch.float32)
            tensors[key] = Made(shape, dtype, partial(_make, base, adapter, key, dtype))
        has_tokenizer = any((adapter.folder / file).exists() for file in _TOKENIZERS)
        super().__init__(
            base,
            tensors,
            name=name,
            path=adapter.folder if has_tokenizer else None,
            beside=adapter.stored,
            change={"adapter": asdict(changes)},
        )

    @property
    def where(self) -> str:
        """The adapter's folder."""
        return str(self.adapter.folder)


def open_adapter(
    folder: str | Path, *, name: str, base: Checkpoint, allow_pickle: bool = False
) -> Adapted:
    """Open an adapter over the base that it was trained on, without reading its data.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, or adapter_model.bin.
        name: what recipes and messages call the model.
        base: the model that it changes.
        allow_pickle: whether adapter_model.bin may be read.

    Raises:
        ModelError: naming the file, and everything in it that is damaged, not supported, or does
            not fit the base.
    """
    place = Path(folder).expanduser()
    try:
        settings = read_settings(place.resolve())
        stored = _stored(place.resolve(), allow_pickle=allow_pickle)
        tensors = read_adapter_tensors(settings, stored, base)
    except OSError as error:
        raise ModelError(Problem(str(place), f"cannot be read: {error.strerror}")) from None
    return Adapted(name, base, Adapter(place, settings, stored, tensors))


def adapter_in_memory(
    name: str,
    base: Checkpoint,
    factors: Mapping[str, Factors],
    replaced: Mapping[str, torch.Tensor] | None = None,
) -> Adapted:
    """An adapter that is in no file.

    Args:
        name: what recipes and messages call the model.
        base: the model that it changes.
        factors: by the base's tensors, A (r, columns), B (rows, r) and the factor of B @ A.
        replaced: tensors that take the place of the base's.
    """
    stored: dict[str, torch.Tensor] = {f"{key}.replaced": t for key, t in (replaced or {}).items()}
    low_rank = {}
    for key, (a, b, scale) in factors.items():
        stored |= {f"{key}.a": a, f"{key}.b": b}
        low_rank[key] = LowRank(f"{key}.a", f"{key}.b", len(a), scale, "linear")
    tensors = AdapterTensors(low_rank, {key: f"{key}.replaced" for key in replaced or {}}, {})
    largest = max((change.rank for change in low_rank.values()), default=0)
    settings = AdapterSettings(largest, largest, {}, {}, False, False, "")
    memory = Path(f"memory:{name}")
    return Adapted(name, base, Adapter(memory, settings, Checkpoint("adapter", stored), tensors))


def as_adapter(model: Checkpoint, base: Checkpoint, rank: int | None = None) -> Adapted:
    """A model as an adapter: what is no matrix is replaced.

    rank: of which the nearest changes are; by default they are exact, (W - W_0) I.
    """
    factors: dict[str, Factors] = {}
    replaced = {}
    for name in base.names:
        own, origin = model.tensor(name), base.tensor(name)
        if own.ndim != 2:
            replaced[name] = own
            continue
        delta = own.float() - origin.float()
        factors[name] = (torch.eye(own.shape[1]), delta, 1.0)
        if rank is not None:
            u, s, v = torch.linalg.svd(delta, full_matrices=False)
            factors[name] = (v[:rank], u[:, :rank] * s[:rank], 1.0)
    return adapter_in_memory(model.name, base, factors, replaced)


def adapted_beneath(checkpoint: Checkpoint) -> Adapted | None:
    """The adapter that a model is, whatever it is seen through; None if it is none."""
    while not isinstance(checkpoint, Adapted):
        if not isinstance(checkpoint, Derived):
            return None
        checkpoint = checkpoint.origin
    return checkpoint


def stored_factors(checkpoint: Checkpoint, name: str) -> Factors | None:
    """The factors of a tensor's change, turned as the tensor is stored; None where there are none.

    None also where the change is more than a product, or the tensor is changed once more.
    """
    while isinstance(checkpoint, Derived) and not isinstance(checkpoint, Adapted):
        inner = checkpoint.own_name(name)
        if inner is None:
            return None
        checkpoint, name = checkpoint.origin, inner
    if not isinstance(checkpoint, Adapted):
        return None
    changes = checkpoint.adapter.tensors
    if name not in changes.low_rank or name in changes.replaced or name in changes.added:
        return None
    a, b, scale = checkpoint.adapter.factors(name)
    return (b.t(), a.t(), scale) if changes.low_rank[name].transposed else (a, b, scale)


def base_notes(adapted: Adapted) -> list[str]:
    """What to tell where the adapter names another base; folders move, so it is no error."""
    said, base = adapted.adapter.settings.base, adapted.origin
    here = "" if base.path is None else str(base.path.resolve())
    if not said or (here and str(Path(said).expanduser().resolve()) == here):
        return []
    return [f"{adapted.name}: {ADAPTER_CONFIG} names the base {said!r}; here it is {base.where}"]


def _stored(folder: Path, *, allow_pickle: bool) -> Checkpoint:
    safe, pickled = inside(folder, ADAPTER_MODEL), inside(folder, _PICKLE)
    if safe.exists():
        entries = read_header(safe)
        files = dict.fromkeys(entry.file for entry in entries.values() if isinstance(entry, Entry))
        return Checkpoint("adapter", entries, path=safe, files=tuple(files))
    if pickled.exists():
        return Checkpoint("adapter", read_pickle(pickled, allow_pickle=allow_pickle), path=pickled)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise ModelError(Problem(str(folder), f"holds {ADAPTER_CONFIG} and no {ADAPTER_MODEL}", found))


def _make(base: Checkpoint, adapter: Adapter, name: str, dtype: torch.dtype) -> torch.Tensor:
    """An adapted tensor, owned."""
    changes = adapter.tensors
    source = changes.replaced.get(name)
    origin = base.tensor(name) if source is None else adapter.stored.tensor(source)
    made = origin.to(dtype, copy=True)
    if name in changes.low_rank:
        a, b, scale = adapter.factors(name)
        upright = made.t() if changes.low_rank[name].transposed else made  # a view, (out, in)
        upright.addmm_(b.to(dtype), a.to(dtype), alpha=scale)
    if name in changes.added:
        bias, scale = changes.added[name]
        made.add_(adapter.stored.tensor(bias).to(dtype), alpha=scale)
    return made
