"""What the ledger keeps, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from toys import start_fork

from evomerge.errors import ConfigurationError, LedgerDamaged
from evomerge.ledger import Ledger
from evomerge.ledger_rows import pack, unpack
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import (
    Candidate,
    Estimate,
    Evaluation,
    Failure,
    Job,
    Outcome,
    Responses,
    Score,
)

NUM_ITEMS = 500


def recipe(weight: float) -> Recipe:
    return Recipe(
        base="base",
        models={"base": ModelSource(path="b"), "a": ModelSource(path="a", sha256="f" * 64)},
        default=Merge(operator="linear", parameters={"weight": weight}),
    )


def candidate(number: int) -> Candidate:
    return Candidate(number, [number / 1000], recipe(number / 1000))


def job(number: int, **items: Any) -> Job:
    return Job(number, number, recipe(number / 1000), items or {"t": (0, 1)})


def evaluation(number: int, value: float, rung: int = 0) -> Evaluation:
    score = Score({"t": Estimate(value, 0.125, 2)}, rung)
    return Evaluation(number, [number / 1000], score)


def create(path: Path, **meta: Any) -> Ledger:
    return Ledger.create(path, {"identity": {}, **meta}, {"t": NUM_ITEMS, "u": 4})


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
BITS = st.sampled_from([0.0, 1.0])


@st.composite
def some_responses(draw: st.DrawFn) -> Responses:
    ids = draw(st.lists(st.integers(0, NUM_ITEMS - 1), unique=True, min_size=1, max_size=70))
    names = ["score", *draw(st.sets(st.sampled_from(["margin", "choice", "length"])))]
    columns = {
        name: draw(
            arrays.arrays(np.float32, len(ids), elements=draw(st.sampled_from([FLOATS, BITS])))
        )
        for name in names
    }
    line = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    texts = draw(st.none() | st.lists(line, min_size=len(ids), max_size=len(ids)).map(tuple))
    return Responses("t", np.array(ids, np.int64), columns, texts)


@settings(max_examples=300, deadline=None)
@given(some_responses())
def test_responses_come_back_exactly(responses):
    again = unpack(*pack(responses))
    assert again.task == responses.task
    assert np.array_equal(again.items, responses.items)
    assert list(again.columns) == list(responses.columns)
    for name, values in responses.columns.items():
        assert again.columns[name].dtype == np.float32
        assert np.array_equal(again.columns[name], values)
    assert again.texts == responses.texts


def test_responses_come_back_from_the_file(tmp_path):
    ledger = create(tmp_path / "l.sqlite")
    ledger.asked(0, 1, [candidate(7)])
    items = np.array([30, 2, 499])
    columns = {
        "score": np.array([0, 1, 1], np.float32),
        "margin": np.array([0.1, -1e-30, 3e38], np.float32),
    }
    answer = Responses("t", items, columns, ("a", "", "ü\n\0"))
    ledger.measured(0, Outcome(job(7, t=tuple(items.tolist())), (answer,)))
    ledger.close()
    again = Ledger(tmp_path / "l.sqlite")
    for name, values in columns.items():
        read = again.measurements.values(again.candidates.fingerprint(7), "t", items.tolist(), name)
        assert np.array_equal(read, values.astype(np.float64))
    assert again.measurements.item_evaluations == 3
    (texts,) = again._db.execute("SELECT texts FROM responses").fetchone()
    again.close()
    assert tuple(json.loads(texts)) == answer.texts


def test_answers_of_0_and_1_take_a_bit_each(tmp_path):
    ledger = create(tmp_path / "l.sqlite")
    ledger.asked(0, 1, [candidate(1)])
    items = np.arange(400)
    score = (items % 3 == 0).astype(np.float32)
    ledger.measured(0, Outcome(job(1, t=tuple(items)), (Responses("t", items, {"score": score}),)))
    (size,) = ledger._db.execute("SELECT length(data) FROM responses").fetchone()
    ledger.close()
    assert size == 50


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["score", "margin"])
def test_what_is_not_finite_is_not_stored(tmp_path, value, column):
    ledger = create(tmp_path / "l.sqlite")
    ledger.asked(0, 1, [candidate(1)])
    columns = {"score": np.zeros(2, np.float32), "margin": np.zeros(2, np.float32)}
    columns[column][1] = value
    with pytest.raises(ValueError, match=f"{column} is not finite"):
        ledger.measured(0, Outcome(job(1), (Responses("t", np.arange(2), columns),)))
    assert list(ledger.events("measured")) == []
    assert ledger.measurements.item_evaluations == 0
    ledger.note("final", {})  # no transaction was left open
    ledger.close()


def test_all_of_it_comes_back(tmp_path):
    path = tmp_path / "l.sqlite"
    ledger = create(path)
    violated = Candidate(2, [9.5], None, ("too large", "too odd"))
    reference = Candidate(-1, None, recipe(1.0), label="base")
    ledger.asked(-1, 1, [reference])
    ledger.asked(0, 8, [candidate(0), candidate(1), violated])
    ledger.measured(0, Outcome(job(1), failure=Failure("merge", "not finite")))
    told = [
        evaluation(0, 0.1 + 0.2, rung=2),
        Evaluation(1, [1 / 1000], None, Failure("merge", "not finite")),
        Evaluation(2, [9.5], None, Failure("violation", "too large; too odd"), 2.0),
    ]
    ledger.told(0, told)
    digest = ledger.digest()
    ledger.close()
    again = Ledger(path)
    assert dict(again.candidates) == {
        -1: reference,
        0: candidate(0),
        1: candidate(1),
        2: violated,
    }
    assert list(again.candidates) == [-1, 0, 1, 2]
    assert again.candidates[1].fingerprint == candidate(1).fingerprint
    assert again.evaluations() == {e.id: e for e in told}
    assert again.asked_ids() == {-1: [-1], 0: [0, 1, 2]}
    assert again.measurements.failure(candidate(1).fingerprint, 0) == Failure("merge", "not finite")
    assert again.digest() == digest
    again.close()


def test_the_digest_is_of_what_was_asked_and_told_and_of_nothing_else(tmp_path):
    def trajectory(name: str, value: float = 0.5, worker: str = "w", order: int = 1) -> str:
        ledger = create(tmp_path / name)
        ledger.note("session", {"host": name})
        ledger.asked(0, 2, [candidate(0), candidate(1)])
        answer = Responses("t", np.arange(2), {"score": np.ones(2, np.float32)})
        for number in (0, 1)[::order]:
            ledger.measured(0, Outcome(job(number), (answer,), worker=worker, measure_s=value))
        ledger.told(0, [evaluation(0, value), evaluation(1, 0.25)])
        ledger.close()
        return ledger_digest(tmp_path / name)

    def ledger_digest(path: Path) -> str:
        ledger = Ledger(path, read_only=True)
        digest = ledger.digest()
        ledger.close()
        return digest

    first = trajectory("first")
    assert trajectory("second", worker="another", order=-1) == first
    assert trajectory("third", value=np.nextafter(0.5, 1)) != first


def test_a_cut_cohort_counts_until_something_is_told(tmp_path):
    ledger = create(tmp_path / "l.sqlite")
    ledger.asked(0, 2, [candidate(0), candidate(1)])
    ledger.asked(1, 2, [candidate(2), candidate(3)])
    ledger.told(0, [evaluation(0, 0.5), evaluation(1, 0.25)])
    told = ledger.digest()
    ledger.scored(1, [evaluation(0, 0.75), evaluation(2, 0.5)])  # 0 was scored anew
    ledger.note("final", {"best": 1})
    cut = ledger.digest()
    assert cut != told
    assert ledger.evaluations()[0] == evaluation(0, 0.75)
    ledger.scored(1, [evaluation(0, 0.75), evaluation(2, 0.5)])  # as a run that is resumed does
    assert ledger.final() == {"best": 1}
    assert ledger.digest() == cut
    ledger.told(1, [evaluation(2, 0.5), evaluation(3, 0.5)])
    assert ledger.final() is None
    assert ledger.evaluations()[0] == evaluation(0, 0.5)  # as if there had been no cut
    ledger.close()


def test_what_later_cohorts_and_the_end_cost_is_not_spent_yet(tmp_path):
    ledger = create(tmp_path / "l.sqlite")
    answer = Responses("t", np.arange(2), {"score": np.ones(2, np.float32)})
    for cohort, number in ((-1, -1), (0, 0), (1, 1), (-2, -3)):
        ledger.asked(cohort, 1, [Candidate(number, None, recipe(number / 1000))])
        ledger.measured(cohort, Outcome(job(number), (answer,)))
    assert [ledger.spent(cohort) for cohort in (-1, 0, 1, 9)] == [2, 4, 6, 6]
    assert ledger.item_evaluations == 8
    ledger.close()
    again = Ledger(tmp_path / "l.sqlite")
    assert again.item_evaluations == 8  # without reading the responses
    assert again.spent(0) == 4
    again.close()


# --- what is refused ------------------------------------------------------------------------------


def test_no_ledger(tmp_path):
    with pytest.raises(ConfigurationError, match="no run here"):
        Ledger(tmp_path / "ledger.sqlite")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a database at all" * 100, b"SQLite format 3\0" + bytes(4000)],
    ids=["empty", "text", "header"],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_ledger(tmp_path, content, read_only):
    path = tmp_path / "l.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerDamaged, match=r"l\.sqlite") as caught:
        Ledger(path, read_only=read_only)
    assert caught.value.exit_code == 5
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM meta WHERE key = 'format'",
        "UPDATE meta SET value = '{' WHERE key = 'num_items'",
        "DELETE FROM meta WHERE key = 'num_items'",
        "DROP TABLE candidates",
        "UPDATE candidates SET recipe = '{}'",
        "UPDATE candidates SET genome = '['",
        "UPDATE events SET data = 'nonsense'",
        "UPDATE events SET data = '[]' WHERE kind = 'measured'",
        "UPDATE responses SET data = x'00'",
        "UPDATE responses SET columns = '[[\"score\"]]'",
        "UPDATE responses SET task = 'another'",
        "UPDATE responses SET items = x'ffffffff'",
    ],
)
def test_a_damaged_ledger_is_a_typed_error(tmp_path, damage):
    path = tmp_path / "l.sqlite"
    ledger = create(path)
    ledger.asked(0, 1, [candidate(1)])
    score = np.full(40, 0.3, np.float32)
    items = np.arange(40)
    ledger.measured(0, Outcome(job(1, t=tuple(items)), (Responses("t", items, {"score": score}),)))
    ledger.told(0, [evaluation(1, 0.5)])
    ledger.close()
    db = sqlite3.connect(path)
    db.execute(damage)
    db.commit()
    db.close()
    with pytest.raises(LedgerDamaged):  # noqa: PT012 - reading is lazy; somewhere it is noticed
        damaged = Ledger(path)
        damaged.measurements  # noqa: B018
        damaged.evaluations()
        list(damaged.candidates.values())


# --- while a driver writes ------------------------------------------------------------------------


def test_a_reader_sees_one_moment_of_a_run_that_goes_on(tmp_path):
    path = tmp_path / "l.sqlite"
    create(path).close()

    def write() -> None:
        ledger = Ledger(path)
        answer = Responses("t", np.arange(2), {"score": np.ones(2, np.float32)})
        for number in range(400):
            ledger.asked(number, 1, [candidate(number)])
            ledger.measured(number, Outcome(job(number), (answer,)))
            ledger.told(number, [evaluation(number, 0.5)])
        ledger.close()

    writer = start_fork(write)
    counts = []
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        ledger = Ledger(path, read_only=True)
        known = set(ledger.candidates)
        assert set(ledger.evaluations()) <= known
        assert {i for ids in ledger.asked_ids().values() for i in ids} == known
        assert ledger.item_evaluations == ledger.measurements.item_evaluations
        assert len(ledger.digest()) == 64
        ledger.close()
        counts.append(len(known))
    assert sorted(counts) == counts
    assert len(set(counts)) > 2


def test_a_reader_does_not_see_what_comes_later(tmp_path):
    path = tmp_path / "l.sqlite"
    writer = create(path)
    writer.asked(0, 1, [candidate(0)])
    reader = Ledger(path, read_only=True)
    writer.asked(1, 1, [candidate(1)])
    writer.told(0, [evaluation(0, 0.5)])
    writer.told(1, [evaluation(1, 0.5)])
    writer.note("final", {})
    assert reader.evaluations() == {}
    assert reader.final() is None
    assert reader.asked_ids() == {0: [0]}
    reader.close()
    writer.close()


def test_killed_while_it_is_created(tmp_path):
    """A run that never began begins: nothing half-made has the ledger's name."""
    path = tmp_path / "l.sqlite"
    path.with_suffix(".creating").write_bytes(b"half a page")
    path.with_suffix(".creating-journal").write_bytes(os.urandom(900))
    create(path).close()
    assert [p.name for p in tmp_path.iterdir()] == ["l.sqlite"]


def test_what_a_killed_driver_left_half_written_is_read_all_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "ledger.sqlite"
    with closing(Ledger.create(whole, {"identity": {}}, {"t": 3})) as ledger:
        ledger.note("session", {"host": "here"})
    left = tmp_path / "left" / "ledger.sqlite"
    left.parent.mkdir()
    with closing(sqlite3.connect(whole, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA cache_size = 1")  # pages are written before the transaction ends
        db.execute("BEGIN IMMEDIATE")
        for number in range(300):
            db.execute("INSERT INTO meta VALUES (?, ?)", (f"half{number}", '"' + "x" * 999 + '"'))
        for name in (whole.name, f"{whole.name}-journal"):
            shutil.copy(whole.with_name(name), left.with_name(name))
        db.execute("ROLLBACK")
    db = sqlite3.connect(f"{left.as_uri()}?mode=ro", uri=True)
    with closing(db), pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("SELECT * FROM meta").fetchall()
    with closing(Ledger(left, read_only=True)) as ledger:
        assert [data for _, _, data in ledger.events("session")] == [{"host": "here"}]
        assert not any(key.startswith("half") for key in ledger.meta)
