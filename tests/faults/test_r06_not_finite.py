"""R6: NaN or Inf in an expert, in a merge, in a response.

Passes if: the expert is refused before anything is measured (exit code 3, with its name and the
tensor's); a candidate of such numbers has failed and is never in the front or the best; and a task
whose right answer always stands first does not give 1.0 to a model of NaN.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drivers import command_line, two_models
from safetensors.torch import save_file

from evomerge.merging import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_operator_swallows_what_is_not_finite(
    tmp_path: Path, operator: str, value: float
) -> None:
    """One bad number in one of two experts, and all weights above zero."""
    from evomerge import merge
    from evomerge.errors import CandidateError, ModelError

    generator = torch.Generator().manual_seed(0)
    state = {
        name: {"a.weight": torch.randn(8, 8, generator=generator)} for name in ("base", "x", "y")
    }
    state["y"]["a.weight"][3, 4] = value
    base = state.pop("base")
    experts = {"y": state["y"]} if OPERATORS[operator].max_sources == 1 else state
    with pytest.raises((CandidateError, ModelError), match=r"finite|NaN"):
        merge(experts, operator, base=base)


def test_an_expert_that_is_not_finite_ends_with_3_and_its_name(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        (tmp_path / "expert").mkdir(exist_ok=True)
        state = {"a": torch.ones(2), "b": torch.tensor([1.0, value])}
        save_file(state, tmp_path / "expert" / "model.safetensors")
        path = two_models(tmp_path, tmp_path / "expert")
        code, out, err = command_line("merge", str(path), "--out", str(tmp_path / "merged"))
        assert (code, out) == (3, "")
        assert "expert" in err
        assert "'b'" in err
        assert not (tmp_path / "merged").exists()
