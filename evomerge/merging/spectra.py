"""Singular values and vectors of the matrices in a block, and what is put together from them.

A matrix is seen *upright*, with no fewer rows than columns, and read in slices of rows: of a large
one (an embedding) no copy is made. Its singular values and right vectors are the eigenvalues and
eigenvectors of its Gram matrix, which is as small as its shorter side, in float64; left vectors are
its rows times right vectors, divided by the values, wherever they are needed. An eigenvalue comes
out with an error of about 1e-16 of the largest, so a singular value of 1e-3 of the largest has ten
digits. This is faster than a decomposition in float32 (45 against 78 ms for 1536 x 576 on one core,
and all the more for an embedding), and more accurate down to 1e-8.

Directions whose singular value is less than NULL of the largest are no directions: which vectors a
library returns there is an accident (a task vector of a LoRA has hundreds of them). They are left
out everywhere. Nothing depends on the signs of singular vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from evomerge.errors import CandidateError
from evomerge.merging.offsets import offsets
from evomerge.merging.operator import Block, chunks, parts_of
from evomerge.merging.order import memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
    from torch import Tensor

NULL = 1e-6  # of the largest singular value: what is smaller counts as zero


@dataclass(frozen=True)
class Matrix:
    """Where a matrix lies in its block, and its upright shape.

    number: of the tensor in the block; turned: whether upright rows are stored columns.
    """

    number: int
    segment: slice
    rows: int
    columns: int
    turned: bool

    def parts(self) -> Iterator[slice]:
        """Slices of upright rows, some chunks of entries at a time: products want many rows."""
        return chunks(self.rows, max(1, self.columns // 8))

    def of(self, flat: Tensor) -> Tensor:
        """The upright matrix in a tensor of the block's entries: a view."""
        entries = flat[self.segment]
        if self.turned:
            return entries.view(self.columns, self.rows).t()
        return entries.view(self.rows, self.columns)


def matrices_of(block: Block) -> list[Matrix]:
    """The tensors of two dimensions, both larger than 1."""
    found = []
    for number, (segment, shape) in enumerate(zip(block.segments, block.shapes, strict=True)):
        if len(shape) == 2 and min(shape) > 1:
            rows, columns = max(shape), min(shape)
            found.append(Matrix(number, segment, rows, columns, shape[0] < shape[1]))
    return found


def others_of(block: Block) -> list[slice]:
    """Where all other tensors lie."""
    taken = {matrix.number for matrix in matrices_of(block)}
    return [segment for number, segment in enumerate(block.segments) if number not in taken]


def average_others(block: Block, shift: Tensor) -> None:
    """Write the mean task vector of all tensors that are no matrices."""
    for segment in others_of(block):
        for part in parts_of(segment, len(block.sources)):
            shift[part] = offsets(block, part).mean(0)


def task_rows(block: Block, matrix: Matrix, source: int, part: slice) -> Tensor:
    """Some rows of an upright task vector, float64."""
    base = matrix.of(cast("Tensor", block.base))[part]
    return matrix.of(block.sources[source])[part].double() - base.double()


@dataclass
class Spectrum:
    """The singular values of an upright matrix, falling, and its right singular vectors.

    values: (columns,) float64, zero where there is no direction.
    vectors: (columns, columns), one in each column.
    """

    values: Tensor
    vectors: Tensor

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return int(self.values.count_nonzero())

    def top(self, count: int) -> Spectrum:
        """The first directions, at most `count`."""
        count = min(count, self.rank)
        return Spectrum(self.values[:count], self.vectors[:, :count].double())

    @property
    def coordinates(self) -> Tensor:
        """What the matrix is multiplied by to give its left singular vectors; top directions only.

        Shape (columns, directions).
        """
        return self.vectors / self.values


def spectrum_of(gram: Tensor, where: str, least: float = 0.0) -> Spectrum:
    """The spectrum of a matrix that has this Gram matrix, (columns, columns), float64.

    least: singular values below it count as zero, besides those that are small beside the largest.

    Raises:
        CandidateError: it is not finite; `where` says of what.
    """
    import torch

    scale = float(gram.diagonal().amax())
    if not torch.isfinite(gram).all():
        raise CandidateError(f"{where} is not finite, and has no singular values")
    if scale <= 0:
        return Spectrum(gram.new_zeros(len(gram)), torch.eye(len(gram)).to(gram))
    squares, vectors = _eigh(gram / scale)  # scaled, so that no square of a small one is zero
    values = squares.flip(0).clamp(min=0).sqrt() * scale**0.5
    values[values <= max(NULL * float(values[0]), least)] = 0
    return Spectrum(values, vectors.flip(1))


def gram_of(
    matrix: Matrix,
    rows: Callable[[slice], Tensor],
    others: Callable[[slice], Tensor] | None = None,
) -> Tensor:
    """X' X, or X' Y, of matrices that come in slices of float64 rows, as many as the matrix has."""
    total: Tensor | None = None
    for part in matrix.parts():
        left = rows(part)
        right = left if others is None else others(part)
        total = left.t() @ right if total is None else total.addmm_(left.t(), right)
    return cast("Tensor", total)


@dataclass
class Spectra:
    """The spectra of a block's matrices, of one source's task vector; vectors in float32."""

    of_matrices: list[Spectrum]
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Count what is held."""
        self.nbytes = sum(one.values.nbytes + one.vectors.nbytes for one in self.of_matrices)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Let `move` bring the large arrays elsewhere."""
        import torch

        for one in self.of_matrices:
            if one.vectors.device.type == "cpu":
                moved = move(one.vectors.numpy())
                self.nbytes += memory_bytes(moved) - one.vectors.nbytes
                one.vectors = torch.from_numpy(moved)


def spectra_of(block: Block) -> list[Spectra]:
    """Of each source's task vector: kept for all operators and all that they are asked for."""
    kept = block.around.kept
    return [
        kept("spectra of a task vector", partial(_spectra, block, number), source=source)
        for number, source in enumerate(block.source_names)
    ]


def _spectra(block: Block, source: int) -> Spectra:
    found = []
    for matrix in matrices_of(block):
        where = f"{block.names[matrix.number]}: the task vector of {block.source_names[source]!r}"
        gram = gram_of(matrix, partial(task_rows, block, matrix, source))
        spectrum = spectrum_of(gram, where)
        found.append(Spectrum(spectrum.values, spectrum.vectors.float().contiguous()))
    return Spectra(found)


def write_joined(
    matrix: Matrix,
    left: Callable[[slice], Tensor],
    sizes: Tensor,
    right: Tensor,
    out: Tensor,
) -> None:
    """Write polar(L) diag(sizes) polar(R)' where the matrix lies in `out`, shape (numel,).

    left: gives rows of L, (rows, directions), float64; right: R, (columns, directions);
    sizes: (directions,). polar(X) = X (X' X)^-1/2 has the nearest orthonormal columns; where X has
    fewer directions than columns, it has no more than X.
    """
    if not len(sizes):
        matrix.of(out).zero_()
        return
    between = _inverse_root(gram_of(matrix, left)) * sizes @ _inverse_root(right.t() @ right)
    across = between @ right.t()
    target = matrix.of(out)
    for part in matrix.parts():
        target[part] = (left(part) @ across).to(target.dtype)


def _inverse_root(gram: Tensor) -> Tensor:
    """(X' X)^-1/2 within the directions that there are."""
    import torch

    squares, vectors = _eigh(gram)
    kept = squares > NULL**2 * squares[-1].clamp(min=0)
    roots = torch.where(kept, squares.clamp(min=1e-300).rsqrt(), 0)
    root: Tensor = vectors * roots @ vectors.t()
    return root


def _eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors.

    On a CPU numpy's, on one thread: several wait for each other in a loop, thousands of times. That
    gained little on an idle machine, and took seven times as long on a busy one.
    """
    import numpy as np
    import torch

    if symmetric.device.type != "cpu":
        values, vectors = torch.linalg.eigh(symmetric)
        return values, vectors
    with _libraries().limit(limits=1):
        found = np.linalg.eigh(symmetric.numpy())
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


@cache
def _libraries() -> ThreadpoolController:
    """What numpy computes with, and not torch."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas")
