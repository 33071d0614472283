"""The merged tensors of a recipe, one block after another, with what can be prepared kept."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import CandidateError, ConfigurationError, ModelError, Problem, nearest
from evomerge.merging.adapter_sources import no_adapters
from evomerge.merging.blocks import (
    Effective,
    Group,
    arranged,
    check_recipe,
    joined,
    operator_of,
    resolve,
)
from evomerge.merging.cache import Cache
from evomerge.merging.calibration.statistics import Statistics
from evomerge.merging.flat_order import FlatOrder, flat_order
from evomerge.merging.operator import Block, Operator
from evomerge.merging.pieces import plan_of_segments
from evomerge.merging.shelf import Shelf
from evomerge.merging.surroundings import Family, Surroundings
from evomerge.protocols import Progress
from evomerge.recipe import Recipe

__all__ = ["Merger", "check_recipe"]


class Merger:
    """Merges the tensors of recipes over one set of models.

    checkpoints: by the names that recipes use; anatomy: the base's; cache_bytes: for prepared data
    (beside it, the order of a source's magnitudes where those of the whole model are needed); once:
    whether each tensor is merged just once, so that nothing is worth keeping; device: where it
    computes, None for where each tensor is written; progress: told of the readings that come before
    the first tensor; statistics: of the models, for operators that look at data; shelf: for
    copies of the models on GPUs, by default none.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        anatomy: Anatomy,
        base: str,
        cache_bytes: int = 0,
        *,
        once: bool = False,
        device: str | torch.device | None = None,
        progress: Progress | None = None,
        statistics: Statistics | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        if base not in checkpoints:
            what = f"the base {base!r} is not among the models"
            raise ConfigurationError(Problem("base", what, nearest(base, checkpoints)))
        self._device = None if device is None else torch.device(device)
        self.family = Family(
            checkpoints,
            anatomy,
            base,
            Cache(cache_bytes),
            once=once,
            progress=progress,
            statistics=statistics,
            shelf=shelf,
        )
        self.checkpoints, self.anatomy = self.family.checkpoints, anatomy
        self.base, self.groups = base, self.family.groups
        self._recipe: Recipe | None = None
        self._plan: dict[Group, Effective | None] = {}

    def plan(self, recipe: Recipe) -> Mapping[Group, Effective | None]:
        """What is written in one step, and what it depends on; None for copies of the base.

        Raises:
            ConfigurationError: with all that is wrong with the recipe.
        """
        if recipe is not self._recipe:
            if recipe.base != self.base:
                what = f"the recipe's base is {recipe.base!r}, the models' {self.base!r}"
                raise ConfigurationError(Problem("base", what))
            self._check_calibration(recipe)
            if recipe.segments is not None:
                if problems := self._flat_order.problems(recipe.segments):
                    raise ConfigurationError(problems)
                plan = plan_of_segments(recipe.segments, self.groups, self._flat_order)
                return self._planned(recipe, plan)
            unusual = recipe.tensors or not recipe.keeps_layers(self.anatomy.num_layers)
            if unusual and (problems := check_recipe(recipe, self.anatomy, self.family.num_layers)):
                raise ConfigurationError(problems)
            groups = arranged(self.groups, recipe, self.anatomy)
            plan = resolve(recipe, groups, self.anatomy)
            return self._planned(recipe, joined(plan, self.checkpoints[self.base]))
        return self._plan

    def _check_calibration(self, recipe: Recipe) -> None:
        """Refuse texts that are not those of the recipe: it would be another merge."""
        statistics = self.family.statistics
        if recipe.calibration is None or statistics is None:
            return
        if recipe.calibration != statistics.digest:
            what = f"the recipe's texts have the sha256 {recipe.calibration[:12]}..., these "
            what += f"{statistics.digest[:12]}...: it is another calibration set"
            hint = "the calibration.json beside the recipe, or in the folder of its run"
            raise ConfigurationError(Problem("calibration", what, hint))

    def _check_whole(self, plan: Mapping[Group, Effective | None]) -> None:
        """Refuse what is defined for whole models alone, where other places are merged otherwise.

        Raises:
            ConfigurationError: naming the operator.
        """
        merged = [one for one in plan.values() if one is not None]
        whole = [one for one in merged if operator_of(one).whole]
        if not whole:
            return
        name = whole[0].operator
        numbers = {self.family.num_layers[source] for source in whole[0].sources}
        if len({replace(one, branch_scale=1.0) for one in merged}) > 1:
            what = f"{name} merges layer after layer: it is defined where all is merged alike"
        elif whole[0].layers is not None or numbers != {self.anatomy.num_layers}:
            what = f"{name} merges layer after layer, and layers are rearranged here"
        else:
            return
        raise ConfigurationError(Problem("operator", what, "regmean can stand anywhere"))

    def _planned(
        self, recipe: Recipe, plan: dict[Group, Effective | None]
    ) -> Mapping[Group, Effective | None]:
        self._check_whole(plan)
        needy = {
            (effective.operator, effective.sources): None
            for effective in plan.values()
            if effective is not None and operator_of(effective).needs_adapters
        }
        for operator, sources in needy:
            if problems := no_adapters(operator, sources, self.checkpoints):
                raise ConfigurationError(problems)
        self._plan, self._recipe = plan, recipe
        self.family.cache.next_candidate()
        return plan

    @cached_property
    def _flat_order(self) -> FlatOrder:
        return flat_order(self.checkpoints, self.base)

    def merge_tensor(self, recipe: Recipe, name: str, out: Tensor) -> None:
        """Write one merged tensor into `out`, which has its shape and a floating dtype.

        Raises:
            ConfigurationError: the recipe cannot be applied.
            CandidateError: the merged tensor is not finite, or the parameters make no tensor.
        """
        plan = self.plan(recipe)
        for group, effective in plan.items():
            if name in group.names:
                part = group.of([name])
                if recipe.segments is not None and effective is not None:
                    # Pieces are a group's: those of one tensor are others.
                    effective = plan_of_segments(recipe.segments, [part], self._flat_order)[part]
                self.write(part, effective, [out])
                return
        known = [name for group in plan for name in group.names]
        raise ModelError(Problem(repr(name), "no such tensor", nearest(name, known)))

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """All merged tensors, one at a time, in the recipe's dtype or else the base's."""
        shape, dtype = self.checkpoints[self.base].shape, self._dtype
        for group, effective in self.plan(recipe).items():
            outs = [torch.empty(shape(n), dtype=dtype(recipe, n)) for n in group.origins]
            self.write(group, effective, outs)
            yield from zip(group.names, outs, strict=True)

    def layout(self, recipe: Recipe) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shape and dtype of every merged tensor, without merging it."""
        shape, dtype = self.checkpoints[self.base].shape, self._dtype
        return {
            name: (shape(origin), dtype(recipe, origin))
            for group in self.plan(recipe)
            for name, origin in zip(group.names, group.origins, strict=True)
        }

    def write(self, group: Group, effective: Effective | None, outs: Sequence[Tensor]) -> None:
        """Write a group's merged tensors into `outs`, one for each of its names, on any devices.

        Raises:
            CandidateError: a merged tensor is not finite, or the parameters make no tensor.
        """
        with torch.no_grad():
            if effective is None:
                for name, out in zip(group.origins, outs, strict=True):
                    out.copy_(self.checkpoints[self.base].tensor(name))
                return
            scale, dtype = effective.branch_scale, outs[0].dtype
            device = self._device or outs[0].device
            in_place = outs[0].is_contiguous() and outs[0].device == device
            if scale == 1 and len(outs) == 1 and in_place:
                self._apply(group, effective, outs[0].view(-1))
                return
            if scale != 1:  # before it is rounded, so that it is rounded once
                dtype = torch.promote_types(dtype, torch.float32)
            size = sum(out.numel() for out in outs)
            flat = torch.empty(size, dtype=dtype, device=device)
            self._apply(group, effective, flat)
            parts = torch.split(flat, [out.numel() for out in outs])
            for origin, out, part in zip(group.origins, outs, parts, strict=True):
                if scale != 1 and origin in self.anatomy.branch_outputs:
                    part.mul_(scale)
                out.copy_(part.view(out.shape))
            if scale != 1 and not all(_is_finite(out) for out in outs):
                flats = [out.reshape(-1).to(device) for out in outs]
                self._refuse_not_finite(group, torch.cat(flats))

    def _apply(self, group: Group, effective: Effective, flat: Tensor) -> None:
        operator = operator_of(effective)
        values = dict(effective.values)
        if self.family.once:
            prepared = operator.prepare(self._block(group, effective, flat.device), values)
        else:
            key = (flat.device, self._key(group, effective, operator))
            prepared = self.family.cache.get(
                key, lambda: operator.prepare(self._block(group, effective, flat.device), values)
            )
        finite = operator.apply(prepared, values, flat)
        if finite is None:
            finite = _is_finite(flat)
        if not finite:
            self._refuse_not_finite(group, flat)

    def _key(self, group: Group, effective: Effective, operator: Operator) -> Hashable:
        """What prepared data depend on: a layer that is moved as a whole keeps them."""
        if operator.place != "nothing":
            return (group.names, *effective.prepare_key(operator))
        own = self.anatomy.places[group.origins[0]].layer
        moved = effective.layers is not None and set(effective.layers) == {own}
        if moved:
            effective = replace(effective, layers=None)
        return (group.origins, *effective.prepare_key(operator))

    def _refuse_not_finite(self, group: Group, flat: Tensor) -> None:
        sizes = [math.prod(self.checkpoints[self.base].shape(name)) for name in group.origins]
        for name, part in zip(group.names, torch.split(flat, sizes), strict=True):
            if not torch.isfinite(part).all():
                raise CandidateError(f"{name}: the merged tensor is not finite")

    def _block(self, group: Group, effective: Effective, device: torch.device) -> Block:
        return Surroundings(self.family, group, effective, device).block()

    def _dtype(self, recipe: Recipe, origin: str) -> torch.dtype:
        """What a merged tensor is stored in."""
        stored = self.checkpoints[self.base].dtype(origin)
        chosen = recipe.dtype if stored.is_floating_point else None
        return stored if chosen is None else getattr(torch, chosen)


def _is_finite(tensor: Tensor) -> bool:
    """A quick look; False may also be a sum that is too large."""
    return math.isfinite(float(tensor.sum(dtype=torch.float32)))
