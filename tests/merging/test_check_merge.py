from __future__ import annotations

import subprocess
import sys

import pytest

from evomerge.merging import OPERATORS, check_merge, resolved_parameters
from evomerge.recipe import Merge


def merge(operator="ties", sources=("a", "b"), **parameters):
    return Merge(operator=operator, sources=sources, parameters=parameters)


@pytest.mark.parametrize(
    ("wrong", "where", "says"),
    [
        (merge("tise"), "operator", "did you mean 'ties'"),
        (Merge(sources=("a",)), "operator", "no operator"),
        (merge(densty=1), "parameters.densty", "did you mean 'density'"),
        (merge(density=1.5), "parameters.density", "a number from 0 to 1, got 1.5"),
        (merge(density="high"), "parameters.density", "got 'high'"),
        (merge(weight=True), "parameters.weight", "a number from -10 to 10, got True"),
        (merge(weight={"a": 1, "b": 1, "bb": 1}), "parameters.weight.bb", "did you mean 'b'"),
        (merge(weight={"a": 99, "b": 1}), "parameters.weight.a", "got 99"),
        (merge(weight={"b": 1}), "parameters.weight", "no value for a"),
        (merge(weight={}), "parameters.weight", "no value for a, b"),
        (merge(normalize=1), "parameters.normalize", "true or false, got 1"),
        (merge(compat="mergkit"), "parameters.compat", "did you mean 'mergekit'"),
        (merge(compat={"a": 1}), "parameters.compat", "one for each source"),
        (merge(sources=("a", "base")), "sources", "is the base already"),
        (merge(sources=("a", "a")), "sources", "stands twice"),
        (merge(sources=()), "sources", "takes 1 or more, got none"),
        (merge("slerp", t=0.5), "sources", "slerp takes 1, got 2 (a, b)"),
        (merge("nuslerp", ("a",)), "sources", "nuslerp takes 2, got 1 (a)"),
        (merge("nuslerp", ("a", "b", "c")), "sources", "nuslerp takes 2, got 3 (a, b, c)"),
        (merge("model_stock", ("a",)), "sources", "model_stock takes 2 or more, got 1 (a)"),
        (merge("karcher", max_iter=2.5), "parameters.max_iter", "a whole number from 1 to 1000"),
        (merge("karcher", max_iter=0), "parameters.max_iter", "got 0"),
        (merge("karcher", max_iter=True), "parameters.max_iter", "got True"),
        (merge("nuslerp", vectors="row"), "parameters.vectors", "did you mean 'rows'"),
    ],
)
def test_each_mistake_is_named_with_its_place(wrong, where, says):
    problems = check_merge(wrong, "base")
    assert [problem.where for problem in problems] == [where]
    assert says in str(problems[0])


def test_all_mistakes_are_listed_at_once():
    assert len(check_merge(merge("ties", ("base",), x=1, density=2, trim="all"), "base")) == 4


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_defaults_of_every_operator_are_valid(name):
    operator = OPERATORS[name]
    assert operator.name == name
    sources = ("a", "b", "c")[: operator.max_sources]
    given = Merge(
        operator=name, sources=sources, parameters={p.name: p.default for p in operator.parameters}
    )
    assert check_merge(given, "base") == []
    assert check_merge(Merge(operator=name, sources=sources), "base") == []
    assert resolved_parameters(given) == resolved_parameters(Merge(operator=name, sources=sources))


def test_an_integer_may_be_written_as_a_whole_float():
    """Recipes keep all numbers as floats."""
    written = merge("karcher", max_iter=7)
    assert check_merge(written, "base") == []
    values = resolved_parameters(written)
    assert values["max_iter"] == 7
    assert type(values["max_iter"]) is int


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_declarations_are_complete(operator):
    assert operator.summary
    assert operator.min_sources <= (operator.max_sources or operator.min_sources)
    for parameter in operator.parameters:
        assert parameter.help
        assert bool(parameter.options) == (parameter.kind == "choice")
        if parameter.kind in ("real", "integer"):  # what a search space needs
            assert parameter.low <= parameter.default <= parameter.high
        if parameter.per_source:
            assert parameter.kind == "real"


def test_values_for_each_source_are_in_the_order_of_the_sources():
    values = resolved_parameters(merge("ties", ("b", "a"), weight={"a": 2, "b": 1}, density=0.5))
    assert values["weight"] == (1.0, 2.0)
    assert values["density"] == (0.5, 0.5)
    assert values["normalize"] is True


def test_declarations_need_no_torch():
    code = "import sys, evomerge.merging as m; len(m.OPERATORS); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
