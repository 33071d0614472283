"""The public surface: small, importable, and free until it is used."""

from __future__ import annotations

import subprocess
import sys

import evomerge


def test_the_public_names_are_these() -> None:
    assert evomerge.__all__ == [
        "Candidate",
        "EvomergeError",
        "Merge",
        "ModelSource",
        "Recipe",
        "Run",
        "Slot",
        "apply_scales",
        "merge",
        "search",
    ]
    assert len(evomerge.__all__) < 20
    for name in evomerge.__all__:
        assert getattr(evomerge, name).__name__ == name
        assert getattr(evomerge, name).__doc__
    assert dir(evomerge) == sorted(evomerge.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(evomerge, "serch")


def test_importing_costs_nothing() -> None:
    code = "import sys, evomerge; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"torch", "numpy", "pydantic", "lm_eval", "transformers", "typer"})
