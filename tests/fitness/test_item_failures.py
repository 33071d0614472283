"""An item that cannot be answered costs itself, and a model that answers none fails."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_lm_eval_task import ASSETS, Resident, character_tokenizer, random_llama
from torch import nn

from evomerge.errors import CandidateError
from evomerge.fitness.forward import ForwardClock
from evomerge.fitness.generation import PromptPlan, StopRule, generate
from evomerge.fitness.lm_eval_task import LmEvalTask
from evomerge.fitness.python_task import PythonFitness
from evomerge.ledger import Ledger
from evomerge.measurement import checked, wanted_columns
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import (
    Candidate,
    Failure,
    Job,
    Measurements,
    Objective,
    Outcome,
    Responses,
)
from evomerge.results.watch import status

CHOKES = """
def process_results(doc, results):
    if doc["{field}"] == "{value}":
        raise KeyError("a weird answer")
    return {{"{metric}": 1.0}}
"""


def choking_task(folder: Path, metric: str, item: int = 2) -> LmEvalTask:
    """Scores by code that raises for one document, and gives 1 for all others."""
    rows = [f'{{"question": "{c}=", "choices": ["a", "b"], "gold": 0}}' for c in "abcdefgh"]
    (folder / "pick.json").write_text("\n".join(rows))
    (folder / "pick_shots.json").write_text("\n".join(rows))
    text = (ASSETS / "pick.yaml").read_text().split("metric_list")[0]
    text += (
        f"process_results: !function choke.process_results\nmetric_list:\n  - metric: {metric}\n"
    )
    text += "    aggregation: mean\n    higher_is_better: true\n"
    (folder / "pick.yaml").write_text(text)
    code = CHOKES.format(field="question", value=f"{'abcdefgh'[item]}=", metric=metric)
    (folder / "choke.py").write_text(code)
    return LmEvalTask("pick", task="assets_pick", path=folder, allow_code=True)


@pytest.fixture(scope="module")
def resident() -> Resident:
    tokenizer = character_tokenizer()
    return Resident(random_llama(3, len(tokenizer)), tokenizer)


def test_a_metric_that_chokes_on_one_item_costs_that_item(resident, tmp_path):
    found = choking_task(tmp_path, "acc").respond(resident, [1, 2, 3])
    assert found.columns["score"].tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(found.columns["margin"]).tolist() == [False, True, False]
    assert list(found.failures) == [2]
    assert "KeyError: 'a weird answer'" in found.failures[2]


@pytest.mark.parametrize("jobs", [[(0, 1, 2, 3)], [(0, 1), (2,), (3,)], [(2,), (3, 1), (0,)]])
def test_how_items_are_split_into_jobs_decides_nothing(resident, tmp_path, jobs):
    task = choking_task(tmp_path, "acc")
    ledger = Ledger.create(tmp_path / "ledger.sqlite", {"identity": {}}, {"pick": 8})
    for number, items in enumerate(jobs):
        job = Job(number, 0, RECIPE, {"pick": items})
        outcome = checked(Outcome(job, (task.respond(resident, items),)), {"pick": {"score"}})
        assert outcome.failure is None
        ledger.measured(0, outcome)
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite", read_only=True)
    known, of = again.measurements, RECIPE.fingerprint
    assert known.values(of, "pick", (0, 1, 2, 3)).tolist() == [1.0, 1.0, 0.0, 1.0]
    assert known.can_answer(of, {"pick": (0, 1, 2, 3)})
    assert known.why_not(of, {"pick": (0, 1, 2, 3)}, 0) is None
    # Whoever asks for nothing else has nothing to judge the candidate by.
    assert not known.can_answer(of, {"pick": (2,)})
    failure = known.why_not(of, {"pick": (2,)}, 0)
    assert failure is not None
    assert failure.kind == "task"
    assert re.match(r"pick: no item could be answered: acc: KeyError: 'a weird", failure.reason)
    again.close()


def test_without_a_worst_score_the_item_is_named(resident, tmp_path):
    task = choking_task(tmp_path, "likelihood_of_the_weird")
    with pytest.raises(CandidateError, match=r"item 2: .*a weird answer.*no worst value"):
        task.respond(resident, [1, 2, 3])
    task.worst = -3.0
    assert task.respond(resident, [1, 2, 3]).columns["score"].tolist() == [1.0, -3.0, 1.0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pick", {"shared_prefix": False}),
        ("pick", {"shared_prefix": True}),
        ("copy", {}),
        ("finish", {}),
    ],
)
@pytest.mark.parametrize("which", ["rare", "<pad>"])
def test_a_broken_token_costs_the_items_that_fail_alone_and_no_other(
    name, options, which, resident
):
    """An item's batch mates decide nothing: not by what they hold, nor by being longer."""
    task = LmEvalTask(name, task=f"assets_{name}", path=ASSETS, worst=0, **options)
    whole = task.respond(resident, task.items)
    prompts = [str(task.requests(item, resident.tokenizer)[0].args[0]) for item in task.items]
    letters = [set(prompt) for prompt in prompts]
    everywhere = sorted(set().union(*letters))
    if which == "rare":
        which = min(everywhere, key=lambda character: sum(character in own for own in letters))
    broken = random_llama(3, len(resident.tokenizer))
    token = resident.tokenizer.convert_tokens_to_ids(which)
    with torch.no_grad():
        broken.model.embed_tokens.weight[token] = float("nan")
    model = Resident(broken, resident.tokenizer)
    found = task.respond(model, task.items)
    alone = {item for item in task.items if task.respond(model, [item]).failures}
    assert set(found.failures) == alone
    assert {item for item in task.items if which in letters[item]} <= alone
    sound = ~np.isin(found.items, list(found.failures))
    assert sound.any()
    assert (found.columns["score"][~sound] == 0).all()
    np.testing.assert_array_equal(found.columns["score"][sound], whole.columns["score"][sound])


def test_what_comes_after_an_answers_end_is_not_looked_at():
    """A row goes on, padded with what it says, while a longer one is decoded."""
    tokenizer = character_tokenizer()
    vocabulary, end, a, b = 65, 2, 10, 11

    class Ends(nn.Module):
        """`a` ends at once, and breaks thereafter; `b` says itself for ever."""

        def forward(self, ids: Any, **_: Any) -> Any:
            logits = torch.zeros(*ids.shape, vocabulary)
            logits[ids == a] = torch.nn.functional.one_hot(torch.tensor(end), vocabulary) * 1.0
            logits[ids == b] = torch.nn.functional.one_hot(torch.tensor(b), vocabulary) * 1.0
            logits[ids == end] = float("nan")
            return SimpleNamespace(logits=logits, past_key_values=None)

    stop = StopRule(tokenizer, [end], [], vocabulary)
    for prompts in ([(a,)], [(a,), (b,)], [(b,), (a,)], [(b,), (b, a)]):
        plan = PromptPlan(prompts, range(len(prompts)), 8, 4, 32)
        answers = generate(Ends(), plan, stop, ForwardClock())
        assert answers == [() if prompt[-1] == a else (b,) * 4 for prompt in prompts]


def test_a_python_fitness_declares_its_worst():
    def fitness(module: nn.Module) -> dict[str, Any]:
        return {"a": [0.5, float("nan"), 0.25]}

    python = PythonFitness(fitness)
    (task,) = python.tasks(fitness(nn.Identity())).values()
    with pytest.raises(CandidateError, match=r"item 1: the score is not finite.*no worst"):
        task.respond(Resident(nn.Identity(), None), range(3))
    fitness.worst = -1  # type: ignore[attr-defined]
    (task,) = PythonFitness(fitness).tasks(fitness(nn.Identity())).values()
    found = task.respond(Resident(nn.Identity(), None), [2, 1])
    assert found.columns["score"].tolist() == [0.25, -1.0]
    assert found.failures == {1: "the score is not finite"}


# --- what the driver makes of it ------------------------------------------------------------------

RECIPE = Recipe(
    base="base", models={"base": ModelSource(path="b")}, default=Merge(operator="linear")
)
JOB = Job(0, 0, RECIPE, {"t": (4, 7, 9)})
GOOD = Responses(
    "t",
    np.array([4, 7, 9]),
    {
        "score": np.array([1, 0, 1], np.float32),
        "margin": np.array([0.5, np.nan, 0.25], np.float32),
    },
    failures={7: "choked"},
)


def outcome(**changes: Any) -> Outcome:
    return Outcome(JOB, (replace(GOOD, **changes),))


def test_nan_is_accepted_where_the_item_failed_and_nowhere_else():
    assert checked(outcome()).failure is None
    for changes in (
        {"failures": {}},
        {"failures": {4: "another"}},
        {"columns": {**GOOD.columns, "score": np.array([1, np.nan, 1], np.float32)}},
        {"columns": {**GOOD.columns, "margin": np.array([0, np.inf, 1], np.float32)}},
    ):
        failure = checked(outcome(**changes)).failure
        assert failure is not None
        assert failure.kind == "non_finite"


def test_a_wanted_column_without_a_number_is_no_estimate_but_a_failure():
    wanted = wanted_columns([Objective("m", {"t": 1.0}, "margin"), Objective("s", {"u": 1.0})])
    assert wanted == {"t": {"margin"}, "u": {"score"}}
    failed = checked(outcome(), wanted)
    assert failed.responses == ()
    assert failed.failure is not None
    assert failed.failure.reason == "t: item 7 has no margin: choked"
    assert checked(outcome(), {"t": {"score"}}).failure is None


@given(st.data())
def test_who_fails_is_a_function_of_the_items_that_are_looked_at(data):
    """Whatever jobs brought the answers, in whatever order, and whatever else is answered."""
    items = list(range(10))
    failed = data.draw(st.sets(st.sampled_from(items)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 9))))
    wanted = tuple(data.draw(st.lists(st.sampled_from(items), min_size=1, unique=True)))
    known = Measurements({"t": 10})
    order = data.draw(st.permutations(items))
    for start, end in pairwise([0, *cuts, 10]):
        part = order[start:end]
        failures = {item: "choked" for item in part if item in failed}
        scores = np.array([item not in failed for item in part], np.float32)
        answers = Responses("t", np.array(part), {"score": scores}, failures=failures)
        told = checked(Outcome(Job(0, 0, RECIPE, {"t": tuple(part)}), (answers,)))
        known.add("f", told.responses[0])
    assert known.can_answer("f", {"t": wanted}) == (not failed.issuperset(wanted))


def test_nobody_is_judged_before_all_is_answered():
    known = Measurements({"t": 10, "u": 10})
    zero = {"score": np.zeros(2, np.float32)}
    known.add("f", Responses("t", np.array([1, 2]), zero, failures={1: "a", 2: "b"}))
    assert known.can_answer("f", {"t": (1, 2, 3)})
    assert known.can_answer("f", {"t": (1, 2), "u": (3,)})
    assert known.why_not("f", {"t": (1, 2)}, 0) == Failure(
        "task", "t: no item could be answered: for more than one reason"
    )


def test_the_ledger_tells_failed_items_again(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with_failures = outcome(
        failures={7: "choked", 9: "other"}, columns={"score": GOOD.columns["score"]}
    )
    ledger = Ledger.create(path, {"identity": {}}, {"t": 10})
    ledger.asked(0, 1, [Candidate(0, [0.0], RECIPE)])
    ledger.measured(0, with_failures)
    told = {"t": {7: "choked", 9: "other"}}
    assert ledger.measurements.failed_items(RECIPE.fingerprint) == told
    ledger.close()
    again = Ledger(path, read_only=True)
    assert again.num_failed_items == 2
    assert status(tmp_path)["failed_items"] == 2
    assert again.measurements.failed_items(RECIPE.fingerprint) == told
    assert again.measurements.missing(RECIPE.fingerprint, "t", (4, 7, 9)) == ()
    again.close()


def test_many_reasons_become_few(tmp_path):
    items = tuple(range(10))
    job = Job(0, 0, RECIPE, {"t": items})
    failures = {item: f"reason {min(item, 7)}" for item in items[1:]}
    answers = Responses("t", np.array(items), {"score": np.zeros(10, np.float32)}, None, failures)
    ledger = Ledger.create(tmp_path / "ledger.sqlite", {"identity": {}}, {"t": 10})
    ledger.measured(0, Outcome(job, (answers,)))
    ((_, _, data),) = ledger.events("measured")
    groups = data["failed_items"]["t"]
    assert groups[0] == ["reason 7", [7, 8, 9]]
    assert len(groups) == 5
    assert sorted(item for _, part in groups for item in part) == list(items[1:])
    ledger.close()


def test_a_failed_item_is_answered_and_not_asked_again():
    measurements = Measurements({"t": 10})
    measurements.add("f", GOOD)
    assert measurements.missing("f", "t", (4, 7, 8)) == (8,)
    assert measurements.item_evaluations == 3
