"""Write the pages of the reference from the tables and the schema: `make reference`.

What is written is compared with what stands there by a test, so nobody edits these pages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import command_line
from tables import comments_of, keys_table, parts_of, summary_of, table, title_of

DOCS = Path(__file__).resolve().parents[1]
MADE = "<!-- Made by `make reference`: change the code that it describes instead. -->\n"


def operators() -> str:
    """docs/operators.md."""
    from evomerge.merging import reference

    return reference.markdown()


def searcher_options() -> str:
    """docs/searcher_options.md."""
    from evomerge.searchers import reference

    return reference.markdown()


def experiment() -> str:
    """The keys of an experiment and a fitness file."""
    from evomerge.experiment.config import ExperimentConfig
    from evomerge.fitness.config import FitnessConfig
    from evomerge.search_spaces.config import SpaceConfig

    known = comments_of((DOCS / "files.md").read_text(encoding="utf-8"))
    lines = [
        "# Keys of experiment and fitness files",
        "",
        MADE,
        "What each part means, with examples: [Files](../files.md). A space's keys are "
        "[here](spaces.md), a searcher's options [here](../searcher_options.md), an estimator's "
        "[here](estimators.md), a task's [here](tasks.md).",
        "",
        "## Experiment",
        "",
        keys_table(ExperimentConfig, (), known),
    ]
    told: list[type[Any]] = [ExperimentConfig, SpaceConfig]
    below = [part for model in (ExperimentConfig, FitnessConfig) for part in parts_of(model)]
    for model in (FitnessConfig, *below):
        if model not in told and not issubclass(model, SpaceConfig):
            told.append(model)
            keys = keys_table(model, (), known if model is FitnessConfig else None)
            lines += [f"## {title_of(model.__name__)}", "", summary_of(model), "", keys]
    return "\n".join(lines)


def spaces() -> str:
    """The kinds of search spaces, and the catalogue."""
    from evomerge.search_spaces import SPACES, catalogue
    from evomerge.search_spaces.config import SpaceConfig

    lines = [
        "# Kinds of search spaces, and the catalogue",
        "",
        MADE,
        "Which one when: [Choose a space](../how_to/choose_a_space.md). Examples: "
        "[Search spaces](../spaces.md).",
        "",
        "## Catalogue",
        "",
        "Genes are counted for (experts, layers); `evomerge spaces NAME` prints a file.",
        "",
    ]
    rows = []
    for entry in catalogue.entries():
        shapes = [f"{genes:,} ({experts}, {layers})" for experts, layers, genes in entry.shapes]
        rows.append((f"`{entry.name}`", f"`{entry.kind}`", ", ".join(shapes) or "-", entry.summary))
    lines.append(table(("file", "kind", "genes", "what"), rows))
    told: set[type[Any]] = {SpaceConfig}
    parts: list[str] = []
    for name, kind in SPACES.items():
        lines += [f"## {name}", "", f"{kind.summary[0].upper()}{kind.summary[1:]}.", ""]
        lines.append(keys_table(kind.config))
        for part in parts_of(kind.config):
            if part not in told:
                told.add(part)
                parts += [
                    f"### {title_of(part.__name__)}",
                    "",
                    summary_of(part),
                    "",
                    keys_table(part, ()),
                ]
    lines += ["## Parts", "", "What stands below these keys.", "", *parts]
    return "\n".join(lines)


def estimators() -> str:
    """The estimators and their options."""
    from evomerge.fitness.estimators import ESTIMATORS

    lines = [
        "# Estimators and their options",
        "",
        MADE,
        "Which one when, and what was measured: [Estimators](../estimators.md).",
        "",
    ]
    for name, kind in ESTIMATORS.items():
        lines += [f"## {name}", "", f"{kind.summary[0].upper()}{kind.summary[1:]}.", ""]
        lines.append(keys_table(kind.options))
    return "\n".join(lines)


def tasks() -> str:
    """The kinds of tasks and their options."""
    from evomerge.fitness import TASKS
    from evomerge.fitness.options import PythonOptions

    lines = [
        "# Kinds of tasks and their options",
        "",
        MADE,
        "What each asks and how it scores: [Tasks](../tasks.md).",
        "",
    ]
    for name, kind in TASKS.items():
        lines += [f"## {name}", "", f"{kind.summary[0].upper()}{kind.summary[1:]}.", ""]
        lines.append(keys_table(kind.options))
    lines += ["## python:FILE.py:NAME", "", "Your own code; any other key is its own.", ""]
    return "\n".join([*lines, keys_table(PythonOptions)])


PAGES: dict[str, Callable[[], str]] = {
    "operators.md": operators,
    "searcher_options.md": searcher_options,
    "reference/experiment.md": experiment,
    "reference/spaces.md": spaces,
    "reference/estimators.md": estimators,
    "reference/tasks.md": tasks,
    "reference/command_line.md": lambda: command_line(MADE),
}


def main() -> None:
    """Write all pages."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make().rstrip() + "\n", encoding="utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
