"""Where in a module the tensors of its files are.

Most have one name in both. Some transformers classes call tensors otherwise in memory, or put
several of a file into one: a mixture's experts into one tensor of all experts, two projections into
one. No renaming is known by name: what was loaded says where it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import takewhile

import torch
from torch import Tensor, nn

from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem, nearest


def targets_of(module: nn.Module, origin: Checkpoint) -> dict[str, Tensor]:
    """The module's tensors, or views of parts of them, by their names in the checkpoint.

    Args:
        module: with the checkpoint's values in it, where names differ.
        origin: the checkpoint.

    Raises:
        ModelError: naming every tensor that one side lacks, or that has another shape.
    """
    state = {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
    found = {name: state[name] for name in origin.names if name in state}
    found |= _elsewhere(state, found, origin)
    problems = []
    for name in origin.names:
        where = f"{origin.where}: {name}"
        if name not in found:
            problems.append(Problem(where, "the module has no such tensor", nearest(name, state)))
        elif tuple(found[name].shape) != origin.shape(name):
            what = f"has shape {origin.shape(name)}, in the module {tuple(found[name].shape)}"
            problems.append(Problem(where, what))
    covered: dict[int, int] = defaultdict(int)  # entries, by the memory that they lie in
    for tensor in found.values():
        covered[tensor.untyped_storage().data_ptr()] += tensor.numel()
    problems += [
        Problem(f"{origin.where}: {name}", "the module needs it and the model has it not")
        for name, tensor in state.items()
        if name not in found and covered[tensor.untyped_storage().data_ptr()] < tensor.numel()
    ]
    if problems:
        raise ModelError(problems)
    return found


def _elsewhere(
    state: Mapping[str, Tensor], known: Mapping[str, Tensor], origin: Checkpoint
) -> dict[str, Tensor]:
    """Tensors that have another name in the module, or are a part of one there.

    Where values could be in several places (fresh norms are all ones), a tensor is beside another
    one of its parent's, or else where the end of the name is the same.
    """
    taken = {tensor.data_ptr() for tensor in known.values()}
    free: dict[tuple[int, ...], list[str]] = defaultdict(list)  # by the numbers in the names
    for name, tensor in state.items():
        if name not in known and tensor.numel() and tensor.data_ptr() not in taken:
            free[_numbers(name)].append(name)
    found: dict[str, Tensor] = {}
    parents: dict[str, str] = {}
    unsure: dict[str, dict[str, Tensor]] = {}
    for name in origin.names if free else ():
        if name in known:
            continue
        places = dict(_places(name, origin.tensor(name), state, free))
        if len(places) == 1:
            ((other, found[name]),) = places.items()
            parents[_parent(name)] = _parent(other)
        else:
            unsure[name] = places
    for name, places in unsure.items():
        parent = parents.get(_parent(name))
        beside = [place for other, place in places.items() if _parent(other) == parent]
        if places and not beside:
            ends = {other: _common_end(other, name) for other in places}
            beside = [p for other, p in places.items() if ends[other] == max(2, *ends.values())]
        if len(beside) == 1:
            found[name] = beside[0]
    return found


def _places(
    name: str,
    stored: Tensor,
    state: Mapping[str, Tensor],
    free: Mapping[tuple[int, ...], list[str]],
) -> Iterator[tuple[str, Tensor]]:
    """Where a tensor's values are, each with the name of the module's tensor."""
    numbers = _numbers(name)
    for other in free.get(numbers, ()):
        if state[other].shape == stored.shape and _equal(state[other], stored):
            yield other, state[other]
    for other in free.get(numbers[:-1], ()) if numbers else ():
        whole = state[other]
        if whole.ndim != stored.ndim + 1 or numbers[-1] >= len(whole):
            continue
        part = whole[numbers[-1]]
        if part.shape[1:] != stored.shape[1:] or len(part) % max(1, len(stored)):
            continue
        for start in range(0, len(part), len(stored)):
            rows = part[start : start + len(stored)]
            if _equal(rows, stored):
                yield f"{other}[{start}]", rows


def _equal(there: Tensor, stored: Tensor) -> bool:
    return torch.equal(there.cpu(), stored.to(there.dtype))


def _numbers(name: str) -> tuple[int, ...]:
    """Of layers and experts; not those in a word, such as w1."""
    return tuple(int(part) for part in name.split(".") if part.isdigit())


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _common_end(one: str, other: str) -> int:
    """How many of the last parts of two names are the same."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
