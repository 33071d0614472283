"""Archives of elites: of everybody with a like behaviour, who is best.

An archive is a grid over behaviours; each of its cells keeps the candidate of the highest quality.
Qualities and behaviours are both objectives here, or the mean of the objectives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.records import CandidateId, Evaluation
from evomerge.searchers.order import is_scored

CELLS = 225  # of an archive by default: CycleQD's 15 x 15
CELLS_PER_AXIS = 30  # at most, by default
MOST_CELLS = 1_000_000  # an archive sets aside memory for every cell

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Axes:
    """What an archive is made of: names of objectives. No quality means the measured ones' mean."""

    quality: str | None
    behaviour: tuple[str, ...]


@dataclass(frozen=True)
class Elites:
    """Who is in an archive, in the order of the cells."""

    ids: NDArray[np.int64]  # (elites,); below 0 for those of another run
    cells: NDArray[np.int64]  # (elites,)
    genomes: Floats  # (elites, genes)
    qualities: Floats  # (elites,)
    behaviours: Floats  # (elites, axes), in the objectives' own units
    means: Floats  # (elites,), of the measured objectives

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Row:
    """What is remembered of a candidate that has a score."""

    genome: Floats  # (genes,)
    values: Floats  # (objectives,)
    mean: float
    rung: int


class Archives:
    """Archives of the same candidates, which differ in what is quality and what behaviour.

    They are a function of what was told, and of nothing else: in a cell of the grid stands who has
    the highest quality of all that fall into it, the oldest of equals. So a candidate that is told
    again stands where it would, had it been told so at once. Who failed or violates the space is in
    no archive, nor is who was dropped at a lower rung than the highest that somebody reached: it
    lost, on fewer items, to those who got there.

    Where a range is not given it is learnt: it is that of everybody who may be in an archive. When
    it grows, all of them are sorted into the new cells. Values outside a range that is given fall
    into the outermost cells.

    Candidates of another run (`warm_start`) count as the oldest; of those the highest rung of
    that run enters, whatever the rungs of this one.

    The grids are those of pyribs (`GridArchive`), of which nothing random is used.
    """

    def __init__(
        self,
        axes: Sequence[Axes],
        objectives: Sequence[str],
        cells: int,
        ranges: Mapping[str, Sequence[float]],
        warm_start: Sequence[Evaluation] = (),
    ) -> None:
        self._axes = tuple(axes)
        self._objectives = tuple(objectives)
        self._cells = cells
        self._given = {self._objectives.index(name): ranges[name] for name in ranges}
        self._rows: dict[CandidateId, _Row] = {}  # this run's
        self._newest = -1  # of this run's, with a score or without
        self._strangers = self._read_strangers(warm_start)
        self._rung = 0
        self._bounds: Floats = np.empty(0)  # (2, objectives)
        self._grids: list[Any] = []
        self._refill()

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in evaluations, of new candidates or of known ones."""
        fresh: dict[CandidateId, _Row] = {}
        is_late = any(evaluation.id <= self._newest for evaluation in evaluations)
        for evaluation in evaluations:
            self._newest = max(self._newest, evaluation.id)
            self._rows.pop(evaluation.id, None)
            row = self._read(evaluation)
            if row is not None:
                self._rows[evaluation.id] = fresh[evaluation.id] = row
        if is_late or self._outgrows(fresh.values()):
            self._refill()
        else:
            self._add({i: row for i, row in fresh.items() if row.rung == self._rung})

    def __getitem__(self, index: int) -> Elites:
        data = self._grids[index].data()
        order = np.argsort(data["index"])
        ids = data["solution"][order]
        rows = [self._row(int(i)) for i in ids]
        values = np.array([row.values for row in rows]).reshape(-1, len(self._objectives))
        behaviour = [self._objectives.index(name) for name in self._axes[index].behaviour]
        return Elites(
            ids=ids,
            cells=data["index"][order].astype(np.int64),
            genomes=np.array([row.genome for row in rows]),
            qualities=data["objective"][order],
            behaviours=values[:, behaviour],
            means=np.array([row.mean for row in rows]),
        )

    def _row(self, candidate: CandidateId) -> _Row:
        return self._rows[candidate] if candidate >= 0 else self._strangers[candidate]

    def _read(self, evaluation: Evaluation) -> _Row | None:
        """What is remembered of an evaluation; None where it belongs into no archive."""
        score = evaluation.score
        if score is None or not is_scored(evaluation) or evaluation.violation > 0:
            return None
        if any(name not in score.objectives for name in self._objectives):
            return None  # another run may have had fewer
        values = [score.objectives[name].value for name in self._objectives]
        genome = np.clip(np.asarray(evaluation.genome, dtype=np.float64), 0.0, 1.0)
        return _Row(genome, np.array(values), score.mean, score.rung)

    def _read_strangers(self, told: Sequence[Evaluation]) -> dict[CandidateId, _Row]:
        """Those of another run who got furthest, with ids of their own, below 0 and ascending."""
        latest = {evaluation.id: evaluation for evaluation in told}
        rows = [row for e in latest.values() if (row := self._read(e)) is not None]
        top = max((row.rung for row in rows), default=0)
        rows = [row for row in rows if row.rung == top]
        return {number - len(rows): row for number, row in enumerate(rows)}

    def _outgrows(self, rows: Any) -> bool:
        """Whether the archives must be made anew for some new rows."""
        top = max((row.rung for row in rows), default=self._rung)
        if top != self._rung or not self._bounds.size:
            return top > self._rung or not self._bounds.size
        values = [row.values for row in rows if row.rung == top]
        return bool(values) and not np.array_equal(self._widened(np.array(values)), self._bounds)

    def _widened(self, values: Floats) -> Floats:
        """The ranges, made wide enough for some values; shape (2, objectives)."""
        every = np.vstack([values, self._bounds.reshape(-1, len(self._objectives))])
        bounds = np.array([every.min(axis=0), every.max(axis=0)])
        for objective, given in self._given.items():
            bounds[:, objective] = given
        return bounds

    def _refill(self) -> None:
        """New archives, from everybody who may be in one."""
        from ribs.archives import GridArchive

        self._rung = max((row.rung for row in self._rows.values()), default=0)
        own = {i: row for i, row in self._rows.items() if row.rung == self._rung}
        rows = self._strangers | own
        self._bounds = np.empty(0)
        if rows:
            self._bounds = self._widened(np.array([row.values for row in rows.values()]))
        self._grids = [
            GridArchive(
                solution_dim=(),
                solution_dtype=np.int64,
                dims=[self._cells] * len(axes.behaviour),
                ranges=[(0.0, 1.0)] * len(axes.behaviour),
                seed=0,
            )
            for axes in self._axes
        ]
        self._add(rows)

    def _add(self, rows: Mapping[CandidateId, _Row]) -> None:
        """Put candidates into the archives, the older ones first."""
        if not rows:
            return
        ids = np.array(sorted(rows), dtype=np.int64)
        values = np.array([rows[i].values for i in ids.tolist()])
        means = np.array([rows[i].mean for i in ids.tolist()])
        low, high = self._bounds
        # In units of the ranges, because pyribs moves borders by a fixed 1e-6.
        scaled = np.clip((values - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
        for axes, grid in zip(self._axes, self._grids, strict=True):
            where = [self._objectives.index(name) for name in axes.behaviour]
            what = (
                means if axes.quality is None else values[:, self._objectives.index(axes.quality)]
            )
            grid.add(ids, what, scaled[:, where])


def check_grid(
    kind: str,
    objectives: Sequence[str],
    named: Mapping[str, Sequence[str]],
    cells: int | None,
    num_axes: int,
    ranges: Mapping[str, Sequence[float]],
) -> int:
    """How many cells there are on each axis of an archive.

    named: option -> the objectives that it names; cells: what the user wants, if so.

    Raises:
        ConfigurationError: pyribs is not there, an option names no objective or a range without an
            extent, or one twice, or there are too many cells; with all of it.
    """
    try:
        import ribs.archives  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            Problem(
                "searcher.kind",
                f"{kind} needs the library pyribs, which is not installed",
                "pip install 'evomerge[diversity]'",
            )
        ) from None
    problems = [
        Problem(
            f"searcher.{option} ({kind})",
            f"no objective {name!r}",
            nearest(name, objectives),
        )
        for option, names in {**named, "ranges": list(ranges)}.items()
        for name in names
        if name not in objectives
    ]
    problems += [
        Problem(f"searcher.{option} ({kind})", f"{name!r} is named twice")
        for option, names in named.items()
        for name, count in Counter(names).items()
        if count > 1
    ]
    problems += [
        Problem(f"searcher.ranges.{name} ({kind})", f"expected [low, high], got {list(given)}")
        for name, given in ranges.items()
        if not given[0] < given[1]
    ]
    if cells is None:
        cells = min(CELLS_PER_AXIS, max(2, round(CELLS ** (1 / num_axes))))
    if cells**num_axes > MOST_CELLS:
        problems.append(
            Problem(
                f"searcher.cells ({kind})",
                f"{cells} cells on each of {num_axes} axes are {cells**num_axes:,} "
                f"(at most {MOST_CELLS:,})",
            )
        )
    if problems:
        raise ConfigurationError(problems)
    return cells
