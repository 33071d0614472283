"""What the command line shows while something goes on: drawn on a terminal, plain lines elsewhere.

A search may have a thousand candidates a second, so an event costs the driver a note and no more.
On a terminal a thread takes the notes, four times a second, and draws what they come to; elsewhere
the driver does so itself when it is time for a line.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live

from evomerge.experiment.resumption import Resumed
from evomerge.experiment.wire import Parts
from evomerge.ledger import FINAL, REFERENCES, Ledger
from evomerge.ledger_rows import evaluation_data
from evomerge.panel import Panel, bar, clean, cut, estimate
from evomerge.records import Candidate, Evaluation, Outcome
from evomerge.results.standing import Standing
from evomerge.results.watch import RunWatch

logger = logging.getLogger(__name__)

DRAWN_PER_S = 4
PLAIN_EVERY_S = 10.0  # how often a search speaks where there is no terminal to draw on
MAX_NOTES = 5000  # that wait, where nobody draws
MAX_BARS = 6
MAX_PLAIN_FAILURES = 20  # that are printed where there is no terminal

Note = Callable[[], None]  # what an event changes


class TerminalView:
    """Watches what goes on and shows it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.draws = console.is_terminal and not console.is_dumb_terminal
        self._panel = Panel()
        self._last_drawn: RenderableType = ""
        self._bars: dict[str, tuple[int, int]] = {}  # what -> done, total
        self._notes: deque[Note] = deque()
        self._taking = Lock()
        self._standing: Standing | None = None
        self._phase: str | None = None
        self._knows_references = False
        self._cohorts = 0  # that were asked so far
        self._num_told = 0
        self._num_failed = 0
        self._last_plain = time.monotonic()
        self._live = Live(  # last: it asks at once what there is to draw
            console=console, refresh_per_second=DRAWN_PER_S, get_renderable=self._drawn
        )

    def __enter__(self) -> TerminalView:
        if self.draws:
            self._live.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.draws:
            # The panel of a run that is finished makes room for its table.
            self._live.transient = self._standing is not None and kind is None
            self._live.stop()

    # --- what happens -----------------------------------------------------------------------------

    def progress(self, what: str, done: int, total: int) -> None:
        """A bar for it."""
        if what not in self._bars:
            self._plain(f"{what} ...")
        self._bars[what] = (done, total)

    def started(self, parts: Parts, ledger: Ledger) -> None:
        """Note what the run is to reach, and what of it is there."""
        self._console.print(
            f"{len(parts.config.experts)} experts, {len(parts.space.genes)} genes, "
            f"{parts.config.searcher.kind}, {', '.join(o.name for o in parts.objectives)}; "
            f"{sum(map(len, parts.split.search.values()))} search, "
            f"{sum(map(len, parts.split.fresh.values()))} fresh, "
            f"{sum(map(len, parts.split.holdout.values()))} holdout items"
        )
        if before := parts.start.warm_start:
            self._console.print(f"warm start: {len(before):,} candidates of another run are known")
        with RunWatch(ledger.path.parent) as watch:
            watch.read()
        self._num_told = watch.standing.found.count
        self._cohorts = len(ledger.asked_ids().keys() - {REFERENCES, FINAL})
        self._ledger = ledger
        self._standing = watch.standing
        self._num_failed = self._standing.found.num_failed

    def resumed(self, found: Resumed) -> None:
        """Say what was found."""
        for line in found.lines():
            self._console.print(line)

    def phase(self, name: str) -> None:
        """Say it."""
        if name == "search" and (standing := self._standing) is not None:
            references = self._references()
            self._note(lambda: standing.event("references", REFERENCES, time.time(), references))
        self._phase = name
        self._plain(f"{name} ...")

    def warning(self, text: str) -> None:
        """Say it once, above the panel."""
        self._console.print(f"warning: {clean(text)}")

    def asked(self, candidates: Sequence[Candidate]) -> None:
        """Note who is under way."""
        if (standing := self._standing) is None:
            return
        moment, cohort, ids = time.time(), self._cohorts, [c.id for c in candidates]
        self._cohorts += 1
        self._note(lambda: standing.asked(cohort, moment, ids))

    def measured(self, outcome: Outcome) -> None:
        """Note an answer; say why a candidate failed where nothing is drawn."""
        if outcome.failure is not None:
            self._num_failed += 1
            self._say_failure(outcome)
        if (standing := self._standing) is None:
            return
        moment, cohort = time.time(), COHORTS.get(self._phase or "", 0)
        if cohort == REFERENCES and not self._knows_references:
            self._note_references(standing, moment)
        self._note(lambda: standing.event("measured", cohort, moment, _noted(outcome)))

    def told(self, evaluations: Sequence[Evaluation]) -> None:
        """Note the scores; say where the search is where nothing is drawn."""
        if (standing := self._standing) is None:
            return
        moment = time.time()
        self._num_told = max(self._num_told, 1 + evaluations[-1].id)
        # Cohorts are told in the order in which they were asked.
        self._note(
            lambda: standing.event(
                "told", standing.oldest_open, moment, [evaluation_data(e) for e in evaluations]
            )
        )
        if not self.draws and time.monotonic() - self._last_plain > PLAIN_EVERY_S:
            self._plain(f"{self._num_told} candidates, {self._said()}")

    def finished(self, final: Mapping[str, Any]) -> None:
        """Nothing: whoever has started the run prints its table."""

    def ended(self, why: str) -> None:
        """Nothing: the view ends with its context."""

    # --- how it is shown --------------------------------------------------------------------------

    def _note(self, note: Note) -> None:
        self._notes.append(note)
        if len(self._notes) > MAX_NOTES and not self.draws:
            self._take_notes()

    def _take_notes(self) -> None:
        with self._taking:
            while self._notes:
                self._notes.popleft()()

    def _drawn(self) -> RenderableType:
        """What the terminal shows now; a mistake in drawing must not end a search."""
        try:
            self._last_drawn = self._draw()
        except Exception:
            logger.info("could not be drawn", exc_info=True)
        return self._last_drawn

    def _draw(self) -> RenderableType:
        bars = [(what, *amount) for what, amount in list(self._bars.items())[-MAX_BARS:]]
        if self._standing is None or self._phase is None:
            width, plain = self._console.width, self._console.options.ascii_only
            return Group(*(cut(bar(*each, width, plain), width) for each in bars))
        self._take_notes()
        now = max(time.time(), self._standing.sessions.last)
        facts = self._standing.facts(now, "running", None, self._phase)
        return self._panel.of(facts, [each for each in bars if each[1] < each[2]])

    def _said(self) -> str:
        """The facts of a plain line."""
        self._take_notes()
        if self._standing is None:
            return ""
        found = self._standing.facts(time.time(), "running", None, self._phase)
        facts = [f"{found['item_evaluations']:,} items"]
        if (best := found["incumbent"]) is not None:
            facts.append(f"best {estimate(best['mean'], 1)}")
        if self._num_failed:
            facts.append(f"{self._num_failed} failed")
        return ", ".join(facts)

    def _references(self) -> Any:
        return next((data for _, _, data in self._ledger.events("references")), None)

    def _note_references(self, standing: Standing, moment: float) -> None:
        """They are asked for without a word; the first answer says that they were."""
        self._knows_references = True
        ids = self._ledger.asked_ids().get(REFERENCES, [])
        fingerprints = [self._ledger.candidates.fingerprint(id_) for id_ in ids]
        self._note(lambda: standing.asked(REFERENCES, moment, ids, fingerprints))

    def _say_failure(self, outcome: Outcome) -> None:
        if self.draws or self._num_failed > MAX_PLAIN_FAILURES or outcome.failure is None:
            return
        reason = clean(outcome.failure.reason)
        self._console.print(f"candidate {outcome.job.candidate}: {reason}")
        if self._num_failed == MAX_PLAIN_FAILURES:
            self._console.print(
                "further failures are counted; `evomerge status` tells the last ones"
            )

    def _plain(self, text: str) -> None:
        if not self.draws:
            self._console.print(text)
            self._last_plain = time.monotonic()


COHORTS = {"references": REFERENCES, "finalists": FINAL, "holdout": FINAL}  # by phase


def _noted(outcome: Outcome) -> dict[str, Any]:
    """An outcome as its event in the ledger tells it."""
    return {
        "candidate": outcome.job.candidate,
        "fingerprint": outcome.job.recipe.fingerprint,
        "num_items": outcome.job.num_items,
        "worker": outcome.worker,
        "seconds": (outcome.merge_s, outcome.measure_s, outcome.forward_s),
        "failure": None if outcome.failure is None else {"reason": outcome.failure.reason},
    }
