"""The task-vector family: sparsify each tau_k = W_k - W_0, weigh, agree on signs, sum, add to W_0.

A method is a row of the table at the end: sparsify x consensus x normalise. Where the papers' code
and mergekit 0.1.5 differ, the default is the published one and `compat: mergekit` the other:

    what                     published                                 mergekit
    trim (TIES)              the top entries of the whole model        of each tensor
    sign of a zero sum       that of most elected signs (*)            +
    normalise, consensus     by the number of entries that agree       by their summed weights
    normalise, no consensus  by the number of sources                  by the summed weights
    rescale (DARE)           divide by the density                     match the tensor's L1 norm
    rescale (DELLA)          divide by each entry's own probability    match the tensor's L1 norm

(*) The authors count the whole model's signs; here the tensor's, so that a tensor can be merged
alone. It matters only where weighted task vectors cancel exactly. Entries as large as the last one
kept are kept too, as the authors do; mergekit keeps an arbitrary choice of them.

Normalising by weights that nearly cancel would multiply the task vectors without bound: it is
refused here, whatever mergekit does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from evomerge.errors import CandidateError
from evomerge.merging import passes
from evomerge.merging.deltas import Prepared, Row, prepare, selection
from evomerge.merging.operator import Operator, Values
from evomerge.merging.passes import Agreement, Consensus
from evomerge.records import Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

CANCELLED = 1e-3  # |sum w| below this share of sum |w| is refused


def _apply(row: Row, prepared: Prepared, values: Values, out: Tensor) -> bool | None:
    """Write W_0 + lambda sum_k w_k sparse(tau_k), with the row's consensus and normalising."""
    if row.sparsify == "ranked":
        _check_epsilon(values)
    weights = np.array(values["weight"])
    chosen = selection(row, prepared, values)
    chosen = replace(chosen, factors=chosen.factors * weights[:, None].astype(np.float32))
    agreement = _agreement(row, values)
    return passes.add_task_vectors(prepared.models, chosen, agreement, out)


def _agreement(row: Row, values: Values) -> Agreement:
    """How the weighted task vectors become one.

    Raises:
        CandidateError: the divisor is, or for some entry can be, next to nothing.
    """
    weights = cast("tuple[float, ...]", values["weight"])
    by_weight, normalize = values["compat"] == "mergekit", bool(values["normalize"])
    scale = cast("float", values["lambda"])
    counted = np.array(weights) if by_weight else np.ones(len(weights))
    if not row.consensus:
        return Agreement("sum", counted, scale / (_divisor(counted) if normalize else 1.0))
    if normalize and by_weight and min(weights) < 0 < max(weights):
        raise CandidateError(
            f"weights {weights} of both signs can leave next to nothing to normalise by; "
            "use normalize: false, compat: published, or weights of one sign"
        )
    consensus: Consensus = "agree_normalised" if normalize else "agree"
    return Agreement(consensus, counted, scale, "plus" if by_weight else "majority")


def _divisor(counted: NDArray[np.floating[Any]]) -> float:
    """By what the sum is divided as a whole; 1 if nothing counts at all."""
    total, size = float(counted.sum()), float(np.abs(counted).sum())
    if size > 0 and abs(total) <= CANCELLED * size:
        weights = counted.tolist()
        raise CandidateError(f"the weights {weights} sum to {total:g}: nothing to normalise by")
    return total if size > 0 else 1.0


def _check_epsilon(values: Values) -> None:
    """Refuse probabilities that leave (0, 1)."""
    pairs = zip(
        cast("tuple[float, ...]", values["density"]),
        cast("tuple[float, ...]", values["epsilon"]),
        strict=True,
    )
    for density, epsilon in pairs:
        if 0 < density < 1 and not epsilon < min(density, 1 - density):
            low, high = density - epsilon, density + epsilon
            raise CandidateError(
                f"density {density:g} with epsilon {epsilon:g} gives probabilities from {low:g} to "
                f"{high:g}: they must stay inside (0, 1)"
            )


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
    return (*of_all, share, *_PARTICULAR[row.sparsify])


_REMEDY = "what dropping is made up for by; auto: {}, or l1 with compat: mergekit"
_PARTICULAR: dict[str, tuple[Parameter, ...]] = {
    "largest": (
        Parameter(
            "trim",
            "choice",
            "auto",
            "the largest entries of what; auto: the model, or the tensor with compat: mergekit",
            options=("auto", "model", "tensor"),
            phase="prepare",
        ),
    ),
    "band": (
        Parameter(
            "gamma",
            "real",
            0.01,
            "share of entries dropped for being the largest",
            low=0.0,
            high=1.0,
            per_source=True,
        ),
    ),
    "random": (
        Parameter(
            "rescale",
            "choice",
            "auto",
            _REMEDY.format("density"),
            options=("auto", "density", "l1", "none"),
        ),
    ),
    "ranked": (
        Parameter(
            "epsilon",
            "real",
            0.15,
            "probabilities go from density - epsilon to density + epsilon",
            low=0.0,
            high=0.5,
            per_source=True,
        ),
        Parameter(
            "rescale",
            "choice",
            "auto",
            _REMEDY.format("probability"),
            options=("auto", "probability", "density", "l1", "none"),
        ),
    ),
}


_CHOICE = {
    "none": "",
    "largest": "Kept are the max(1, int(density n)) largest entries of a task vector and those "
    "that equal the last of them; n counts the whole model's entries as published, each tensor's "
    "in mergekit, which keeps some of equal ones. ",
    "band": "The int(gamma n) largest of a tensor's n entries are dropped, then the smallest until "
    "int(density n) are left. ",
    "random": "Kept with probability density. An entry's draw depends on the mask seed and the "
    "names of tensor and source alone, so nearly equal densities keep nearly the same entries. "
    "What is kept is divided by the density as published; mergekit matches each tensor's L1 norm. ",
    "ranked": "Kept with probability density - epsilon + 2 epsilon r, where r is the entry's rank "
    "by magnitude in its row, from 0 to 1. What is kept is divided by its probability as "
    "published; mergekit matches each tensor's L1 norm. ",
}
_ELECTION = (
    "Signs are elected: an entry's is that of the weighted sum, and who differs is left out. A sum "
    "of zero takes the sign of most of its tensor as published, + in mergekit. "
)
_DIVISOR = "Normalising divides by how many took part as published, by their weights in mergekit."


def _notes(row: Row) -> str:
    """The formula in words, and where others compute something else."""
    formula = "Base + lambda sum w_k tau_k" + (
        ", with sparse tau_k. " if _CHOICE[row.sparsify] else ". "
    )
    return formula + _CHOICE[row.sparsify] + (_ELECTION if row.consensus else "") + _DIVISOR


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
        place="name" if row.sparsify in ("random", "ranked") else "nothing",  # keys of draws
        notes=_notes(row),
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
        Row("largest", consensus=True),
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
    _operator(
        "della",
        Row("ranked", consensus=True),
        "Deep et al. 2024, https://arxiv.org/abs/2406.11617 (sec. 3: drop, elect, fuse)",
        "Drop entries at random, small ones of a row rather, rescale, average those that agree",
        normalize=True,
        density=0.5,
    ),
    _operator(
        "della_linear",
        Row("ranked", consensus=False),
        "Deep et al. 2024, https://arxiv.org/abs/2406.11617 (sec. 3), without elected signs",
        "Drop entries at random, small ones of a row rather, rescale the rest, sum",
        density=0.5,
    ),
    _operator(
        "breadcrumbs",
        Row("band", consensus=False),
        "Davari & Belilovsky 2023, https://arxiv.org/abs/2312.06795 (sec. 3)",
        "Drop the largest and the small entries of task vectors, sum the rest",
        density=0.14,
    ),
    _operator(
        "breadcrumbs_ties",
        Row("band", consensus=True),
        "Davari & Belilovsky 2023, https://arxiv.org/abs/2312.06795 (sec. 3), with TIES' signs",
        "Drop the largest and the small entries, sum those that agree in sign",
        density=0.14,
    ),
)
