"""The notebook: what stands in it came from its code, and the code still runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "notebooks"))
from execute import FOLDER, code_hash, executed

FIRST = FOLDER / "first_search.ipynb"
MAX_BYTES = 300_000


def outputs(notebook: Any) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Of each cell: the outputs' types, and the forms that each has."""
    return [
        [(o.output_type, tuple(sorted(o.get("data", ())))) for o in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_outputs_are_of_the_code_beside_them() -> None:
    notebook = nbformat.read(FIRST, as_version=4)
    nbformat.validate(notebook)
    hint = "the code has changed since its outputs were made: make notebook"
    assert notebook.metadata["evomerge"]["executed"] == code_hash(notebook), hint
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for cell in outputs(notebook) for kind, _ in cell}
    assert kinds == {"execute_result"}  # no error, and nothing on stderr
    assert FIRST.stat().st_size < MAX_BYTES
    for place in (str(Path.home()), "/tmp", "site-packages"):  # noqa: S108 - nobody else's folders
        assert place not in FIRST.read_text()


def test_the_notebook_runs() -> None:
    notebook = executed(FIRST)
    assert outputs(notebook) == outputs(nbformat.read(FIRST, as_version=4))
    shown = {
        cell.id: cell.outputs[0].data["text/plain"]
        for cell in notebook.cells
        if cell.get("outputs")
    }
    assert "64 candidates" in shown["search"]
    assert float(shown["merge"]) > 0.6  # neither expert knows more than half of the digits
    assert "cma_es" in shown["compare"]


def test_a_cell_that_fails_is_an_error(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(tmp_path / "broken.ipynb")
