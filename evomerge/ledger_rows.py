"""How records stand in the rows of the ledger, and what a damaged row means."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import EvomergeError, LedgerDamaged
from evomerge.files import disk_full, free_bytes
from evomerge.recipe import Recipe
from evomerge.records import Candidate, CandidateId, Evaluation, Genome, Outcome, Responses

KEPT_REASONS = 4  # of a task's failed items, in one outcome
KEPT_CHARACTERS = 300  # of a reason
PAGE_BYTES = 4096  # of SQLite
CROWDED_BYTES = 64 * 1024  # SQLite needs half of it for the index of its log


class Row(NamedTuple):
    """A candidate as it stands in the ledger."""

    label: str
    genome: str | None
    recipe: str | None
    fingerprint: str
    violations: str


class Candidates(Mapping[CandidateId, Candidate]):
    """All candidates of a run, in the order of their ids.

    They are kept as text and parsed when they are asked for: a long run asks for few of them again,
    and a parsed recipe is ten times as large.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[CandidateId, Row] = {}
        self._parsed: WeakValueDictionary[CandidateId, Candidate] = WeakValueDictionary()

    def __getitem__(self, id_: CandidateId) -> Candidate:
        if (known := self._parsed.get(id_)) is not None:
            return known
        row = self._rows[id_]
        with damage(self._path):
            recipe = None if row.recipe is None else Recipe.from_json(row.recipe)
            violations = tuple(json.loads(row.violations))
        candidate = Candidate(id_, self.genome(id_), recipe, violations, row.label)
        self._parsed[id_] = candidate
        return candidate

    def __iter__(self) -> Iterator[CandidateId]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._rows

    def genome(self, id_: CandidateId) -> Genome | None:
        """A candidate's genome alone."""
        text = self._rows[id_].genome
        with damage(self._path):
            return None if text is None else json.loads(text)

    def fingerprint(self, id_: CandidateId) -> str:
        """The fingerprint of a candidate's recipe."""
        return self._rows[id_].fingerprint

    def add(self, id_: CandidateId, row: Row, parsed: Candidate | None = None) -> None:
        """Take in a candidate that is committed; `parsed` serves for as long as anybody has it."""
        self._rows[id_] = row
        if parsed is not None:
            self._parsed[id_] = parsed


def ordered_json(value: Any) -> str:
    """JSON that keeps the order of keys: objectives are told in the order of their declaration."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def evaluation_data(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON, without its genome, which stands with the candidate."""
    score = evaluation.score
    return {
        "id": evaluation.id,
        "score": None
        if score is None
        else {
            name: [estimate.value, estimate.standard_error, estimate.num_items]
            for name, estimate in score.objectives.items()
        },
        "rung": 0 if score is None else score.rung,
        "failure": None if evaluation.failure is None else asdict(evaluation.failure),
        "violation": evaluation.violation,
    }


def item_failures(outcome: Outcome) -> dict[str, list[list[Any]]]:
    """Task -> [reason, its items], most items first; the rarest reasons become one."""
    told = {}
    for responses in outcome.responses:
        by_reason: dict[str, list[int]] = {}
        for item, reason in responses.failures.items():
            by_reason.setdefault(reason[:KEPT_CHARACTERS], []).append(int(item))
        groups = sorted(by_reason.items(), key=lambda group: (-len(group[1]), group[0]))
        kept, rest = groups[:KEPT_REASONS], groups[KEPT_REASONS:]
        if rest:
            kept.append(("another reason", [item for _, items in rest for item in items]))
        if kept:
            told[responses.task] = [[reason, sorted(items)] for reason, items in kept]
    return told


def pack(responses: Responses) -> tuple[str, bytes, str, bytes, str | None]:
    """A row: item ids as uint32; each column as float32, or as bits where it holds only 0 and 1."""
    columns, data = [], b""
    for name, values in responses.columns.items():
        if not np.isfinite(values).all() and not _is_excused(responses, name, values):
            raise ValueError(f"task {responses.task}: column {name} is not finite")
        is_binary = bool(((values == 0) | (values == 1)).all())
        block = np.packbits(values.astype(bool)) if is_binary else values.astype("<f4")
        columns.append([name, "bit" if is_binary else "f4"])
        data += block.tobytes()
    texts = None if responses.texts is None else json.dumps(responses.texts)
    items = responses.items.astype("<u4").tobytes()
    return responses.task, items, json.dumps(columns), data, texts


def _is_excused(responses: Responses, name: str, values: NDArray[np.float32]) -> bool:
    """Whether what is not finite are numbers of failed items, beside their scores."""
    failed = np.isin(responses.items, list(responses.failures)) & np.isnan(values)
    return name != "score" and bool((np.isfinite(values) | failed).all())


def unpack(task: str, items: bytes, columns: str, data: bytes, texts: str | None) -> Responses:
    """The inverse of `pack`."""
    ids = np.frombuffer(items, "<u4").astype(np.int64)
    values: dict[str, NDArray[np.float32]] = {}
    start = 0
    for name, kind in json.loads(columns):
        size = (len(ids) + 7) // 8 if kind == "bit" else 4 * len(ids)
        block = data[start : start + size]
        start += size
        if kind == "bit":
            bits = np.unpackbits(np.frombuffer(block, np.uint8), count=len(ids))
            values[name] = bits.astype(np.float32)
        else:
            values[name] = np.frombuffer(block, "<f4").astype(np.float32)
    return Responses(task, ids, values, None if texts is None else tuple(json.loads(texts)))


@contextmanager
def database_errors(path: Path, needed_bytes: int = PAGE_BYTES) -> Iterator[None]:
    """A full disk is one thing; whatever else goes wrong in writing is another."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _of_sqlite(error, path, str(error), needed_bytes) from None


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a ledger is read is a damage of the file, or a full disk."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _of_sqlite(error, path, f"cannot be read as a ledger: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise LedgerDamaged(f"{path}: damaged: {what}") from None


def _of_sqlite(
    error: sqlite3.DatabaseError, path: Path, what: str, needed_bytes: int = CROWDED_BYTES
) -> EvomergeError:
    """SQLite says of some files that it cannot write them, and not why."""
    name = getattr(error, "sqlite_errorname", "")
    unsaid = name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN"))
    if name == "SQLITE_FULL" or (unsaid and free_bytes(path) < CROWDED_BYTES):
        return disk_full(path, max(needed_bytes, PAGE_BYTES))
    return LedgerDamaged(f"{path}: {what}")
