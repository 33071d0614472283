"""A candidate of a run as a model of the next: `run:FOLDER`, its best, or `run:FOLDER#17`.

The candidate is merged once, into the cache folder, under its recipe's fingerprint: models count
there by their content, so that equal recipes share a folder whichever run they are from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from evomerge.checkpoints.write import MARK
from evomerge.errors import ConfigurationError, EvomergeError, ModelError, Problem, nearest
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.paths import RUN
from evomerge.experiment.run import read_run_config, run_calibration
from evomerge.experiment.wire import IN_MEMORY, open_models
from evomerge.files import cache_folder
from evomerge.ledger import LEDGER, Ledger
from evomerge.protocols import Progress
from evomerge.records import Candidate, CandidateId
from evomerge.results.export import export_model
from evomerge.results.status import best_candidate
from evomerge.zoo.folders import claimed


def pinned(reference: str) -> str:
    """The same reference with its candidate's number, so that it stays the same candidate.

    A run that goes on may find a better one later. What is no reference to a run stays as it is.

    Raises:
        ConfigurationError: there is no run, or nothing in it was measured yet.
    """
    if not reference.startswith(RUN):
        return reference
    folder, number = _parts(reference)
    if number is None:
        with _opened(folder) as ledger:
            number = best_candidate(folder, ledger).id
    return f"{RUN}{folder}#{number}"


def pin_runs(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with every reference to a run pinned.

    Raises:
        ConfigurationError: naming every model whose run, or candidate, is not there.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for name, path in config.models().items():
        try:
            found[name] = pinned(path)
        except EvomergeError as error:
            problems += [Problem(f"model {name}", str(p)) for p in error.problems]
    if problems:
        raise ConfigurationError(problems)
    if found == config.models():
        return config
    return config.model_copy(update={"base": found.pop("base"), "experts": found})


def run_model(reference: str, progress: Progress | None = None) -> Path:
    """The folder of a candidate's merged model, written now unless it is there already.

    Several processes may ask at once: one writes, the others wait. The folder appears whole.

    Raises:
        ConfigurationError: there is no run, no such candidate in it, or its models were in memory.
        ModelError: a model of the run has changed since.
        DiskFull: the model does not fit into the cache folder.
    """
    folder, number = _parts(reference)
    with _opened(folder) as ledger:
        candidate = best_candidate(folder, ledger) if number is None else _found(ledger, number)
    recipe = candidate.recipe
    if recipe is None:  # whom the search scored has one
        raise ConfigurationError(f"{folder}: candidate {candidate.id} has no recipe")
    if any(slot.input_scale != 1.0 for slot in recipe.slots or ()):
        what = f"candidate {candidate.id} scales its layers' inputs, which no merge can go on from"
        hint = "name another one (run:FOLDER#17), or search scales of `branches`"
        raise ConfigurationError(Problem(reference, what, hint))
    target = cache_folder() / "merged" / candidate.fingerprint
    if (target / MARK).is_file():
        return target
    config = read_run_config(folder)
    if any(path.startswith(IN_MEMORY) for path in config.models().values()):
        what = "its models were state dicts in memory, and are gone"
        hint = "call `export` of the run in Python, and name the folder that it writes"
        raise ConfigurationError(Problem(reference, what, hint))

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what.replace(target.name, reference), done, total)

    with claimed(target):
        if not (target / MARK).is_file():
            checkpoints = open_models(config, progress=progress).checkpoints
            changed = [
                Problem(f"model {name}", f"{config.models()[name]} has changed since {folder} ran")
                for name, source in recipe.models.items()
                if checkpoints[name].sha256() != source.sha256
            ]
            if changed:
                raise ModelError(changed)
            texts = run_calibration(folder)
            export_model(recipe, checkpoints, target, report, calibration=texts)
    return target


def _parts(reference: str) -> tuple[Path, CandidateId | None]:
    """The folder, absolute, and the candidate's number."""
    text = reference.removeprefix(RUN)
    match = re.fullmatch(r"(.+)#(-?\d+)", text)
    path, number = (match[1], int(match[2])) if match else (text, None)
    if not path:
        what = "expected run:FOLDER or run:FOLDER#CANDIDATE"
        raise ConfigurationError(Problem(reference, what))
    return Path(path).expanduser().resolve(), number


@contextmanager
def _opened(folder: Path) -> Iterator[Ledger]:
    """A run's ledger as it is now; its driver may be at work."""
    if not (folder / LEDGER).exists():
        beside = [path.parent.name for path in folder.parent.glob(f"*/{LEDGER}")]
        what = f"no run here (there is no {LEDGER})"
        raise ConfigurationError(Problem(str(folder), what, nearest(folder.name, beside)))
    with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
        yield ledger


def _found(ledger: Ledger, number: CandidateId) -> Candidate:
    """A candidate that has a recipe."""
    where = str(ledger.path.parent)
    found = ledger.candidates.get(number)
    if found is not None and found.recipe is not None:
        return found
    if found is not None:
        what = f"candidate {number} has no model: {'; '.join(found.violations)}"
        raise ConfigurationError(Problem(where, what))
    last = max(ledger.candidates, default=-1)
    raise ConfigurationError(Problem(where, f"no candidate {number} to merge (last: {last})"))
