"""What the tensors of a PEFT adapter's file do to those of its base, sorted with distrust.

    stored (after "base_model.model.")       what becomes of the base's tensor
    M.lora_A.weight (r, in)                  M.weight + scale * B @ A; transposed for GPT-2's
    M.lora_B.weight (out, r)                 Conv1D, which stores (in, out)
    M.lora_embedding_A (r, vocabulary)       M.weight + scale * (B @ A)'
    M.lora_embedding_B (dimension, r)
    M.lora_B.bias (out,)                     M.bias + scale * it
    M.base_layer.X, M.X                      M.X is replaced (`bias`, `modules_to_save`)

What is not covered: convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from evomerge.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterSettings
from evomerge.checkpoints.headers import shortened
from evomerge.checkpoints.module_tree import Kind, holders_by_module
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem, nearest

PREFIX = "base_model.model."
_PAIR = re.compile(r"^(.+)\.lora_([AB])(?:\.default)?\.(weight|bias)$")
_EMBEDDING = re.compile(r"^(.+)\.lora_embedding_([AB])(?:\.default)?$")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")


@dataclass(frozen=True)
class LowRank:
    """A change of one tensor, scale * B @ A; `a` and `b` are names in the adapter's file.

    kind: what the tensor's module computes; a conv1d's and an embedding's are transposed.
    """

    a: str
    b: str
    rank: int
    scale: float
    kind: Kind

    @property
    def transposed(self) -> bool:
        """Whether the tensor changes by (B @ A)' rather than by B @ A."""
        return self.kind != "linear"


@dataclass(frozen=True)
class AdapterTensors:
    """What an adapter does, by the names of the base's tensors.

    Attributes:
        low_rank: changes of rank r.
        replaced: the file's names of tensors that take the place of the base's.
        added: biases that are added, by the file's name, with their factor.
    """

    low_rank: dict[str, LowRank]
    replaced: dict[str, str]
    added: dict[str, tuple[str, float]]

    @property
    def names(self) -> tuple[str, ...]:
        """The base's tensors that differ, sorted."""
        return tuple(sorted({*self.low_rank, *self.replaced, *self.added}))


def read_adapter_tensors(
    settings: AdapterSettings, stored: Checkpoint, base: Checkpoint
) -> AdapterTensors:
    """Sort an adapter's tensors, and fit them to the base.

    Raises:
        ModelError: naming every tensor that is half, unknown, or does not fit.
    """
    return _Reader(settings, stored, base).read()


class _Reader:
    """Sorts the tensors of an adapter's file, and collects what is wrong with them."""

    def __init__(self, settings: AdapterSettings, stored: Checkpoint, base: Checkpoint) -> None:
        self._settings, self._stored, self._base = settings, stored, base
        self._pairs: dict[tuple[str, bool], dict[str, str]] = {}  # (module, embedding?) -> A, B
        self._biases: dict[str, str] = {}  # module -> its lora_B.bias
        self._whole: dict[str, str] = {}  # tensor -> the file's name
        self._problems: list[Problem] = []

    def read(self) -> AdapterTensors:
        """What the file holds, once all of it fits.

        Raises:
            ModelError: naming every tensor that does not.
        """
        for key in self._stored.names:
            self._sort(key)
        targets = {f"{module}.weight" for module, _ in self._pairs}
        rename = _renaming(targets | set(self._whole), self._base.names)
        replaced = {}
        for name, key in self._whole.items():
            if self._replaces(rename(name), key):
                replaced[rename(name)] = key
        kinds = self._kinds({rename(name) for name in targets})
        low_rank: dict[str, LowRank] = {}
        added: dict[str, tuple[str, float]] = {}
        for (module, embedding), pair in self._pairs.items():
            weight = rename(f"{module}.weight")
            kind: Kind | None = "embedding" if embedding else kinds.get(weight)
            change = self._low_rank(module, weight, pair, kind, replaced.get(weight))
            if weight in low_rank:
                self._wrong(next(iter(pair.values())), f"{weight!r} is adapted twice")
            elif change is not None:
                low_rank[weight] = change
                bias = self._biases.pop(module, "")
                if bias and self._fits(bias, rename(f"{module}.bias")):
                    added[rename(f"{module}.bias")] = (bias, change.scale)
        if not self._problems:
            for bias in self._biases.values():
                self._wrong(bias, "has no lora_A and lora_B beside it")
        if not self._pairs and not self._problems:
            self._wrong("", "holds no lora_A and no lora_B")
        if self._problems:
            raise ModelError(shortened(self._problems))
        return AdapterTensors(low_rank, replaced, added)

    def _sort(self, key: str) -> None:
        name = key.removeprefix(PREFIX)
        pair, embedding = _PAIR.match(name), _EMBEDDING.match(name)
        if not self._stored.dtype(key).is_floating_point:
            self._wrong(key, f"expected floating numbers, got {self._stored.dtype(key)}")
        elif pair is not None and pair[3] == "weight":
            self._put(self._pairs.setdefault((pair[1], False), {}), pair[2], key)
        elif pair is not None and pair[2] == "B":
            self._put(self._biases, pair[1], key)
        elif embedding is not None:
            self._put(self._pairs.setdefault((embedding[1], True), {}), embedding[2], key)
        elif "lora_magnitude_vector" in name:
            self._wrong(key, "DoRA is not supported", "merge it into its base with PEFT")
        elif ".lora_" in name or "trainable_tokens" in name or "token_adapter" in name:
            self._wrong(key, "a kind of tensor that is not supported")
        else:
            self._put(self._whole, _WRAPPED.sub("", name), key)

    def _put(self, table: dict[str, str], name: str, key: str) -> None:
        if name in table:
            self._wrong(key, f"says the same as {table[name]!r}")
        table[name] = key

    def _replaces(self, name: str, key: str) -> bool:
        """Whether a tensor replaces one of the base's; rows may differ, as for a larger vocabulary.

        PEFT saves embeddings whenever they are adapted, as they were, and with them a head that is
        tied to them and not stored in the base.
        """
        if name not in self._base.names:
            if not (self._base.tied and self._is_copy(key)):
                self._wrong(key, f"the base has no {name!r}", nearest(name, self._base.names))
            return False
        mine, its = self._stored.shape(key), self._base.shape(name)
        if mine == its:
            return not _same(self._stored.tensor(key), self._base.tensor(name))
        if len(mine) == len(its) == 2 and mine[1] == its[1]:
            return True
        self._wrong(key, f"has shape {list(mine)}, {name!r} of the base {list(its)}")
        return False

    def _is_copy(self, key: str) -> bool:
        """Whether another of the adapter's whole tensors, or one of the base's, is the same."""
        mine = self._stored.tensor(key)
        others = [(self._stored, other) for other in self._whole.values() if other != key]
        others += [(self._base, name) for name in self._base.names]
        return any(
            tuple(mine.shape) == owner.shape(other) and _same(mine, owner.tensor(other))
            for owner, other in others
        )

    def _kinds(self, weights: set[str]) -> dict[str, Kind]:
        """What computes with the weights that are square; of others the shapes tell."""
        square = {
            name
            for name in weights & set(self._base.names)
            if len(set(self._base.shape(name))) == 1
        }
        holders = holders_by_module(self._base.config, square) if square else None
        plain = ("linear", "conv1d")
        return {n: holder.kind for n, holder in (holders or {}).items() if holder.kind in plain}

    def _low_rank(
        self,
        module: str,
        weight: str,
        pair: Mapping[str, str],
        kind: Kind | None,
        whole: str | None,
    ) -> LowRank | None:
        """The change of a weight, or None after noting what is wrong."""
        if set(pair) != {"A", "B"}:
            there, key = next(iter(pair.items()))
            self._wrong(key, f"its lora_{'B' if there == 'A' else 'A'} is missing")
            return None
        a, b = self._stored.shape(pair["A"]), self._stored.shape(pair["B"])
        rank = self._settings.rank_of(module)
        if weight not in self._base.names:
            what, hint = f"the base has no {weight!r}", nearest(weight, self._base.names)
        elif len(a) != 2 or len(b) != 2:
            what, hint = f"expected A (r, in) and B (out, r), got {list(a)} and {list(b)}", ""
        elif not a[0] == b[1] == rank:
            what = f"A has {a[0]} rows and B {b[1]} columns"
            hint = f"{ADAPTER_CONFIG} gives the rank {rank}"
        else:
            shape = self._base.shape(weight) if whole is None else self._stored.shape(whole)
            kind = kind or self._kind_by_shape((b[0], a[1]), shape)
            if (b[0], a[1]) == (shape if kind == "linear" else shape[::-1]):
                scale = self._settings.scale_of(module, rank)
                return LowRank(pair["A"], pair["B"], rank, scale, kind)
            what, hint = f"B @ A has shape {[b[0], a[1]]}, {weight!r} of the base {list(shape)}", ""
        self._wrong(pair["A"], what, hint)
        return None

    def _kind_by_shape(self, product: tuple[int, int], shape: tuple[int, ...]) -> Kind:
        """A linear layer's weight is (out, in), a Conv1D's (in, out); the setting tells squares."""
        upright, turned = product == shape, product[::-1] == shape
        return "conv1d" if turned and (self._settings.fan_in_fan_out or not upright) else "linear"

    def _fits(self, key: str, name: str) -> bool:
        if name in self._base.names and self._base.shape(name) == self._stored.shape(key):
            return True
        self._wrong(key, f"the base has no {name!r} of shape {list(self._stored.shape(key))}")
        return False

    def _wrong(self, key: str, what: str, hint: str = "") -> None:
        where = f"{self._stored.where}: tensor {key!r}" if key else self._stored.where
        self._problems.append(Problem(where, what, hint))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    wide = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.to(wide), other.to(wide))


def _renaming(wanted: Iterable[str], names: Iterable[str]) -> Callable[[str], str]:
    """How the base's file names what the adapter names: the same, or with one prefix more or less.

    GPT-2's files say "h.0.", its class "transformer.h.0."; the way that finds most is taken.
    """
    wanted, there = set(wanted), set(names)
    ways: list[Callable[[str], str]] = [str]
    ways += [partial(_without, f"{first}.") for first in sorted(_firsts(wanted))]
    ways += [partial(_with, f"{first}.") for first in sorted(_firsts(there))]
    return max(ways, key=lambda way: sum(way(name) in there for name in wanted))


def _firsts(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _with(prefix: str, name: str) -> str:
    return prefix + name
