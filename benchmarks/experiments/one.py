"""One study on one seed: the search, its random twin, and what the holdout says of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from answers import Answers
from judging import judged, spent_items
from studies import BY_NAME, Study, config_of, run_folder, twin_config

from evomerge.documents import read_yaml
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.run import run_experiment
from evomerge.experiment.wire import Parts, wire
from evomerge.files import catalogue_folder, write_text
from evomerge.fitness.config import read_fitness
from evomerge.ledger import LEDGER
from evomerge.recipe import canonical_json

OUTCOME = "outcome.json"
MARK = "study.txt"  # in a run's folder: of which version of the files it is
LATER = {"levels"}  # keys of search spaces that are not in the fingerprints of kept outcomes


def say(text: str) -> None:
    """A line for whoever waits."""
    print(f"  {text}", flush=True)


def run_one(study: Study, seed: int, out: Path) -> None:
    """Run a study on one seed, its twin, and judge them; what is there already is kept."""
    if study.after and not is_done(BY_NAME[study.after], seed, out):
        run_one(BY_NAME[study.after], seed, out)
    folder, twin = run_folder(out, study.name, seed), twin_folder(study, seed, out)
    told_apart = fingerprint(study, seed, out)
    set_aside(told_apart, [path for path in (folder, twin) if path is not None])
    parts = wire(config_of(study, seed, out))
    finished(parts, folder, out)
    config = twin_config(study, parts.config, spent_items(folder))
    if config is not None and twin is not None:
        finished(wire(config), twin, out)
    judges = wire(with_judge(study, parts)) if study.judge else parts
    with closing(Answers(out / "answers", judges)) as answers:
        told = judged(judges, answers, folder, twin, seed, say)
    told |= {"study": study.name, "seed": seed, "claim": study.claim, "scale": study.scale}
    told["experiment"] = told_apart
    write_text(folder / OUTCOME, json.dumps(told, indent=1) + "\n")


def is_done(study: Study, seed: int, out: Path) -> bool:
    """Whether there is an outcome, and of the experiment as its files are now."""
    file = run_folder(out, study.name, seed) / OUTCOME
    if not file.exists():
        return False
    before = json.loads(file.read_text(encoding="utf-8")).get("experiment")
    return bool(before == fingerprint(study, seed, out))


def fingerprint(study: Study, seed: int, out: Path) -> str:
    """What tells a study on one seed from what its files said at another time."""
    config = config_of(study, seed, out)
    models = [config.base, *config.experts.values()]
    told = {**config.identity(), "models": models, "budget": config.budget.model_dump(mode="json")}
    told["space"] = without_later(told["space"])
    if study.after:
        before = f"run:{run_folder(out, study.after, seed)}"
        now = f"run:{study.after} {fingerprint(BY_NAME[study.after], seed, out)}"
        told["models"] = [path.replace(before, now) for path in models]
    if study.judge:
        judge = catalogue_folder("fitness") / f"{study.judge}.yaml"
        told["judge"] = judge.read_text(encoding="utf-8")
    if study.twin:
        told["twin"] = dict(study.twin)
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()[:16]


def without_later(said: Any) -> Any:
    """What space files say, without the keys that came after outcomes were kept and say nothing."""
    if isinstance(said, list):
        return [without_later(one) for one in said]
    if not isinstance(said, dict):
        return said
    return {
        key: without_later(value)
        for key, value in said.items()
        if key not in LATER or value is not None
    }


def set_aside(told_apart: str, folders: Sequence[Path]) -> None:
    """Move runs of what the files said before out of the way; mark the others as of now.

    folders: the study's own, and its twin's, which is of the same version if nothing else is known.
    """
    versions = [version_of(folder) for folder in folders]
    for folder, version in zip(folders, versions, strict=True):
        before = version or versions[0]
        if folder.exists() and before not in (None, told_apart):
            old = folder.parent / "old" / f"{folder.name}-{before}"
            while old.exists():  # the files were as they are now once before
                old = old.with_name(f"{old.name}-again")
            say(f"{folder.name}: of an earlier version of its files; kept as {old}")
            old.parent.mkdir(exist_ok=True)
            folder.rename(old)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MARK, told_apart + "\n")


def version_of(folder: Path) -> str | None:
    """Of the files that a run in a folder is of; None where nobody has noted it."""
    mark, outcome = folder / MARK, folder / OUTCOME
    if mark.exists():
        return mark.read_text(encoding="utf-8").strip()
    if not outcome.exists():
        return None
    noted = json.loads(outcome.read_text(encoding="utf-8")).get("experiment")
    return None if noted is None else str(noted)


def finished(parts: Parts, folder: Path, out: Path) -> None:
    """Run an experiment to its end; its references are asked once for all studies."""
    if not (folder / LEDGER).exists():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"{folder.name}: references")
        with closing(Answers(out / "answers", parts)) as answers:
            answers.give_references(parts, folder)
    say(f"{folder.name}: search")
    run_experiment(
        parts.config, folder
    )  # what is finished and spent stays; a budget may have grown


def with_judge(study: Study, parts: Parts) -> ExperimentConfig:
    """The experiment with the fitness whose holdout judges."""
    fitness = read_fitness(read_yaml(catalogue_folder("fitness") / f"{study.judge}.yaml"))
    return parts.config.model_copy(update={"fitness": fitness})


def twin_folder(study: Study, seed: int, out: Path) -> Path | None:
    """Where the random search is that the study is compared with."""
    return None if study.twin is None else out / f"{study.name}-random-{seed}"
