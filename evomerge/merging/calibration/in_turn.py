"""RegMean++: layers merged one after another, each for what the merged layers before it make.

Hidden states of all texts go through one layer at a time: first through each expert's own, to see
what goes into its linear layers, then through the merged one. They are kept meanwhile: four bytes
for each token, unit of the residual stream, and expert; in a file, where `room` gives one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, Problem
from evomerge.merging.calibration.activations import (
    Input,
    MeanOf,
    batches_of,
    forward,
    hooked,
    linear_inputs,
)
from evomerge.merging.operators.regmean import mean_of, regression
from evomerge.merging.stack import blocks_at, path_of_blocks
from evomerge.merging.targets import targets_of

Room = Callable[[int, DTypeLike], NDArray[Any]]


@dataclass
class _Batch:
    """A batch on its way: what the next layer gets, and what each layer gets beside it."""

    hidden: Tensor  # (sequences, tokens, width)
    beside: list[tuple[tuple[Any, ...], dict[str, Any]]]


def merged_in_turn(
    module: nn.Module,
    checkpoints: Mapping[str, Checkpoint],
    anatomy: Anatomy,
    base: str,
    sequences: Mapping[str, Sequence[Sequence[int]]],
    alpha: float,
    room: Room,
    report: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """All floating tensors of the merge, float32.

    Args:
        module: the base's, float32; it is written into.
        checkpoints: by name.
        anatomy: the base's.
        base: its name.
        sequences: each source's token ids.
        alpha: factor of off-diagonals.
        room: where arrays are kept.
        report: told of layers.

    Raises:
        ConfigurationError: the layers are not one list of modules.
    """
    origin = checkpoints[base]
    path = path_of_blocks(module, anatomy)
    if path is None:
        what = f"the layers of {type(module).__name__} are not one list of modules"
        raise ConfigurationError(Problem("regmean_plusplus", what, "regmean needs no list"))
    sources = list(sequences)
    # Both before anything is written: names that differ are found by the values.
    targets = targets_of(module, origin)
    inputs = linear_inputs(module, origin, torch.tensor([sequences[sources[0]][0][:4]]))
    merged: dict[str, Tensor] = {}
    for name in origin.names:
        if origin.dtype(name).is_floating_point:
            place = torch.from_numpy(room(int(np.prod(origin.shape(name))), np.float32))
            merged[name] = place.view(origin.shape(name))
            merged[name].copy_(mean_of([checkpoints[source].tensor(name) for source in sources]))
            targets[name].copy_(merged[name])
    blocks = blocks_at(module, path)
    ways = {source: _begun(module, blocks, sequences[source], room) for source in sources}
    for number, block in enumerate(blocks):
        names = [n for n in merged if anatomy.places[n].layer == number]
        own = [one for one in inputs if one.names[0] in names]
        grams = []
        for source in sources:
            for name in names:
                targets[name].copy_(checkpoints[source].tensor(name))
            grams.append(_grams(block, number, ways[source], own))
        for one in own:
            for name in one.names:
                weights = [checkpoints[source].tensor(name) for source in sources]
                known = [of_source[one.names[0]] for of_source in grams]
                merged[name].copy_(regression(weights, known).merged(alpha))
        for name in names:
            targets[name].copy_(merged[name])
        for batch in (batch for source in sources for batch in ways[source]):
            batch.hidden.copy_(_through(block, number, batch))
        report(number + 1, len(blocks))
    return merged


def _begun(
    module: nn.Module, blocks: nn.ModuleList, sequences: Sequence[Sequence[int]], room: Room
) -> list[_Batch]:
    """What the first layer gets, and what each one gets beside the hidden states."""
    found = []
    for ids in batches_of(sequences):
        first: list[Tensor] = []
        beside: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(
            block: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            first: list[Tensor] = first,
            beside: list[tuple[tuple[Any, ...], dict[str, Any]]] = beside,
        ) -> None:
            del block
            hidden = args[0] if args else kwargs["hidden_states"]
            if not first:
                first.append(hidden)
            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            beside.append((args[1:], rest))

        handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
        try:
            forward(module, ids, head=False)
        finally:
            for handle in handles:
                handle.remove()
        place = torch.from_numpy(room(first[0].numel(), np.float32)).view(first[0].shape)
        found.append(_Batch(place.copy_(first[0]), beside))
    return found


def _through(block: nn.Module, number: int, batch: _Batch) -> Tensor:
    args, kwargs = batch.beside[number]
    out = block(batch.hidden, *args, **kwargs)
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden


def _grams(
    block: nn.Module, number: int, batches: Sequence[_Batch], inputs: Sequence[Input]
) -> dict[str, Tensor]:
    """X'X / tokens of what goes into a layer's linear layers, by the first of their names."""
    sums = {one.names[0]: torch.zeros(one.width, one.width) for one in inputs}
    adding = {one.reader: MeanOf("gram", sums[one.names[0]]) for one in inputs}
    with hooked(dict(adding)):
        for batch in batches:
            _through(block, number, batch)
    for one in adding.values():
        one.divide()
    return sums
