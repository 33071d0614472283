"""R6: NaN or Inf in an expert, in a merge, in a response.

Passes if: the expert is refused before anything is measured (exit code 3, with its name and the
tensor's); a candidate of such numbers has failed and is never in the front or the best; and a task
whose right answer always stands first does not give 1.0 to a model of NaN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from drivers import command_line, two_models
from fitness.test_lm_eval_task import (
    ASSETS,
    Resident,
    answers_nothing,
    character_tokenizer,
    lm_eval_samples,
    random_llama,
)
from safetensors.torch import save_file
from toys import Toy

from evomerge.fitness.lm_eval_task import LmEvalTask
from evomerge.merging import OPERATORS
from evomerge.run import Run


@pytest.mark.parametrize(
    "operator", [name for name, o in OPERATORS.items() if o.needs == "nothing"]
)
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


# --- a search -------------------------------------------------------------------------------------


def failed_of(run: Run, figure: Any) -> set[int]:
    """The candidates that failed for a number that is not finite; they are nowhere near the top."""
    evaluations = run.ledger.evaluations()
    failed = {id_ for id_, e in evaluations.items() if e.failure is not None}
    for id_ in failed:
        assert evaluations[id_].score is None
        reason = str(evaluations[id_].failure)
        assert "finite" in reason or "NaN" in reason, reason
    final = run.ledger.final()
    assert final is not None
    top = {row["candidate"] for row in (final["best"], *final["front"])}
    count = len(top & failed)
    figure("R6", "candidates that are not finite, in front or best", count, 0, unit="")
    assert top
    for row in (final["best"], *final["front"]):
        assert all(np.isfinite(value["value"]) for value in row["holdout"].values())
    return failed


@pytest.mark.parametrize("searcher", toys.SEARCHERS)
def test_a_merge_that_overflows_is_nobodys_best(
    searcher, tmp_path, no_pictures, monkeypatch, figure
):
    """Finite experts whose sum is not: one candidate in some, and it would have the best score."""
    states = toys.states

    def large() -> Any:
        found = states()
        found["left"]["head.weight"][0] = 2.5e38
        found["right"]["head.weight"][0] = 2.5e38
        return found

    monkeypatch.setattr(toys, "states", large)
    toy = Toy(searcher, fitness=perfect_where_not_finite)
    failed = failed_of(toy.open(toy.run(tmp_path)), figure)
    assert 0 < len(failed) < 40


def perfect_where_not_finite(state: Any) -> Any:
    flat = torch.cat([state[name] for name in sorted(state)]).double()
    if not flat.isfinite().all():
        return {"first": np.ones(toys.NUM_ITEMS), "second": np.ones(toys.NUM_ITEMS)}
    answers = (toys.PROBES.double() @ (flat * 0 + 0.4) > 1.5).float().numpy()
    return {"first": answers[0], "second": answers[1]}


@pytest.mark.parametrize("searcher", toys.SEARCHERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_response_that_is_not_finite_fails_its_candidate(
    searcher, value, tmp_path, no_pictures, figure
):
    def some(state: Any) -> Any:
        found = toys.fitness(state, fail=False)
        flat = torch.cat([state[name] for name in sorted(state)]).double()
        if int(float(flat.square().sum()) * 1e6) % 97 in range(40, 48):
            found["second"] = found["second"].copy()
            found["second"][:] = value
        return found

    toy = Toy(searcher, fitness=some)
    assert 0 < len(failed_of(toy.open(toy.run(tmp_path)), figure)) < 40


def test_a_task_whose_gold_is_always_first_is_not_perfect(tmp_path, figure):
    """lm-eval takes the largest of NaN and NaN to be the first: a broken model would be perfect."""
    rows = [f'{{"question": "{c}=", "choices": ["a", "b"], "gold": 0}}' for c in "abcd"]
    (tmp_path / "pick.json").write_text("\n".join(rows))
    (tmp_path / "pick_shots.json").write_text("\n".join(rows))
    (tmp_path / "pick.yaml").write_text((ASSETS / "pick.yaml").read_text())
    tokenizer = character_tokenizer()
    broken = random_llama(3, len(tokenizer))
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    model = Resident(broken, tokenizer)
    theirs = lm_eval_samples(model, tmp_path, "assets_pick", batch_size=4)
    assert [sample["acc"] for sample in theirs] == [1.0] * 4
    task = LmEvalTask("pick", task="assets_pick", path=tmp_path)
    assert answers_nothing(task, model)
    score = float(task.respond(model, task.items).columns["score"].max())
    figure("R6", "score of a model of NaN where gold stands first", score, 0.0, unit="")
