"""The sections of a report, in the order in which they are read."""

from __future__ import annotations

from evomerge.results.account import Account
from evomerge.results.report.calibration import calibration
from evomerge.results.report.coefficients import recipe_of_best
from evomerge.results.report.configuration import configuration, reproduction
from evomerge.results.report.convergence import convergence
from evomerge.results.report.failures import failures
from evomerge.results.report.front import front
from evomerge.results.report.importance import importance
from evomerge.results.report.known import Known
from evomerge.results.report.parts import Section
from evomerge.results.report.summary import summary
from evomerge.results.report.time_spent import time_spent

ALL = (
    summary,
    front,
    convergence,
    recipe_of_best,
    importance,
    calibration,
    time_spent,
    failures,
    configuration,
    reproduction,
)


def sections(account: Account) -> list[Section]:
    """Those that a run has something to say in."""
    known = Known(account)
    return [section for make in ALL if (section := make(known)) is not None]
