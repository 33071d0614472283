"""The model of `successive`: a tree-structured Parzen estimator that costs the driver little."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.pareto import front_ranks
from evomerge.protocols import SearchSpace
from evomerge.records import CandidateId, Evaluation, Genome
from evomerge.searchers.densities import Densities
from evomerge.searchers.first_points import CANDIDATE, TRIES, first_new
from evomerge.searchers.kernels import Array, Column
from evomerge.searchers.order import is_scored
from evomerge.searchers.parameters import Parameters
from evomerge.searchers.standing import standing
from evomerge.searchers.surrogate_front import most_volume

MOST_GOOD = 25  # with one objective
MOST_BAD = 300  # the latest


class ParzenModel:
    """The good and the bad of what is told, as densities, and genomes likelier good than bad.

    Bergstra, Bardenet, Bengio & Kegl, Algorithms for Hyper-Parameter Optimization, NeurIPS 2011,
    with the choices of optuna (Watanabe 2023, arXiv:2304.11127), and for several objectives those
    of Ozaki, Tanigaki, Watanabe, Nomura & Onishi, JAIR 73 (2022). Optuna's own TPE, which `tpe`
    asks, finds as good candidates in ten to thirty times the time.

    The best tenth is good: 25 at most with one objective; with several, front after front, and of
    the last one those that together dominate most. Only who has a score of the highest rung and
    violates nothing is compared by value; the others come after, in the order of `standing`. Who
    has no score is bad, and so are the outstanding. Unlike optuna, it lets go of all but the latest
    300 bad points, and finds bandwidths anew with every tenth more of them, rather than each time.

    Args:
        jointly: whether genes are modelled together that matter together, rather than one by one.
        samples: draws from the good, of which the likeliest good is taken.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        num_objectives: int,
        jointly: bool,
        samples: int,
    ) -> None:
        import scipy.special  # noqa: F401  (heavy: not in the middle of a search)
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        self.parameters = Parameters(space)
        self._seed = seed
        self._num_objectives = num_objectives
        sizes, unordered = self.parameters.sizes, self.parameters.unordered
        columns = [Column(size, not names) for size, names in zip(sizes, unordered, strict=True)]
        groups = self.parameters.groups() if jointly else [[i] for i in range(len(columns))]
        self._densities = Densities(columns, groups, samples)
        self._blas = ThreadpoolController().select(user_api="blas")
        self._rows: dict[CandidateId, tuple[Genome, Array]] = {}
        self.is_empty = True  # nothing is known that has a score

    def learn(self, known: Sequence[Evaluation], seen: Sequence[Genome]) -> None:
        """Forget all else, and know these.

        seen: genomes that need not be proposed again.
        """
        self._seen = seen
        self._num_avoided = 0
        scored = [i for i, evaluation in enumerate(known) if is_scored(evaluation)]
        self.is_empty = not scored
        if self.is_empty:
            return
        points = np.array([self._row(evaluation) for evaluation in known])
        best = best_tenth([known[i] for i in scored], self._num_objectives)
        is_good = np.zeros(len(known), dtype=bool)
        is_good[np.array(scored)[best]] = True
        with self._blas.limit(limits=1):  # sums depend on the number of threads
            self._densities.learn(points[is_good], points[~is_good][-MOST_BAD:])

    def propose(self, number: int, waiting: Sequence[Genome]) -> Genome:
        """The next genome; a random one where nothing has a score, or all proposals were seen.

        waiting: what is outstanding; it only grows until `learn` is called again.
        """
        return self._propose(number, waiting, 0 if self.is_empty else TRIES)

    def random(self, number: int, waiting: Sequence[Genome]) -> Genome:
        """The same, but random."""
        return self._propose(number, waiting, 0)

    def _propose(self, number: int, waiting: Sequence[Genome], tries: int) -> Genome:
        likely = (self._likely(number, attempt, waiting) for attempt in range(tries))
        seen = [*self._seen, *waiting] if self.parameters.is_finite else []
        return first_new(likely, self.parameters, self._seed, number, seen)

    def _likely(self, number: int, attempt: int, waiting: Sequence[Genome]) -> Genome:
        seeds = np.random.SeedSequence([self._seed, CANDIDATE, number, attempt])
        generator = np.random.default_rng(seeds)
        sizes = self.parameters.sizes

        def suggest(i: int) -> float | int:
            coordinate, size = drawn(i), sizes[i]
            return coordinate if size is None else min(int(coordinate * size), size - 1)

        with self._blas.limit(limits=1):
            for genome in waiting[self._num_avoided :]:
                self._densities.avoid(self.parameters.coordinates(genome))
            self._num_avoided = len(waiting)
            drawn = self._densities.draw(generator)
            return self.parameters.write(suggest, generator)

    def _row(self, evaluation: Evaluation) -> Array:
        """The coordinates of a candidate, remembered."""
        known = self._rows.get(evaluation.id)
        if known is None or known[0] != evaluation.genome:
            known = evaluation.genome, self.parameters.coordinates(evaluation.genome)
            self._rows[evaluation.id] = known
        return known[1]


def best_tenth(evaluations: Sequence[Evaluation], num_objectives: int) -> list[int]:
    """The places of the good, of evaluations that have a score: one at least."""
    values, violations = standing(evaluations, num_objectives)
    count = math.ceil(0.1 * len(evaluations))
    valid, others = np.flatnonzero(violations == 0), np.flatnonzero(violations > 0)
    if num_objectives == 1:
        count = min(count, MOST_GOOD)
        ranked = valid[np.argsort(-values[valid, 0], kind="stable")]
    else:
        ranks = front_ranks(values[valid], enough=count)
        ranked = valid[np.argsort(ranks, kind="stable")]
        if len(valid) > count:
            last = np.sort(ranks)[count - 1]
            before, tied = valid[ranks < last], valid[ranks == last]
            chosen = _most_volume_first(values[tied], count - len(before))
            ranked = np.concatenate([before, tied[chosen]])
    return [*ranked, *others[np.argsort(violations[others])]][:count]


def _most_volume_first(values: Array, count: int) -> Array:
    """The places of so many of a front, those first that add most hypervolume."""
    chosen = most_volume(values, values.min(axis=0)[None], count, np.random.default_rng(0))
    return np.array([*chosen, *np.setdiff1d(np.arange(len(values)), chosen)][:count])
