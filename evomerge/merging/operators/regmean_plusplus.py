"""RegMean++: RegMean layer by layer, each for what the merged layers before it make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.operators.regmean import ALPHA, moved_tensor
from evomerge.records import Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass
class _Merged:
    tensors: tuple[Tensor, ...]  # float32, in their shapes
    segments: tuple[slice, ...]
    nbytes: int = field(init=False)  # in memory
    seconds: ClassVar[float] = math.inf  # a block takes as long as the whole model

    def __post_init__(self) -> None:
        self.nbytes = sum(tensor.nbytes for tensor in self.tensors)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Bring them to files."""
        moved = [moved_tensor(tensor, move) for tensor in self.tensors]
        self.tensors = tuple(tensor for tensor, _ in moved)
        self.nbytes -= sum(freed for _, freed in moved)


def _prepare(block: Block, values: Values) -> _Merged:
    alpha = cast("float", values["alpha"])
    return _Merged(block.around.in_turn(alpha), block.segments)


def _apply(prepared: _Merged, values: Values, out: Tensor) -> None:
    del values
    for segment, tensor in zip(prepared.segments, prepared.tensors, strict=True):
        out[segment].copy_(tensor.reshape(-1))


REGMEAN_PLUSPLUS = Operator(
    name="regmean_plusplus",
    paper="Nguyen et al. 2025, RegMean++, https://arxiv.org/abs/2508.03121",
    summary="RegMean layer by layer, each for what the merged layers before it make",
    parameters=(Parameter("alpha", "real", 0.9, ALPHA, low=0, high=1, phase="prepare"),),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    needs="activations",
    whole=True,
    prepare=_prepare,
    apply=_apply,
    notes="As `regmean`, with G_k from expert k's own layer fed with what the merged layers before "
    "it make of expert k's texts, so the first layer reads the mean of the embeddings. Tensors "
    "outside the layers are averaged, as in the authors' code: also a head of its own, which "
    "`regmean` merges. All that is collected hangs on the sources and on alpha: each alpha costs "
    "two passes of all texts through each expert's size of model, by every worker, and nothing of "
    "it is kept on the disk. It is defined where the whole model is merged alike and no layer is "
    "rearranged; post-steps change what comes out, not what the next layer reads.",
)
