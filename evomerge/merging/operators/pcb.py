"""PCB: entries compete, within an expert and between experts, for their part of the merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.entrywise import TILE, Sparse, SparseWriter, add_sparse
from evomerge.merging.offsets import offsets
from evomerge.merging.operator import CHUNK, Block, Operator, Values
from evomerge.merging.order import values_at
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

_FLOOR = 1e-12  # of the authors' code: the least divisor


@dataclass
class _Bounds:
    """Two values for each source, the lower one first, (sources, 2) float32."""

    values: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes

    def like(self, taus: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds beside task vectors, each (sources, 1)."""
        low, high = taus.new_tensor(self.values.T.tolist())
        return low[:, None], high[:, None]


@dataclass
class _Prepared:
    """The base, and what each source adds to it at a weight of 1, at the entries where any does."""

    base: Tensor  # (numel,)
    base_bytes: int
    sparse: Sparse

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.base_bytes + self.sparse.nbytes

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        self.sparse.spill(move)


def _scores(taus: Tensor, clip: _Bounds, competition: str) -> tuple[Tensor, Tensor]:
    """Competition scores and clipped task vectors, each as taus, (sources, entries)."""
    low, high = clip.like(taus)
    sizes = taus.abs().clamp_(low, high)
    clipped = taus.sign().mul_(sizes)
    parts = _minmax(sizes, low, high)
    within = parts.square().sub_(1).mul_(len(taus)).exp_()  # exp(n a^2), less a factor of all
    signed = taus.sign().mul_(parts)
    if competition == "pairs":
        between = taus.new_zeros(taus.shape)
        for other in signed:
            between += (signed * other).tanh_()
        return within.mul_(between), clipped
    total = taus.new_zeros(taus.shape[1])
    for one in taus if competition == "raw" else signed:
        total += one
    return within.mul_((taus * total).tanh_()), clipped


def _minmax(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values from low to high as shares of that way, in place; 0 where it has no length."""
    import torch

    length = high - low
    shares = values.sub_(low).div_(torch.where(length > 0, length, torch.ones_like(length)))
    return shares.clamp_(0, 1).mul_(length > 0)


def _prepare(block: Block, values: Values) -> _Prepared:
    share, ratio = cast("float", values["clip"]), cast("float", values["ratio"])
    competition, around = cast("str", values["competition"]), block.around

    def sizes() -> Iterator[Tensor]:
        return (taus.abs() for taus in around.task_vectors())

    clip = around.kept_for_model(
        f"pcb clip {share}",
        lambda: _Bounds(values_at(sizes, lambda n: _between(n, share, 1 - share))),
    )

    def scores() -> Iterator[Tensor]:
        return (_scores(taus, clip, competition)[0] for taus in around.task_vectors())

    balance = around.kept_for_model(
        f"pcb balance {share} {ratio} {competition}",
        lambda: _Bounds(values_at(scores, lambda n: _between(n, 1 - ratio, 1))),
    )
    base = cast("Tensor", block.base)
    writer = SparseWriter()
    step = max(1, CHUNK // len(block.sources) // TILE) * TILE
    for start in range(0, block.numel, step):
        part = slice(start, min(start + step, block.numel))
        found, clipped = _scores(offsets(block, part), clip, competition)
        low, high = balance.like(found)
        beta = _minmax(found.clamp_(low, high), low, high)
        total = beta.new_zeros(beta.shape[1])
        for one in beta:
            total += one
        total.clamp_(min=_FLOOR)
        places = [one.nonzero().view(-1) for one in beta]
        writer.add(
            (
                (index.cpu().numpy(), one[index].mul_(tau[index]).div_(total[index]).cpu().numpy())
                for index, one, tau in zip(places, beta, clipped, strict=True)
            ),
            part.stop - part.start,
        )
    return _Prepared(base, block.held_bytes(base), writer.written())


def _between(size: int, low: float, high: float) -> tuple[int, int]:
    """The authors' places of two shares in an ascending order of so many entries."""
    first = min(int(size * low), size - 1)
    return first, max(first, min(int(size * high - 1), size - 1))


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + sum_k w_k beta_k clip(tau_k) / sum_k beta_k."""
    weights = cast("tuple[float, ...]", values["weight"])
    return add_sparse(prepared.base, prepared.sparse, weights, out)


PCB = Operator(
    name="pcb",
    paper="Du et al. 2024, Parameter competition balancing, https://arxiv.org/abs/2410.02396",
    summary="Task vectors weighed entry by entry by how they compete within and between experts",
    parameters=(
        Parameter(
            "weight", "real", 1.0, "factor of a task vector", low=-10, high=10, per_source=True
        ),
        Parameter(
            "ratio",
            "real",
            0.05,
            "share of the entries whose score counts, the highest",
            low=0.0,
            high=1.0,
            phase="prepare",
        ),
        Parameter(
            "clip",
            "real",
            0.01,
            "share of magnitudes clipped at either end",
            low=0.0,
            high=0.49,
            phase="prepare",
        ),
        Parameter(
            "competition",
            "choice",
            "sum",
            "between experts; see the notes",
            options=("sum", "pairs", "raw"),
            phase="prepare",
        ),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="With n experts, over the whole model: a = |tau_k| clipped to its quantiles `clip` and "
    "1 - clip, and scaled to [0, 1]; s = sign(tau_k) a; the score is exp(n a^2) tanh(tau_k sum s), "
    "and beta_k is the score, no lower than its (1 - ratio)-quantile, scaled to [0, 1]. Base + sum "
    "w_k beta_k clip(tau_k) / sum beta_k. So where one expert counts alone it counts in full, and "
    "most entries are the base's. What has no range scales to 0; the authors divide by zero "
    "there. Their repository has three forms: with tanh(tau_k sum s) and 1 % clipped (the "
    "default), with sum_j tanh(s_k s_j) and 1 % (`competition: pairs`, nearest to the paper), and "
    "with tanh(tau_k sum tau) and 0.01 % (`competition: raw` with `clip: 0.0001`). Their searches "
    "tune the weights, from 0.8 to 1.3. Another ratio reads all models twice more.",
)
