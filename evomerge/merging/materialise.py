"""The merged tensors of a recipe, one block after another, with what can be prepared kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import CandidateError, ConfigurationError, ModelError, Problem, nearest
from evomerge.merging.blocks import (
    Effective,
    Group,
    check_recipe,
    groups_of,
    joined,
    operator_of,
    resolve,
)
from evomerge.merging.cache import Cache
from evomerge.merging.operator import Block, chunks
from evomerge.recipe import Recipe

__all__ = ["Merger", "check_recipe"]


class Merger:
    """Merges the tensors of recipes over one set of models.

    checkpoints: by the names that recipes use; anatomy: the base's; cache_bytes: for prepared data
    (beside it, one float32 vector per source where magnitudes of the whole model are needed);
    device: where it computes.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        anatomy: Anatomy,
        base: str,
        cache_bytes: int,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        if base not in checkpoints:
            what = f"the base {base!r} is not among the models"
            raise ConfigurationError(Problem("base", what, nearest(base, checkpoints)))
        self.checkpoints = dict(checkpoints)
        self.anatomy = anatomy
        self.base = base
        self.device = torch.device(device)
        self.groups = groups_of(checkpoints, anatomy, base)
        self._group_of = {
            name: Group((name,), group.slot, group.component, group.copied)
            for group in self.groups
            for name in group.names
        }
        self._cache = Cache(cache_bytes)
        self._whole: dict[str, NDArray[np.float32]] = {}
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
            if (slots := recipe.slots) is not None and (
                len(slots) != self.anatomy.num_layers
                or any(slot.layer != i for i, slot in enumerate(slots))
            ):
                raise ConfigurationError(check_recipe(recipe, self.anatomy))
            plan = resolve(recipe, self.groups)
            self._plan = joined(plan, self.checkpoints[self.base])
            self._recipe = recipe
            self._cache.next_candidate()
        return self._plan

    def merge_tensor(self, recipe: Recipe, name: str, out: Tensor) -> None:
        """Write one merged tensor into `out`, which has its shape and a floating dtype.

        Raises:
            ConfigurationError: the recipe cannot be applied.
            CandidateError: the merged tensor is not finite, or the parameters make no tensor.
        """
        self._require(name)
        plan = self.plan(recipe)
        effective = next(plan[group] for group in plan if name in group.names)
        self.write(self._group_of[name], effective, [out])

    def tensors(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """All merged tensors, one at a time, in the recipe's dtype or else the base's."""
        plan = self.plan(recipe)
        origin = self.checkpoints[self.base]
        dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
        for group, effective in plan.items():
            outs = [
                torch.empty(
                    origin.shape(name),
                    dtype=dtype
                    if dtype and origin.dtype(name).is_floating_point
                    else origin.dtype(name),
                )
                for name in group.names
            ]
            self.write(group, effective, outs)
            yield from zip(group.names, outs, strict=True)

    def write(self, group: Group, effective: Effective | None, outs: Sequence[Tensor]) -> None:
        """Write a group's merged tensors into `outs`, one for each of its names.

        Raises:
            CandidateError: a merged tensor is not finite, or the parameters make no tensor.
        """
        with torch.no_grad():
            if effective is None:
                for name, out in zip(group.names, outs, strict=True):
                    out.copy_(self.checkpoints[self.base].tensor(name))
                return
            if len(outs) == 1 and outs[0].is_contiguous():
                self._apply(group, effective, outs[0].view(-1))
                return
            size = sum(out.numel() for out in outs)
            flat = torch.empty(size, dtype=outs[0].dtype, device=self.device)
            self._apply(group, effective, flat)
            parts = torch.split(flat, [out.numel() for out in outs])
            for out, part in zip(outs, parts, strict=True):
                out.copy_(part.view(out.shape))

    def _apply(self, group: Group, effective: Effective, flat: Tensor) -> None:
        operator = operator_of(effective)
        values = dict(effective.values)
        key = (group.names, *effective.prepare_key(operator))
        prepared = self._cache.get(
            key, lambda: operator.prepare(self._block(group, effective), values)
        )
        operator.apply(prepared, values, flat)
        if not math.isfinite(float(flat.sum(dtype=torch.float32))):
            self._refuse_not_finite(group, flat)

    def _refuse_not_finite(self, group: Group, flat: Tensor) -> None:
        sizes = [math.prod(self.checkpoints[self.base].shape(name)) for name in group.names]
        for name, part in zip(group.names, torch.split(flat, sizes), strict=True):
            if not torch.isfinite(part).all():
                raise CandidateError(f"{name}: the merged tensor is not finite")

    def _block(self, group: Group, effective: Effective) -> Block:
        origin = self.checkpoints[self.base]
        return Block(
            names=group.names,
            shapes=tuple(origin.shape(name) for name in group.names),
            base=self._flat(self.base, group.names),
            sources=tuple(self._flat(source, group.names) for source in effective.sources),
            source_names=effective.sources,
            mask_seed=effective.mask_seed,
            depths=tuple(map(self._depth, group.names)),
            whole_model=self._whole_model,
        )

    def _depth(self, name: str) -> float | None:
        """How deep in the model a tensor's layer lies, from 0 to 1."""
        layer = self.anatomy.places[name].layer
        return None if layer is None else layer / max(1, self.anatomy.num_layers - 1)

    def _flat(self, model: str, names: Sequence[str]) -> Tensor:
        """A model's tensors end to end, shape (numel,): a view where it is one."""
        checkpoint, origin = self.checkpoints[model], self.checkpoints[self.base]
        parts = []
        for name in names:
            if (shape := checkpoint.shape(name)) != origin.shape(name):
                what = f"expected shape {origin.shape(name)}, as in {self.base!r}, got {shape}"
                raise ModelError(Problem(f"{model}: {name}", what))
            parts.append(checkpoint.tensor(name).reshape(-1))
        flat = parts[0] if len(parts) == 1 else torch.cat(parts)
        return flat.to(self.device)

    def _whole_model(self, source: str) -> NDArray[np.float32]:
        """The ascending magnitudes of a task vector over all tensors that are merged."""
        if source not in self._whole:
            names = [name for group in self.groups if not group.copied for name in group.names]
            origin = self.checkpoints[self.base]
            sizes = [math.prod(origin.shape(name)) for name in names]
            magnitudes = np.empty(sum(sizes), np.float32)
            target = torch.from_numpy(magnitudes)
            for name, part in zip(names, torch.split(target, sizes), strict=True):
                base, other = self._flat(self.base, [name]), self._flat(source, [name])
                for piece in chunks(base.numel()):
                    part[piece] = (other[piece].float() - base[piece].float()).abs()
            magnitudes.sort()
            self._whole[source] = magnitudes
        return self._whole[source]

    def _require(self, name: str) -> None:
        if name not in self._group_of:
            raise ModelError(Problem(repr(name), "no such tensor", nearest(name, self._group_of)))
