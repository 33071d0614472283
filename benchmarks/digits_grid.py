"""MAP-Elites on digits, as the published code of M2N2 has it: what M2N2 is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.search_spaces.dense import Dense

Vector = NDArray[np.float32]
SIDE = 10  # cells along each axis


class GridEvolution:
    """A grid of elites, by the shares of odd and of even digits that they get right.

    Parents are drawn by their share of right answers, of two cells where these shares sum to 2 or
    more, else with replacement (so the published code); crossover and noise are M2N2's. A child
    takes its cell if it is empty, or if the child is better than who is there.

    Args:
        seeds: flattened parameters, each of shape (total,).
        score: parameters -> which items are right, (items,).
        odd: which items are of odd digits, (items,).
        noise_std: of what is added to every parameter of every child.
        seed: decides every random choice.
    """

    def __init__(
        self,
        seeds: Sequence[Vector],
        score: Callable[[Vector], NDArray[np.bool_]],
        odd: NDArray[np.bool_],
        *,
        noise_std: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._seeds, self._score, self._odd = list(seeds), score, odd
        self._noise_std, self._seed = noise_std, seed
        self._dense = Dense()
        self._cells: dict[tuple[int, int], tuple[int, float]] = {}  # member and share that is right
        self.num_evaluations = 0

    def run(self, evaluations: int) -> None:
        """Go on until so many networks are scored in all, the seeds among them."""
        while self.num_evaluations < evaluations:
            number = self.num_evaluations
            if number < len(self._seeds):
                self._dense.seed(number, self._seeds[number])
            else:
                self._breed(number)
            self._place(number, self._score(self._dense.vector(number)))
            self.num_evaluations += 1

    def best(self) -> int:
        """The member that gets most right."""
        return max(self._cells.values(), key=lambda member: member[1])[0]

    def vector(self, member: int) -> Vector:
        """A member's parameters, shape (total,)."""
        return self._dense.vector(member)

    def _breed(self, number: int) -> None:
        lots = np.random.Generator(np.random.SFC64((self._seed, number)))
        members, shares = (np.array(column) for column in zip(*self._cells.values(), strict=True))
        chances = shares / shares.sum()
        first, second = lots.choice(members, 2, replace=bool(shares.sum() < 2), p=chances)
        mix, split = float(lots.random()), int(lots.integers(len(self._seeds[0])))
        self._dense.birth(number, int(first), int(second), mix, split, self._noise_std, lots)

    def _place(self, number: int, right: NDArray[np.bool_]) -> None:
        axes = (right[self._odd].mean(), right[~self._odd].mean())
        one, other = (min(int(SIDE * share), SIDE - 1) for share in axes)
        share = float(right.mean())
        before = self._cells.get((one, other))
        if before is not None and before[1] >= share:
            self._dense.drop(number)
            return
        if before is not None:
            self._dense.drop(before[0])
        self._cells[one, other] = (number, share)
