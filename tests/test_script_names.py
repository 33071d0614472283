"""Scripts are imported by their bare names, many in one process: no two may share a name."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "tests")
NOT_IMPORTED = {"__main__", "__init__", "conftest"}  # run, or found by their folders


def test_no_two_scripts_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            if path.stem not in NOT_IMPORTED:
                places[path.stem].append(str(path.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice, f"the second to be imported would be the first: {twice}"


def test_no_script_hides_a_module_of_the_library() -> None:
    named = {path.stem for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert not (named - NOT_IMPORTED) & set(sys.stdlib_module_names)
