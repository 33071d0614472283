"""R12: ledgers of every released version.

Passes if: each opens, shows what it showed, is resumed and extended, and its models are exported;
one of a newer format is refused and left as it is, byte for byte.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from evomerge.errors import LedgerDamaged
from evomerge.ledger import FORMAT, Ledger


def sha256(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_format_is_refused_and_left_untouched(tmp_path, read_only):
    path = tmp_path / "l.sqlite"
    Ledger.create(path, {"identity": {}}, {"t": 3}).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")  # newer ones may have their reasons
    db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT + 1,))
    db.execute("DROP TABLE responses")
    db.commit()
    db.close()
    before = sha256(tmp_path)
    with pytest.raises(LedgerDamaged, match="newer"):
        Ledger(path, read_only=read_only)
    assert sha256(tmp_path) == before
