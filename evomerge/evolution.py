"""Evolving small networks in memory, with mutation: M2N2 where parameters are vectors.

    def score(vector):  # float32, (total,) -> how good each item is answered, (items,)
        return (predict(vector, images) == labels).astype(float)

    evolution = Evolution([first, second], score, noise_std=0.01, seed=0)
    evolution.run(10_000)
    network = evolution.vector(evolution.best())

A search of merges (`evomerge run` with the searcher `m2n2`) keeps tables of what comes from which
model; a child that has noise of its own is no such table. So this is for networks of which a few
dozen fit into memory. There is no ledger: a run costs what its scoring costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.search_spaces.dense import Dense
from evomerge.search_spaces.lineage import Angle
from evomerge.searchers.niche_archive import NicheArchive

Score = Callable[[NDArray[np.float32]], ArrayLike]


class Evolution:
    """M2N2 (Abrantes et al. 2025, arXiv:2508.16204), one child at a time.

    The same seed gives the same run, as far as `score` gives the same scores: a child's random
    numbers are made from the seed and its own number.

    Args:
        seeds: flattened parameters to begin with, each of shape (total,); they are scored first.
        score: float32 parameters, shape (total,), which must not be changed -> scores of the items,
            shape (items,), higher is better. Who has a score that is not finite never enters.
        archive: members that are kept.
        alpha: how much an item is shared; 0 is no competition.
        attraction: whether the second parent is drawn by what it can do and the first cannot.
            Without it and with alpha 0, this is a plain genetic algorithm.
        split: whether children have a split point.
        crossover: without it a child is its first parent, with noise.
        angle: of SLERP; see `search_spaces.lineage.cross`.
        noise_std: of the noise that is added to every parameter of every child. The paper has .01
            from scratch, and none from trained networks.
        seed: decides every random choice.
    """

    def __init__(
        self,
        seeds: Sequence[ArrayLike],
        score: Score,
        *,
        archive: int = 20,
        alpha: float = 1.0,
        attraction: bool = True,
        split: bool = True,
        crossover: bool = True,
        angle: Angle = "whole",
        noise_std: float = 0.0,
        seed: int = 0,
    ) -> None:
        vectors = [np.asarray(vector, np.float32) for vector in seeds]
        shapes = {vector.shape for vector in vectors}
        if len(shapes) != 1 or vectors[0].ndim != 1:
            raise ValueError(f"seeds: expected vectors of one length, got {sorted(shapes)}")
        if not np.isfinite(np.stack(vectors)).all() or archive < 1 or not 0 <= alpha <= 4:
            raise ValueError("expected finite seeds, an archive of 1 or more, alpha from 0 to 4")
        self._seeds, self._score = vectors, score
        self._attraction, self._split, self._crossover = attraction, split, crossover
        self._noise_std, self._seed = noise_std, seed
        self._dense = Dense(angle)
        self._archive: NicheArchive[int] = NicheArchive(archive, alpha)
        self.num_evaluations = 0  # networks that were scored; the next one has this number
        self.num_failed = 0  # of them, those with a score that was not finite

    def run(self, evaluations: int) -> None:
        """Go on until so many networks are scored in all, the seeds among them.

        Raises:
            RuntimeError: no seed could be scored.
        """
        while self.num_evaluations < evaluations:
            self._step(self.num_evaluations)
            self.num_evaluations += 1

    @property
    def members(self) -> tuple[int, ...]:
        """Who is alive, by number in the order of scoring."""
        return self._archive.members

    def scores(self, member: int) -> NDArray[np.float64]:
        """A member's scores, shape (items,)."""
        return self._archive.scores(member)

    def vector(self, member: int) -> NDArray[np.float32]:
        """A member's parameters, shape (total,), which must not be changed."""
        return self._dense.vector(member)

    def best(self) -> int:
        """The member with the best mean score; of equal ones the first in the archive.

        Raises:
            RuntimeError: nobody is alive.
        """
        if not self.members:
            raise RuntimeError("nobody has been scored yet")
        return max(self.members, key=lambda member: float(self.scores(member).mean()))

    def _step(self, number: int) -> None:
        if number < len(self._seeds):
            self._dense.seed(number, self._seeds[number])
        else:
            self._breed(number)
        scores = np.asarray(self._score(self._dense.vector(number)), np.float64)
        if not np.isfinite(scores).all():
            self.num_failed += 1
            self._dense.drop(number)
            return
        left = self._archive.insert(number, scores)
        if left is not None:
            self._dense.drop(left)

    def _breed(self, number: int) -> None:
        if not self.members:
            raise RuntimeError("no seed could be scored: all of their scores are not finite")
        # All of a child's random numbers; of numpy's bit generators the fastest for the noise.
        lots = np.random.Generator(np.random.SFC64((self._seed, number)))
        first, second = self._archive.parents(lots, self._attraction)
        mix, split = float(lots.random()), int(lots.integers(len(self._seeds[0])))
        self._dense.birth(
            number,
            first,
            second if self._crossover else first,
            mix,
            split if self._split else len(self._seeds[0]),
            self._noise_std,
            lots,
        )
