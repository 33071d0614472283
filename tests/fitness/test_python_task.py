"""A user's function: called once per candidate, and never trusted with more than numbers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evomerge.errors import CandidateError, ConfigurationError
from evomerge.fitness.python_task import PythonFitness


@dataclass
class Resident:
    module: nn.Module = field(default_factory=lambda: nn.Linear(3, 1, bias=False))
    tokenizer: Any = None
    version: int = 0

    def write(self, value: float) -> None:
        with torch.no_grad():
            self.module.weight.fill_(value)
        self.version += 1


@dataclass
class Counted:
    """A callable class that counts its calls."""

    calls: int = 0

    def __call__(self, model):
        self.calls += 1
        weight = float(model.weight[0, 0])
        return {"rows": torch.arange(4) * weight, "size": weight}


def test_one_call_serves_all_objectives_of_a_candidate():
    fitness, model = PythonFitness(Counted()), Resident()
    model.write(2.0)
    tasks = fitness.tasks(fitness.measure(model))
    assert {name: list(task.items) for name, task in tasks.items()} == {
        "rows": [0, 1, 2, 3],
        "size": [0],
    }
    assert tasks["rows"].respond(model, [3, 1]).columns["score"].tolist() == [6.0, 2.0]
    assert tasks["size"].respond(model, [0]).columns["score"].tolist() == [2.0]
    assert fitness.function.calls == 1
    model.write(5.0)
    assert tasks["size"].respond(model, [0]).columns["score"].tolist() == [5.0]
    assert tasks["rows"].respond(model, [1]).columns["score"].tolist() == [5.0]
    assert fitness.function.calls == 2
    other = Resident(version=model.version)
    other.write(1.0)
    other.version = model.version  # the same number, another model
    assert tasks["size"].respond(other, [0]).columns["score"].tolist() == [1.0]


def test_a_model_without_a_version_is_measured_every_time():
    fitness = PythonFitness(Counted())
    model = SimpleNamespace(module=nn.Linear(3, 1, bias=False), tokenizer=None)
    tasks = fitness.tasks({"rows": np.zeros(4), "size": 0.0})
    for value in (1.0, 2.0):
        nn.init.constant_(model.module.weight, value)
        assert tasks["size"].respond(model, [0]).columns["score"].tolist() == [value]


def test_a_function_that_takes_items_is_told_which_and_answers_in_their_order():
    seen = []

    def fitness(model, items):
        seen.append(items)
        return {name: [10.0 * item for item in wanted] for name, wanted in items.items()}

    tasks = PythonFitness(fitness).tasks({"a": [0.0] * 6, "b": 1.0})
    responses = tasks["a"].respond(Resident(), [4, 2])
    assert responses.items.tolist() == [4, 2]
    assert responses.columns["score"].tolist() == [40.0, 20.0]
    assert seen == [{"a": (4, 2)}]
    assert tasks["a"].respond(Resident(), []).columns["score"].shape == (0,)


def test_the_state_dict_can_be_asked_for():
    def norm(state):
        return {"norm": -state["weight"].norm()}

    model = Resident()
    model.write(0.0)
    (task,) = PythonFitness(norm, "state_dict").tasks({"norm": 0.0}).values()
    assert task.respond(model, [0]).columns["score"].tolist() == [0.0]


def failing(model):
    raise KeyError("no such layer")  # the line that is named


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (failing, r"KeyError: 'no such layer' \(test_python_task.py:\d+: raise KeyError"),
        (lambda model: {"a": [1.0, float("nan")]}, "not finite"),
        (lambda model: {"a": [1.0, float("inf")]}, "not finite"),
        (lambda model: {"a": [1.0]}, "returned 1 scores of 'a', expected 2"),
        (lambda model: {"b": [1.0, 2.0]}, "no 'a'"),
        (lambda model: {"a": "good"}, "str as 'a', expected numbers"),
        (lambda model: {"a": np.zeros((2, 2))}, r"shape \(2, 2\)"),
        (lambda model: 3.0, "must return {objective: scores}, got float"),
        (lambda model: {"a": model.weight.zero_()[0, :2]}, "changed the model's tensors"),
    ],
)
def test_what_goes_wrong_fails_the_candidate_with_a_reason(function, message):
    task = PythonFitness(function).tasks({"a": [0.0, 0.0]})["a"]
    with pytest.raises(CandidateError, match=message):
        task.respond(Resident(), [0, 1])


def test_the_named_line_is_the_one_that_raised():
    task = PythonFitness(failing).tasks({"a": 0.0})["a"]
    line = inspect.getsourcelines(failing)[1] + 1
    with pytest.raises(CandidateError, match=f"test_python_task.py:{line}:"):
        task.respond(Resident(), [0])


def test_the_named_line_is_the_users_even_if_a_library_raised():
    def wrong_shape(model):
        return {"a": model(torch.zeros(1, 7))}

    task = PythonFitness(wrong_shape).tasks({"a": 0.0})["a"]
    with pytest.raises(CandidateError, match=r"test_python_task.py:\d+: return {"):
        task.respond(Resident(), [0])


def test_a_failure_is_not_remembered():
    answers = iter([ValueError("once"), {"a": 1.0}])

    def flaky(model):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task, model = PythonFitness(flaky).tasks({"a": 0.0})["a"], Resident()
    with pytest.raises(CandidateError, match="once"):
        task.respond(model, [0])
    assert task.respond(model, [0]).columns["score"].tolist() == [1.0]


def test_an_example_that_is_no_result_is_refused():
    for example in (3.0, {}, {"a": "good"}, {"a": []}):
        with pytest.raises(ConfigurationError, match="fitness"):
            PythonFitness(Counted()).tasks(example)
    with pytest.raises(ConfigurationError, match="did you mean 'state_dict'"):
        PythonFitness(Counted(), "state_dictt")


def test_fingerprints_tell_objectives_and_lengths_apart():
    def fingerprints(rows):
        tasks = PythonFitness(Counted()).tasks({"rows": [0.0] * rows, "size": 0.0})
        return {task.fingerprint for task in tasks.values()}

    assert fingerprints(4) == fingerprints(4)
    assert len(fingerprints(4) | fingerprints(5)) == 3


def test_the_named_line_is_found_in_a_class_too():
    class Failing:
        def __call__(self, model):
            raise ValueError("no")

    task = PythonFitness(Failing()).tasks({"a": 0.0})["a"]
    with pytest.raises(CandidateError, match=r"test_python_task.py:\d+: raise ValueError"):
        task.respond(Resident(), [0])
