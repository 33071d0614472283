"""What is known of the operators without running them: the facts behind help and documentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evomerge.merging.operator import Declared, Operator
from evomerge.merging.table import OPERATORS, POST_STEPS
from evomerge.records import Parameter

INTRODUCTION = """\
# Operators

What can stand under `operator:` in a search space or a recipe. This file is written by
`evomerge operators --markdown` from the operators' declarations; `evomerge operators NAME` shows
one of them, `--json` all of them for a script.

W_0 is the base, tau_k = W_k - W_0 the task vector of source k. *Models* counts the sources; the
base comes on top where one is needed, and may be a source where none is. A parameter *per source*
is one number for all sources, or a mapping with one for each. A search may vary any of them:
numbers within a range, flags and names; what it does not vary stands under `fixed:` or has its
default. Parameters marked *prepared* decide what is computed once and kept: a search that varies
them pays for it with every candidate, unless it gives them a few `levels`. What the operators gave
on real merges, as they come and searched, and what each of them costs:
[which_operator.md](which_operator.md).

Arithmetic is in float32, whatever the models are stored in, and cast once at the end. Where
published code and mergekit 0.1.5 differ, the default is the published one, and `compat: mergekit`
gives mergekit's. Parity with mergekit is tested tensor by tensor, except where its result hangs on
rounding, on random draws, or on the order in which a sort leaves equal values.
"""

POST = """\
## Post-steps

What can be done to a merged tensor once more, whatever operator has merged it: `operator: ties |
lines` merges as `ties` does and then scales what came out, in float32 up to the end. Several may
follow each other. A post-step's parameters carry its name (`lines_alpha`, `lines_beta`), stand
beside the operator's and are searched as those are. `evomerge operators "ties | lines"` shows them
together. mergekit has no such thing, so a recipe with post-steps cannot become its YAML.
"""

SOUPS = """\
## Greedy soup

Not an operator: it chooses which models go into a mean, and needs their scores for that.
`evomerge.merging.operators.soup.greedy_soup(names, score_of)` takes the names of models in
descending score and a function that scores the mean of some of them. It goes through the names
once, and keeps each model with which the mean scores no lower than without (Wortsman et al. 2022,
<https://arxiv.org/abs/2203.05482>, recipe 1). What it returns are the sources of a `uniform_soup`.
"""


def facts(operator: Operator) -> dict[str, Any]:
    """An operator's declaration as JSON values; bounds that do not exist are null."""
    return {
        "name": operator.name,
        "summary": operator.summary,
        "paper": operator.paper,
        "needs_base": operator.needs_base,
        "needs_adapters": operator.needs_adapters,
        "min_sources": operator.min_sources,
        "max_sources": operator.max_sources,
        "needs": operator.needs,
        "parameters": [_facts(parameter) for parameter in operator.parameters],
        "notes": operator.notes,
    }


def _facts(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "kind": parameter.kind,
        "default": parameter.default,
        "low": parameter.low,
        "high": parameter.high,
        "options": list(parameter.options),
        "per_source": parameter.per_source,
        "phase": parameter.phase,
        "help": parameter.help,
    }


def models_of(operator: Operator) -> str:
    """How many models it takes: `2`, `1 or more, and the base`."""
    least, most = operator.min_sources, operator.max_sources
    count = f"{least}" if least == most else f"{least} or more" if most is None else ""
    count = count or f"{least} to {most}"
    kind = " LoRA adapters" if operator.needs_adapters else ""
    return f"{count}{kind}{', and the base' if operator.needs_base else ''}"


def range_of(parameter: Parameter) -> str:
    """The values that a parameter may have: `0 to 1`, `true, false`."""
    if parameter.kind == "flag":
        return "true, false"
    if parameter.kind == "choice":
        return ", ".join(parameter.options)
    low = "-inf" if parameter.low is None else f"{parameter.low:g}"
    high = "inf" if parameter.high is None else f"{parameter.high:g}"
    return f"{low} to {high}{', whole' if parameter.kind == 'integer' else ''}"


def default_of(parameter: Parameter) -> str:
    """A parameter's default as YAML has it."""
    if isinstance(parameter.default, bool):
        return str(parameter.default).lower()
    return parameter.default if isinstance(parameter.default, str) else f"{parameter.default:g}"


def in_short(parameter: Parameter) -> str:
    """A parameter in one piece of text: `weight 1 (-10 to 10, per source)`."""
    about = [range_of(parameter)] + ["per source"] * parameter.per_source
    return f"{parameter.name} {default_of(parameter)} ({', '.join(about)})"


def parameter_rows(operator: Declared) -> list[tuple[str, str, str, str]]:
    """Name, default, values and meaning of each parameter."""
    return [
        (
            parameter.name,
            default_of(parameter),
            range_of(parameter),
            "; ".join(
                [parameter.help]
                + ["per source"] * parameter.per_source
                + ["prepared"] * (parameter.phase == "prepare")
            ),
        )
        for parameter in operator.parameters
    ]


def markdown() -> str:
    """The reference of all operators: docs/operators.md."""
    names = ("operator", "what it does", "models", "needs")
    overview = _table(
        names,
        (
            (f"[`{name}`](#{name})", operator.summary, models_of(operator), operator.needs)
            for name, operator in OPERATORS.items()
        ),
    )
    steps = [_section(step, "#") for step in POST_STEPS.values()]
    sections = [INTRODUCTION, overview, *map(_section, OPERATORS.values()), POST, *steps, SOUPS]
    return "\n".join(sections)


def _section(operator: Declared, deeper: str = "") -> str:
    name = operator.name if isinstance(operator, Operator) else f"... | {operator.name}"
    models = f"Models: {models_of(operator)}. " if isinstance(operator, Operator) else ""
    lines = [f"##{deeper} {name}", "", f"{operator.summary}.", ""]
    lines += [f"{models}Source: {_linked(operator.paper)}.", ""]
    if operator.notes:
        lines += [operator.notes, ""]
    if operator.parameters:
        rows = ((f"`{row[0]}`", *row[1:]) for row in parameter_rows(operator))
        lines.append(_table(("parameter", "default", "values", "meaning"), rows))
    return "\n".join(lines)


def _linked(paper: str) -> str:
    """A source with its address as a link."""
    words = (
        f"<{word.rstrip(',')}>{',' * word.endswith(',')}" if word.startswith("https://") else word
        for word in paper.split(" ")
    )
    return " ".join(words)


def _table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [names, ["---"] * len(names), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
