"""The engine from Python: search and merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.documents import Document, parse
from evomerge.errors import CandidateError, ConfigurationError, Problem, nearest
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.paths import absolute_model
from evomerge.experiment.recipes import open_recipe_models, with_texts
from evomerge.experiment.run import run_experiment
from evomerge.experiment.watching import Watcher
from evomerge.experiment.wire import IN_MEMORY, InMemory, resolve
from evomerge.fitness.python_task import PythonFitness
from evomerge.merging.calibration import Calibration, read_calibration
from evomerge.recipe import DType, Match, Recipe
from evomerge.results.adapter_export import export_adapter
from evomerge.results.export import export_model, merged_tensors
from evomerge.run import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evomerge.protocols import Task

Source = str | Path | Mapping[str, "Tensor"]
Fitness = str | Path | Mapping[str, Any] | Callable[..., Mapping[str, Any]]


def search(
    models: Mapping[str, Source],
    base: Source,
    *,
    space: str | Path | Mapping[str, Any] = "per_expert",
    fitness: Fitness,
    searcher: str | Mapping[str, Any] = "cma_es",
    budget: int | Mapping[str, Any] = 200,
    seed: int = 0,
    out: str | Path,
    build: Callable[[], nn.Module] | None = None,
    split: Mapping[str, Any] | None = None,
    costs: Sequence[str] = (),
    watchers: Sequence[Watcher] = (),
    allow_pickle_weights: bool = False,
    **options: Any,
) -> Run:
    """Search for a merge: the same engine as `evomerge run`.

    Args:
        models: the experts, name -> folder (of a model or a PEFT adapter), file or state dict.
        base: the model that they were fine-tuned from.
        space: a search space file, its name in the catalogue, or its content.
        fitness: a fitness file, its name, its content, or a Python callable
            `fitness(model) -> {objective: per-item scores, or one number}`; the model is a module
            where there is one (`build`, or a transformers folder), else the state dict.
        searcher: a kind, or a mapping with `kind` and options.
        budget: candidates, or a mapping with candidates, item_evaluations, hours, patience, target.
        seed: decides every random choice.
        out: the run folder; a run of the same experiment that is there goes on.
        build: makes the module that the state dicts fit.
        split: how many items serve search, fresh choice and holdout (callable fitness only).
        costs: what is to be small beside the fitness: `parameters`, `layers`, `bytes`,
            `flops_per_token` (callable fitness only; a file has objectives for them).
        watchers: told of everything that happens.
        allow_pickle_weights: read .pt, .pth and .bin files; nothing in them is executed even then.
        options: other keys of an experiment file: designs, warm_start, limits, in_flight, cohort,
            pool, dtype, ...; and `matches`, as for `merge`.

    Raises:
        ConfigurationError, ModelError: what is wrong with the input, all of it at once.
    """
    if "base" in models:
        raise ConfigurationError("models: `base` is the base model's own name; name it otherwise")
    if split is not None and not callable(fitness):
        raise ConfigurationError("split: a fitness file has its own; this is for a function")
    if costs and not callable(fitness):
        raise ConfigurationError("costs: a fitness file has its own; this is for a function")
    sources = {"base": base, **models}
    given = InMemory({name: s for name, s in sources.items() if isinstance(s, Mapping)}, build)
    data: dict[str, Any] = {
        "base": _path_of(base, "base"),
        "experts": {name: _path_of(source, name) for name, source in models.items()},
        "space": space if isinstance(space, Mapping) else str(space),
        "searcher": {"kind": searcher} if isinstance(searcher, str) else dict(searcher),
        "budget": {"candidates": budget} if isinstance(budget, int) else dict(budget),
        "seed": seed,
        "allow_pickle_weights": allow_pickle_weights,
        **options,
    }
    if callable(fitness):
        dtype = options.get("dtype")
        given = _with_function(fitness, given, _open_base(base, allow_pickle_weights), dtype)
        data["fitness"] = _fitness_of(given.python_tasks, split, costs)
    else:
        data["fitness"] = fitness if isinstance(fitness, Mapping) else str(fitness)
    lives_in_memory = given.models or given.build or given.python_tasks
    folder = run_experiment(
        parse_experiment(Document(data)),
        Path(out),
        in_memory=given if lives_in_memory else None,
        watchers=watchers,
    )
    return Run(folder, in_memory=given)


def merge(
    models: Mapping[str, Source],
    operator: str,
    *,
    base: str | Path | Mapping[str, Tensor],
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    tokenizer: str | None = None,
    calibration: str | Path | Sequence[str] | None = None,
    matches: Mapping[str, str | Match] | None = None,
    out: str | Path | None = None,
    adapter: bool = False,
    rank: int | None = None,
    allow_pickle_weights: bool = False,
) -> dict[str, Tensor]:
    """Merge without a search; the merged state dict, and a model folder if `out` is given.

    Of a model that is written to a folder the tensors are views of its files, so that it may be
    larger than memory; what is written into them stays in memory.

    Args:
        models: name -> folder (of a model or a PEFT adapter), file or state dict.
        operator: a name from `evomerge operators`.
        base: the base model, or its name in `models`.
        parameters: the operator's; per-source ones may be a mapping name -> value.
        seed: decides what is dropped where an operator drops at random.
        dtype: of the result; the base's own if None.
        tokenizer: whose tokens it has, where the models differ: `union`, or a model's name.
        calibration: texts, or a file of them, for operators that look at data: a text a line, or a
            run's calibration.json.
        matches: name -> the model whose hidden units' order it is brought into first, for models
            from other initialisations (docs/matching.md).
        out: a folder to write.
        adapter: whether `out` is to be a LoRA adapter of the base instead of a full model.
        rank: the adapter's largest; None is exact where the merge is linear in adapters.
        allow_pickle_weights: read .pt, .pth and .bin files; nothing in them is executed even then.

    Raises:
        ConfigurationError: the operator or a parameter is unknown or out of bounds.
        ModelError: a model cannot be read or does not fit.
    """
    name, sources = _with_base(models, base)
    default = {
        "operator": operator,
        "sources": [key for key in sources if key != name],
        "parameters": dict(parameters or {}),
    }
    if unknown := (matches or {}).keys() - sources.keys():
        wrong = min(unknown)
        raise ConfigurationError(
            Problem(f"matches.{wrong}", "no such model", nearest(wrong, sources))
        )
    paths = {
        key: {"path": _path_of(source, key), "match": (matches or {}).get(key)}
        for key, source in sources.items()
    }
    data = {"base": name, "models": paths, "default": default, "mask_seed": seed}
    data |= {"dtype": dtype, "tokenizer": tokenizer}
    texts = _calibration_of(calibration)
    recipe = with_texts(parse(Recipe, Document(data)), texts)
    checkpoints = open_recipe_models(recipe, sources, allow_pickle_weights=allow_pickle_weights)
    if out is not None and not adapter:
        folder = export_model(recipe, checkpoints, Path(out), calibration=texts)
        written = open_checkpoint(folder, name="merged")
        return {tensor: written.tensor(tensor) for tensor in written.names}
    if out is not None:
        export_adapter(recipe, checkpoints, Path(out), rank=rank, calibration=texts)
    return merged_tensors(recipe, checkpoints, texts)


def _calibration_of(given: str | Path | Sequence[str] | None) -> Calibration | None:
    """Texts, or the file that they are in."""
    if given is None:
        return None
    if isinstance(given, str | Path):
        return read_calibration(given)
    return parse(Calibration, Document({"texts": list(given)}))


def _with_base(models: Mapping[str, Source], base: Source) -> tuple[str, dict[str, Source]]:
    """The base's name, and all models with it; `base` may be one of them by its name."""
    if isinstance(base, str) and base in models:
        return base, dict(models)
    if "base" in models:
        raise ConfigurationError("models: `base` is the base model's own name; name it otherwise")
    return "base", {**models, "base": base}


def _path_of(source: Source, name: str) -> str:
    if isinstance(source, Mapping):
        return f"{IN_MEMORY}{name}"
    return absolute_model(str(source), Path.cwd())


def _open_base(base: Source, allow_pickle: bool) -> Checkpoint:
    source = base if isinstance(base, Mapping) else resolve(str(base))
    return open_checkpoint(source, name="base", allow_pickle=allow_pickle)


def _with_function(
    function: Callable[..., Mapping[str, Any]], given: InMemory, base: Checkpoint, dtype: Any
) -> InMemory:
    """A function's tasks, found out by calling it with the base, and the module that it needs.

    Raises:
        ConfigurationError: the function fails, or returns something else than scores.
        ModelError: the base is no model for it.
    """
    from evomerge.merging.bare import BareModule
    from evomerge.merging.resident import Resident

    build = given.build
    is_folder = base.path is not None and base.path.is_dir()
    if bare := build is None and not is_folder:  # without a module there are the tensors alone
        build = partial(BareModule, {name: base.tensor(name) for name in base.names})
    python = PythonFitness(function, "state_dict" if bare else "module")
    known = getattr(torch, dtype) if dtype in get_args(DType) else None  # others are refused later
    model = Resident.open({"base": base}, "base", build=build, dtype=known)
    try:
        tasks = python.tasks(python.measure(model))
    except CandidateError as error:
        raise ConfigurationError(Problem("the fitness of the base", str(error))) from error
    return InMemory(given.models, build, tasks)


def _fitness_of(
    tasks: Mapping[str, Task], split: Mapping[str, Any] | None, costs: Sequence[str]
) -> dict[str, Any]:
    """The fitness file that a function and costs stand for.

    Raises:
        ConfigurationError: a cost has the name of a score.
    """
    if both := sorted(set(costs) & set(tasks)):
        raise ConfigurationError(f"costs: the fitness has a score of that name: {', '.join(both)}")
    return {
        "tasks": {name: {"kind": "python"} for name in tasks},
        "objectives": {n: n for n in tasks} | {name: {"cost": name} for name in costs},
        "split": dict(split or _default_split([len(task.items) for task in tasks.values()])),
    }


def _default_split(sizes: Sequence[int]) -> dict[str, int]:
    """40 % for the search, 20 % fresh, 40 % holdout; of one number there is nothing to split."""
    num_items = min((size for size in sizes if size > 1), default=1)
    if num_items < 5:
        return {"search": 1, "fresh": 0}
    return {"search": int(0.4 * num_items), "fresh": int(0.2 * num_items)}
