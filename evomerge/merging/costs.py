"""What a merged model costs, from its recipe alone: nothing is merged, and no tensor is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.config_defaults import completed
from evomerge.recipe import Recipe, Slot

if TYPE_CHECKING:
    import torch

    from evomerge.checkpoints.module_tree import Use
    from evomerge.checkpoints.open import Checkpoint

Cost = Literal["parameters", "layers", "bytes", "flops_per_token"]

COSTS: Mapping[Cost, str] = {
    "parameters": "of the merged model; repeated layers count each time, tied weights once",
    "layers": "of the merged model",
    "bytes": "of its tensors as they are written",
    "flops_per_token": "of a forward pass, without attention scores",
}

_ROUTED = re.compile(r"(^|\.)experts\.")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_top_k", "moe_k")


@dataclass(frozen=True)
class _Sizes:
    """Sums over the tensors of a layer, or of all that is outside the layers."""

    parameters: int = 0
    flops: int = 0  # per token
    num_floats: int = 0  # entries of tensors that a recipe's dtype changes
    float_bytes: int = 0  # theirs, as stored
    other_bytes: int = 0

    def plus(self, other: _Sizes, times: int = 1) -> _Sizes:
        """These and the other's, so many times."""
        return _Sizes(
            self.parameters + times * other.parameters,
            self.flops + times * other.flops,
            self.num_floats + times * other.num_floats,
            self.float_bytes + times * other.float_bytes,
            self.other_bytes + times * other.other_bytes,
        )


class Costs:
    """The costs of recipes over one base, by the names in COSTS; all of them are whole numbers.

    `flops_per_token` is 2 x the entries of the matrices that a token is multiplied by in a forward
    pass: C = 2N of Kaplan et al. 2020, arXiv:2001.08361, section 2.1, but with the head, also where
    it is tied to the embedding. Left out are attention scores (they depend on the context),
    look-ups in embeddings, norms and biases. A mixture's routed experts count by the share of them
    that a token goes through. Not covered: layers that are no products of matrices, such as the
    scans of state space models.

    checkpoint, anatomy: the base's; what stands in a slot has the shapes of the base's layer there.
    """

    def __init__(self, checkpoint: Checkpoint, anatomy: Anatomy) -> None:
        from evomerge.checkpoints.module_tree import uses_by_module  # it needs torch

        uses = uses_by_module(checkpoint.config, checkpoint.names) if checkpoint.config else None
        self._outside = _Sizes()
        self._layers = [_Sizes() for _ in range(anatomy.num_layers)]
        share = _Share.of(checkpoint.config)
        counted: set[int] = set()  # parameters outside the layers, which may be tied
        for name in checkpoint.names:
            layer = anatomy.places[name].layer
            use = (uses or {}).get(name) or _use_by_place(name, checkpoint, anatomy)
            again = layer is None and use.parameter in counted
            if layer is None and use.parameter is not None:
                counted.add(use.parameter)
            found = _sizes(checkpoint, name, use, share, again=again)
            if layer is None:
                self._outside = self._outside.plus(found)
            else:
                self._layers[layer] = self._layers[layer].plus(found)

    def __call__(self, recipe: Recipe) -> dict[str, int]:
        """What the merged model costs, by the names in COSTS."""
        if recipe.slots is None:
            counts = dict.fromkeys(range(len(self._layers)), 1)
        else:
            counts = Counter(slot.layer_of(recipe.base) for slot in recipe.slots)
        total = self._outside
        for layer, times in counts.items():
            total = total.plus(self._layers[layer], times)
        floats = total.float_bytes
        if recipe.dtype is not None:
            import torch

            dtype: torch.dtype = getattr(torch, recipe.dtype)
            floats = total.num_floats * dtype.itemsize
        return {
            "parameters": total.parameters,
            "layers": sum(counts.values()),
            "bytes": floats + total.other_bytes,
            "flops_per_token": total.flops,
        }

    def of_base(self, template: Recipe) -> dict[str, int]:
        """Of the base itself, in the dtype that the template's recipes are written in."""
        return self(template.model_copy(update={"slots": None}))

    def least(self, template: Recipe) -> dict[str, int]:
        """Of the smallest model: one layer, the cheapest by each cost."""
        if not self._layers:
            return self.of_base(template)
        single = [
            self(template.model_copy(update={"slots": (Slot(layer=layer),)}))
            for layer in range(len(self._layers))
        ]
        return {name: min(costs[name] for costs in single) for name in COSTS}


@dataclass(frozen=True)
class _Share:
    """How many of a mixture's experts a token goes through."""

    num_experts: int = 1
    chosen: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Share:
        """From a config, or its text model's; 1 of 1 where it does not say."""
        whole = completed(config) if config else {}
        for part in (whole, whole.get("text_config")):
            if isinstance(part, Mapping):
                experts = next((part[key] for key in _EXPERTS if part.get(key)), None)
                chosen = next((part[key] for key in _CHOSEN if part.get(key)), None)
                if isinstance(experts, int) and isinstance(chosen, int) and chosen <= experts:
                    return cls(experts, chosen)
        return cls()


def _sizes(checkpoint: Checkpoint, name: str, use: Use, share: _Share, *, again: bool) -> _Sizes:
    """Of one tensor; again: it is a parameter that was counted before, under another name."""
    shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
    size = math.prod(shape)
    flops = 2 * size if use.multiplies and not again else 0
    routed = _ROUTED.search(name) or (len(shape) == 3 and shape[0] == share.num_experts)
    if routed:
        flops = flops * share.chosen // share.num_experts
    floats = size if dtype.is_floating_point else 0
    return _Sizes(
        parameters=0 if again or use.parameter is None else size,
        flops=flops,
        num_floats=floats,
        float_bytes=floats * dtype.itemsize,
        other_bytes=(size - floats) * dtype.itemsize,
    )


def _use_by_place(name: str, checkpoint: Checkpoint, anatomy: Anatomy) -> Use:
    """What a tensor is used for, where no module is known that would say."""
    from evomerge.checkpoints.module_tree import Use

    place, leaf = anatomy.places[name], name.rpartition(".")[2]
    matrix = len(checkpoint.shape(name)) > 1 and "bias" not in leaf
    is_learnt = checkpoint.dtype(name).is_floating_point
    # A number that no other tensor has: nothing is tied.
    return Use(
        -1 - checkpoint.names.index(name) if is_learnt else None,
        is_learnt and matrix and place.component not in ("embedding", "norm"),
    )
