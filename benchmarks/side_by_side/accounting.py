"""Where the time of a search goes: candidates, the model's forward passes, and all the rest."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moment:
    """What the clocks show: seconds that have passed, and seconds that processors have worked."""

    wall_s: float
    processor_s: float

    @classmethod
    def now(cls, elsewhere_s: float = 0.0) -> Moment:
        """elsewhere_s: what processes that work for this one have used so far."""
        return cls(time.perf_counter(), time.process_time() + elsewhere_s)

    def since(self, earlier: Moment) -> Moment:
        """What has passed in between."""
        return Moment(self.wall_s - earlier.wall_s, self.processor_s - earlier.processor_s)

    def by(self, clock: str) -> float:
        """Seconds by one of the two clocks: `wall` or `processor`."""
        return {"wall": self.wall_s, "processor": self.processor_s}[clock]

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.wall_s + other.wall_s, self.processor_s + other.processor_s)


CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}


class ForwardTimer:
    """Adds up the seconds inside the forward passes of the models that are given to it."""

    def __init__(self, clock: str) -> None:
        self.seconds = 0.0
        self._now = CLOCKS[clock]

    def watch(self, module: Any) -> None:
        """Count what this module's `forward` takes from now on."""
        plain = module.forward

        @functools.wraps(plain)  # generation looks at its arguments
        def forward(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return plain(*args, **kwargs)
            finally:
                self.seconds += self._now() - start

        module.forward = forward


@dataclass(frozen=True)
class Account:
    """A search's time, until its best merge was known.

    clock: by which a search is ended, and by which its time is told.
    num_candidates: merged, loaded and scored; references do not count, their time does.
    spent: from the first thing that a search of this kind has to do.
    forward_s: of it, inside the model's forward passes.
    """

    clock: str
    num_candidates: int
    spent: Moment
    forward_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.spent.by(self.clock)

    @property
    def per_minute(self) -> float:
        """Candidates a minute."""
        return 60 * self.num_candidates / self.seconds

    @property
    def forward_each_s(self) -> float:
        """Seconds a candidate inside the forward passes."""
        return self.forward_s / max(1, self.num_candidates)

    @property
    def outside_each_s(self) -> float:
        """Seconds a candidate that are not the model's; of a search without candidates, all."""
        return (self.seconds - self.forward_s) / max(1, self.num_candidates)

    @property
    def share_of_processor(self) -> float:
        """1 where one thread had a processor for itself all the time."""
        return self.spent.processor_s / self.spent.wall_s

    def to_json(self) -> dict[str, Any]:
        """The fields, flat."""
        return {
            "clock": self.clock,
            "candidates": self.num_candidates,
            "wall_s": self.spent.wall_s,
            "processor_s": self.spent.processor_s,
            "forward_s": self.forward_s,
        }

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Account:
        """What `to_json` has made."""
        spent = Moment(data["wall_s"], data["processor_s"])
        return cls(data["clock"], data["candidates"], spent, data["forward_s"])

    def __add__(self, other: Account) -> Account:
        if self.clock != other.clock:
            raise ValueError(f"accounts by two clocks: {self.clock} and {other.clock}")
        return Account(
            self.clock,
            self.num_candidates + other.num_candidates,
            self.spent + other.spent,
            self.forward_s + other.forward_s,
        )


Scores = Mapping[str, Sequence[float]]  # task -> a score for each held-out item


def mean_of(scores: Scores) -> float:
    """The mean of the tasks' means."""
    return float(np.mean([np.mean(values) for values in scores.values()]))


def paired(pairs: Sequence[tuple[Scores, Scores]]) -> tuple[float, float, float]:
    """Mean difference of pairs (first minus second) and its 95 % interval.

    Several searches: by Student's t over them, so that their luck is in it. One: over the items
    alone, what these two searches found.

    pairs: one for each search; both sides have answered the same items in the same order.

    Raises:
        ValueError: they have not.
    """
    from scipy import stats

    means, variance = [], 0.0
    for first, second in pairs:
        if {t: len(v) for t, v in first.items()} != {t: len(v) for t, v in second.items()}:
            raise ValueError("pairs of scores: both sides must have answered the same items")
        differences = [np.subtract(first[task], second[task]) for task in first]
        means.append(float(np.mean([each.mean() for each in differences])))
        variance = sum(float(d.var(ddof=1)) / len(d) for d in differences) / len(differences) ** 2
    value, reach = float(np.mean(means)), 1.96 * math.sqrt(variance)
    if len(means) > 1:
        reach = float(stats.t.ppf(0.975, len(means) - 1) * stats.sem(means))
    return value, value - reach, value + reach
