"""The resolved configuration, and how to make the run again."""

from __future__ import annotations

from evomerge.results.report.known import Known
from evomerge.results.report.parts import Code, Part, Section, Table, Text


def reproduction(known: Known) -> Section:
    """The command, the trajectory's digest, versions, sessions and models."""
    run = known.account
    parts: list[Part] = [
        Text(
            "The resolved experiment below, saved as experiment.yaml, makes this run again: the "
            "same candidates in the same order, however many workers there are. Equal runs have "
            "equal digests."
        ),
        Code("Command", "evomerge run experiment.yaml --out again\nevomerge digest again\n"),
        Code("Digest of this run", f"{run.ledger.digest()}\n"),
    ]
    if run.sessions:
        parts.append(Table("Sessions", *_sessions(known)))
        versions = run.sessions[-1].get("versions", {})
        rows = [[name, str(value)] for name, value in versions.items()]
        parts.append(Table("Versions, of the last session", ["package", "version"], rows))
    candidate = known.chosen_candidate
    if candidate is not None and candidate.recipe is not None:
        rows = [
            [name, source.path, source.sha256 or "-"]
            for name, source in candidate.recipe.models.items()
        ]
        parts.append(Table("Models", ["name", "where it was", "sha256 of its tensors"], rows))
    return Section("reproduction", "Reproduction", parts)


def configuration(known: Known) -> Section:
    """The experiment as it ran."""
    text = known.account.experiment_text or "(the run's folder has no experiment file)\n"
    return Section("configuration", "Resolved configuration", [Code("experiment.yaml", text)])


def _sessions(known: Known) -> tuple[list[str], list[list[str]]]:
    columns = ["session", "machine", "processor", "Python", "pool", "budget"]
    rows = []
    for number, session in enumerate(known.account.sessions, start=1):
        pool, budget = session.get("pool", {}), session.get("budget", {})
        rows.append(
            [
                str(number),
                f"{session.get('host', '-')} ({session.get('machine', '-')})",
                f"{session.get('processor', '-')} {session.get('instructions', '')}".strip(),
                str(session.get("python", "-")),
                f"{pool.get('kind', '-')}, workers {pool.get('workers', '-')}",
                ", ".join(f"{key} {value}" for key, value in budget.items()) or "-",
            ]
        )
    return columns, rows
