"""Answers beside those that a run has recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.errors import Problem
from evomerge.records import ItemId, Responses

Place = tuple[int, int]  # the recorded job, and the position in it

LAST_BITS = 1e-5  # times the value (at least 1): what another batch may change
CHANGED = 1e-4  # what another processor, version or way of scoring may
NUM_SHOWN = 5  # differences, of each task


class Comparison:
    """Answers beside the recorded ones.

    asked: items. different: item -> (what, expected, got). inexact: those that are the recorded
    ones but for last bits.
    """

    def __init__(self, recorded: Sequence[Responses], places: Mapping[ItemId, Place]) -> None:
        self._recorded = recorded
        self._places = places
        self.asked: set[ItemId] = set()
        self.different: dict[ItemId, tuple[str, Any, Any]] = {}
        self.inexact: set[ItemId] = set()

    @property
    def jobs(self) -> set[int]:
        """The recorded jobs of the items that differ."""
        return {self._places[item][0] for item in self.different}

    def add(self, got: Responses, again: int | None = None, tolerance: float = LAST_BITS) -> None:
        """Compare; an item that is asked again counts anew.

        again: the recorded job whose batches these are.
        tolerance: times the value (at least 1): what counts as last bits; 0 where those count.
        """
        for position, item in enumerate(got.items.tolist()):
            job, place = self._places[item]
            if again is not None and job != again:
                continue  # it was answered before that job
            self.asked.add(item)
            self.different.pop(item, None)
            self.inexact.discard(item)
            expected = self._recorded[job]
            for name in expected.columns.keys() & got.columns.keys():
                was = float(expected.columns[name][place])
                now = float(got.columns[name][position])
                if was == now or (np.isnan(was) and np.isnan(now)):
                    continue
                if _near(was, now, tolerance):
                    self.inexact.add(item)
                elif item not in self.different or name == "score":
                    self.different[item] = (name, was, now)
            if expected.texts is not None and got.texts is not None:
                texts = expected.texts[place], got.texts[position]
                if texts[0] != texts[1]:
                    self.different[item] = ("text", *texts)
        self.inexact |= self.different.keys()

    def problems(self, task: str, otherwise: Sequence[str]) -> list[Problem]:
        """The first differences, in words."""
        found = sorted(self.different.items())
        hint = f"{len(found)} of {len(self.asked)} answers differ"
        hint += f"; other than in the run: {'; '.join(otherwise)}" if otherwise else ""
        return [
            Problem(
                f"task {task}, item {item}",
                f"its {what} is not what the merge gave: expected {was!r:.200}, got {now!r:.200}",
                hint,
            )
            for item, (what, was, now) in found[:NUM_SHOWN]
        ]


def _near(was: float, now: float, tolerance: float) -> bool:
    """Whether only last bits differ; what is counted has none."""
    return not was.is_integer() and abs(was - now) <= tolerance * max(1.0, abs(was))


def places_of(recorded: Sequence[Responses]) -> dict[ItemId, Place]:
    """Where each item's answer stands; the first one counts."""
    places: dict[ItemId, Place] = {}
    for job, responses in enumerate(recorded):
        for place, item in enumerate(responses.items.tolist()):
            places.setdefault(item, (job, place))
    return places
