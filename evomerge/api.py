"""The engine from Python: search, merge, and a finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.documents import Document, parse
from evomerge.errors import (
    CandidateError,
    ConfigurationError,
    EvomergeError,
    Problem,
    nearest,
)
from evomerge.experiment.chosen import Choice
from evomerge.experiment.config import ExperimentConfig, parse_experiment
from evomerge.experiment.exports import Exported, ExportOptions, export_chosen
from evomerge.experiment.paths import absolute_model
from evomerge.experiment.recipes import open_recipe_models, with_texts
from evomerge.experiment.rescore import SAMPLE
from evomerge.experiment.run import read_run_config, run_calibration, run_experiment
from evomerge.experiment.watching import Watcher
from evomerge.experiment.wire import IN_MEMORY, InMemory, open_models, resolve
from evomerge.fitness.python_task import PythonFitness
from evomerge.ledger import LEDGER, Ledger
from evomerge.merging.calibration import Calibration, read_calibration
from evomerge.protocols import Progress
from evomerge.recipe import DType, Match, Recipe
from evomerge.records import Candidate, CandidateId
from evomerge.results.account import Account
from evomerge.results.adapter_export import AdapterReport, export_adapter
from evomerge.results.compare import compare
from evomerge.results.comparison import Comparison
from evomerge.results.export import export_model, merged_tensors
from evomerge.results.hub import Push
from evomerge.results.run_view import Rows, as_html, in_a_line
from evomerge.results.status import best_candidate
from evomerge.results.watch import status

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evomerge.protocols import Task

Source = str | Path | Mapping[str, "Tensor"]
Fitness = str | Path | Mapping[str, Any] | Callable[..., Mapping[str, Any]]


class Run:
    """A run folder, read from its ledger.

    Attributes:
        folder: the run folder.
        config: its experiment, resolved.
        ledger: everything that happened.
    """

    def __init__(self, folder: str | Path, *, in_memory: InMemory | None = None) -> None:
        """Open a run.

        in_memory: the models, if they were handed over as state dicts.

        Raises:
            ConfigurationError: there is no run in the folder.
            LedgerDamaged: its ledger cannot be read.
        """
        self.folder = Path(folder)
        self.config: ExperimentConfig = read_run_config(self.folder)
        self.ledger = Ledger(self.folder / LEDGER, read_only=True)
        self._in_memory = in_memory

    def __repr__(self) -> str:
        try:
            return f"Run({in_a_line(self.folder)})"
        except (EvomergeError, OSError) as error:  # what shows a run must not stop a session
            return f"Run({self.folder}: {error})"

    def _repr_html_(self) -> str:
        try:
            return as_html(self.folder)
        except (EvomergeError, OSError):
            return f"<p>{escape(repr(self))}</p>"

    def status(self) -> dict[str, Any]:
        """State, counts, incumbent and final table, as `evomerge status --json` prints them now."""
        return status(self.folder)

    def best(self) -> Candidate:
        """The chosen candidate; before a run is finished, the best by its search score.

        Raises:
            ConfigurationError: nothing was measured yet.
        """
        return best_candidate(self.folder, self.ledger)

    def front(self) -> list[dict[str, Any]]:
        """The front's rows of the final table; with one objective, the best alone.

        Raises:
            ConfigurationError: the run is not finished.
        """
        final = self.ledger.final()
        if final is None:
            raise ConfigurationError(
                f"{self.folder}: not finished; `evomerge resume {self.folder}` goes on"
            )
        rows = Rows(final["front"] or [final["best"]])
        with Account(self.folder) as account:
            rows.objectives = account.objectives
        return rows

    def compare(self, *others: Run | str | Path, by: str | None = None) -> Comparison:
        """This run beside others, as `evomerge compare` prints it.

        by: group runs by `searcher`, `estimator`, `space` or `name`; by default runs that differ
            in their seeds alone are a group.

        Raises:
            ConfigurationError: the runs were scored by other tasks, or there is none in a folder.
        """
        folders = [other.folder if isinstance(other, Run) else Path(other) for other in others]
        return Comparison(compare([self.folder, *folders], by))

    def candidate(self, id_: CandidateId) -> Candidate:
        """A candidate by its id.

        Raises:
            ConfigurationError: there is none, or it has no recipe.
        """
        found = self.ledger.candidates.get(id_)
        if found is None or found.recipe is None:
            last = max(self.ledger.candidates, default=-1)
            raise ConfigurationError(f"{self.folder}: no candidate {id_} to merge (last: {last})")
        return found

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report of the run, one HTML file; by default `report.html` in its folder.

        Returns the file. It shows the run as it is now, finished or not.

        Raises:
            DiskFull: it does not fit.
        """
        from evomerge.results.report import write_report

        return write_report(self.folder, None if path is None else Path(path))

    def merge(self, candidate: Candidate | CandidateId | None = None) -> dict[str, Tensor]:
        """The merged state dict of a candidate; the best if none is given.

        Raises:
            ConfigurationError: the candidate scales what goes into layers: export it.
        """
        texts = run_calibration(self.folder)
        return merged_tensors(self._recipe(candidate), self._checkpoints(), texts)

    def export(
        self,
        candidate: Candidate | CandidateId | None = None,
        folder: str | Path = "models/best",
        *,
        scales: str | None = None,
        verify: int | None = SAMPLE,
        allow_code: bool = False,
        push: str | None = None,
        public: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write a candidate as a model folder; the best if none is given.

        A transformers model is loaded again, asked a sample of the run's items, and compared with
        the recorded responses; evomerge_export.json in the folder says what was compared.

        scales: where the candidate scales what goes into layers, `attribute` writes that into
            config.json, which stock loaders ignore (see `evomerge.apply_scales`).
        verify: items of each task that are asked again; 0 for none, None for the whole holdout.
        allow_code: whether tasks may run the code that they name, to verify.
        push: `ORG/NAME` on a hub, to upload to; a repository is private unless `public` is said.

        Raises:
            ConfigurationError: the candidate scales what goes into layers, and `scales` is None.
            ModelError: the written model answers otherwise than its merge did.
        """
        options = ExportOptions(
            scales=scales,
            verify=verify,
            allow_code=allow_code,
            push=None if push is None else Push(push, public),
        )
        return self._export(candidate, folder, options, progress).folder.resolve()

    def export_adapter(
        self,
        candidate: Candidate | CandidateId | None = None,
        folder: str | Path = "models/best",
        *,
        rank: int | None = None,
        progress: Progress | None = None,
    ) -> AdapterReport:
        """Write a candidate as a LoRA adapter of the base; the best if none is given.

        rank: the largest; None is exact where the merge is linear in adapters.

        Raises:
            ConfigurationError: the candidate has no form as an adapter.
        """
        options = ExportOptions(form="adapter", rank=rank)
        report = self._export(candidate, folder, options, progress).adapter
        if report is None:  # only models of a set are kept as they are
            raise ConfigurationError(f"{folder}: the adapter was not written")
        return report

    def export_front(
        self,
        folder: str | Path = "models",
        *,
        top: int | None = None,
        scales: str | None = None,
        verify: int | None = SAMPLE,
        allow_code: bool = False,
        push: str | None = None,
        public: bool = False,
        progress: Progress | None = None,
    ) -> list[Exported]:
        """Write the whole front, a folder each, with front.json, front.csv and a README.md.

        Interrupted, the same call goes on. The arguments are those of `export`.

        top: the first so many in the order of the last choice, instead of the front.

        Raises:
            ConfigurationError: the run is not finished, or there are fewer.
            ModelError: a written model answers otherwise than its merge did.
        """
        choice = Choice("front") if top is None else Choice("top", count=top)
        options = ExportOptions(
            scales=scales,
            verify=verify,
            allow_code=allow_code,
            push=None if push is None else Push(push, public),
        )
        return export_chosen(
            self.folder, Path(folder), choice, options, in_memory=self._in_memory, progress=progress
        )

    def _export(
        self,
        candidate: Candidate | CandidateId | None,
        folder: str | Path,
        options: ExportOptions,
        progress: Progress | None,
    ) -> Exported:
        """One candidate, into a folder itself."""
        choice = Choice("candidates", (self._chosen(candidate).id,))
        (done,) = export_chosen(
            self.folder, Path(folder), choice, options, in_memory=self._in_memory, progress=progress
        )
        return done

    def _chosen(self, candidate: Candidate | CandidateId | None) -> Candidate:
        if candidate is None:
            return self.best()
        return self.candidate(candidate) if isinstance(candidate, int) else candidate

    def _recipe(self, candidate: Candidate | CandidateId | None) -> Recipe:
        recipe = self._chosen(candidate).recipe
        if recipe is None:
            raise ConfigurationError("the candidate violates its space and has no recipe")
        return recipe

    def _checkpoints(self) -> dict[str, Checkpoint]:
        return open_models(self.config, self._in_memory).checkpoints


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
