"""OPCM: one expert after another, each less what the merged directions already hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evomerge.merging import passes
from evomerge.merging.offsets import Shifted, empty_shift, offsets
from evomerge.merging.operator import Block, Operator, Values, parts_of
from evomerge.merging.reads import Models
from evomerge.merging.spectra import Matrix, gram_of, matrices_of, spectrum_of, task_rows
from evomerge.records import Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass
class _Merged(Shifted):
    """The merged task vector before it gets its length, and all lengths.

    squares: (1 + sources, tensors), of the merged task vector and of each source's.
    """

    squares: NDArray[np.float64]


@dataclass
class _Scaled:
    """A merged task vector and each tensor's factor."""

    merged: _Merged
    segments: Sequence[slice]
    factors: NDArray[np.float64]  # (tensors,)

    @property
    def nbytes(self) -> int:
        """Bytes in memory; the merged task vector is counted where it is kept."""
        return self.factors.nbytes

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        self.merged.spill(move)


@dataclass
class _Squares:
    """The lengths of whole models."""

    of: NDArray[np.float64]  # (1 + sources, 1)
    nbytes: int = 0


def _prepare(block: Block, values: Values) -> _Scaled:
    alpha = cast("float", values["alpha"])
    merged = _kept(alpha, block)
    factors = np.ones(len(block.segments))
    if values["length"] == "tensor":
        factors = _factors(merged.squares)
    elif values["length"] == "model":
        whole = block.around.kept_for_model(
            f"opcm's lengths at alpha {alpha!r}", partial(_whole, alpha, block)
        )
        factors *= _factors(whole.of)
    return _Scaled(merged, block.segments, factors)


def _factors(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """What makes merged task vectors as long as the sources' are on average, (tensors,)."""
    merged, *sources = np.sqrt(squares)
    nothing = merged == 0
    factors: NDArray[np.float64] = np.mean(sources, 0) / np.where(nothing, 1, merged)
    return np.where(nothing, 1, factors)


def _whole(alpha: float, block: Block) -> _Squares:
    """The squared lengths of the whole task vectors."""
    squares = [_kept(alpha, one).squares.sum(1) for one in block.around.blocks()]
    return _Squares(np.sum(squares, 0)[:, None])


def _kept(alpha: float, block: Block) -> _Merged:
    return block.around.kept(f"opcm at alpha {alpha!r}", partial(_merged, alpha, block))


def _merged(alpha: float, block: Block) -> _Merged:
    """All experts, one after another.

    The published code gives the merged task vector its length after every expert and takes it back
    before the next: directions are the same without it.
    """
    empty = empty_shift(block)
    components = block.around.components
    linear = {m.number: m for m in matrices_of(block) if components[m.number] != "embedding"}
    for number, segment in enumerate(block.segments):
        if number in linear:
            _merge_matrix(block, linear[number], alpha, empty.shift)
            continue
        for part in parts_of(segment, len(block.sources)):
            origin = cast("Tensor", block.base)[part].float()
            empty.shift[part] = 0
            for source in block.sources:
                empty.shift[part] += source[part].float() - origin
    return _Merged(empty.base, empty.shift, empty.nbytes, _squares(block, empty.shift))


def _squares(block: Block, shift: Tensor) -> NDArray[np.float64]:
    squares = np.zeros((1 + len(block.sources), len(block.segments)))
    for number, segment in enumerate(block.segments):
        for part in parts_of(segment, len(block.sources)):
            squares[0, number] += float(shift[part].double().square().sum())
            taus = offsets(block, part).double()
            squares[1:, number] += taus.square_().sum(1).cpu().numpy()
    return squares


def _merge_matrix(block: Block, matrix: Matrix, alpha: float, shift: Tensor) -> None:
    merged = matrix.of(shift)
    where = f"{block.names[matrix.number]}: the merged task vector"
    for part in matrix.parts():
        merged[part] = task_rows(block, matrix, 0, part).float()
    before = partial(_rows, merged)
    for source in range(1, len(block.sources)):
        own = partial(task_rows, block, matrix, source)
        spectrum = spectrum_of(gram_of(matrix, before), where).top(matrix.columns)
        held = spectrum.coordinates.t() @ gram_of(matrix, before, own) @ spectrum.vectors  # U'tau V
        lead = _leading(spectrum.values, alpha)
        removed = held.diagonal().diag()
        removed[:lead, :lead] = held[:lead, :lead]
        onto = spectrum.coordinates @ removed @ spectrum.vectors.t()
        for part in matrix.parts():
            rows = before(part)
            merged[part] = (rows + own(part) - rows @ onto).float()


def _rows(upright: Tensor, part: slice) -> Tensor:
    return upright[part].double()


def _leading(values: Tensor, alpha: float) -> int:
    """The first index (from 0) where the share of the values up to it exceeds alpha; else all."""
    shares = values.cumsum(0) / values.sum()
    return int((shares <= alpha).sum())


def _apply(prepared: _Scaled, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + lambda times the merged task vector, at its length."""
    factors = cast("float", values["lambda"]) * prepared.factors
    weights = np.stack([np.ones_like(factors), factors])
    # Made here: what is merged may have gone to a file since the last time.
    merged = prepared.merged
    models = Models(None, [merged.base, merged.shift], prepared.segments)
    return passes.weighted_sum(models, weights, out)


OPCM = Operator(
    name="opcm",
    paper="Tang et al. 2025, https://arxiv.org/abs/2501.09522 (orthogonal projection, sequential)",
    summary="Add experts one by one, each without what the merged directions already hold",
    parameters=(
        Parameter(
            "alpha",
            "real",
            0.5,
            "share of the merged singular values whose directions are closed to the next expert",
            low=0,
            high=1,
            phase="prepare",
        ),
        Parameter(
            "length",
            "choice",
            "model",
            "what is made as long as the experts' task vectors are on average",
            options=("model", "tensor", "none"),
            phase="prepare",
        ),
        Parameter("lambda", "real", 1.0, "factor of the merged task vector", low=-10, high=10),
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="Experts come in the order of the sources, and the order matters (the published code "
    "shuffles it by default). Per matrix: with the singular vectors U, V of the merged task "
    "vector, P = U' tau V without its diagonal and without its leading k x k block, k being the "
    "first index whose cumulated share of the singular values exceeds alpha; U P V' is added. In "
    "the end the merged task vector gets the experts' mean length, over the whole model as "
    "published (`length: model`; the first block computes all others), within each tensor, or "
    "not at all: then it is the paper's numerator. The published code does so after every "
    "expert, and takes it back before the next one: the result is the same. Diagonal entries of "
    "directions whose singular value is zero stay: which directions those are is an accident. "
    "Embeddings and tensors that are no matrices are added unprojected, as in the published "
    "code, which projects linear layers alone.",
)
