"""How much each gene says of the scores: permutation importance of an additive model.

The model is a ridge regression of the ranks of scores on each gene's coordinate and its square, so
that a gene may have a best value in the middle. It is fitted on four fifths of the candidates and
asked about the rest; a gene's importance is how much worse it predicts those ranks when the gene's
values are shuffled among them (Breiman, Random Forests, 2001, section 10; Fisher, Rudin & Dominici
2019, arXiv:1801.01489): half of what the mean squared error grows by, which is the variance of the
gene's own part where the model is right. Ranks, because one terrible candidate would decide a fit
of scores.

Not covered: what two genes do together, and the searcher's choice of candidates: near its best it
has looked more closely, and genes that it moved together share what they explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

FOLDS = 5
SHUFFLES = 8
MAX_CANDIDATES = 2000  # of more, evenly some: fitting would take long
FEWEST = 30  # candidates, below which nothing is said
PENALTIES = 10.0 ** np.arange(-3, 5)
SEED = 0  # of the folds and the shuffles: one ledger, one report


@dataclass(frozen=True)
class Effects:
    """What genes say of the scores.

    explained: the share of the variance of ranks that the model explains, of candidates it has not
        seen. importance: the share of each gene, shape (genes,); low, high: its 95 % interval over
        candidates. trend: the rank correlation with the score, shape (genes,).
    """

    num_candidates: int
    explained: float
    importance: Floats
    low: Floats
    high: Floats
    trend: Floats


def effects(genomes: ArrayLike, scores: ArrayLike) -> Effects | None:
    """What genes say of scores; None where there are too few candidates, or nothing varies.

    genomes: shape (candidates, genes), coordinates in the unit cube; scores: shape (candidates,).
    """
    points, values = np.asarray(genomes, np.float64), np.asarray(scores, np.float64)
    if len(points) > MAX_CANDIDATES:
        kept = np.linspace(0, len(points) - 1, MAX_CANDIDATES).round().astype(int)
        points, values = points[kept], values[kept]
    if len(points) < FEWEST or points.ndim != 2 or np.ptp(values) == 0:
        return None
    ranks = rankdata(values)
    target = (ranks - ranks.mean()) / ranks.std()
    columns = _standardised(np.concatenate([points, (points - 0.5) ** 2], axis=1))
    generator = np.random.default_rng(SEED)
    fold_of = generator.permutation(len(points)) % FOLDS
    errors = np.empty(len(points))
    lost = np.empty(points.shape)  # by candidate and gene
    for fold in range(FOLDS):
        held = fold_of == fold
        weights = _ridge(columns[~held], target[~held])
        parts = _parts(columns[held], weights)  # (held, genes)
        gap = target[held] - target[~held].mean() - parts.sum(axis=1)
        errors[held] = gap**2
        lost[held] = _lost(parts, gap, generator)
    mean = lost.mean(axis=0)
    half = 1.96 * lost.std(axis=0, ddof=1) / np.sqrt(len(points))
    return Effects(
        len(points),
        float(1 - errors.mean()),
        mean,
        mean - half,
        mean + half,
        _trends(points, ranks),
    )


def _standardised(columns: Floats) -> Floats:
    spread = columns.std(axis=0)
    result: Floats = (columns - columns.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)
    return result


def _ridge(columns: Floats, target: Floats) -> Floats:
    """Weights by the penalty whose leave-one-out error is least (Golub, Heath & Wahba 1979)."""
    left, sizes, right = _decomposed(columns)
    centred = target - target.mean()
    projected = left.T @ centred
    best, weights = np.inf, np.zeros(columns.shape[1])
    for penalty in PENALTIES * len(columns) / 100:
        shrunk = sizes**2 / (sizes**2 + penalty)
        residual = centred - left @ (shrunk * projected)
        leverage = (left**2) @ shrunk + 1 / len(columns)
        error = float(np.mean((residual / np.maximum(1e-6, 1 - leverage)) ** 2))
        if error < best:
            best = error
            weights = right.T @ (projected * sizes / (sizes**2 + penalty))
    return weights


def _decomposed(columns: Floats) -> tuple[Floats, Floats, Floats]:
    """The singular value decomposition, by the smaller of the two Gram matrices: that is faster."""
    is_high = columns.shape[0] >= columns.shape[1]
    squares, vectors = np.linalg.eigh(columns.T @ columns if is_high else columns @ columns.T)
    kept = squares > 1e-10 * max(squares.max(), 1e-300)
    sizes, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    if is_high:
        return columns @ vectors / sizes, sizes, vectors.T
    return vectors, sizes, (vectors.T @ columns) / sizes[:, None]


def _parts(columns: Floats, weights: Floats) -> Floats:
    """What each gene adds to each prediction, shape (candidates, genes)."""
    both = columns * weights
    half = both.shape[1] // 2
    result: Floats = both[:, :half] + both[:, half:]
    return result


def _lost(parts: Floats, gap: Floats, generator: np.random.Generator) -> Floats:
    """Half of what squared errors grow by with a gene shuffled, shape (candidates, genes)."""
    total = np.zeros_like(parts)
    for _ in range(SHUFFLES):
        moved = parts - parts[generator.permutation(len(parts))]
        total += (gap[:, None] + moved) ** 2 - gap[:, None] ** 2
    result: Floats = total / (2 * SHUFFLES)
    return result


def _trends(points: Floats, ranks: Floats) -> Floats:
    """Spearman's rank correlation of each gene with the score; 0 where a gene never varies."""
    of_genes = _standardised(rankdata(points, axis=0))
    result: Floats = of_genes.T @ _standardised(ranks[:, None])[:, 0] / len(ranks)
    return result


def usable(genomes: Sequence[object], num_genes: int) -> bool:
    """Whether genomes are vectors of numbers, all of one length."""
    if not genomes or not isinstance(genomes[0], list):
        return False
    length = num_genes or len(genomes[0])
    return all(
        isinstance(g, list) and len(g) == length and all(isinstance(v, int | float) for v in g)
        for g in genomes
    )
