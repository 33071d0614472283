"""R12: ledgers of every released version.

Passes if: each opens, shows what it showed, is resumed and extended, and its models are exported;
one of a newer format is refused and left as it is, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from drivers import command_line
from released_runs import ASSETS, KINDS, LONGER, facts, given, go_on
from safetensors.torch import load_file

from evomerge.errors import LedgerDamaged
from evomerge.ledger import Ledger
from evomerge.ledger_file import FORMAT
from evomerge.run import Run

VERSIONS = sorted(path.name for path in ASSETS.iterdir())
LIMIT_BYTES = 300_000  # of a version's


def copied(release: str, kind: str, out: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A run folder that may be changed, its models, and what is known of it."""
    shutil.copytree(ASSETS / release / kind, out)
    expected = json.loads((out / "expected.json").read_text())
    return out, ASSETS / release / "models", expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", VERSIONS)
def test_it_opens_and_shows_what_it_showed(release, kind, tmp_path):
    out, models, expected = copied(release, kind, tmp_path / "run")
    before = sha256(out)
    run = Run(out, in_memory=given(models))
    assert facts(run) == expected["now"]
    run.ledger.close()
    code, said, err = command_line("status", str(out), "--json")
    assert code == 0, err
    told = json.loads(said)
    # On another host, one that has not said how it ended is silent for a day before it is stopped.
    assert told["state"] in (("stopped", "silent") if kind == "stopped" else ("finished",))
    assert command_line("digest", str(out))[1].strip() == expected["now"]["digest"]
    after = {name: digest for name, digest in sha256(out).items() if name in before}
    assert after == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", VERSIONS)
def test_it_is_resumed_extended_and_exported(release, kind, tmp_path):
    out, models, expected = copied(release, kind, tmp_path / "run")
    run = go_on(kind, out, models)
    assert decided(run) == but_the_digest(expected["resumed"])
    run.export(folder=tmp_path / "model")
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert set(written) == set(expected["best"])
    for name, values in expected["best"].items():
        torch.testing.assert_close(written[name], torch.tensor(values))
    run.ledger.close()
    extended = go_on(kind, out, models, LONGER)
    assert decided(extended) == but_the_digest(expected["extended"])
    assert course(extended) == course(go_on(kind, tmp_path / "fresh", models, LONGER))


def but_the_digest(known: dict[str, Any]) -> dict[str, Any]:
    """A digest has the standard errors, too, and newer versions may tell new answers' otherwise."""
    return {name: value for name, value in known.items() if name != "digest"}


def decided(run: Run) -> dict[str, Any]:
    return but_the_digest(facts(run))


def course(run: Run) -> list[Any]:
    """Who was asked, how far each came, and what it was worth."""
    return [
        (e.id, e.genome, e.failure, e.score and (e.score.rung, e.score.values))
        for e in run.ledger.evaluations().values()
    ]


def test_released_ledgers_are_small_and_of_every_format(tmp_path, figure):
    formats = set()
    for release in VERSIONS:
        size = sum(path.stat().st_size for path in (ASSETS / release).rglob("*") if path.is_file())
        assert size < LIMIT_BYTES
        for kind in KINDS:
            out, _, _ = copied(release, kind, tmp_path / release / kind)  # a reader leaves files
            ledger = Ledger(out / "ledger.sqlite", read_only=True)
            formats.add(ledger.meta["format"])
            ledger.close()
    assert formats == set(range(1, FORMAT + 1))
    figure("R12", "versions whose ledgers are kept", len(VERSIONS), 1, unit="", at_least=True)


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
