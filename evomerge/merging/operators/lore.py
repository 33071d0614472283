"""LoRE: a common model and low-rank differences from it, estimated together, without a base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from evomerge.merging.operator import Block, Operator, Values, parts_of
from evomerge.merging.parts import Parts, apply_parts, room_for_parts
from evomerge.merging.spectra import Matrix, gram_of, matrices_of, others_of, spectrum_of
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

STILL = 1e-5  # theta_0 has come to rest if it moves less than this share of what is left


def _prepare(block: Block, values: Values) -> Parts:
    """The common model, and each source's difference."""
    import torch

    prepared = room_for_parts(block, None)
    start, *deltas = prepared.models.sources
    for segment in block.segments:
        for part in parts_of(segment, len(block.sources)):
            start[part] = torch.stack([source[part].float() for source in block.sources]).mean(0)
    for segment in others_of(block):
        for delta in deltas:
            delta[segment] = 0
    for matrix in matrices_of(block):
        mu, rounds = cast("float", values["mu"]), int(cast("float", values["rounds"]))
        thresholds = _estimate(block, matrix, mu, rounds, start)
        for number, (delta, threshold) in enumerate(zip(deltas, thresholds, strict=True)):
            target = matrix.of(delta)
            for part in matrix.parts():
                target[part] = (_rest(block, matrix, number, start, part) @ threshold).float()
    return prepared


def _estimate(
    block: Block, matrix: Matrix, mu: float, rounds: int, start: Tensor
) -> Sequence[Tensor]:
    """Improve the common model in turns with the differences; what gives these, for each source.

    A difference is the rest theta_i - theta_0 times a (columns, columns) matrix, which makes
    singular values s max(0, s - mu/2): the minimum of |rest - delta|^2 + mu |delta|_*.
    """
    thresholds: list[Tensor] = []
    for turn in range(rounds):
        moved = _improve(block, matrix, start, thresholds) if turn else 1.0
        thresholds = [
            _threshold(block, matrix, number, mu, start) for number in range(len(block.sources))
        ]
        if moved <= STILL:
            break
    return thresholds


def _threshold(block: Block, matrix: Matrix, number: int, mu: float, start: Tensor) -> Tensor:
    rest = partial(_rest, block, matrix, number, start)
    where = f"{block.names[matrix.number]} of {block.source_names[number]!r}"
    spectrum = spectrum_of(gram_of(matrix, rest), where).top(matrix.columns)
    kept = (spectrum.values - mu / 2).clamp(min=0) / spectrum.values
    return spectrum.vectors * kept @ spectrum.vectors.t()


def _improve(block: Block, matrix: Matrix, start: Tensor, thresholds: Sequence[Tensor]) -> float:
    """Make theta_0 the mean of theta_i - delta_i; how far it moved, beside the rests' length."""
    target, count = matrix.of(start), len(thresholds)
    moved = length = 0.0
    for part in matrix.parts():
        common = target[part].double()
        changed = common.clone()
        for number, threshold in enumerate(thresholds):
            rest = _rest(block, matrix, number, start, part)
            length += float(rest.square().sum()) / count
            changed += (rest - rest @ threshold) / count
        moved += float((changed - common).square().sum())
        target[part] = changed.float()
    return (moved / length) ** 0.5 if length else 0.0


def _rest(block: Block, matrix: Matrix, number: int, start: Tensor, part: slice) -> Tensor:
    """Rows of theta_i - theta_0, upright, float64."""
    own = matrix.of(block.sources[number])[part].double()
    return own.sub_(matrix.of(start)[part])


def _apply(prepared: Parts, values: Values, out: Tensor) -> bool | None:
    """Write theta_0 + lambda / T sum_i w_i delta_i."""
    weights = cast("tuple[float, ...]", values["weight"])
    factor = cast("float", values["lambda"]) / len(weights)
    return apply_parts(prepared, [factor * weight for weight in weights], out)


LORE = Operator(
    name="lore",
    paper="Liu et al. 2025, LoRE-Merging, https://arxiv.org/abs/2502.10749",
    summary="Estimate a common model and low-rank differences from it; needs no base",
    parameters=(
        Parameter(
            "weight", "real", 1.0, "factor of a difference", low=-10, high=10, per_source=True
        ),
        Parameter("lambda", "real", 1.0, "factor of their mean", low=-10, high=10),
        Parameter(
            "mu",
            "real",
            0.01,
            "price of a difference's nuclear norm: singular values lose half of it",
            low=0,
            high=1000,
            phase="prepare",
        ),
        Parameter(
            "rounds",
            "integer",
            10,
            "turns of estimating the differences and the common model, at most",
            low=1,
            high=1000,
            phase="prepare",
        ),
    ),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    prepare=_prepare,
    apply=_apply,
    notes="theta_0 + lambda mean(w_i delta_i), with theta_0 and the delta_i that minimise sum "
    "|theta_0 + delta_i - theta_i|^2 + mu |delta_i|_* per matrix, found in turns from theta_0 = "
    "mean(theta_i): delta_i = theta_i - theta_0 with its singular values less mu/2 (0 where that "
    "is negative), theta_0 = mean(theta_i - delta_i). mu is in the units of singular values: "
    "where it is twice the largest one of what experts differ by, the result is their mean, and "
    "it is the mean, too, for lambda 1 and any mu when the turns have come to an end; what is to "
    "be searched is lambda and the weights. Some texts and codes take mu itself as the "
    "threshold: give twice as much here. The turns end when theta_0 moves by less than 1e-5 of "
    "what is left, or after `rounds`; each decomposes every matrix of every expert, so this is "
    "by far the slowest operator to prepare. Tensors that are no matrices are averaged; "
    "embeddings and heads are matrices.",
)
