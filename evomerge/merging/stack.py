"""The blocks of a module in memory, in any number and order, without loading it again.

A recipe's slots become blocks of the module. Each is a block of the base with the slot's tensors in
it: of the base's own layer there, so that whatever a class has decided by a layer's number stays
with the layer. A block that holds what a slot needs is moved and not written; slots that hold the
same share their tensors. Numbers of layers that blocks know (for their key-value caches) and what
the config says of the layers follow.

Not covered: modules whose layers are not one nn.ModuleList (encoder-decoders), and what modules
keep of their number of layers elsewhere than in blocks and config.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.layer_stack import stacked_config
from evomerge.merging.blocks import Effective, Group, operator_of
from evomerge.merging.operators.passthrough import PASSTHROUGH
from evomerge.recipe import Recipe

SPARE_BYTES = 2**30  # of copies that are kept although the last candidate has no use for them
Content = tuple[tuple[str, Any], ...]  # by name, all that a block's tensors depend on
Write = Callable[[Group, Effective | None, list[Tensor]], None]


@dataclass(eq=False)
class _Block:
    """A block in memory: the base's layer that it is a copy of, and what is in it, if known."""

    layer: int
    module: nn.Module
    content: Content | None = None

    @property
    def recurs(self) -> bool:
        """Whether it holds a model's own layer, which other candidates may want as it is."""
        return self.content is not None and all(
            one is None or one[0] == PASSTHROUGH.name for _, one in self.content
        )

    def tensors(self) -> dict[str, Tensor]:
        """By their names inside the block."""
        return {n: t.detach() for n, t in self.module.state_dict(keep_vars=True).items()}


def path_of_blocks(module: nn.Module, anatomy: Anatomy) -> str | None:
    """Where a module's layers are the entries of one nn.ModuleList; None if they are not."""
    places = [anatomy.inside_block(name) for name in anatomy.names_in_layers]
    paths = {path for path, inside in places if inside}
    if len(paths) != 1 or not all(inside for _, inside in places) or not anatomy.counts_plainly:
        return None
    path = paths.pop()
    try:
        blocks = module.get_submodule(path)
    except AttributeError:
        return None
    fits = isinstance(blocks, nn.ModuleList) and len(blocks) == anatomy.num_layers
    return path if fits else None


def blocks_at(module: nn.Module, path: str) -> nn.ModuleList:
    """The layers as they are now, where `path_of_blocks` has found them."""
    return cast("nn.ModuleList", module.get_submodule(path))


class Stack:
    """A module's blocks, arranged as recipes ask for; see `Stack.of`."""

    def __init__(
        self, module: nn.Module, path: str, anatomy: Anatomy, config: Mapping[str, Any]
    ) -> None:
        self._module, self._path, self._anatomy, self._config = module, path, anatomy, config
        self._original = blocks = blocks_at(module, path)
        self._own = [_Block(layer, block) for layer, block in enumerate(blocks)]
        self._blocks = list(self._own)  # own ones, and the copies that are in use
        self._outside: dict[str, Effective | None] = {}  # what was written, by name
        self._changed: list[tuple[Any, str, Any]] = []  # settings, key, and what it was
        self.is_arranged = False  # by the last recipe

    @classmethod
    def of(cls, module: nn.Module, anatomy: Anatomy, config: Mapping[str, Any]) -> Stack | None:
        """A module's blocks; None if its layers are not the entries of one nn.ModuleList."""
        path = path_of_blocks(module, anatomy)
        if path is None:
            return None
        known = [block.state_dict().keys() for block in blocks_at(module, path)]
        there = (anatomy.inside_block(name)[1] for name in anatomy.names_in_layers)
        layers = (anatomy.places[name].layer for name in anatomy.names_in_layers)
        fits = all(inside in known[layer or 0] for inside, layer in zip(there, layers, strict=True))
        return cls(module, path, anatomy, config) if fits else None

    def restore(self) -> None:
        """The base's own layers again, whatever is in them."""
        self._blocks, self._outside = list(self._own), {}
        for block in self._own:
            block.content = None
        self._arrange([block.module for block in self._own], self._config)
        self.is_arranged = False

    def write(
        self,
        recipe: Recipe,
        plan: Mapping[Group, Effective | None],
        outside: Mapping[str, Tensor],
        write: Write,
    ) -> int:
        """Arrange the blocks as a recipe's slots and write what they lack; how many tensors.

        Args:
            recipe: with slots.
            plan: of the recipe.
            outside: the module's tensors by name, of which those outside the layers count.
            write: merges a group into tensors.

        Raises:
            ConfigurationError: no config of the module's class says so many layers.
            CandidateError: a merged tensor is not finite, or the parameters make no tensor.
        """
        read = [slot.layer_of(recipe.base) for slot in recipe.slots or ()]
        config = stacked_config(self._config, read, self._anatomy.num_layers)
        self.is_arranged = True
        assigned, fresh = self._assigned(read, self._contents(plan, len(read)))
        # A block that stands in several slots is written where it stands first.
        slots = {block: assigned.index(block) for block in fresh}
        inside = {slots[block]: block.tensors() for block in fresh}
        held, self._outside = self._outside, {}
        count = 0
        for group, effective in plan.items():
            found = self._targets(group, effective, held, outside, inside)
            if found:
                write(group.of(found), effective, list(found.values()))
                count += len(found)
        self._outside = {
            name: effective
            for group, effective in plan.items()
            for name, origin in zip(group.names, group.origins, strict=True)
            if self._anatomy.slot_of(name, origin) is None
        }
        for block, content in fresh.items():  # known only now that all is written
            block.content = content
        self._blocks = [*self._own, *self._kept(assigned)]
        self._arrange(_modules(assigned), config)
        return count

    def _targets(
        self,
        group: Group,
        effective: Effective | None,
        held: Mapping[str, Effective | None],
        outside: Mapping[str, Tensor],
        inside: Mapping[int, Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Those of a group's tensors that have to be written; inside: of slots, by names there."""
        found = {}
        for name, origin in zip(group.names, group.origins, strict=True):
            slot = self._anatomy.slot_of(name, origin)
            if slot is None:
                if name not in held or held[name] != effective:
                    found[name] = outside[name]
            elif slot in inside:
                found[name] = inside[slot][self._anatomy.inside_block(origin)[1]]
        return found

    def _contents(self, plan: Mapping[Group, Effective | None], num_slots: int) -> list[Content]:
        """What each slot's block has to hold."""
        found: list[dict[str, Any]] = [{} for _ in range(num_slots)]
        for group, effective in plan.items():
            for name, origin in zip(group.names, group.origins, strict=True):
                if (slot := self._anatomy.slot_of(name, origin)) is not None:
                    found[slot][origin] = _content(effective, slot)
        return [tuple((origin, one[origin]) for origin in sorted(one)) for one in found]

    def _assigned(
        self, read: list[int], contents: list[Content]
    ) -> tuple[list[_Block], dict[_Block, Content]]:
        """A block for each slot; and those that do not hold it yet, with what they have to hold.

        Of the latter nothing is known meanwhile. Copying may run out of memory half-way.
        """
        wanted = list(zip(read, contents, strict=True))
        chosen: dict[tuple[int, Content], _Block] = {}
        free = list(self._blocks)
        for key in dict.fromkeys(wanted):
            for block in free:
                if (block.layer, block.content) == key:
                    chosen[key] = block
                    free.remove(block)
                    break
        fresh: dict[_Block, Content] = {}
        made: list[_Block] = []
        for layer, content in dict.fromkeys(wanted):
            if (layer, content) in chosen:
                continue
            same_layer = [block for block in free if block.layer == layer]
            passing = [block for block in same_layer if not block.recurs]
            room = len(self._blocks) + len(made) - len(self._own) < self._room
            if passing or (same_layer and not room):
                block = (passing or same_layer)[0]
                free.remove(block)
                block.content = None
            else:
                block = _Block(layer, copy.deepcopy(self._own[layer].module))
                made.append(block)
            chosen[layer, content] = block
            fresh[block] = content
        self._blocks += made
        return [chosen[key] for key in wanted], fresh

    def _kept(self, assigned: list[_Block]) -> list[_Block]:
        """The copies that stay: those in use, and some of those that may be wanted again.

        Who was used last stands last, and whom nobody has used for long goes first.
        """
        copies = self._blocks[len(self._own) :]
        used = [block for block in copies if block in assigned]
        idle = [block for block in copies if block not in assigned and block.recurs]
        room = max(0, self._room - len(used))
        return [*(idle[-room:] if room else []), *used]

    @cached_property
    def _room(self) -> int:
        """How many copies of blocks may be there, in use or not, without a need."""
        largest = max(
            (sum(t.nbytes for t in block.tensors().values()) for block in self._own), default=1
        )
        return SPARE_BYTES // max(1, largest)

    def _arrange(self, modules: list[nn.Module], config: Mapping[str, Any]) -> None:
        """Put modules into the module's list, and say so in its config."""
        parent, _, name = self._path.rpartition(".")
        for number, block in enumerate(modules):
            for part in block.modules():
                if isinstance(getattr(part, "layer_idx", None), int):
                    part.layer_idx = number  # type: ignore[assignment]
        own = modules == list(self._original)
        blocks = self._original if own else nn.ModuleList(modules)
        setattr(self._module.get_submodule(parent), name, blocks)
        for settings, key, value in reversed(self._changed):
            setattr(settings, key, value)
        self._changed = []
        self._follow(getattr(self._module, "config", None), config, self._config)

    def _follow(self, settings: Any, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Let a transformers config say what a stack changes of the model's own config."""
        for key, value in config.items():
            part = getattr(settings, key, None)
            if isinstance(value, Mapping) and hasattr(part, "to_dict"):
                self._follow(part, value, own[key])
            elif settings is not None and (key not in own or own[key] != value):
                self._changed.append((settings, key, part))
                setattr(settings, key, value)


def _content(effective: Effective | None, slot: int) -> object:
    if effective is None:
        return None
    layers = effective.layers or (slot,) * (1 + len(effective.sources))
    place = None if operator_of(effective).place == "nothing" else slot
    return (
        effective.operator,
        effective.sources,
        effective.values,
        effective.mask_seed,
        layers,
        place,
        effective.depth,
        effective.branch_scale,
    )


def _modules(assigned: list[_Block]) -> list[nn.Module]:
    """A module for each slot: blocks that stand twice share their tensors, and nothing else."""
    seen: set[int] = set()
    modules = []
    for block in assigned:
        if id(block) in seen:
            shared = {id(t): t for t in (*block.module.parameters(), *block.module.buffers())}
            modules.append(copy.deepcopy(block.module, shared))
        else:
            seen.add(id(block))
            modules.append(block.module)
    return modules
