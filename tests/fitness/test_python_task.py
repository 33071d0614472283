"""A user's function: called once per candidate, and never trusted with more than numbers."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evomerge.errors import CandidateError, ConfigurationError
from evomerge.fitness.function_hash import function_hash
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


def compiled(source, file="fitness.py", **names):
    """The function `f` of a source text, as another process or a notebook's cell would make it."""
    names = {"__name__": "user", **names}
    exec(compile(source, file, "exec"), names)  # noqa: S102 - the sources are those below
    return names["f"]


def fingerprint(function):
    (task,) = PythonFitness(function).tasks({"a": 0.0}).values()
    return task.fingerprint


WORDS = 'def f(m):\n    return {"a": m.x in {"one", "two", "three", "four"}}\n'
SCALED = "SCALE = 2\ndef g(m):\n    return m * SCALE\ndef f(m):\n    return {'a': g(m)}\n"
COUNTING = "N = 0\ndef f(m):\n    global N\n    N += 1\n    return {'a': m}\n"
METHOD = """
class Fitness:
    def __call__(self, m):
        return self.score(m)
    def score(self, m):
        return {"a": m}
f = Fitness()
"""
DECORATED = "import torch\n@torch.no_grad()\ndef f(m):\n    return {'a': m + 1}\n"
ENCLOSED = "def make(k):\n    def f(m):\n        return {'a': m * k}\n    return f\nf = make(3)\n"
PARTIAL = """
from functools import partial
def g(m, k, words):
    return {"a": m * k}
f = partial(g, k=2, words={"x": ["one"]})
"""


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        ("def f(m):\n    return {'a': m + 1}\n", "1", "2"),  # a constant
        ("def f(m):\n    return {'a': m + 1}\n", "+", "-"),  # an operation
        ("def f(m):\n    return {'a': m.low}\n", "low", "high"),  # a name
        ("def f(m, k=1):\n    return {'a': k}\n", "k=1", "k=2"),  # a default
        ("def f(m, *, k=1):\n    return {'a': k}\n", "k=1", "k=2"),
        ("def f(m):\n    return {'a': sum(i * 2 for i in m)}\n", "* 2", "* 3"),  # code within
        (WORDS, "four", "five"),
        (SCALED, "m * SCALE", "m + SCALE"),  # a function that it calls
        (SCALED, "SCALE = 2", "SCALE = 3"),  # a number that this one reads
        (METHOD, '"a": m', '"a": -m'),
        (DECORATED, "m + 1", "m + 2"),
        (ENCLOSED, "make(3)", "make(4)"),
        (PARTIAL, "m * k", "m + k"),
        (PARTIAL, "k=2", "k=3"),
        (PARTIAL, '"one"', '"two"'),
    ],
)
def test_a_changed_function_is_another_and_the_same_one_elsewhere_is_the_same(
    source, before, after
):
    assert before in source
    known = fingerprint(compiled(source))
    assert fingerprint(compiled(source)) == known
    assert fingerprint(compiled("\n\n# moved\n" + source, "elsewhere/other.py")) == known
    assert fingerprint(compiled(source.replace(before, after))) != known


def test_a_function_that_has_run_is_still_the_same():
    function = compiled(COUNTING)
    known = fingerprint(function)
    function(1)
    assert fingerprint(function) == known
    counted = Counted()
    known = fingerprint(counted)
    counted(Resident().module.requires_grad_(False))
    assert fingerprint(counted) == known
    seen = []

    def remembering(model):
        seen.append(model)
        return {"a": 1.0}

    known = fingerprint(remembering)
    remembering(1)
    assert fingerprint(remembering) == known


def test_fingerprints_do_not_depend_on_the_process():
    program = (
        "import sys; from evomerge.fitness.function_hash import function_hash\n"
        "names = {'__name__': 'user'}; exec(sys.argv[1], names)\n"
        "print(function_hash(names['f']))"
    )
    for source in (WORDS, PARTIAL):
        found = {
            subprocess.run(
                [sys.executable, "-c", program, source],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2", "3")
        }
        assert len(found) == 1


def test_what_has_no_code_goes_by_its_name():
    assert function_hash(len) != function_hash(max)
    assert function_hash(cache(compiled(SCALED))) != function_hash(
        cache(compiled(SCALED.replace("2", "3")))
    )


def test_functions_that_call_each_other_have_a_fingerprint():
    even = "def f(m):\n    return m and g(m - 1)\ndef g(m):\n    return f(m - 1)\n"
    assert function_hash(compiled(even)) == function_hash(compiled(even))
