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

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from evomerge.errors import CandidateError
from evomerge.merging import consensus, sparsify
from evomerge.merging.operator import CHUNK, Block, Operator, Values, chunks, small_as_float
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.merging.consensus import Compat
    from evomerge.merging.sparsify import Magnitudes

CANCELLED = 1e-3  # |sum w| below this share of sum |w| is refused
NO_NORM = 1e-7  # an L1 norm below this is not matched, as in mergekit


@dataclass(frozen=True)
class _Row:
    """What tells the methods of the family apart."""

    sparsify: Literal["none", "magnitude", "random"]
    consensus: bool


@dataclass
class _Prepared:
    base: Tensor  # (numel,), float32 where small
    tau: Tensor  # (sources, numel) float32
    segments: tuple[slice, ...]  # where each tensor lies
    magnitudes: list[list[Magnitudes]]  # [source][segment]; for magnitude
    draws: Tensor | None  # (sources, numel) int16; for random
    mass: list[list[float]]  # [source][segment], the sum of |tau|; for random
    nbytes: int
    sparse: Tensor | None = None  # (sources, numel), of the densities last asked for; where small
    sparse_of: tuple[float, ...] | None = None
    factors: dict[tuple[float, ...], list[list[float]]] = field(default_factory=dict)


def _prepare(row: _Row, block: Block, values: Values) -> _Prepared:
    import torch

    base = small_as_float(cast("Tensor", block.base))
    tau = torch.empty((len(block.sources), block.numel), dtype=torch.float32, device=base.device)
    for source, difference in zip(block.sources, tau, strict=True):
        for part in chunks(block.numel):
            torch.sub(source[part].float(), base[part].float(), out=difference[part])
    prepared = _Prepared(base, tau, block.segments, [], None, [], tau.nbytes)
    if base is not block.base:
        prepared.nbytes += base.nbytes
    if row.sparsify == "magnitude":
        _prepare_magnitudes(prepared, block, values)
    elif row.sparsify == "random":
        _prepare_draws(prepared, block)
    if row.sparsify != "none" and block.numel <= CHUNK:
        prepared.sparse = torch.empty_like(tau)
        prepared.nbytes += tau.nbytes
    return prepared


def _prepare_magnitudes(prepared: _Prepared, block: Block, values: Values) -> None:
    scope = values["trim"]
    if scope == "auto":
        scope = "model" if values["compat"] == "published" else "tensor"
    if scope == "model":
        whole = [block.whole_model(name) for name in block.source_names]
        prepared.magnitudes = [[one] * len(block.segments) for one in whole]
        return
    prepared.magnitudes = [
        [sparsify.ascending_magnitudes(tau[part]) for part in block.segments]
        for tau in prepared.tau
    ]
    prepared.nbytes += prepared.tau.nbytes


def _prepare_draws(prepared: _Prepared, block: Block) -> None:
    import torch

    sizes = [part.stop - part.start for part in block.segments]
    drawn = [
        [
            sparsify.draws(block.mask_seed, name, source, size)
            for name, size in zip(block.names, sizes, strict=True)
        ]
        for source in block.source_names
    ]
    prepared.draws = torch.stack([torch.cat(row) for row in drawn]).to(prepared.tau.device)
    prepared.mass = [
        [float(tau[part].abs().sum()) for part in block.segments] for tau in prepared.tau
    ]
    prepared.nbytes += prepared.draws.nbytes


def _apply(row: _Row, prepared: _Prepared, values: Values, out: Tensor) -> None:
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
            taus, factors = _sparse(row, prepared, values, part), _factors(row, prepared, values)
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


def _divisor(row: _Row, compat: Compat, weights: tuple[float, ...]) -> float:
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


def _weighted(row: _Row, prepared: _Prepared, values: Values, part: slice) -> Tensor:
    """The sparsified task vectors times their weights, shape (sources, entries); owned."""
    taus, factors = _sparse(row, prepared, values, part), _factors(row, prepared, values)
    if factors.shape[1] == 1:
        return taus * factors
    taus = taus.clone()
    for entries, i in _spans(prepared, part, factors):
        taus[:, entries].mul_(factors[:, i : i + 1])
    return taus


def _factors(row: _Row, prepared: _Prepared, values: Values) -> Tensor:
    """Weights times what makes up for dropping, (sources, segments) or (sources, 1) for all."""
    weights = prepared.tau.new_tensor(values["weight"])[:, None]
    made_up = _rescale(prepared, values) if row.sparsify == "random" else None
    return weights if made_up is None else weights * weights.new_tensor(made_up)


def _spans(prepared: _Prepared, part: slice, factors: Tensor) -> list[tuple[slice, int]]:
    """The stretches of a part that have one factor for each source, and its column."""
    if factors.shape[1] == 1:
        return [(slice(0, part.stop - part.start), 0)]
    return [(slice(*span), i) for i, span in enumerate(_within(prepared, part))]


def _sparse(row: _Row, prepared: _Prepared, values: Values, part: slice) -> Tensor:
    """The sparsified task vectors, shape (sources, entries); not owned."""
    import torch

    if row.sparsify == "none":
        return prepared.tau[:, part]
    densities = cast("tuple[float, ...]", values["density"])
    if prepared.sparse is not None and prepared.sparse_of == densities:
        return prepared.sparse
    taus = prepared.sparse
    if taus is None:
        taus = torch.empty_like(prepared.tau[:, part], memory_format=torch.contiguous_format)
    prepared.sparse_of = None
    for k, (tau, density) in enumerate(zip(prepared.tau, densities, strict=True)):
        if density >= 1:
            taus[k] = tau[part]
        elif prepared.draws is not None:
            sparsify.drop_into(tau[part], prepared.draws[k, part], density, taus[k])
        else:
            for (start, stop), ascending in zip(
                _within(prepared, part), prepared.magnitudes[k], strict=True
            ):
                inside = slice(start + part.start, stop + part.start)
                sparsify.trim_into(tau[inside], ascending, density, taus[k, start:stop])
    prepared.sparse_of = densities
    return taus


def _within(prepared: _Prepared, part: slice) -> list[tuple[int, int]]:
    """Where the tensors lie within a part: the part of one tensor, or a whole block."""
    if len(prepared.segments) == 1:
        return [(0, part.stop - part.start)]
    return [(segment.start, segment.stop) for segment in prepared.segments]


def _rescale(prepared: _Prepared, values: Values) -> list[list[float]] | None:
    """By what dropping is made up for, [source][segment]; None where it is not."""
    how = values["rescale"]
    if how == "auto":
        how = "density" if values["compat"] == "published" else "l1"
    densities = cast("tuple[float, ...]", values["density"])
    if how == "none":
        return None
    if how == "density":
        made_up = [1 / min(density, 1.0) if density > 0 else 0.0 for density in densities]
        return [[factor] for factor in made_up]
    if densities not in prepared.factors:
        prepared.factors.clear()  # a candidate asks for every chunk; the next has other densities
        prepared.factors[densities] = [
            [_l1_factor(prepared, k, i, density) for i in range(len(prepared.segments))]
            for k, density in enumerate(densities)
        ]
    return prepared.factors[densities]


def _l1_factor(prepared: _Prepared, k: int, i: int, density: float) -> float:
    """The ratio of L1 norms of one task vector before and after dropping."""
    import torch

    if density >= 1:
        return 1.0
    segment = prepared.segments[i]
    draws = cast("Tensor", prepared.draws)
    after = 0.0
    for inner in chunks(segment.stop - segment.start):
        part = slice(segment.start + inner.start, segment.start + inner.stop)
        kept = torch.empty_like(prepared.tau[k, part])
        sparsify.drop_into(prepared.tau[k, part], draws[k, part], density, kept)
        after += float(kept.abs_().sum())
    before = prepared.mass[k][i]
    return 1.0 if min(before, after) < NO_NORM else before / after


def _fill_majority(
    row: _Row, prepared: _Prepared, values: Values, part: slice, signs: Tensor
) -> None:
    """Give the zeros among a part's signs the sign that most of their tensor's entries elected."""
    for (start, stop), segment in zip(_within(prepared, part), prepared.segments, strict=True):
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


def _parameters(row: _Row, normalize: bool, density: float) -> tuple[Parameter, ...]:
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
    name: str, row: _Row, paper: str, summary: str, *, normalize: bool = False, density: float = 1
) -> Operator:
    return Operator(
        name=name,
        paper=paper,
        summary=summary,
        parameters=_parameters(row, normalize, density),
        needs_base=True,
        min_sources=1,
        max_sources=None,
        prepare=partial(_prepare, row),
        apply=partial(_apply, row),
    )


TASK_VECTORS = (
    _operator(
        "task_arithmetic",
        _Row("none", consensus=False),
        "Ilharco et al. 2023, https://arxiv.org/abs/2212.04089 (sec. 2)",
        "Base plus a weighted sum of task vectors",
    ),
    _operator(
        "ties",
        _Row("magnitude", consensus=True),
        "Yadav et al. 2023, https://arxiv.org/abs/2306.01708 (algorithm 1)",
        "Trim task vectors, elect signs, average the entries that agree",
        normalize=True,
        density=0.2,
    ),
    _operator(
        "dare_linear",
        _Row("random", consensus=False),
        "Yu et al. 2024, https://arxiv.org/abs/2311.03099 (eq. 2 to 4)",
        "Drop entries of task vectors at random, rescale the rest, sum",
        density=0.5,
    ),
    _operator(
        "dare_ties",
        _Row("random", consensus=True),
        "Yu et al. 2024, https://arxiv.org/abs/2311.03099 (eq. 2 to 4), with TIES' signs",
        "Drop entries of task vectors at random, rescale, sum those that agree in sign",
        density=0.5,
    ),
)
