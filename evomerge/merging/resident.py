"""The one model that a worker keeps, with the current candidate's tensors in it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.input_scales import stored_scales
from evomerge.checkpoints.layer_stack import layer_kinds
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, ModelError, Problem
from evomerge.merging.blocks import Effective, Group
from evomerge.merging.calibration import Calibration, Collected
from evomerge.merging.input_scales import hook_scales, input_scales, scaled_layers
from evomerge.merging.materialise import Merger
from evomerge.merging.module import module_of, tokenizer_of
from evomerge.merging.spread import located, room_for_models, size_of
from evomerge.merging.stack import Stack, blocks_at, path_of_blocks
from evomerge.merging.targets import targets_of
from evomerge.recipe import Recipe

CACHE_BYTES = 2 * 2**30
_VERSIONS = itertools.count(1)  # of all models in this process: no two share one


class Resident:
    """A module that recipes are written into, in place.

    Only what changed since the last recipe is written again. Where a recipe has other layers, or as
    many in another order, the module gets them (see stack.py). What goes into layers is scaled by
    hooks, where the recipe or the base's config says so. It has no gradients, is in evaluation
    mode, and must not be changed by anyone else.
    """

    def __init__(self, module: nn.Module, merger: Merger, tokenizer: Any = None) -> None:
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.merger = merger
        self._targets = targets_of(module, merger.checkpoints[merger.base])
        base = merger.checkpoints[merger.base]
        self._stack = Stack.of(self.module, merger.anatomy, base.config)
        self._blocks_path = path_of_blocks(self.module, merger.anatomy)
        self._scales: tuple[float, ...] = ()  # of the blocks' inputs, as they are hooked
        self._hook(self._checked(stored_scales(base.config, merger.anatomy.num_layers, base.where)))
        self._written: dict[Group, Effective | None] = {}
        self.version = next(_VERSIONS)  # rises with every write: old answers are known to be old

    @classmethod
    def open(
        cls,
        checkpoints: Mapping[str, Checkpoint],
        base: str,
        *,
        build: Callable[[], nn.Module] | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        cache_bytes: int = CACHE_BYTES,
        shelf_bytes: int | None = None,
        calibration: Calibration | None = None,
    ) -> Resident:
        """The base's module, on `device`, in `dtype` or else as it is stored.

        Tensors are merged where they lie in the module.

        build: makes the module of models that are not transformers folders.
        device: as torch calls it, or "auto" for the GPUs that are visible: one if the model fits on
            it, else all of them.
        shelf_bytes: of copies of the models that are kept on GPUs, where tensors are merged; None
            for half of what the module, another one and the cache leave there.
        calibration: the texts for operators that look at data.

        Raises:
            ConfigurationError: there is no such device, or the GPUs have too little memory.
            ModelError: the module cannot be made, or its tensors are not those of the base.
        """
        statistics = None if calibration is None else Collected(calibration, checkpoints, base)
        anatomy = anatomy_of(checkpoints[base])
        merger = Merger(checkpoints, anatomy, base, cache_bytes, statistics=statistics)
        origin = checkpoints[base]
        where = located(origin, dtype, device, cache_bytes)
        if isinstance(where, dict) and build is not None:
            what = "a module that `build` makes cannot be spread over several GPUs"
            raise ConfigurationError(Problem(origin.where, what))
        if build is not None:
            module, tokenizer = build(), None
            targets_of(module, origin)
            state = {name: origin.tensor(name) for name in origin.names}
            module.load_state_dict(state, strict=False)
            module = module.to(dtype=dtype) if dtype is not None else module
        elif origin.path is not None and origin.config:
            spread = where if isinstance(where, dict) else None
            module, tokenizer = module_of(origin, dtype, spread), tokenizer_of(origin)
        else:
            what = "is no transformers folder, so `build` has to make its module"
            raise ModelError(Problem(origin.where, what))
        placed = module if isinstance(where, dict) else module.to(where)
        # The cache, and a twin, are still to come.
        to_come = cache_bytes + size_of(origin, dtype)
        merger.family.shelf.budgets = room_for_models(where, shelf_bytes, to_come)
        return cls(placed, merger, tokenizer)

    def twin(self) -> Resident:
        """Another model with what is in this one; the merger and the tokenizer are the same.

        Of the two, one may be asked while the other is written; they must not be written at once.
        """
        held = self._scales
        self._hook(())  # hooks know the module that they were put on
        try:
            module = copy.deepcopy(self.module)
        finally:
            self._hook(held)
        return Resident(module, self.merger, self.tokenizer)

    def give_up_copies(self) -> dict[torch.device, int]:
        """Let go of the models' copies on GPUs, for their memory; returns their bytes on each.

        They are read anew for every candidate, until there is a budget again.
        """
        family = self.merger.family
        if kept := family.shelf.close():
            family.cache.clear()  # what is prepared looks at them
        return kept

    @property
    def copies(self) -> Mapping[torch.device, int]:
        """How many bytes of copies of the models may be kept on each device."""
        return self.merger.family.shelf.budgets

    def keep_copies(self, budgets: Mapping[torch.device, int]) -> None:
        """Keep copies of the models again, of so many bytes on each device."""
        self.merger.family.shelf.budgets = dict(budgets)

    def write(self, recipe: Recipe) -> int:
        """Write a recipe's tensors into the module; how many had to be written.

        Raises:
            ConfigurationError: the recipe cannot be applied; the module is as it was.
            CandidateError: a merged tensor is not finite, or the parameters make no tensor. What
                the module holds is then unknown until the next write.
        """
        plan = self.merger.plan(recipe)
        base, num_layers = self.merger.checkpoints[recipe.base], self.merger.anatomy.num_layers
        scales, held = self._checked(input_scales(recipe, base, num_layers)), self._scales
        self._hook(())  # a block that is copied would take its hook along
        try:
            count = self._write(recipe, plan)
        except ConfigurationError:
            self._hook(held)
            raise
        self._hook(scales)
        return count

    def _write(self, recipe: Recipe, plan: Mapping[Group, Effective | None]) -> int:
        """The layers and their tensors, without what scales their inputs."""
        if not recipe.keeps_layers(self.merger.anatomy.num_layers):
            if self._stack is not None:
                self._written = {}
                self.version = next(_VERSIONS)
                return self._stack.write(recipe, plan, self._targets, self.merger.write)
            self._check_arrangement(recipe)
        if self._stack is not None and self._stack.is_arranged:
            self._stack.restore()
        held, self._written = self._written, {}
        self.version = next(_VERSIONS)
        count = 0
        for group, effective in plan.items():
            if group not in held or held[group] != effective:
                self.merger.write(group, effective, [self._targets[name] for name in group.names])
                count += len(group.names)
        self._written = dict(plan)
        return count

    def _checked(self, scales: tuple[float, ...]) -> tuple[float, ...]:
        """Scales of the layers' inputs; () if nothing is scaled.

        Raises:
            ConfigurationError: the module's layers cannot be hooked.
        """
        if not (scaled := scaled_layers(scales)):
            return ()
        if self._blocks_path is None:
            what = f"the layers of {type(self.module).__name__} are not one list of modules"
            hint = "their inputs cannot be scaled; branch_scale needs no list"
            raise ConfigurationError(Problem(f"input_scale of layer {scaled[0]}", what, hint))
        return scales

    def _hook(self, scales: tuple[float, ...]) -> None:
        """Scale the inputs of the blocks that are there now, and of no others."""
        path = self._blocks_path if scales else None
        blocks = () if path is None else blocks_at(self.module, path)
        hook_scales(self.module, blocks, scales)
        self._scales = scales

    def _check_arrangement(self, recipe: Recipe) -> None:
        """Refuse layers that the module, whose own stay where they are, cannot hold.

        Raises:
            ConfigurationError: naming the slots.
        """
        slots, kinds = recipe.slots or (), self._layer_kinds
        hint = "`evomerge merge` writes it as a model folder, which can be scored"
        if len(slots) != len(kinds):
            what = f"{len(slots)} layers, and the model in memory has {len(kinds)}"
            raise ConfigurationError(Problem("slots", what, hint))
        read = [slot.layer_of(recipe.base) for slot in slots]
        unlike = [i for i, layer in enumerate(read) if kinds[i] != kinds[layer]]
        if unlike:
            places = ", ".join(f"{i} (from {read[i]})" for i in unlike)
            what = "config.json says other things of these layers than of those they are from"
            raise ConfigurationError(Problem(f"slots {places}", what, hint))
        written = {name for group in self.merger.plan(recipe) for name in group.names}
        if unlike_names := sorted(written ^ self._targets.keys()):
            what = f"would have other tensors than the model in memory: {unlike_names[0]}, ..."
            raise ConfigurationError(Problem("slots", what, hint))

    @cached_property
    def _layer_kinds(self) -> list[str]:
        merger = self.merger
        return layer_kinds(merger.checkpoints[merger.base].config, merger.anatomy.num_layers)
