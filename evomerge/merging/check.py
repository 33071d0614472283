"""Validation of merges from the declarations alone, before any file is opened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from evomerge.errors import Problem, nearest
from evomerge.merging.operator import Operator, Value
from evomerge.merging.table import OPERATORS, unknown
from evomerge.recipe import Merge
from evomerge.records import Parameter


def check_merge(merge: Merge, base: str) -> list[Problem]:
    """Everything that is wrong with a complete merge; empty if it can be applied."""
    if merge.operator is None:
        return [Problem("operator", "no operator is named", nearest("", OPERATORS))]
    operator = OPERATORS.get(merge.operator)
    if operator is None:
        return [Problem("operator", *unknown(merge.operator))]
    problems = list(_source_problems(operator, merge.sources or (), base))
    known = {parameter.name: parameter for parameter in operator.parameters}
    for name, value in merge.parameters.items():
        if name not in known:
            what = f"{operator.name} has no such parameter"
            problems.append(Problem(f"parameters.{name}", what, nearest(name, known)))
            continue
        problems += _value_problems(known[name], value, merge.sources or ())
    return problems


def resolved_parameters(merge: Merge) -> dict[str, Value]:
    """Every parameter of a merge that `check_merge` passes, with defaults filled in.

    Per-source parameters become one value for each source, in the merge's order.
    """
    values: dict[str, Value] = {}
    for parameter in OPERATORS[merge.operator or ""].parameters:
        given: Any = merge.parameters.get(parameter.name)
        if given is None:
            given = parameter.default
        if parameter.per_source:
            table = given if isinstance(given, dict) else dict.fromkeys(merge.sources or (), given)
            sources = merge.sources or ()
            values[parameter.name] = tuple(
                float(table.get(source, parameter.default)) for source in sources
            )
        else:
            convert = {"real": float, "integer": int}.get(parameter.kind)
            values[parameter.name] = convert(given) if convert else given
    return values


def _source_problems(operator: Operator, sources: tuple[str, ...], base: str) -> Iterator[Problem]:
    least, most = operator.min_sources, operator.max_sources
    if len(sources) < least or (most is not None and len(sources) > most):
        expected = f"{least}" if least == most else f"{least} or more" if most is None else ""
        expected = expected or f"{least} to {most}"
        got = f"{len(sources)} ({', '.join(sources)})" if sources else "none"
        yield Problem("sources", f"{operator.name} takes {expected}, got {got}")
    if operator.needs_base and base in sources:
        what = f"{base!r} is the base already: {operator.name} merges other models into it"
        yield Problem("sources", what)
    for source in sorted({source for source in sources if sources.count(source) > 1}):
        yield Problem("sources", f"{source!r} stands twice")


def _value_problems(
    parameter: Parameter, value: Any, sources: tuple[str, ...]
) -> Iterator[Problem]:
    where = f"parameters.{parameter.name}"
    if value is None:
        return  # null asks for the default
    if isinstance(value, dict):
        if not parameter.per_source:
            yield Problem(where, f"expected one {_expected(parameter)}, got one for each source")
            return
        for source, one in value.items():
            if source not in sources:
                hint = nearest(source, sources)
                yield Problem(f"{where}.{source}", "not a source of this merge", hint)
            elif (what := _wrong(parameter, one)) is not None:
                yield Problem(f"{where}.{source}", what)
        if missing := [source for source in sources if source not in value]:
            what = f"no value for {', '.join(missing)}"
            yield Problem(where, what, "give one for each source, or one number for all")
    elif (what := _wrong(parameter, value)) is not None:
        hint = nearest(str(value), parameter.options) if parameter.kind == "choice" else ""
        yield Problem(where, what, hint)


def _wrong(parameter: Parameter, value: Any) -> str | None:
    """What is wrong with one value of a parameter."""
    real = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (parameter.low is None or value >= parameter.low)
        and (parameter.high is None or value <= parameter.high)
    )
    fits = {
        "flag": isinstance(value, bool),
        "choice": isinstance(value, str) and value in parameter.options,
        "real": real,
        "integer": real and value == int(value),
    }
    return None if fits[parameter.kind] else f"expected {_expected(parameter)}, got {value!r}"


def _expected(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        return "one of " + ", ".join(parameter.options)
    if parameter.kind == "flag":
        return "true or false"
    low = "-inf" if parameter.low is None else f"{parameter.low:g}"
    high = "inf" if parameter.high is None else f"{parameter.high:g}"
    return f"a {'whole ' * (parameter.kind == 'integer')}number from {low} to {high}"
