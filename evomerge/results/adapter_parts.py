"""The parts of a merge that an adapter can hold: low-rank changes, and what is kept whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evomerge.checkpoints.adapters import Adapted
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.module_tree import Holder, holders_by_module
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, Problem
from evomerge.merging.calibration.statistics import Statistics
from evomerge.merging.materialise import Merger
from evomerge.protocols import Progress
from evomerge.recipe import Recipe
from evomerge.results.export import output_dtype
from evomerge.results.low_rank import LowRankChange, concatenated, low_rank_change, own_rank

DEFAULT_RANK = 64  # of a merge without any adapter, if none is given
_STEPS = 4 * torch.finfo(torch.float32).eps  # a relative difference below is a sum's rounding
_LOW_RANK = ("linear", "conv1d", "embedding")


@dataclass
class Changes:
    """What differs from the base, by tensor.

    Attributes:
        low_rank: products in place of changes.
        errors: the squared norms of what such a product loses, and of the change.
        whole: what is no product, merged, in the dtype of a full export.
    """

    low_rank: dict[str, LowRankChange] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Kept:
    """What is kept whole, by the names of PEFT: trained biases, and by module its tensors."""

    biases: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them."""
        found = dict(self.biases)
        for tensors in self.modules.values():
            found |= tensors
        return found


def module_holders(base: Checkpoint) -> dict[str, Holder]:
    """The modules by tensor; without a known class, every matrix is a linear layer's weight."""
    known = holders_by_module(base.config, base.names) if base.config else None
    if known is not None:
        return known
    holders = {}
    for name in base.names:
        path, _, leaf = name.rpartition(".")
        matrix = f"{path}.weight" in base.names and len(base.shape(f"{path}.weight")) == 2
        linear = matrix and leaf in ("weight", "bias")
        holders[name] = Holder(path, "linear" if linear else "other")
    return holders


def find_changes(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    holders: Mapping[str, Holder],
    rank: int | None,
    progress: Progress | None,
    statistics: Statistics | None = None,
) -> Changes:
    """Merge tensor by tensor in float32, and keep what differs from the base.

    Raises:
        ConfigurationError: the merged model has not the base's tensors.
        CandidateError: a merged tensor is not finite.
    """
    base = checkpoints[recipe.base]
    anatomy = anatomy_of(base)
    merger = Merger(checkpoints, anatomy, recipe.base, once=True, statistics=statistics)
    plan = merger.plan(recipe)
    effective = {name: merge for group, merge in plan.items() for name in group.names}
    if set(effective) != set(base.names):
        what = "the merged model has other layers than the base"
        raise ConfigurationError(Problem("--adapter", what, "export the full model"))
    default, dtype = _default_rank(checkpoints), output_dtype(recipe)
    found = Changes()
    merged_tensors = merger.tensors(recipe.model_copy(update={"dtype": "float32"}))
    for done, (name, merged) in enumerate(merged_tensors, start=1):
        if progress is not None:
            progress("finding low ranks", done, len(effective))
        origin, merge = base.tensor(name), effective[name]
        if merge is None or not merged.is_floating_point():
            continue  # copied from the base
        delta = merged - origin.float()
        if bool((delta.abs() <= _STEPS * origin.float().abs()).all()):
            continue
        kind = holders[name].kind if name in holders else "other"
        if merged.ndim != 2 or kind not in _LOW_RANK or not name.endswith(".weight"):
            found.whole[name] = merged.to(dtype or origin.dtype)
            continue
        upright = delta if kind == "linear" else delta.t()
        stack = concatenated(name, merge, checkpoints, recipe.base)
        own = own_rank(merge, checkpoints) or default
        change = low_rank_change(upright, float(origin.float().norm()), stack, rank, own)
        found.low_rank[name] = change
        lost = float((upright - change.b @ change.a).norm())
        found.errors[name] = lost**2, float(delta.norm()) ** 2
    return found


def _default_rank(checkpoints: Mapping[str, Checkpoint]) -> int:
    """The sum of the adapters' largest ranks: what concatenating them would take."""
    ranks = [
        max((change.rank for change in model.adapter.tensors.low_rank.values()), default=0)
        for model in checkpoints.values()
        if isinstance(model, Adapted)
    ]
    return sum(ranks) or DEFAULT_RANK


def keep_whole(found: Changes, base: Checkpoint, holders: Mapping[str, Holder]) -> Kept:
    """Keep what is no product: biases of linear layers alone, of other modules every tensor.

    Raises:
        ConfigurationError: naming what an adapter has no place for.
    """
    adapted = {holders[name].path for name in found.low_rank}
    kept = Kept()
    problems = []
    for name, tensor in found.whole.items():
        path, kind = holders.get(name, Holder("", "other"))
        inside = [n for n, h in holders.items() if f"{h.path}.".startswith(f"{path}.")]
        if kind in ("linear", "conv1d") and name.endswith(".bias"):
            place = f"{path}.base_layer" if path in adapted else path
            kept.biases[f"{place}.bias"] = tensor
        elif not path or adapted & {holders[other].path for other in inside}:
            what = "differs from the base's, and no module of its own could be kept whole"
            problems.append(Problem(f"tensor {name!r}", what, "export the full model"))
        else:
            for other in inside:
                key = f"{holders[other].path}.{other.rpartition('.')[2]}"
                kept.modules.setdefault(path, {})[key] = found.whole.get(other, base.tensor(other))
    if problems:
        raise ConfigurationError(problems)
    return kept
