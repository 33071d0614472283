"""With which population and step size a run of CMA-ES begins again."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

SMALLEST = 3  # candidates a generation; pycma cannot do with less


class Start(NamedTuple):
    """How a run begins."""

    population: int
    sigma: float


class Restarts:
    """IPOP: every restart has twice the population. BIPOP: there are short ones in between.

    Auger & Hansen, A Restart CMA Evolution Strategy With Increasing Population Size, CEC 2005;
    Hansen, Benchmarking a BI-Population CMA-ES on the BBOB-2009 Function Testbed, GECCO 2009. A
    restart of BIPOP belongs to the regime, large or small, that has used fewer evaluations so far,
    the first run to none; of equals it is the large one. Small populations are drawn between the
    first one's size and half of the last large one's, step sizes between a hundredth of the first
    and the first; such a run may use half the evaluations of the last large one.

    count: restarts with twice the population; small ones are not counted.
    """

    def __init__(
        self,
        kind: Literal["ipop", "bipop"],
        count: int,
        first: Start,
        generator: np.random.Generator,
    ) -> None:
        self._kind = kind
        self._left = count
        self._first = first
        self._generator = generator
        self._large = first.population
        self._is_small: bool | None = None  # None: the first run
        self._used = {True: 0, False: 0}
        self._spent = 0  # by this run
        self._spent_by_large = 0  # by the last large run

    def spend(self, evaluations: int) -> bool:
        """Count evaluations of this run; whether its budget is spent."""
        self._spent += evaluations
        return bool(self._is_small) and self._spent >= self._spent_by_large / 2

    def next(self) -> Start | None:
        """How the next run begins; None where there is to be none."""
        if self._is_small is not None:
            self._used[self._is_small] += self._spent
        if self._is_small is False:
            self._spent_by_large = self._spent
        self._spent = 0
        if self._kind == "bipop" and self._used[True] < self._used[False]:
            return self._start_small()
        if self._left == 0:
            return None
        self._left -= 1
        self._large *= 2
        self._is_small = False
        return Start(self._large, self._first.sigma)

    def _start_small(self) -> Start:
        self._is_small = True
        population, sigma = self._first
        size, step = self._generator.random(2)
        drawn = population * (self._large / (2 * population)) ** (size**2)  # section 2 of the paper
        return Start(max(int(drawn), SMALLEST), float(sigma * 10 ** (-2 * step)))
