"""How long a candidate takes to merge and to score, beside lm-eval's `simple_evaluate`.

    python benchmarks/scoring.py                 # the tiny family
    python benchmarks/scoring.py --smollm2       # SmolLM2 too, some five minutes more

A candidate is a task arithmetic with weights of its own, merged and scored as a worker does, after
a first one that prepared what is kept. `simple_evaluate` scores the same merged model on the same
items, in turns, in one run, with one thread and the same batch size; the least time of each is
reported. "ratio" is its time over ours, merge included; "no bootstrap" is the ratio to it without
its 100,000 bootstrap iterations. "outside" is the share of our time outside the forward passes.

The second table is for questions as in HellaSwag, made here: a long context, and four endings of
several words. "apart" is a row for each choice, "together" a row for each question.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.files import catalogue_folder
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Recipe
from evomerge.records import Job, Outcome
from evomerge.zoo import ZOOS, zoo_path

WORDS = (
    *("the", "a", "man", "woman", "dog", "river", "table", "window", "small", "green", "slowly"),
    *("then", "walks", "opens", "carries", "paints", "water", "bread", "and", "with", "under"),
    *("over", "before", "after", "house", "street", "garden", "while", "singing", "cold"),
)


def models_of(family: str) -> dict[str, str]:
    return {name: str(zoo_path(f"zoo:{family}/{name}")) for name in ZOOS[family].models}


def candidate(models: dict[str, str], turn: int, num_experts: int | None = None) -> Recipe:
    """Another task arithmetic each turn."""
    experts = [name for name in models if name != "base"][:num_experts]
    weights = {name: 0.2 + 0.01 * (turn + i) for i, name in enumerate(experts)}
    default = {"operator": "task_arithmetic", "sources": experts, "parameters": {"weight": weights}}
    return Recipe.model_validate({"base": "base", "models": models, "default": default})


class Side:
    """Both sides on one merged model: a worker, and lm-eval around the worker's module."""

    def __init__(self, family: str, folder: Path, tasks: dict[str, str], batch_size: int) -> None:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        self.models = models_of(family)
        self.num_experts = len(self.models) - 1
        self._folder, self._names, self._turn = folder, tasks, 0
        entry = {"path": str(folder), "batch_size": batch_size}
        entries = {name: {"task": task, **entry} for name, task in tasks.items()}
        self.worker = Worker(WorkerSpec(self.models, "base", entries), "driver")
        with quiet():
            self._manager = TaskManager(include_path=str(folder), include_defaults=False)
            self._model = HFLM(
                pretrained=self.worker.model.module,
                tokenizer=self.worker.model.tokenizer,
                batch_size=batch_size,
            )

    def num_items(self, task: str) -> int:
        """All items of a task."""
        return len(self.worker._tasks[task].items)

    def ours(self, task: str, items: range) -> tuple[float, Outcome]:
        """Seconds for another candidate, and what came of it."""
        self._turn += 1
        recipe = candidate(self.models, self._turn, self.num_experts)
        job = Job(self._turn, 0, recipe, {task: tuple(items)})
        start = time.perf_counter()
        outcome = self.worker.run(job)
        assert outcome.failure is None, outcome.failure
        return time.perf_counter() - start, outcome

    def theirs(self, task: str, items: range, **options: Any) -> float:
        """Seconds for the same model and items."""
        from lm_eval import simple_evaluate

        here = Path.cwd()
        os.chdir(self._folder)  # data files are relative to where it is started
        start = time.perf_counter()
        try:
            with quiet():
                simple_evaluate(
                    model=self._model,
                    tasks=[self._names[task]],
                    task_manager=self._manager,
                    samples={self._names[task]: list(items)},
                    **options,
                )
        finally:
            os.chdir(here)
        return time.perf_counter() - start


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def compare(side: Side, family: str, task: str, items: range, turns: int, theirs_too: int) -> None:
    """A line of the first table; `theirs_too` is the number of turns of simple_evaluate."""
    side.ours(task, items)
    ours = bare = theirs = math.inf
    for turn in range(turns):
        seconds, outcome = side.ours(task, items)
        if seconds < ours:
            ours, best = seconds, outcome
        if turn >= theirs_too:
            continue
        theirs = min(theirs, side.theirs(task, items))
        bare = min(bare, side.theirs(task, items, bootstrap_iters=0))
    rest = ours - best.merge_s - best.forward_s
    print(
        f"{family:9}{task:12}{side.num_experts:8}{len(items):7}"
        f"{best.merge_s * 1e3:9.1f}{best.forward_s * 1e3:10.1f}{rest * 1e3:8.1f}"
        f"{theirs * 1e3:17.0f}{theirs / ours:8.1f}{bare / ours:14.1f}"
        f"{1 - best.forward_s / ours:10.1%}",
        flush=True,
    )


def write_questions(folder: Path, number: int, letters: bool) -> None:
    """Questions with a long context and four endings."""
    made = random.Random(0)

    def text(least: int, most: int) -> str:
        count = made.randint(least, most)
        if letters:  # the tiny family's tokens are letters, and it has 48 positions
            return "".join(made.choice("abcdefgh") for _ in range(count // 2))
        return " ".join(made.choice(WORDS) for _ in range(count))

    with (folder / "endings.jsonl").open("w") as file:
        for _ in range(number):
            row = {"context": text(50, 80), "endings": [text(6, 14) for _ in range(4)]}
            file.write(json.dumps({**row, "gold": made.randrange(4)}) + "\n")
    (folder / "endings.yaml").write_text(
        "task: endings\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'endings.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{context}}"\ndoc_to_choice: "{{endings}}"\ndoc_to_target: gold\n'
        f"target_delimiter: '{'' if letters else ' '}'\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )


def share_prefixes(side: Side, family: str, folder: Path, number: int) -> None:
    """A line of the second table."""
    from evomerge.fitness.lm_eval_task import LmEvalTask

    model = side.worker.model
    side.worker.run(Job(0, 0, candidate(side.models, 5), {}))
    write_questions(folder, number, letters=family == "tiny")
    answers, tokens, times = [], [], []
    for shared in (False, None):  # None: where it is worth it
        task = LmEvalTask("endings", task="endings", path=folder, shared_prefix=shared)
        run: Any = task._run(model.tokenizer, model.module.config)
        tokens.append(run._plan_for(tuple(task.items))[0].num_tokens)
        start = time.perf_counter()
        answers.append(task.respond(model, task.items).columns)
        times.append(time.perf_counter() - start)
    equal = np.array_equal(answers[0]["choice"], answers[1]["choice"])
    error = np.abs(answers[0]["margin"] - answers[1]["margin"]).max()
    print(
        f"{family:9}{number:10}{tokens[0]:10}{tokens[1]:10}{tokens[0] / tokens[1]:8.2f}"
        f"{times[0] * 1e3:12.0f}{times[1] * 1e3:12.0f}{times[0] / times[1]:8.2f}"
        f"{'yes' if equal else 'NO':>9}{error:12.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2 too; it has to be made")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(
        f"{'family':9}{'task':12}{'experts':>8}{'items':>7}"
        f"{'merge ms':>9}{'model ms':>10}{'rest ms':>8}"
        f"{'simple_evaluate':>17}{'ratio':>8}{'no bootstrap':>14}{'outside':>10}"
    )
    folder = catalogue_folder("fitness") / "tasks" / "tiny"
    tiny = Side("tiny", folder, {t: f"evomerge_tiny_{t}" for t in ("sort", "sort_choice")}, 128)
    sides = {"tiny": (tiny, 100)}
    for task in ("sort", "sort_choice"):
        for number in (32, tiny.num_items(task)):
            compare(tiny, "tiny", task, range(number), arguments.turns, arguments.turns)
    if arguments.smollm2:
        folder = zoo_path("zoo:smollm2/tasks/sentiment.yaml").parent
        large = Side("smollm2", folder, {"sentiment": "evomerge_smollm2_sentiment"}, 16)
        sides["smollm2"] = (large, 12)
        for large.num_experts, number in ((2, 32), (2, 100), (3, 100), (5, 100)):
            compare(large, "smollm2", "sentiment", range(number), 3, 1)
    print(
        f"\n{'family':9}{'questions':>10}{'apart':>10}{'together':>10}{'ratio':>8}"
        f"{'apart ms':>12}{'together ms':>12}{'ratio':>8}{'equal':>9}{'difference':>12}"
    )
    for family, (side, number) in sides.items():
        with tempfile.TemporaryDirectory() as temporary:
            share_prefixes(side, family, Path(temporary), number)


if __name__ == "__main__":
    main()
