"""Nested MAP: many experts merged in pairs, each pair a problem of two coefficients.

Li et al. 2024, arXiv:2406.07529, section on nested merging. What is merged is a *share*: a way from
the base to an expert and beyond, of which a candidate goes so far. A pair is a chart of two shares.
Its quadratics come from 12 points; the point of it that they predict to be best by the preference
is a share in its turn. The last pair's chart is left for its front to be found. n experts take
about 1 + n + 9 (n - 1) measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Gene
from evomerge.records import Facts, Genome
from evomerge.searchers.charts import Chart, base_genome, farthest, shares, single_genes
from evomerge.searchers.map_rounds import Surrogate
from evomerge.searchers.surrogate_front import sobol

Array = NDArray[np.float64]
FitChart = Callable[[Chart], Surrogate]

DESIGN = 12  # (T + 1)(T + 2) points for T = 2
GRID = 101  # points a side, where a pair's best is looked for


@dataclass
class Share:
    """A way from the base, and the objectives that it is merged for."""

    way: Array  # (genes,): what coordinate 1 adds to the base
    at: float  # the coordinate where it was best, or of the expert alone
    objectives: frozenset[int] = frozenset()


@dataclass
class Nesting:
    """Levels of pairs, from single experts to two shares."""

    base: Array
    shares: list[Share]
    preference: Array
    chart: Chart = field(init=False)  # of the last pair, once there is one
    pairs: list[tuple[Share, Share]] = field(default_factory=list)
    alone_asked: bool = False

    def breed(self, fit_chart: FitChart, generator: np.random.Generator) -> list[Genome]:
        """What is measured next; nothing once two shares are left and their design is measured."""
        if not self.alone_asked:
            self.alone_asked = True
            alone = [np.clip(self.base + s.at * s.way, 0, 1).tolist() for s in self.shares]
            return [*alone, self.base.tolist()]
        if self.pairs:
            merged = [self._merge(pair, fit_chart) for pair in self.pairs]
            if len(self.pairs) == 1 and len(self.shares) == 2:
                self.chart = self._chart_of(self.pairs[0])
                return []
            paired = {id(share) for pair in self.pairs for share in pair}
            self.shares = [*merged, *(s for s in self.shares if id(s) not in paired)]
        else:
            self._assign(fit_chart)
        self.pairs = self._closest_pairs(fit_chart)
        return [genome for pair in self.pairs for genome in self._design(pair, generator)]

    def _chart_of(self, pair: tuple[Share, Share]) -> Chart:
        return Chart(self.base, np.array([share.way for share in pair]))

    def _design(self, pair: tuple[Share, Share], generator: np.random.Generator) -> list[Genome]:
        """Points of a pair: each share alone as it was best, both so, and Sobol points.

        The base and experts alone were measured, and count as the others of the 12.
        """
        first, second = pair
        known = [[first.at, second.at]]
        known += [[share.at * (s is share) for s in pair] for share in pair if share.at not in (0,)]
        points = np.vstack([known, sobol(DESIGN - 1 - len(known), 2, generator)])
        return self._chart_of(pair).genomes(points)

    def _merge(self, pair: tuple[Share, Share], fit_chart: FitChart) -> Share:
        """The share through that point of a pair's chart that is predicted to be best."""
        objectives = pair[0].objectives | pair[1].objectives
        chart = self._chart_of(pair)
        _, models, scales = fit_chart(chart)
        best = np.array([share.at for share in pair])
        if models:
            side = np.linspace(0.0, 1.0, GRID)
            grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)[1:]
            counted = [k for k in range(len(models)) if not objectives or k in objectives]
            weights = self.preference[counted]
            if not weights.any():
                weights = np.ones(len(counted))
            total = sum(
                w * models[k].predict(grid) / scales[k]
                for k, w in zip(counted, weights, strict=True)
            )
            best = grid[int(np.argmax(total))]
        direction = best @ chart.axes
        way = farthest(self.base, direction)
        moved = int(np.argmax(np.abs(way)))
        return Share(way, float(direction[moved] / way[moved]), objectives)

    def _alone(self, fit_chart: FitChart) -> Array:
        """What each share is predicted to score alone, (shares, objectives); 0 where unknown."""
        found = np.zeros((len(self.shares), len(self.preference)))
        for row, share in zip(found, self.shares, strict=True):
            _, models, _ = fit_chart(Chart(self.base, share.way[None]))
            for k, model in enumerate(models):
                row[k] = float(model.predict(np.array([[share.at]]))[0])
        return found

    def _assign(self, fit_chart: FitChart) -> None:
        """Each objective belongs to the expert that does best at it alone."""
        for objective, owner in enumerate(self._alone(fit_chart).argmax(axis=0).tolist()):
            share = self.shares[owner]
            share.objectives = share.objectives | {objective}

    def _closest_pairs(self, fit_chart: FitChart) -> list[tuple[Share, Share]]:
        """Pairs of shares that do equally well alone, the closest first, as the published code."""
        scores = self._alone(fit_chart) @ self.preference
        left = list(range(len(self.shares)))
        pairs = []
        while len(left) > 1:
            first, second = min(
                ((i, j) for i in left for j in left if i < j),
                key=lambda ij: (abs(scores[ij[0]] - scores[ij[1]]), ij),
            )
            pairs.append((self.shares[first], self.shares[second]))
            left = [i for i in left if i not in (first, second)]
        return pairs


def start_nesting(
    genes: Sequence[Gene], facts: Facts, preference: Sequence[float] | None
) -> Nesting:
    """The experts' shares; each gene's, where no expert can be said alone.

    Raises:
        ConfigurationError: a gene cannot be 0, so that there is no base; a gene belongs to several
            experts, so that their shares cannot be merged; or there is one share alone.
    """
    base = base_genome(genes)
    found: list[Array] | str
    if base is None:
        found = "a gene cannot be 0 (or is logarithmic), so that the space has no base"
    elif facts.experts:
        found = shares(base, facts.experts)
    else:
        found = single_genes(base)
    if not isinstance(found, str) and len(found) < 2:
        found = "it has one gene, and one expert cannot be paired"
    if isinstance(found, str) or base is None:
        raise ConfigurationError(
            Problem(
                "searcher.variant (map_pareto)",
                f"nested merges each expert's own coefficients in pairs, and in this space {found}",
                "use coefficients per expert whose range has 0 in it, or variant: plain",
            )
        )
    alone: Mapping[int, Array] = dict(enumerate(np.asarray(facts.experts, dtype=np.float64)))
    shares_found = []
    for number, way in enumerate(found):
        at = 1.0
        if number in alone:
            moved = int(np.argmax(np.abs(way)))
            at = float((alone[number] - base)[moved] / way[moved])
        shares_found.append(Share(way, at))
    weights = np.ones(len(facts.objectives)) if preference is None else np.asarray(preference)
    return Nesting(base, shares_found, weights / weights.sum())
