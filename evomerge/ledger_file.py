"""The ledger's file: its tables, and how it is made and opened."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from evomerge.errors import LedgerDamaged
from evomerge.files import disk_errors, fsync
from evomerge.filesystems import journal_mode
from evomerge.ledger_rows import PAGE_BYTES, database_errors

logger = logging.getLogger(__name__)

FORMAT = 1
PATIENCE_S = 60.0  # without a write-ahead log, readers and the driver wait for each other

LEDGER = "ledger.sqlite"  # its name in a run folder

REFERENCES = -1  # the cohort of what is measured before the search
FINAL = -2  # the cohort of what is measured after it

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, cohort INTEGER, time REAL NOT NULL,
    data TEXT NOT NULL);
CREATE TABLE candidates (
    id INTEGER PRIMARY KEY, event INTEGER NOT NULL REFERENCES events, label TEXT NOT NULL,
    genome TEXT, recipe TEXT, fingerprint TEXT NOT NULL, violations TEXT NOT NULL);
CREATE TABLE responses (
    event INTEGER NOT NULL REFERENCES events, fingerprint TEXT NOT NULL, task TEXT NOT NULL,
    items BLOB NOT NULL, columns TEXT NOT NULL, data BLOB NOT NULL, texts TEXT);
CREATE INDEX events_by_kind ON events (kind, sequence);
"""


def create_file(path: Path, values: Mapping[str, Any]) -> None:
    """A ledger in which nothing has happened; values: of its table `meta`.

    The file appears under its name only when it is complete.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".creating")
    for leftover in (temporary, temporary.with_name(f"{temporary.name}-journal")):
        leftover.unlink(missing_ok=True)
    rows = [(key, json.dumps(value)) for key, value in {**values, "format": FORMAT}.items()]
    size = sum(len(value) for _, value in rows) + 12 * PAGE_BYTES
    with (
        database_errors(path, size),
        closing(sqlite3.connect(temporary, isolation_level=None)) as db,
    ):
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(SCHEMA)
        db.execute("BEGIN")
        db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        db.execute("COMMIT")
    temporary.rename(path)
    fsync(path.parent)


def connected(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection to a file that exists.

    What a driver had written when it was killed is put in order by whoever reads it next, for which
    SQLite has to write: a reader that may not is given a connection that may, and only reads by it.
    """
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}{'?mode=ro' if read_only else ''}",
        uri=True,
        isolation_level=None,
        timeout=PATIENCE_S,
    )
    if read_only:
        try:
            db.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError as error:
            db.close()
            if "readonly" not in str(error):
                raise
            return connected(path, read_only=False)
    return db


def keep_journal(db: sqlite3.Connection, path: Path) -> None:
    """Keep SQLite's journal as the disk wants it; a ledger that was moved there changes over."""
    mode = journal_mode(path)
    try:
        db.execute(f"PRAGMA journal_mode = {mode}")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        logger.warning("%s: somebody reads it, so its journal is not changed to %s", path, mode)


def known_format(path: Path, meta: Mapping[str, str]) -> None:
    """That the rows of `meta` are of a format that this version reads.

    Raises:
        LedgerDamaged: they are of a newer one.
    """
    if (number := int(json.loads(meta["format"]))) > FORMAT:
        raise LedgerDamaged(
            f"{path}: format {number} is newer than this evomerge's {FORMAT}; "
            "the file was left untouched"
        )
