"""What a user has today, mergekit-evolve and Mergenetic: merge to disk, load, `simple_evaluate`.

Both are loops around public tools: mergekit 0.1.5 in a process of its own that stays alive,
lm-eval's HFLM and `simple_evaluate`, pycma and pymoo. Starts, imports and the reading of task files
do not count. Favours to them: batches as large as evomerge's; float32 (mergekit-evolve writes and
scores in bfloat16, which is slower without a matrix unit); no model cards, no bootstrap; and the
candidate under way at the end of the time is finished and counts. mergekit-evolve is measured as it
works by default; its `--in-memory` mode, which needs Ray to find a GPU, is not.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accounting import Account, ForwardTimer, Moment
from cases import Case

SIGMA = 1 / 6  # mergekit-evolve's --sigma0
POPULATION = 10  # Mergenetic's command line proposes it
BEST = 1e9  # generations: time ends the search


class MergeServer:
    """mergekit in an environment of its own; a context manager."""

    def __init__(self, python: Path, paths: Mapping[str, str], dtype: str = "float32") -> None:
        setup = {"names": [n for n in paths if n != "base"], "paths": dict(paths), "dtype": dtype}
        script = Path(__file__).with_name("merge_server.py")
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        about = self._answer()
        self.first: list[float] = about["first"]
        self.version: str = about["version"]

    def __enter__(self) -> MergeServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def merge(self, way: str, values: Sequence[float], out: Path) -> None:
        """Write the merged model into a folder."""
        assert self._process.stdin is not None
        asked = {"way": way, "values": [float(v) for v in values], "out": str(out)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"mergekit's process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        self.processor_s: float = answer["processor_s"]
        return answer


class Scoring:
    """A folder of a model -> its mean over the tasks, by lm-eval."""

    def __init__(
        self,
        case: Case,
        items: Mapping[str, Sequence[int]],
        *,
        clock: str,
        dtype: str = "float32",
    ) -> None:
        from lm_eval.tasks import TaskManager

        self._case, self._dtype = case, dtype
        self._samples = {case.task_name(t): [int(i) for i in ids] for t, ids in items.items()}
        self.clock, self.forward = clock, ForwardTimer(clock)
        with quiet():
            self._manager = TaskManager(include_path=str(case.task_folder), include_defaults=False)

    def score(self, folder: Path) -> float:
        """Load the model and ask it the items."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        names = list(self._samples)
        with quiet(), in_folder(self._case.task_folder), own_generators():
            model = HFLM(
                pretrained=str(folder),
                dtype=self._dtype,
                device="cpu",
                batch_size=self._case.batch_size,
            )
            self.forward.watch(model.model)
            found = simple_evaluate(
                model=model,
                tasks=names,
                task_manager=self._manager,
                samples=self._samples,
                log_samples=False,
                bootstrap_iters=0,
            )["results"]
        del model
        gc.collect()
        return float(np.mean([found[name][self._case.metric] for name in names]))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """The tasks' data are relative to where lm-eval is started."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@contextlib.contextmanager
def own_generators() -> Iterator[None]:
    """lm-eval seeds numpy's global generator, from which the searchers here may draw."""
    state = np.random.get_state()  # noqa: NPY002 - it is theirs
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


Objective = Callable[[Sequence[float]], float]  # more is better
IsOver = Callable[[], bool]


def search_by_cma(first: Sequence[float], seed: int, objective: Objective, over: IsOver) -> None:
    """mergekit-evolve's search: pycma with its defaults, from its first genotype."""
    import cma

    options = {"seed": seed + 1, "verbose": -9, "verb_log": 0}  # 0 would be the clock
    strategy = cma.CMAEvolutionStrategy(list(first), SIGMA, options)
    while not over():
        asked = strategy.ask()
        costs = []
        for values in asked:
            if over():
                return
            costs.append(-objective(values))
        strategy.tell(asked, costs)


def search_by_ga(num_genes: int, seed: int, objective: Objective, over: IsOver) -> None:
    """Mergenetic's search: pymoo's genetic algorithm with its defaults, in the unit cube."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import Problem

    problem = Problem(n_var=num_genes, n_obj=1, xl=0.0, xu=1.0)
    algorithm = GA(pop_size=POPULATION, eliminate_duplicates=True)
    algorithm.setup(problem, termination=("n_gen", BEST), seed=seed, verbose=False)
    while not over():
        asked = algorithm.ask()
        for individual in asked:
            if over():
                return
            individual.set("F", np.array([-objective(individual.X)]))
            individual.evaluated.add("F")
        algorithm.evaluator.n_eval += len(asked)
        algorithm.tell(infills=asked)


@dataclass(frozen=True)
class Found:
    """What a search brought: values of the best by the search items, their score, the time."""

    values: tuple[float, ...]
    score: float
    account: Account


def search(
    way: str,
    server: MergeServer,
    scoring: Scoring,
    *,
    seed: int,
    seconds: float,
    scratch: Path,
) -> Found:
    """One of the two loops, for a time; `scratch` is where its candidates are written."""
    tried: list[tuple[float, tuple[float, ...]]] = []
    before = scoring.forward.seconds
    start = Moment.now(server.processor_s)

    def spent() -> Moment:
        return Moment.now(server.processor_s).since(start)

    def objective(values: Sequence[float]) -> float:
        server.merge(way, values, scratch)
        try:
            score = scoring.score(scratch)
        finally:
            shutil.rmtree(scratch)
        tried.append((score, tuple(float(v) for v in values)))
        return score

    def over() -> bool:
        return spent().by(scoring.clock) >= seconds

    if way == "mergekit":
        search_by_cma(server.first, seed, objective, over)
    else:
        search_by_ga(len(server.first), seed, objective, over)
    account = Account(scoring.clock, len(tried), spent(), scoring.forward.seconds - before)
    score, values = max(tried, key=lambda t: t[0])  # the first of equals
    return Found(values, score, account)
