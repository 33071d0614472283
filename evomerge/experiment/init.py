"""A first experiment file for a family of models: what can be found out is not asked.

Which model is the base, whether tokenizers or initialisations differ, which dtype keeps small
changes: all of it is read from the models. What is written teaches, and is valid as it stands.
"""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.preflight import preflight
from evomerge.checkpoints.relatedness import LOST, UNRELATED, Relatedness, relate
from evomerge.documents import read_yaml
from evomerge.errors import ConfigurationError, ModelError, Problem, nearest
from evomerge.experiment.first_look import checked_experiment
from evomerge.experiment.look_at_tasks import named_tasks
from evomerge.files import write_text

MARKS = ("config.json", "adapter_config.json")  # what a model's folder has one of
DEPTH = 3  # folders below the current one in which models are looked for
ZOOS_FITNESS = {
    **dict.fromkeys(("tiny", "tiny_lora", "tiny_run"), "tiny_mean"),
    "smollm2": "smollm2",
}
EXAMPLE = "evomerge init models/base models/math models/code --tasks tasks/math.yaml"


@dataclass(frozen=True)
class Found:
    """What the models say of themselves.

    base: its name among `models`. why: how that is known. notes: what a user should know.
    """

    models: Mapping[str, Path]
    base: str
    why: str
    num_layers: int
    tokenizer: str | None = None
    matches: tuple[str, ...] = ()
    dtype: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def experts(self) -> list[str]:
        """All but the base."""
        return [name for name in self.models if name != self.base]


def models_below(folder: Path) -> list[Path]:
    """Folders that hold a model, sorted, without those inside of others."""
    found: list[Path] = []
    for path, inner, files in os.walk(folder):
        here = Path(path)
        depth = len(here.relative_to(folder).parts)
        inner[:] = sorted(d for d in inner if not d.startswith(".") and depth < DEPTH)
        if set(MARKS) & set(files) and here != folder:
            found.append(here)
            inner.clear()
    return sorted(found)


def find_out(paths: Sequence[Path], base: str | None = None) -> Found:
    """Look at the models.

    base: a folder's name among them, where the user says which it is.

    Raises:
        ConfigurationError: fewer than two, or some are no models.
        ModelError: they do not fit together.
    """
    problems = [
        Problem(str(path), "no model here", f"a folder with {' or '.join(MARKS)} is one")
        for path in paths
        if not path.is_file() and not any((path / mark).is_file() for mark in MARKS)
    ]
    if problems:
        raise ConfigurationError(problems)
    if len(paths) < 2:
        what = f"a merge takes a base and an expert or more, and there is {len(paths)} model"
        raise ConfigurationError(Problem("", what, f"for example: {EXAMPLE}"))
    models = _named(paths)
    if base is not None:
        name = Path(base.rstrip("/")).name
        if name not in models:
            raise ConfigurationError(Problem("--base", f"no model {name!r}", nearest(name, models)))
        return _looked_at(models, name, "named by you")
    chosen, why = _base_by_cards(models) or _base_by_name(models) or _base_by_distance(models)
    return _looked_at(models, chosen, why)


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Names for the models: their folders', made different where they are not."""
    names = [re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem if path.is_file() else path.name) for path in
             (path.resolve() for path in paths)]  # fmt: skip
    made: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        unique, number = name, 2
        while unique in made:
            unique, number = f"{name}_{number}", number + 1
        made[unique] = path.resolve()
    return made


# --- the base -------------------------------------------------------------------------------------


def _base_by_cards(models: Mapping[str, Path]) -> tuple[str, str] | None:
    """The model that the others name as what they were made from."""
    named: dict[str, list[str]] = {}
    for name, path in models.items():
        for origin, file in _origins(path).items():
            text = origin.rstrip("/")
            for other, there in models.items():
                is_it = text == str(there) or text.rpartition("/")[2] == there.name
                if other != name and is_it:
                    named.setdefault(other, []).append(f"{name} ({file})")
    if not named:
        return None
    base = max(named, key=lambda other: len(set(named[other])))
    return base, f"named as the origin of {', '.join(dict.fromkeys(named[base]))}"


def _origins(path: Path) -> dict[str, str]:
    """What a model says that it was made from, and the file that says so."""
    found: dict[str, str] = {}
    for file, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("config.json", "_name_or_path"),
    ):
        try:
            data = json.loads((path / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and isinstance(said := data.get(key), str) and said:
            found.setdefault(said, file)
    try:
        text = (path / "README.md").read_text(encoding="utf-8")
        card = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        card = None
    said = card.get("base_model") if isinstance(card, dict) else None
    for one in said if isinstance(said, list) else [said]:
        if isinstance(one, str):
            found.setdefault(one, "README.md")
    return found


def _base_by_name(models: Mapping[str, Path]) -> tuple[str, str] | None:
    """The one model that is called a base."""
    called = [n for n in models if re.search(r"(^|[-_.])(base|pretrained)([-_.]|$)", n.lower())]
    return (called[0], "by its name") if len(called) == 1 else None


def _base_by_distance(models: Mapping[str, Path]) -> tuple[str, str]:
    """The model that is nearest to all others.

    A guess: experts that have learnt something in common can be nearer to each other.
    """
    if len(models) == 2:
        return next(iter(models)), "the first that was named: of two, distances do not tell"
    totals = {}
    for name in models:
        related, _ = _related(models, name)
        totals[name] = sum(r.relative_norm for r in related.relations.values())
    base = min(totals, key=lambda name: (totals[name], name))
    told = ", ".join(f"{name} {total:.3g}" for name, total in totals.items())
    return base, f"nearest to all others, which is a guess (relative distances, summed: {told})"


# --- the rest -------------------------------------------------------------------------------------


def _related(
    models: Mapping[str, Path], base: str, tokenizer: str | None = None
) -> tuple[Relatedness, int]:
    """How the models are related to one of them, and its layers.

    Raises:
        ModelError: they do not fit together.
    """
    sources = {"base" if name == base else name: str(path) for name, path in models.items()}
    family = open_family(sources, "base", tokenizer=tokenizer)
    preflight(family.checkpoints, "base")
    layers = anatomy_of(family.checkpoints["base"]).num_layers
    return relate(family.checkpoints, "base"), layers


def _looked_at(models: Mapping[str, Path], base: str, why: str) -> Found:
    tokenizer: str | None = None
    try:
        related, layers = _related(models, base)
    except ModelError as error:
        try:  # perhaps they only have other tokens
            related, layers = _related(models, base, "union")
        except (ModelError, ConfigurationError):
            raise error from None
        tokenizer = "union"
    strangers = tuple(n for n, r in related.relations.items() if r.cosine < UNRELATED)
    if strangers:
        _check_matching(models, base, strangers, tokenizer, related)
    lost = any(r.survives < LOST for r in related.relations.values() if r.relative_norm > 0)
    notes = tuple(text for text in related.warnings() if not any(s in text for s in strangers))
    dtype = "float32" if lost and not strangers else None
    return Found(models, base, why, layers, tokenizer, strangers, dtype, notes)


def _check_matching(
    models: Mapping[str, Path],
    base: str,
    strangers: Sequence[str],
    tokenizer: str | None,
    related: Relatedness,
) -> None:
    """That models of another initialisation can be brought into the base's order.

    Raises:
        ModelError: naming the strangers, and what speaks against it.
    """
    sources = {"base" if name == base else name: str(path) for name, path in models.items()}
    try:
        open_family(sources, "base", tokenizer=tokenizer, matches=dict.fromkeys(strangers, "base"))
    except (ModelError, ConfigurationError) as error:
        raise ModelError(
            [
                Problem(
                    name,
                    f"is not related to {base} (cosine of the weights "
                    f"{related.relations[name].cosine:.3f}): a merge is not likely to work",
                    "leave it out, or name the model that it was made from",
                )
                for name in strangers
            ]
            + list(error.problems)
        ) from None


# --- the file -------------------------------------------------------------------------------------


def write_experiment(
    found: Found, out: Path, *, tasks: Sequence[Path] = (), texts: Path | None = None
) -> list[Path]:
    """Write the experiment, and its fitness beside it; the files that were written.

    Raises:
        ConfigurationError: nothing says what "better" means, or a task's file is none.
    """
    fitness_path = out.with_name(f"{out.stem}_fitness.yaml")
    zoo = _zoo_fitness(found)
    if tasks or texts is not None:
        fitness_name = fitness_path.name
        text = _fitness_text(fitness_path, tasks, texts)
    elif zoo is not None:
        fitness_name, text = zoo, ""
    else:
        what = "which merge is better? nothing here says so"
        hint = "--tasks TASK.yaml (lm-eval's, any number), or --texts FILE.txt to predict well"
        raise ConfigurationError(Problem("", what, hint))
    written = [out]
    if text:
        write_text(fitness_path, text)
        written.append(fitness_path)
    write_text(out, _experiment_text(found, out, fitness_name))
    checked_experiment(out)
    return written


def _zoo_fitness(found: Found) -> str | None:
    """The catalogue's fitness of a zoo's models."""
    homes = {path.parent for path in found.models.values()}
    if len(homes) != 1 or not (home := homes.pop()).joinpath("zoo.json").is_file():
        return None
    return ZOOS_FITNESS.get(home.name.partition("-seed")[0])


def _shown(path: Path, out: Path) -> str:
    """A path as the file has it: relative where it is near."""
    relative = os.path.relpath(path.resolve(), out.resolve().parent)
    return json.dumps(str(path.resolve()) if relative.startswith("../../..") else relative)


def _fitness_text(path: Path, tasks: Sequence[Path], texts: Path | None) -> str:
    entries: dict[str, str] = {}
    for file in tasks:
        if not file.exists():
            read_yaml(file)  # says so
        for name in named_tasks(file):
            entries[re.sub(r"[^A-Za-z0-9_]+", "_", name)] = (
                f"{{kind: lm_eval, task: {json.dumps(name)}, path: {_shown(file, path)}}}"
            )
    if texts is not None:
        entries["texts"] = f"{{kind: perplexity, path: {_shown(texts, path)}}}"
    if not entries:
        raise ConfigurationError(Problem(", ".join(map(str, tasks)), "names no task"))
    several = "".join(f"#   {name}: {name}\n" for name in entries)
    return f"""\
# What "better" means: the tasks that a merge is measured on, and the objectives over them.
# Written by `evomerge init`. Docs: docs/tasks.md for tasks, docs/estimators.md for cheaper answers.
tasks:
{"".join(f"  {name}: {entry}{chr(10)}" for name, entry in entries.items())}\
# An objective is a weighted mean of tasks, and is maximised (`minimize: true` turns it round).
objectives:
  mean: {{tasks: [{", ".join(entries)}]}}
# One for each task instead gives a front to choose from; it wants a searcher of several objectives:
{several}\
# full: every candidate answers all search items. racing: few items for all, more for the best.
estimator: {{kind: full}}
# Shares of each task's items: for the search, for the last choice, and (the rest) for the report.
split: {{search: 0.4, fresh: 0.2}}
finalists: 8
"""


def _experiment_text(found: Found, out: Path, fitness: str) -> str:
    count, layers = len(found.experts), found.num_layers
    population = max(12, 4 + round(3 * math.log(count)))
    space, alternatives = _spaces(count, layers)
    experts = []
    for name in found.experts:
        path = _shown(found.models[name], out)
        if name in found.matches:
            experts.append(
                f"  {_free(name)}: {{path: {path}, match: base}}  # another training run"
            )
        else:
            experts.append(f"  {_free(name)}: {path}")
    lines = [
        "# A search for the best merge of these models, written by `evomerge init`.",
        f"# Check it: `evomerge validate {out.name}`. What it costs: `evomerge plan {out.name}`.",
        f"# Start it: `evomerge run {out.name}`. What may stand here: docs/configuration.md.",
        "# Editors complete it after: evomerge schema experiment --out experiment.schema.json",
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"name: {json.dumps(out.stem)}",
        *textwrap.wrap(f"The base: {found.why}.", 96, initial_indent="# ", subsequent_indent="# "),
        f"base: {_shown(found.models[found.base], out)}",
        "# The experts by the names that recipes and reports show.",
        "experts:",
        *experts,
        "# Which merges are possible: a name in the catalogue (`evomerge spaces`), or a file.",
        f"space: {space}",
        *alternatives,
        "# What better means: tasks, objectives over them, and how many items are asked.",
        f"fitness: {fitness}",
        "# Who proposes candidates (`evomerge searchers`). For one objective, few genes: cma_es;",
        "# for several objectives: gp or nsga2; for a coefficient for each layer: tpe.",
        f"searcher: {{kind: cma_es, population: {population}}}",
        "# When it ends: candidates, or item_evaluations, hours, patience, target. A run can be",
        "# extended later: `evomerge resume runs/NAME --budget 400`.",
        f"budget: {{candidates: {_budget(count, population)}}}",
        "seed: 0  # decides every random choice",
    ]
    if found.tokenizer is not None:
        lines.append("# The models have different tokens; the merge has them all (or say `base`).")
        lines.append(f"tokenizer: {found.tokenizer}")
    if found.dtype is not None:
        lines.append("# In the base's own dtype most of what experts change would be rounded off.")
        lines.append(f"dtype: {found.dtype}")
    else:
        lines.append("# dtype: float32  # of the merged model; without it, the base's own")
    lines.append("# pool: {kind: local, workers: auto}  # who measures; `kind: ray` for a cluster")
    return "\n".join(lines) + "\n"


SCHEMA_FILE = "experiment.schema.json"  # evomerge schema experiment --out experiment.schema.json


def _free(name: str) -> str:
    """A name that an expert may have."""
    taken = name in ("base", "uniform", "union") or name.startswith("task_arithmetic")
    return f"expert_{name}" if taken else name


def _spaces(count: int, layers: int) -> tuple[str, list[str]]:
    """The space to begin with, and larger ones."""
    per_layer = count * (layers + 2)
    told = [
        ("per_expert", f"one coefficient per expert: {count}"),
        ("gradients", f"a curve over depth for each expert: {4 * count}"),
        ("ties", f"TIES, a weight and a density for each expert: {2 * count}"),
        ("per_layer", f"a coefficient per expert and layer: {per_layer}"),
    ]
    chosen = "gradients" if count == 1 else "per_expert"
    genes = dict(told)[chosen]
    others = [f"# space: {name}  # {what} genes" for name, what in told if name != chosen]
    return f"{chosen}  # {genes} genes", others


def _budget(count: int, population: int) -> int:
    """Some generations, more where there is more to learn: 15 for three experts."""
    return population * (12 + count)
