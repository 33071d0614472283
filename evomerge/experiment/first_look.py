"""What is wrong with an experiment, as far as its files tell: nothing heavy is imported for it.

Everything is noted at once, over all files, with file and line. Models are not opened here, nor
tasks made: what only they tell comes afterwards, when an experiment is wired together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.documents import Document, collect, parse, read_yaml
from evomerge.errors import ConfigurationError, EvomergeError, Problem, nearest
from evomerge.experiment.config import (
    BudgetConfig,
    ExperimentConfig,
    Survey,
    parse_experiment,
    survey,
)
from evomerge.experiment.file_kinds import check_kind
from evomerge.experiment.look_at_tasks import missing, task_problems
from evomerge.experiment.mergekit_file import is_mergekit
from evomerge.experiment.mergekit_genome import is_evolve_file
from evomerge.experiment.paths import RUN, absolute
from evomerge.files import EXPERIMENT
from evomerge.ledger import LEDGER
from evomerge.recipe import Recipe
from evomerge.records import Objective
from evomerge.search_spaces.niches import NichesConfig
from evomerge.searchers import SEARCHERS
from evomerge.searchers.needs import NEEDS
from evomerge.searchers.scalarised import ScalariseConfig
from evomerge.zoo import PREFIX, check_reference

LINE = re.compile(r"^(.*?):(\d+)")  # of a problem's place


def checked_experiment(
    path: Path, *, notes: list[str] | None = None, run: Path | None = None
) -> ExperimentConfig:
    """Read an experiment file, and look for everything that it refers to.

    notes: as for `read_experiment`. run: the folder of its run, which holds what the run began
        with (designs, a warm start, texts) once that has begun: the files may be gone then.

    Raises:
        ConfigurationError: with every problem of every file, file by file and line by line.
        ModelError: the base of a file of mergekit-evolve cannot be read.
    """
    document = read_yaml(path)
    if is_evolve_file(document.data):
        return parse_experiment(document, notes=notes)
    check_kind(document, "experiments", str(path))
    found = survey(document)
    problems = dict.fromkeys([*found.problems, *_looked_at(found, run)])
    if problems or found.config is None:
        raise ConfigurationError(_in_order(problems))
    return found.config


def _in_order(problems: Mapping[Problem, None]) -> list[Problem]:
    """File by file, in the order in which they were read, and line by line."""
    places = [LINE.match(problem.where) for problem in problems]
    files = [
        match[1] if match else problem.where
        for match, problem in zip(places, problems, strict=True)
    ]
    lines = [int(match[2]) if match else 0 for match in places]
    first = {file: files.index(file) for file in files}
    order = sorted(range(len(files)), key=lambda n: (first[files[n]], lines[n]))
    every = list(problems)
    return [every[n] for n in order]


def _looked_at(found: Survey, run: Path | None) -> Iterator[Problem]:
    document = found.document
    folder = document.path.parent if document.path else Path.cwd()
    names = _model_names(document.data)
    has_begun = run is not None and (run / EXPERIMENT).exists()
    yield from _model_problems(document, folder)
    if not has_begun:
        yield from _start_problems(document, folder, names)
    fitness = found.documents.get("fitness")
    if fitness is not None and isinstance(fitness.data, dict):
        yield from task_problems(fitness, found.fitness, names)
    if not has_begun:
        yield from _calibration_problems(document, folder, names, fitness)
    yield from _mismatches(found)


# --- files ----------------------------------------------------------------------------------------


def _model_names(data: Mapping[str, Any]) -> list[str]:
    experts = data.get("experts")
    return ["base", *(map(str, experts) if isinstance(experts, Mapping) else ())]


def _model_problems(document: Document, folder: Path) -> Iterator[Problem]:
    """Models that are not there."""
    places: dict[tuple[str, ...], Any] = {("base",): document.data.get("base")}
    experts = document.data.get("experts")
    for name, entry in experts.items() if isinstance(experts, Mapping) else ():
        if isinstance(entry, Mapping):
            places["experts", str(name), "path"] = entry.get("path")
        else:
            places["experts", str(name)] = entry
    for place, reference in places.items():
        if isinstance(reference, str):
            yield from _model_problem(document.where(place), reference, folder)


def _model_problem(where: str, reference: str, folder: Path) -> Iterator[Problem]:
    if reference.startswith(PREFIX):
        problems: list[Problem] = []
        collect(problems, partial(check_reference, reference))
        yield from (Problem(where, p.what, p.hint) for p in problems)
    elif reference.startswith(RUN):
        text = reference.removeprefix(RUN).partition("#")[0]
        if not text:
            yield Problem(where, "expected run:FOLDER or run:FOLDER#CANDIDATE")
            return
        yield from _run_problems(where, _run_folder(reference, folder))
        yield from _circle(where, reference, folder, ())
    elif not reference.startswith("memory:"):
        path = (folder / Path(reference).expanduser()).resolve()
        yield from missing(where, path, "no such file or folder")


def _run_folder(reference: str, folder: Path) -> Path:
    """The folder of a `run:` reference: relative to the file, or the run of that name."""
    text = reference.removeprefix(RUN).partition("#")[0]
    near = (folder / Path(text).expanduser()).resolve()
    return near if "/" in text or near.exists() else Path("runs", text).resolve()


def _run_problems(where: str, folder: Path) -> Iterator[Problem]:
    if not (folder / LEDGER).exists():
        beside = [path.parent.name for path in folder.parent.glob(f"*/{LEDGER}")]
        what = f"no run here (there is no {LEDGER}): {folder}"
        yield Problem(where, what, nearest(folder.name, beside))


def _circle(
    where: str, reference: str, folder: Path, before: tuple[Path, ...]
) -> Iterator[Problem]:
    """A run that goes on from a run that goes on from the first."""
    run = _run_folder(reference, folder)
    if run in before:
        way = " -> ".join(path.name for path in (*before, run))
        yield Problem(where, f"goes round in a circle: {way}")
        return
    problems: list[Problem] = []
    frozen = run / EXPERIMENT
    theirs = collect(problems, partial(read_yaml, frozen)) if frozen.exists() else None
    data = theirs.data if theirs is not None and isinstance(theirs.data, dict) else {}
    experts = data.get("experts")
    for other in (data.get("base"), *(experts.values() if isinstance(experts, dict) else ())):
        if isinstance(other, str) and other.startswith(RUN):
            circle = list(_circle(where, other, run, (*before, run)))
            yield from circle
            if circle:
                return


def _start_problems(document: Document, folder: Path, names: list[str]) -> Iterator[Problem]:
    """What a search is to begin with."""
    if isinstance(designs := document.data.get("designs"), list):
        for number, design in enumerate(designs):
            if isinstance(design, str):
                where = document.where(("designs", number))
                yield from _design_problems(where, Path(absolute(design, folder)), names)
    if isinstance(run := document.data.get("warm_start"), str):
        yield from _run_problems(document.where(("warm_start",)), Path(absolute(run, folder)))


def _design_problems(where: str, path: Path, names: list[str]) -> Iterator[Problem]:
    """A recipe that is not there, is none, or merges other models."""
    if not path.exists():
        yield from missing(where, path)
        return
    problems: list[Problem] = []
    document = collect(problems, partial(read_yaml, path))
    if document is not None and not is_mergekit(document.data):
        recipe = collect(problems, partial(parse, Recipe, document))
        for name in recipe.models if recipe is not None else ():
            if name not in names:
                what = f"it merges {name!r}, which is no model of this experiment"
                problems.append(Problem("", what, nearest(name, names)))
    for problem in problems:
        place = f"{where} -> {problem.where}" if problem.where else where
        yield Problem(place, problem.what, problem.hint)


def _calibration_problems(
    document: Document, folder: Path, names: list[str], fitness: Document | None
) -> Iterator[Problem]:
    given = document.data.get("calibration")
    if not isinstance(given, Mapping):
        return
    own = given.get("of") if isinstance(given.get("of"), Mapping) else {}
    parts: dict[tuple[str, ...], Any] = {("calibration",): given}
    for model, part in (own or {}).items():
        parts["calibration", "of", str(model)] = part
        if model not in names:
            where = document.where(("calibration", "of", str(model)))
            yield Problem(where, "no such model", nearest(str(model), names))
    tasks = fitness.data.get("tasks") if fitness and isinstance(fitness.data, dict) else None
    for place, part in parts.items():
        if not isinstance(part, Mapping):
            continue
        if isinstance(texts := part.get("texts"), str):
            where = document.where((*place, "texts"))
            yield from missing(where, Path(absolute(texts, folder)))
        task = part.get("task")
        if isinstance(task, str) and isinstance(tasks, Mapping) and not _is_among(task, tasks):
            yield Problem(
                document.where((*place, "task")), f"no task {task!r}", nearest(task, tasks)
            )


def _is_among(task: str, tasks: Mapping[str, Any]) -> bool:
    """Whether an entry has that name, or is perhaps a group that holds a task of that name."""
    return task in tasks or any(task.startswith(f"{name}/") for name in tasks)


# --- what does not go together --------------------------------------------------------------------


def _mismatches(found: Survey) -> Iterator[Problem]:
    """Between the files, of which each may be right by itself."""
    document, experts = found.document, found.document.data.get("experts")
    if found.space is not None and isinstance(experts, Mapping):
        for problem in found.space.check_experts(tuple(map(str, experts))):
            yield _placed(problem, document, found.documents["space"], "space")
    if names := _objectives(found):
        problems: list[Problem] = []
        collect(problems, partial(_check_target, document, names))
        yield from (_placed(problem, document, document) for problem in problems)
    searcher = document.data.get("searcher")
    kind = searcher.get("kind") if isinstance(searcher, Mapping) else None
    if isinstance(kind, str) and kind in SEARCHERS and isinstance(searcher, Mapping):
        yield from _searcher_mismatches(found, kind, searcher.get("scalarise"))


def _objectives(found: Survey) -> tuple[str, ...]:
    """The names of the objectives, whatever else is wrong with the fitness."""
    fitness = found.documents.get("fitness")
    named = fitness.data.get("objectives") if fitness and isinstance(fitness.data, dict) else None
    return tuple(map(str, named)) if isinstance(named, Mapping) else ()


def _check_target(document: Document, names: tuple[str, ...]) -> None:
    """Refuse a target of other objectives; what else is wrong with the budget is noted elsewhere.

    Raises:
        ConfigurationError: naming them.
    """
    with suppress(ValidationError):
        budget = BudgetConfig.model_validate(document.data.get("budget"))
        budget.reached_at([Objective(name, {}) for name in names])


def _searcher_mismatches(found: Survey, kind: str, scalarise: Any) -> Iterator[Problem]:
    """What a searcher needs of objectives and space, as far as their files tell."""
    where = found.document.where(("searcher", "kind"))
    names = _objectives(found)
    seen = len(names)
    if scalarise is not None:
        seen = min(seen, 1)
        try:
            wrong = parse(ScalariseConfig, Document(scalarise)).problems(names) if names else ()
        except EvomergeError:
            wrong = ()  # noted elsewhere
        yield from (_placed(problem, found.document, found.document) for problem in wrong)
    if not (lacking := list(_lacking(found, kind, seen))):
        return
    able = []
    for name in SEARCHERS:
        with suppress(EvomergeError):  # an installed package's, which cannot be imported
            able += [] if list(_lacking(found, name, seen)) else [name]
    hint = f"searchers that can: {', '.join(able)}" if able else ""
    for what in lacking:
        named = f": {', '.join(names)}" if what.endswith(str(seen)) else ""
        yield Problem(where, f"{kind} {what}{named}", hint)


def _lacking(found: Survey, kind: str, num_objectives: int) -> Iterator[str]:
    """Why a searcher cannot do what the files ask for; 0 objectives are unknown ones."""
    searcher = SEARCHERS[kind]
    if num_objectives > 1 and not searcher.multi_objective:
        yield f"searches one objective, got {num_objectives}"
    needs: set[str] = set()
    if num_objectives == 1:
        needs.add("several_objectives")
    if found.space is not None:
        needs.add("genes" if isinstance(found.space, NichesConfig) else "lineages")
    yield from (NEEDS[need].otherwise for need in sorted(needs & searcher.needs))


def _placed(problem: Problem, document: Document, inner: Document, key: str = "") -> Problem:
    """A problem with file and line; `space.search.x` stands in the space's own file."""
    keys = tuple(problem.where.split("."))
    if key and keys[0] == key:
        return Problem(inner.where(keys[1:]), problem.what, problem.hint)
    return Problem(document.where(keys), problem.what, problem.hint)
