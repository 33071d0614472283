"""What a search begins with: the user's own merges, and what another run was told.

Both come from outside, so they are read once and kept in the run's ledger: a run that is resumed
needs neither the files nor the other run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, EvomergeError, Problem
from evomerge.experiment.config import ExperimentConfig, read_experiment
from evomerge.fitness.estimators import last_rung
from evomerge.fitness.split import Split, split_items
from evomerge.ledger import LEDGER, Ledger
from evomerge.protocols import SearchSpace, Task
from evomerge.recipe import Recipe, canonical_json
from evomerge.records import Estimate, Evaluation, Genome, Objective, Score

Json = dict[str, Any]
SHARED = ("base", "models", "dtype", "tokenizer", "chat_template", "mask_seed", "calibration")


@dataclass(frozen=True)
class Start:
    """What a search begins with.

    designs: the user's merges, as genomes. warm_start: what another run was told, in its order, as
    far as this space can say it; violations and failures are left out.
    """

    designs: tuple[Genome, ...] = ()
    warm_start: tuple[Evaluation, ...] = ()

    def to_json(self) -> Json:
        """As the ledger keeps it."""
        told = [
            [e.id, e.genome, {n: _numbers(o) for n, o in e.score.objectives.items()}, e.score.rung]
            for e in self.warm_start
            if e.score is not None
        ]
        return {"designs": list(self.designs), "warm_start": told}

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Start:
        """As it was kept."""
        told = tuple(
            Evaluation(id_, genome, Score({n: Estimate(*o) for n, o in score.items()}, rung))
            for id_, genome, score, rung in data["warm_start"]
        )
        return cls(tuple(data["designs"]), told)

    @property
    def sha256(self) -> str | None:
        """Of all of it; None where there is nothing."""
        if not self.designs and not self.warm_start:
            return None
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()


def _numbers(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.standard_error, estimate.num_items]


def recorded_start(path: Path) -> Start | None:
    """What the run with this ledger began with; None where there is no run yet."""
    if not path.exists():
        return None
    with closing(Ledger(path, read_only=True)) as ledger:
        return Start.of_json(ledger.meta.get("start", {"designs": [], "warm_start": []}))


def read_start(
    config: ExperimentConfig,
    space: SearchSpace,
    template: Recipe,
    objectives: Sequence[Objective],
    tasks: Mapping[str, Task],
    split: Split,
) -> Start:
    """Read what an experiment names under `designs` and `warm_start`.

    Raises:
        ConfigurationError: a recipe that the space cannot express, a run that has other objectives,
            or one that has searched on what is held out here.
    """
    designs, problems = [], []
    for path in config.designs:
        try:
            designs.append(_design(Path(path), space, template))
        except EvomergeError as error:
            problems += [Problem(f"designs {path}", str(p)) for p in error.problems]
        except ValueError as error:
            hint = "the space must have a genome for it"
            problems.append(Problem(f"designs {path}", str(error), hint))
    if problems:
        raise ConfigurationError(problems)
    told: tuple[Evaluation, ...] = ()
    if config.warm_start is not None:
        told = _told(Path(config.warm_start), config, space, template, objectives, tasks, split)
    return Start(tuple(designs), told)


def _design(path: Path, space: SearchSpace, template: Recipe) -> Genome:
    """The genome of a recipe file, whose models are this run's by their names."""
    from evomerge.experiment.recipes import read_recipe  # it wires models, as this is part of

    genome = _encoded(read_recipe(path), space, template)
    if found := space.violations(genome):
        raise ValueError("; ".join(found))
    return genome


def _encoded(recipe: Recipe, space: SearchSpace, template: Recipe) -> Genome:
    """A recipe's genome in this space.

    Raises:
        ValueError: the space cannot express it.
    """
    if unknown := sorted(recipe.models.keys() - template.models.keys()):
        raise ValueError(f"it merges {unknown[0]!r}, which is no model of this run")
    ours = {name: getattr(template, name) for name in SHARED}
    return space.encode(recipe.model_copy(update=ours))


def _told(
    folder: Path,
    config: ExperimentConfig,
    space: SearchSpace,
    template: Recipe,
    objectives: Sequence[Objective],
    tasks: Mapping[str, Task],
    split: Split,
) -> tuple[Evaluation, ...]:
    """What another run was told, in this space.

    Rungs count from the last one: who was asked all that there was to ask there stands with those
    who are asked all here, whatever the numbers of rungs are; some rungs may come to be below 0.
    """
    if not (folder / LEDGER).exists():
        what = f"{folder}: no run here (there is no {LEDGER})"
        raise ConfigurationError(Problem("warm_start", what))
    theirs = read_experiment(folder / "experiment.yaml")
    with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
        _check_other(folder, ledger, theirs, objectives, tasks, split)
        same_space = canonical_json(theirs.space.model_dump(mode="json")) == canonical_json(
            config.space.model_dump(mode="json")
        ) and list(theirs.experts) == list(config.experts)
        higher = last_rung(config.fitness.estimator) - last_rung(theirs.fitness.estimator)
        found = []
        for id_, evaluation in sorted(ledger.evaluations().items()):
            recipe = ledger.candidates[id_].recipe
            if evaluation.score is None or recipe is None:
                continue
            genome = evaluation.genome
            if not same_space:
                try:
                    genome = _encoded(recipe, space, template)
                except ValueError:
                    continue  # this space cannot say it
            if not space.violations(genome):
                score = replace(evaluation.score, rung=evaluation.score.rung + higher)
                found.append(replace(evaluation, genome=genome, score=score, responses={}))
    if not found:
        what = f"{folder}: this space can express none of its candidates that have a score"
        raise ConfigurationError(Problem("warm_start", what))
    return tuple(found)


def _check_other(
    folder: Path,
    ledger: Ledger,
    theirs: ExperimentConfig,
    objectives: Sequence[Objective],
    tasks: Mapping[str, Task],
    split: Split,
) -> None:
    """That what the other run was told means the same here, and gives nothing away.

    Raises:
        ConfigurationError: other objectives, or items that are held out here.
    """
    names = [objective.name for objective in objectives]
    if (others := list(theirs.fitness.objectives)) != names:
        what = f"{folder} was told {', '.join(others)}; this run has {', '.join(names)}"
        raise ConfigurationError(Problem("warm_start", what, "the same objectives, in that order"))
    known = ledger.meta["identity"]
    seen = split_items(
        {task: range(number) for task, number in ledger.meta["num_items"].items()},
        theirs.fitness.split.search,
        theirs.fitness.split.fresh,
        theirs.fitness.split.holdout,
        theirs.fitness.split.seed,
    )
    for name, task in tasks.items():
        if known.get("items", {}).get(name) != task.fingerprint or len(task.items) == 1:
            continue  # other items: which of them are alike, nobody can tell
        kept = set(split.holdout.get(name, ())) | set(split.fresh.get(name, ()))
        if shared := kept & set(seen.search.get(name, ())):
            what = f"{folder} has searched on {len(shared)} items of {name} that are held out here"
            hint = "the same fitness.split (sizes and seed) as there"
            raise ConfigurationError(Problem("warm_start", what, hint))
