"""Isotropic merging: a flat spectrum over common directions, and over those of each task."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from evomerge.merging.offsets import Shifted, apply_alpha, empty_shift
from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.spectra import (
    NULL,
    Matrix,
    average_others,
    gram_of,
    matrices_of,
    spectrum_of,
    task_rows,
    write_joined,
)
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor


def _prepare_common(block: Block, values: Values) -> Shifted:
    """The sum of the task vectors with all its singular values made their mean."""
    prepared = empty_shift(block)
    average_others(block, prepared.shift)
    for matrix in matrices_of(block):
        total = partial(_sum_rows, block, matrix)
        whole = spectrum_of(gram_of(matrix, total), _named(block, matrix))
        spectrum = whole.top(matrix.columns)
        counted = spectrum.rank if values["mean_over"] == "directions" else matrix.columns
        size = float(spectrum.values.sum()) / max(1, counted)
        flat = size * spectrum.coordinates @ spectrum.vectors.t()
        target = matrix.of(prepared.shift)
        for part in matrix.parts():
            target[part] = (total(part) @ flat).float()
    return prepared


def _prepare_both(block: Block, values: Values) -> Shifted:
    """The same for common directions and those of each task that are orthogonal to them."""
    prepared = empty_shift(block)
    average_others(block, prepared.shift)
    for matrix in matrices_of(block):
        _write_both(block, matrix, values, prepared.shift)
    return prepared


def _write_both(block: Block, matrix: Matrix, values: Values, shift: Tensor) -> None:
    import torch

    num_common, num_own = _directions(
        matrix.columns,
        len(block.sources),
        cast("float", values["common"]),
        cast("str", values["rounding"]),
    )
    grams, crossed = _grams(block, matrix)
    gram = sum(crossed[1:], start=crossed[0])
    common = spectrum_of((gram + gram.t()) / 2, _named(block, matrix)).top(num_common)
    sizes, rights = [common.values], [common.vectors]
    # Left singular vectors, as what [A_1 ... A_T, A] is to be multiplied by.
    from_task, from_sum = [], [common.coordinates]
    for gram, cross in zip(grams, crossed, strict=True):
        least = NULL * float(gram.trace()) ** 0.5  # below it nothing is left but rounding
        inside = common.coordinates.t() @ cross  # U' A_k = S^-1 V' A' A_k
        if matrix.turned:  # the common left vectors are the right ones of A_k upright
            away = torch.eye(matrix.columns).to(gram) - common.vectors @ common.vectors.t()
            left, held = away @ gram @ away, torch.zeros_like(inside)
        else:  # A_k - U U' A_k
            left, held = gram - inside.t() @ inside, inside
        own = spectrum_of(left, _named(block, matrix), least).top(num_own)
        from_task.append(own.coordinates)
        from_sum.append(-common.coordinates @ held @ own.coordinates)
        sizes.append(own.values)
        rights.append(own.vectors)
    joined = torch.cat(sizes)
    counted = len(joined) if values["mean_over"] == "directions" else matrix.columns
    size = joined.sum() / max(1, counted)
    left_rows = partial(_left_rows, block, matrix, from_task, torch.cat(from_sum, 1))
    write_joined(matrix, left_rows, size.expand(len(joined)), torch.cat(rights, 1), shift)


def _grams(block: Block, matrix: Matrix) -> tuple[list[Tensor], list[Tensor]]:
    """A_k' A_k and A' A_k of all task vectors A_k and their sum A, each (columns, columns)."""
    count = len(block.sources)
    grams: list[Tensor] = []
    crossed: list[Tensor] = []
    for part in matrix.parts():
        rows = [task_rows(block, matrix, source, part) for source in range(count)]
        total = sum(rows[1:], start=rows[0])
        for source, own in enumerate(rows):
            if len(grams) <= source:
                grams.append(own.t() @ own)
                crossed.append(total.t() @ own)
            else:
                grams[source].addmm_(own.t(), own)
                crossed[source].addmm_(total.t(), own)
    return grams, crossed


def _left_rows(
    block: Block, matrix: Matrix, from_task: list[Tensor], from_sum: Tensor, part: slice
) -> Tensor:
    """Rows of all left singular vectors: the common ones, then those of one task after another."""
    rows = [task_rows(block, matrix, source, part) for source in range(len(block.sources))]
    left = sum(rows[1:], start=rows[0]) @ from_sum
    start = left.shape[1] - sum(one.shape[1] for one in from_task)
    for own, coordinates in zip(rows, from_task, strict=True):
        stop = start + coordinates.shape[1]
        left[:, start:stop] += own @ coordinates
        start = stop
    return left


def _directions(count: int, tasks: int, common: float, rounding: str) -> tuple[int, int]:
    """How many of `count` directions are common, and how many each task has: the rest, divided.

    As published, the rest is rounded to the nearest multiple of the tasks, half to even; never to
    more than there are, which the published code fails on.
    """
    rest = count - int(count * common)
    own = rest // tasks
    if rounding == "nearest":
        own = min(round(rest / tasks), count // tasks)
    return count - own * tasks, own


def _sum_rows(block: Block, matrix: Matrix, part: slice) -> Tensor:
    """Rows of the sum of the upright task vectors, float64."""
    total = task_rows(block, matrix, 0, part)
    for source in range(1, len(block.sources)):
        total += task_rows(block, matrix, source, part)
    return total


def _named(block: Block, matrix: Matrix) -> str:
    return f"{block.names[matrix.number]}: the sum of the task vectors"


_PAPER = "Marczak et al. 2025, https://arxiv.org/abs/2502.04959 (No Task Left Behind)"
_ALPHA = Parameter("alpha", "real", 1.0, "factor of the merged task vector", low=-10, high=10)
_MEAN_OVER = Parameter(
    "mean_over",
    "choice",
    "all",
    "what the mean singular value is taken over: all min(m, n), or those that are not zero",
    options=("all", "directions"),
    phase="prepare",
)
_ZERO = (
    "Where the sum has fewer directions than columns (LoRA experts), the published code fills up "
    "with whatever vectors the library returns for zero singular values, each as large as the "
    "others; here nothing is added there. The mean counts those zeros, as published; `mean_over: "
    "directions` takes it over what is not zero, which keeps the nuclear norm. "
)
_OTHERS = (
    "Embeddings and heads are matrices too, as in the published code; where that is unwanted, give "
    "them another operator by component. Tensors that are no matrices are averaged, and scaled by "
    "alpha too."
)

ISO_C = Operator(
    name="iso_c",
    paper=_PAPER,
    summary="The sum of the task vectors with a flat spectrum: all directions equally large",
    parameters=(_ALPHA, _MEAN_OVER),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare_common,
    apply=apply_alpha,
    notes="Base + alpha mean(S) U V', with U S V' = sum tau_k, per matrix. Note that it is the "
    f"sum, not the mean: alpha 1 moves as far as all experts together. {_ZERO}{_OTHERS}",
)

ISO_CTS = Operator(
    name="iso_cts",
    paper=_PAPER,
    summary="A flat spectrum over common directions, and over some that each task has of its own",
    parameters=(
        _ALPHA,
        Parameter(
            "common",
            "real",
            0.8,
            "share of the directions that are common",
            low=0,
            high=1,
            phase="prepare",
        ),
        Parameter(
            "rounding",
            "choice",
            "nearest",
            "of the directions that a task has, where the rest does not divide evenly",
            options=("nearest", "down"),
            phase="prepare",
        ),
        _MEAN_OVER,
    ),
    needs_base=True,
    min_sources=1,
    max_sources=None,
    prepare=_prepare_both,
    apply=apply_alpha,
    notes="Per matrix: the first k left singular vectors U of sum tau_j are common; each task "
    "adds the first directions of (I - U U') tau_j; left and right vectors, joined, are made "
    "orthonormal by their polar factors, and all sizes become their mean, times alpha. k is "
    "common min(m, n), changed so that the rest divides by the number of experts T: the "
    "published code rounds rest / T to the nearest number, half to even, which may leave fewer "
    "than k in common, and fails where it leaves less than none (7 directions, 2 experts, common "
    "0): then it is rounded down here. `rounding: down` never leaves fewer than k. It projects "
    f"on the side of the outputs alone, as the paper's formula does. {_ZERO}{_OTHERS}",
)
