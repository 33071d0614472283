"""What operators can know beyond their block: the models as a whole, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from evomerge.checkpoints.adapters import stored_factors
from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import CandidateError, ConfigurationError, ModelError, Problem
from evomerge.merging.adapter_sources import no_adapters
from evomerge.merging.blocks import Effective, Group, groups_of
from evomerge.merging.cache import Cache
from evomerge.merging.calibration.statistics import Statistics
from evomerge.merging.operator import Block, Kept, chunks
from evomerge.merging.order import Counted, Magnitudes, Pieces, order_of
from evomerge.merging.shelf import Shelf
from evomerge.protocols import Progress


def no_texts(operator: str) -> Problem:
    """What is said where an operator looks at data and there are none."""
    what = f"{operator} looks at what models do with texts, and there are none"
    hint = "`calibration: {texts: FILE.txt}` in an experiment, `--calibration FILE` for a recipe"
    return Problem("calibration", what, hint)


class Family:
    """Models that are merged with each other, and what is kept of them from merge to merge.

    checkpoints: by the names that recipes use; anatomy: the base's; once: whether each tensor is
    merged just once, so that nothing is worth keeping; progress: told of readings of whole models;
    statistics: what was collected from calibration texts, if there are any; shelf: for the models'
    tensors on GPUs.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        anatomy: Anatomy,
        base: str,
        cache: Cache,
        *,
        once: bool = False,
        progress: Progress | None = None,
        statistics: Statistics | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.statistics = statistics
        self.shelf = shelf or Shelf()
        self._in_turn: tuple[tuple[tuple[str, ...], float], Mapping[str, Tensor]] | None = None
        self.checkpoints, self.anatomy, self.base = dict(checkpoints), anatomy, base
        self.groups = groups_of(checkpoints, anatomy, base)
        self.cache, self.once = cache, once
        self._progress = progress
        self.num_layers = {
            name: anatomy.num_layers_of(set(checkpoint.names))
            for name, checkpoint in self.checkpoints.items()
        }

    def flat(self, model: str, origins: Sequence[str], layer: int | None = None) -> Tensor:
        """A model's tensors end to end, shape (numel,): a view where it is one.

        origins: of the base's tensors that they stand beside; layer: the model's, if another.
        """
        parts = [self._read(model, self._checked(model, beside, layer)) for beside in origins]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def flat_on(
        self, device: torch.device, model: str, origins: Sequence[str], layer: int | None = None
    ) -> tuple[Tensor, bool]:
        """The same on a device, and whether it is a view of what is there at no further cost.

        On the CPU that is the model's own memory or file, elsewhere what the shelf keeps.
        """
        names = [self._checked(model, beside, layer) for beside in origins]
        if device.type == "cpu":
            is_view = len(names) == 1 and not self.checkpoints[model].is_made(names[0])
            return self.flat(model, origins, layer), is_view
        found = [
            self.shelf.tensor(model, name, device, partial(self._read, model, name))
            for name in names
        ]
        return found[0] if len(found) == 1 else (torch.cat([one for one, _ in found]), False)

    def _read(self, model: str, name: str) -> Tensor:
        return self.checkpoints[model].tensor(name).reshape(-1)

    def _checked(self, model: str, beside: str, layer: int | None) -> str:
        """The name of a model's tensor that has the shape of the base's beside it."""
        name = self.name(beside, layer)
        wanted, shape = (
            self.checkpoints[self.base].shape(beside),
            self.checkpoints[model].shape(name),
        )
        if shape != wanted:
            what = f"expected shape {wanted}, as in {self.base!r}, got {shape}"
            raise ModelError(Problem(f"{model}: {name}", what))
        return name

    def name(self, beside: str, layer: int | None) -> str:
        """A tensor in the base's own layer, or in another one."""
        return beside if layer is None else self.anatomy.name_in_layer(beside, layer)

    def order(self, pieces: Pieces, device: torch.device | None = None) -> Magnitudes:
        """The order of magnitudes of what comes in pieces; device: where they are."""
        on_gpu = device is not None and device.type == "cuda"
        if self.once and not on_gpu:
            return Counted(pieces, room=self.cache.room)
        return order_of(pieces, room=self.cache.room, at_once=on_gpu)

    def task_vectors(self, sources: Sequence[str], doing: str) -> Iterator[Tensor]:
        """Whole task vectors in float32 pieces, shape (sources, entries); `doing` is for people."""
        names = [n for group in self.groups if not group.copied for n in group.origins]
        sizes = [math.prod(self.checkpoints[self.base].shape(name)) for name in names]
        for name, done in zip(names, accumulate(sizes), strict=True):
            base = self.flat(self.base, [name])
            others = [self.flat(source, [name]) for source in sources]
            for piece in chunks(base.numel(), len(sources)):
                origin = base[piece].float()
                yield torch.stack([other[piece].float() - origin for other in others])
            if self._progress is not None:
                self._progress(doing, done, sum(sizes))

    def in_turn(
        self, statistics: Statistics, sources: tuple[str, ...], alpha: float
    ) -> Mapping[str, Tensor]:
        """The whole model's RegMean++; the last one is kept, since all blocks ask for it."""
        if self._in_turn is None or self._in_turn[0] != (sources, alpha):
            self._in_turn = None  # before the next one takes its memory
            made = statistics.in_turn(self.anatomy, sources, alpha, self.cache.room)
            self._in_turn = (sources, alpha), made
        return self._in_turn[1]

    def ranked(self, source: str) -> Magnitudes:
        """The order of the magnitudes of a whole task vector, which is never thrown away."""
        pieces = partial(self.task_vectors, [source], f"ranking {source}")
        order: Magnitudes = self.cache.get(
            ("whole model", source), lambda: self.order(pieces), always=True
        )
        return order


@dataclass(frozen=True)
class Surroundings:
    """What is around one block; see `evomerge.merging.operator.Around`."""

    family: Family
    group: Group
    effective: Effective
    device: torch.device

    def room(self, numel: int, dtype: DTypeLike) -> NDArray[Any]:
        """As the protocol says."""
        return self.family.cache.room(numel, dtype)

    def order(self, pieces: Pieces) -> Magnitudes:
        """As the protocol says."""
        return self.family.order(pieces, self.device)

    def kept(self, name: str, make: Callable[[], Kept], source: str | None = None) -> Kept:
        """As the protocol says."""
        if self.family.once:
            return make()
        sources, layers = self.effective.sources, self.effective.layers
        if source is not None:
            place = 1 + sources.index(source)
            layers = None if layers is None else (layers[0], layers[place])
            sources = (source,)
        key = (name, self.group.origins, sources, layers, self.device)
        found: Kept = self.family.cache.get(key, make)
        return found

    def kept_for_model(self, name: str, make: Callable[[], Kept]) -> Kept:
        """As the protocol says."""
        key = (name, "whole model", self.effective.sources)
        found: Kept = self.family.cache.get(key, make, always=True)
        return found

    def factors(self, source: str) -> tuple[tuple[Tensor, Tensor, float] | None, ...]:
        """As the protocol says."""
        checkpoint = self.family.checkpoints[source]
        if problems := no_adapters(self.effective.operator, [source], self.family.checkpoints):
            raise ConfigurationError(problems)
        self._check_layers([source], doing="adds an adapter's change to the layer that it is of")
        return tuple(stored_factors(checkpoint, name) for name in self.group.origins)

    def whole_model(self, source: str) -> Magnitudes:
        """As the protocol says."""
        self._check_layers([source], "; rank within each tensor instead (trim: tensor)")
        return self.family.ranked(source)

    def task_vectors(self) -> Iterator[Tensor]:
        """As the protocol says."""
        self._check_layers(self.effective.sources)
        return self.family.task_vectors(self.effective.sources, "reading task vectors")

    def statistics(self, kind: str, source: str | None = None) -> tuple[Tensor | None, ...]:
        """As the protocol says."""
        family, layers, layer = self.family, self.effective.layers, None
        model = family.base if source is None else source
        if layers is not None:
            layer = layers[0 if source is None else 1 + self.effective.sources.index(source)]
        found = self._collected.of(kind, model)
        of_each = [found.get(family.name(origin, layer)) for origin in self.group.origins]
        return tuple(None if one is None else one.to(self.device) for one in of_each)

    def in_turn(self, alpha: float) -> tuple[Tensor, ...]:
        """As the protocol says."""
        found = self.family.in_turn(self._collected, self.effective.sources, alpha)
        return tuple(found[name].to(self.device) for name in self.group.origins)

    def statistics_norm(self, kind: str, source: str) -> float:
        """As the protocol says."""
        return self._collected.norm(kind, source)

    @property
    def _collected(self) -> Statistics:
        if self.family.statistics is None:
            raise ConfigurationError(no_texts(self.effective.operator))
        return self.family.statistics

    def blocks(self) -> Iterator[Block]:
        """As the protocol says."""
        self._check_layers(self.effective.sources)
        in_place = replace(self.effective, layers=None, depth=None)
        for group in self.family.groups:
            if not group.copied:
                yield replace(self, group=group, effective=in_place).block()

    @property
    def components(self) -> tuple[str, ...]:
        """As the protocol says."""
        places = self.family.anatomy.places
        return tuple(places[origin].component for origin in self.group.origins)

    def block(self) -> Block:
        """What operators read."""
        family, group, effective, device = self.family, self.group, self.effective, self.device
        layers = effective.layers[1:] if effective.layers else (None,) * len(effective.sources)
        found = [
            family.flat_on(device, model, group.origins, layer)
            for model, layer in zip((family.base, *effective.sources), (None, *layers), strict=True)
        ]
        flats = [flat for flat, _ in found]
        shape = family.checkpoints[family.base].shape
        return Block(
            names=group.names,
            shapes=tuple(shape(name) for name in group.origins),
            base=flats[0],
            sources=tuple(flats[1:]),
            views=frozenset(flat.data_ptr() for flat, is_view in found if is_view),
            source_names=effective.sources,
            mask_seed=effective.mask_seed,
            depths=tuple(self._depth(name) for name in group.names),
            around=self,
        )

    def _depth(self, name: str) -> float | None:
        """How deep in the model a tensor's layer lies, from 0 to 1."""
        if self.effective.depth is not None:
            return self.effective.depth
        anatomy = self.family.anatomy
        place = anatomy.places.get(name)  # none where layers are rearranged and it is the same
        if place is None or place.layer is None:
            return None
        return place.layer / max(1, anatomy.num_layers - 1)

    def _check_layers(
        self,
        sources: Sequence[str],
        instead: str = "",
        *,
        doing: str = "looks at whole task vectors",
    ) -> None:
        """Refuse to speak of task vectors where layers are not one beside the other."""
        family, effective = self.family, self.effective
        for source in sources:
            unlike = ""
            if family.num_layers[source] != family.anatomy.num_layers:
                unlike = "has another number of layers than the base"
            elif effective.layers is not None:
                place = 1 + effective.sources.index(source)
                if effective.layers[place] != effective.layers[0]:
                    unlike = "gives another layer than the base here"
            if unlike:
                raise CandidateError(
                    f"{effective.operator} {doing}, and {source!r} {unlike}{instead}"
                )
