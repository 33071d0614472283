"""The task-vector family: sparsify each tau_k = W_k - W_0, weigh, agree on signs, sum, add to W_0.

A method is a row of the table at the end: sparsify x consensus x normalise. Where the papers' code
and mergekit 0.1.5 differ, the default is the published one and `compat: mergekit` the other:

    what                     published                                 mergekit
    trim (TIES)              the top entries of the whole model        of each tensor
    sign of a zero sum       that of most elected signs (*)            +
    normalise, consensus     by the number of entries that agree       by their summed weights
    normalise, no consensus  by the number of sources                  by the summed weights
    rescale (DARE)           divide by the density                     match the tensor's L1 norm

(*) The authors count the whole model's signs; here the tensor's, so that a tensor can be merged
alone. It matters only where weighted task vectors cancel exactly. Entries as large as the last one
kept are kept too, as the authors do; mergekit keeps an arbitrary choice of them.

Normalising by weights that nearly cancel would multiply the task vectors without bound: it is
refused here, whatever mergekit does.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from evomerge.errors import CandidateError
from evomerge.merging import consensus
from evomerge.merging.deltas import Prepared, Row, prepare, rescale, sparse, within
from evomerge.merging.operator import Operator, Values, chunks
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.merging.consensus import Compat

CANCELLED = 1e-3  # |sum w| below this share of sum |w| is refused


def _apply(row: Row, prepared: Prepared, values: Values, out: Tensor) -> None:
    """Write W_0 + lambda sum_k w_k sparse(tau_k), with the row's consensus and normalising."""
    import torch

    weights = cast("tuple[float, ...]", values["weight"])
    normalize, compat = bool(values["normalize"]), cast("Compat", values["compat"])
    scale = cast("float", values["lambda"])
    by_weight = None
    if normalize and (compat == "mergekit" or not row.consensus):
        scale /= _divisor(row, compat, weights)
        by_weight = prepared.tau.new_tensor(weights)
    one_tensor = len(prepared.segments) == 1
    for part in chunks(out.numel()) if one_tensor else [slice(0, out.numel())]:
        base = prepared.base[part].float()
        if not row.consensus:
            taus, factors = sparse(row, prepared, values, part), _factors(row, prepared, values)
            for entries, i in _spans(prepared, part, factors):
                merged = torch.addmv(base[entries], taus[:, entries].t(), factors[:, i] * scale)
                out[part][entries].copy_(merged)
            continue
        taus = _weighted(row, prepared, values, part)
        fill = partial(_fill_majority, row, prepared, values, part)
        signs = consensus.elect(taus, compat, fill)
        counted = by_weight if compat == "mergekit" else None
        total = consensus.disjoint_sum(taus, signs, normalize, counted)
        out[part].copy_(base.add(total, alpha=scale))


def _divisor(row: Row, compat: Compat, weights: tuple[float, ...]) -> float:
    """By what the sum is divided as a whole.

    Raises:
        CandidateError: the divisor is, or for some entry can be, next to nothing.
    """
    total, size = sum(weights), sum(map(abs, weights))
    if row.consensus:
        if min(weights) < 0 < max(weights):
            raise CandidateError(
                f"weights {weights} of both signs can leave next to nothing to normalise by; "
                "use normalize: false, compat: published, or weights of one sign"
            )
        return 1.0
    if compat == "published":
        return float(len(weights))
    if size > 0 and abs(total) <= CANCELLED * size:
        raise CandidateError(f"the weights {weights} sum to {total:g}: nothing to normalise by")
    return total if size > 0 else 1.0


def _weighted(row: Row, prepared: Prepared, values: Values, part: slice) -> Tensor:
    """The sparsified task vectors times their weights, shape (sources, entries); owned."""
    taus, factors = sparse(row, prepared, values, part), _factors(row, prepared, values)
    if factors.shape[1] == 1:
        return taus * factors
    taus = taus.clone()
    for entries, i in _spans(prepared, part, factors):
        taus[:, entries].mul_(factors[:, i : i + 1])
    return taus


def _factors(row: Row, prepared: Prepared, values: Values) -> Tensor:
    """Weights times what makes up for dropping, (sources, segments) or (sources, 1) for all."""
    weights = prepared.tau.new_tensor(values["weight"])[:, None]
    made_up = rescale(prepared, values) if row.sparsify == "random" else None
    return weights if made_up is None else weights * weights.new_tensor(made_up)


def _spans(prepared: Prepared, part: slice, factors: Tensor) -> list[tuple[slice, int]]:
    """The stretches of a part that have one factor for each source, and its column."""
    if factors.shape[1] == 1:
        return [(slice(0, part.stop - part.start), 0)]
    return [(slice(*span), i) for i, span in enumerate(within(prepared, part))]


def _fill_majority(
    row: Row, prepared: Prepared, values: Values, part: slice, signs: Tensor
) -> None:
    """Give the zeros among a part's signs the sign that most of their tensor's entries elected."""
    for (start, stop), segment in zip(within(prepared, part), prepared.segments, strict=True):
        if len(prepared.segments) > 1:
            tally = float(signs[start:stop].sum())
        else:
            parts = chunks(segment.stop)
            tally = sum(
                float(consensus.add_up(_weighted(row, prepared, values, one)).sign_().sum())
                for one in parts
            )
        inside = signs[start:stop]
        inside[inside == 0] = float((tally > 0) - (tally < 0))


# --- the table ------------------------------------------------------------------------------------


def _parameters(row: Row, normalize: bool, density: float) -> tuple[Parameter, ...]:
    compat = Parameter(
        "compat",
        "choice",
        "published",
        "whose arithmetic, where the papers' code and mergekit 0.1.5 differ",
        options=("published", "mergekit"),
        phase="prepare",
    )
    of_all = (
        Parameter(
            "weight", "real", 1.0, "factor of a task vector", low=-10, high=10, per_source=True
        ),
        Parameter("lambda", "real", 1.0, "factor of the merged task vector", low=-10, high=10),
        Parameter("normalize", "flag", normalize, "divide by what took part in the sum"),
        compat,
    )
    if row.sparsify == "none":
        return of_all
    share = Parameter(
        "density", "real", density, "share of entries kept", low=0.0, high=1.0, per_source=True
    )
    if row.sparsify == "magnitude":
        text = "the largest entries of what; auto: the model, or the tensor with compat: mergekit"
        options = ("auto", "model", "tensor")
        return (
            *of_all,
            share,
            Parameter("trim", "choice", "auto", text, None, None, options, phase="prepare"),
        )
    text = "what dropping is made up for by; auto: density, or l1 with compat: mergekit"
    remedies = ("auto", "density", "l1", "none")
    return (*of_all, share, Parameter("rescale", "choice", "auto", text, None, None, remedies))


def _operator(
    name: str, row: Row, paper: str, summary: str, *, normalize: bool = False, density: float = 1
) -> Operator:
    return Operator(
        name=name,
        paper=paper,
        summary=summary,
        parameters=_parameters(row, normalize, density),
        needs_base=True,
        min_sources=1,
        max_sources=None,
        prepare=partial(prepare, row),
        apply=partial(_apply, row),
    )


TASK_VECTORS = (
    _operator(
        "task_arithmetic",
        Row("none", consensus=False),
        "Ilharco et al. 2023, https://arxiv.org/abs/2212.04089 (sec. 2)",
        "Base plus a weighted sum of task vectors",
    ),
    _operator(
        "ties",
        Row("magnitude", consensus=True),
        "Yadav et al. 2023, https://arxiv.org/abs/2306.01708 (algorithm 1)",
        "Trim task vectors, elect signs, average the entries that agree",
        normalize=True,
        density=0.2,
    ),
    _operator(
        "dare_linear",
        Row("random", consensus=False),
        "Yu et al. 2024, https://arxiv.org/abs/2311.03099 (eq. 2 to 4)",
        "Drop entries of task vectors at random, rescale the rest, sum",
        density=0.5,
    ),
    _operator(
        "dare_ties",
        Row("random", consensus=True),
        "Yu et al. 2024, https://arxiv.org/abs/2311.03099 (eq. 2 to 4), with TIES' signs",
        "Drop entries of task vectors at random, rescale, sum those that agree in sign",
        density=0.5,
    ),
)
