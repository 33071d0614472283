"""An operator that is followed by post-steps, as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from evomerge.merging.operator import Block, Declared, Operator, PostStep, Values, Whose

if TYPE_CHECKING:
    from torch import Tensor


def followed(name: str, operator: Operator, steps: Sequence[PostStep]) -> Operator:
    """An operator with post-steps behind it, the first named first.

    The merged block stays in float32 until the last step has seen it, and is cast once. A step's
    parameters carry its name; a step that stands twice is numbered, as in `lines2_alpha`.
    """
    labels = _labels(steps)
    own = [
        replace(parameter, name=f"{label}_{parameter.name}")
        for label, step in zip(labels, steps, strict=True)
        for parameter in step.parameters
    ]
    chain = tuple(zip(labels, steps, strict=True))
    all_ = (operator, *steps)
    return replace(
        operator,
        name=name,
        paper="; ".join(one.paper for one in all_),
        summary=", then ".join([operator.summary, *(step.summary.lower() for step in steps)]),
        parameters=(*operator.parameters, *own),
        needs_base=True,
        needs=_most([one.needs for one in all_]),
        collects=partial(_collects, operator, chain),
        place=_place(all_),
        prepare=partial(_prepare, operator, chain),
        apply=partial(_apply, operator, chain),
        notes=" ".join(one.notes for one in all_ if one.notes),
    )


@dataclass
class _Prepared:
    merged: Any
    steps: list[Any]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.merged, *self.steps))

    def spill(self, move: Any) -> None:
        for one in (self.merged, *self.steps):
            if hasattr(one, "spill"):
                one.spill(move)


_Chain = tuple[tuple[str, PostStep], ...]


def _prepare(operator: Operator, chain: _Chain, block: Block, values: Values) -> _Prepared:
    steps = [step.prepare(block, _own(label, values)) for label, step in chain]
    return _Prepared(operator.prepare(block, values), steps)


def _apply(
    operator: Operator, chain: _Chain, prepared: _Prepared, values: Values, out: Tensor
) -> None:
    import torch

    merged = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    operator.apply(prepared.merged, values, merged)
    for (label, step), one in zip(chain, prepared.steps, strict=True):
        step.apply(one, _own(label, values), merged)
    if merged is not out:
        out.copy_(merged)


def _collects(operator: Operator, chain: _Chain, values: Values) -> tuple[tuple[str, Whose], ...]:
    of_steps = [step.collects(_own(label, values)) for label, step in chain]
    return tuple(dict.fromkeys(sum(of_steps, operator.collects(values))))


def _own(label: str, values: Values) -> Values:
    """A step's values, under the names that it knows."""
    start = f"{label}_"
    return {name.removeprefix(start): v for name, v in values.items() if name.startswith(start)}


def _labels(steps: Sequence[PostStep]) -> list[str]:
    labels: list[str] = []
    for step in steps:
        before = sum(label.rstrip("0123456789") == step.name for label in labels)
        labels.append(f"{step.name}{before + 1}" if before else step.name)
    return labels


def _most(
    needs: Sequence[Literal["nothing", "activations", "gradients"]],
) -> Literal["nothing", "activations", "gradients"]:
    return next((need for need in needs if need != "nothing"), "nothing")


def _place(all_: Sequence[Declared]) -> Literal["nothing", "name", "depth", "both"]:
    found = {one.place for one in all_} - {"nothing"}
    return "both" if len(found) > 1 else found.pop() if found else "nothing"
