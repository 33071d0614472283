"""The report of a run: one HTML file that needs nothing else, made from the run's folder alone."""

from __future__ import annotations

from pathlib import Path

from evomerge.files import REPORT, write_text
from evomerge.results.account import Account
from evomerge.results.report.page import page
from evomerge.results.report.sections import sections


def report(account: Account) -> str:
    """A run's report as HTML; equal ledgers have equal reports."""
    return page(account.name, sections(account))


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run; by default into its folder. Returns the file.

    Raises:
        ConfigurationError: there is no run in the folder.
        LedgerDamaged: its ledger cannot be read.
        DiskFull: it does not fit.
    """
    target = folder / REPORT if out is None else out
    with Account(folder) as account:
        write_text(target, report(account))
    return target
