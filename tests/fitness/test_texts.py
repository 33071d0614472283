"""Files of texts: what csv and json write is read again, to the last character."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigurationError
from evomerge.fitness.texts import FilePrompts, read_records

CUTS = "\n\r\x0b\x0c\x1c\x85\u2028\u2029"  # where str.splitlines cuts
CELLS = st.text(st.sampled_from(f'ab", {CUTS}') | st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"text": CELLS, "label": CELLS}), min_size=1),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_records_come_back_as_they_were_written(records, encoding):
    with tempfile.TemporaryDirectory() as folder:
        table, lines = Path(folder) / "t.csv", Path(folder) / "t.jsonl"
        with table.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(records)
        text = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        lines.write_bytes(text.encode(encoding))
        assert read_records("t", table) == records
        assert read_records("t", lines) == records


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_line_of_text_is_a_prompt_whatever_it_holds(tmp_path, end, encoding):
    lines = ["one\x0ctwo", "three\u2028four", " five\x85"]
    (tmp_path / "t.txt").write_bytes((end.join([*lines, "", "six"]) + end).encode(encoding))
    prompts = FilePrompts("t", tmp_path / "t.txt", "text")
    assert [prompts.prompt(item) for item in prompts.items] == [*lines, "six"]


def test_a_table_that_is_none_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(f"text\n{'x' * 200_000}\n")
    with pytest.raises(
        ConfigurationError, match=r"t\.csv, after line 1: field larger than field limit"
    ):
        read_records("t", tmp_path / "t.csv")
