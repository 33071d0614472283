"""What every operator gives, as it comes and with its own parameters searched, and what it costs.

    python benchmarks/operators.py run --family tiny --out runs/operators
    python benchmarks/operators.py run --family smollm2 --out runs/operators [--part 0/2]
    python benchmarks/operators.py cost --family smollm2 --out runs/operators
    python benchmarks/operators.py show --out runs/operators

`run`: three experts and three skills. The operator at its defaults, and a search of 60 candidates
(TPE) over its numbers, in the ranges below: a weight for each expert where it has weights. (Of
SmolLM2, what takes minutes to prepare anew has a few values: `LEVELS`.) All candidates answer the
same search items (of SmolLM2, they race); the best few answer fresh ones, and the best of those,
with the operator as it comes, the holdout. Errors are standard errors over holdout items; the gain
is the paired difference. `cost`: the first merge of a fresh worker, which prepares, then candidates
with new coefficients (parameters that are prepared stay as they are), the least of five, one
thread; what is kept; the most memory beyond what was there before. `run` and `cost` go on where
they were stopped; `show` prints the tables as Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from merging import PeakMemory
from numpy.typing import NDArray

from evomerge.documents import Document
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.run import collect_beforehand, open_ledger
from evomerge.experiment.wire import Parts, wire
from evomerge.files import catalogue_folder
from evomerge.ledger import LEDGER, Ledger
from evomerge.loop import Search, run_search
from evomerge.measurement import Measurer, requests_for
from evomerge.merging import OPERATORS
from evomerge.merging.calibration import Collected
from evomerge.merging.materialise import Merger
from evomerge.pareto import best_first
from evomerge.pools import make_pool
from evomerge.recipe import Merge, Recipe
from evomerge.records import Budget, Candidate, Parameter
from evomerge.results.adapter_export import export_adapter

CANDIDATES = 60
FINALISTS = 5
FRESH, HELD_OUT = 10_000, 10_001  # the numbers of the cohorts that answer those items
TURNS = 5
CHAINS = ("task_arithmetic | lines", "ties | lines", "task_arithmetic | aim", "ties | aim")
ADAPTER_RANK = 16  # of what the experts become for operators that merge adapters
RANGES: dict[str, tuple[float, float] | None] = {  # of parameters, where nothing else is said
    "weight": (0.0, 1.5),
    "lambda": (0.2, 2.0),
    "density": (0.05, 1.0),
    "lines_alpha": (0.0, 1.5),
    "lines_beta": (0.0, 1.5),
}
OWN: dict[str, dict[str, tuple[float, float] | None]] = {  # of one operator's; None: not searched
    "nuslerp": {"straight_above": None},
    "karcher": {"max_iter": None, "tol": None},
    "della": {"epsilon": (0.0, 0.1)},
    "della_linear": {"epsilon": (0.0, 0.1)},
    "breadcrumbs": {"gamma": (0.0, 0.1)},
    "breadcrumbs_ties": {"gamma": (0.0, 0.1)},
    "lines": {"alpha": (0.0, 1.5), "beta": (0.0, 1.5)},
    "ram": {"epsilon": (0.0, 1e-3)},
    "ramplus_tl": {"r": (0.0, 1.0), "alpha": (0.0, 2.0), "epsilon": None},
    "nearswap": {"t": (0.0, 0.05)},
    "layer_swap": {"bottom": (0.0, 0.5), "top": (0.0, 0.5), "transition": (0.0, 0.3)},
    "mwa": {"metric": (0.0, 1.0), "penalty": None},
    "consensus_ta": {"threshold": (0.1, 0.9), "min_tasks": (1, 3), "lambda": (0.2, 1.5)},
    "tall_mask": {"threshold": (0.0, 1.0)},
    "cabs": {"n": (8, 248), "m": None},  # n of m are kept
    "pcb": {"ratio": (0.01, 0.6), "clip": (0.0, 0.2)},
    "widen": {"above": (0.0, 2.0), "score": (0.0, 1.5)},
    "star": {"eta": (10.0, 100.0), "alpha": (0.2, 3.0)},
    "iso_c": {"alpha": (0.1, 2.0)},
    "iso_cts": {"alpha": (0.1, 2.0)},
    "tsv_m": {"alpha": (0.2, 2.0)},
    "fisher": {"floor": None},
    "lore": {"rounds": None},
    "lora_svd": {"rank": (1, 48)},  # of three adapters of rank 16
    "lora_lego": {"rank": (1, 48)},
}


# How many values a prepared parameter has, evenly spaced and beside its default, where a new one
# takes 15 seconds to 13 minutes.
LEVELS = {
    "opcm": 5,
    "iso_cts": 6,
    "regmean_plusplus": 5,
    "lore": 3,
    "pcb": 4,
    "star": 7,
    "tsv_m": 6,
}


@dataclass(frozen=True)
class Family:
    """Three experts of one base, the skills that they have, and how many items are asked."""

    experts: tuple[str, ...]
    tasks: Mapping[str, Any]
    split: Mapping[str, int]
    estimator: Mapping[str, Any]
    levels: Mapping[str, int] = field(default_factory=dict)  # of what operators prepare: see LEVELS


def _tiny(skill: str) -> dict[str, Any]:
    path = catalogue_folder("fitness") / "tasks" / "tiny" / f"{skill}.yaml"
    task = f"evomerge_tiny_{skill}"
    return {"kind": "lm_eval", "task": task, "path": str(path), "batch_size": 256}


def _smollm2(skill: str) -> dict[str, Any]:
    path = f"zoo:smollm2/tasks/{skill}.yaml"
    return {"kind": "lm_eval", "task": f"evomerge_smollm2_{skill}", "path": path, "batch_size": 16}


FAMILIES = {
    "tiny": Family(
        ("sort", "back", "rot"),
        {skill: _tiny(skill) for skill in ("sort", "back", "rot")},
        {"search": 240, "fresh": 240, "holdout": 544},
        {"kind": "full"},
    ),
    "smollm2": Family(
        ("sentiment", "domain", "sums"),
        {skill: _smollm2(skill) for skill in ("sentiment", "domain", "sums")},
        {"search": 120, "fresh": 40, "holdout": 160},
        {"kind": "racing", "rungs": [8, 16, 32]},  # an item takes 70 ms
        levels=LEVELS,
    ),
}


def searched(name: str, family: Family) -> dict[str, Any]:
    """The operator's numbers that are searched, as a space file says it."""
    found: dict[str, Any] = {}
    for parameter in OPERATORS[name].parameters:
        bounds = _bounds(name, parameter)
        if bounds is None:
            continue
        if parameter.phase == "prepare" and name in family.levels:
            levels = np.linspace(*bounds, family.levels[name]).round(6).tolist()
            found[parameter.name] = {"levels": sorted({*levels, float(parameter.default)})}
            continue
        per = {"per": ["expert"]} if parameter.per_source else {}
        found[parameter.name] = {"range": list(bounds), **per}
    return found


def _bounds(operator: str, parameter: Parameter) -> tuple[float, float] | None:
    own = OWN.get(operator.split(" | ")[0], {})
    if parameter.name in own:
        return own[parameter.name]
    if parameter.kind not in ("real", "integer"):
        return None
    if parameter.name in RANGES:
        return RANGES[parameter.name]
    low, high = parameter.low, parameter.high
    if low is None or high is None or high - low > 5:
        default = float(parameter.default)
        return (0.0, 2 * default) if default > 0 else (0.0, 1.0)
    return (low, high)


def parts_of(name: str, family: Family, family_name: str) -> Parts:
    """All that a search of the operator needs."""
    operator = OPERATORS[name]
    experts = family.experts[: operator.max_sources]
    search = searched(name, family)
    space: dict[str, Any] = {"kind": "weights", "operator": name, "search": search}
    if not search:  # nothing to search: any number that changes nothing will do
        space = {"kind": "weights", "operator": "linear", "search": {"weight": {"range": [0, 1]}}}
    paths = [f"zoo:{family_name}/{skill}" for skill in experts]
    if operator.needs_adapters:
        paths = [str(path) for path in adapters_of(family, family_name)]
    data: dict[str, Any] = {
        "base": f"zoo:{family_name}/base",
        "experts": dict(zip(experts, paths, strict=True)),
        "space": space,
        "fitness": {
            "tasks": dict(family.tasks),
            "objectives": {"mean": {"tasks": list(family.tasks)}},
            "estimator": dict(family.estimator),
            "split": dict(family.split),
        },
        "searcher": {"kind": "tpe"},
        "budget": {"candidates": CANDIDATES},
        "seed": 0,
        "pool": {"workers": 0},
    }
    if operator.needs != "nothing":
        data["calibration"] = CALIBRATION[family_name]
    return wire(parse_experiment(Document(data)))


CALIBRATION: dict[str, dict[str, Any]] = {  # each expert reads the search items of its own task
    name: {"of": {expert: {"task": expert} for expert in family.experts}, "samples": 64}
    for name, family in FAMILIES.items()
}


def adapters_of(family: Family, family_name: str) -> list[Path]:
    """The experts' changes cut to LoRA adapters, written once."""
    folder = Path(tempfile.gettempdir()) / f"operators-adapters-{family_name}"
    paths = [folder / expert for expert in family.experts]
    if not all((path / "adapter_config.json").exists() for path in paths):
        whole = parts_of("task_arithmetic", family, family_name)
        for expert, path in zip(family.experts, paths, strict=True):
            merge_of_one = Merge(operator="passthrough", sources=(expert,))
            recipe = whole.template.model_copy(update={"default": merge_of_one})
            export_adapter(recipe, whole.models.checkpoints, path, rank=ADAPTER_RANK)
    return paths


def measured(name: str, family_name: str) -> dict[str, Any]:
    """The operator as it comes, and the best of a search."""
    family = FAMILIES[family_name]
    parts = parts_of(name, family, family_name)
    folder = Path(tempfile.mkdtemp(prefix="operators-"))
    try:
        with closing(open_ledger(folder / LEDGER, parts)) as ledger:
            pool = make_pool(parts.config.pool, parts.worker, folder / "run.log")
            try:
                return _measured(name, family, parts, ledger, Measurer(pool, ledger))
            finally:
                pool.close()
    finally:
        shutil.rmtree(folder)


def _measured(
    name: str, family: Family, parts: Parts, ledger: Ledger, measurer: Measurer
) -> dict[str, Any]:
    collect_beforehand(parts, lambda *_: None)
    start = time.perf_counter()
    plain = _plain(parts, name)
    num_cohorts = num_asked = 0
    finalists: list[Candidate] = []
    if searched(name, family):
        run = Search(
            searcher=parts.searcher,
            space=parts.space,
            estimator=parts.estimator,
            ledger=ledger,
            in_flight=parts.searcher.in_flight,
            cohort_size=parts.searcher.population,
        )
        run_search(run, measurer, Budget(candidates=CANDIDATES))
        measurer.cancel()
        ranked = [e for e in best_first(list(ledger.evaluations().values())) if e.score is not None]
        finalists = [ledger.candidates[e.id] for e in ranked[:FINALISTS]]
        num_cohorts, num_asked = run.num_cohorts, run.num_asked
    as_it_comes = Candidate(num_asked, None, plain)
    ledger.asked(num_cohorts, 1, [as_it_comes])
    measurer.measure(FRESH, requests_for(finalists, parts.split.fresh))
    fresh = [answers(parts, ledger, c, parts.split.fresh) for c in finalists]
    means = [float(np.mean([skill.mean() for skill in one])) for one in fresh]
    chosen = finalists[int(np.argmax(means))] if finalists else as_it_comes
    measurer.measure(HELD_OUT, requests_for([chosen, as_it_comes], parts.split.holdout))
    default, best = (answers(parts, ledger, c, parts.split.holdout) for c in (as_it_comes, chosen))
    gain = [b - a for a, b in zip(default, best, strict=True)]
    return {
        "default": mean_and_error(default),
        "searched": mean_and_error(best) if finalists else None,
        "gain": mean_and_error(gain) if finalists else None,
        "genes": len(parts.space.genes) if finalists else 0,
        "candidates": len(ledger.evaluations()),
        "failed": sum(e.score is None for e in ledger.evaluations().values()),
        "seconds": time.perf_counter() - start,
    }


def answers(
    parts: Parts, ledger: Ledger, candidate: Candidate, items: Mapping[str, Any]
) -> list[NDArray[np.float64]]:
    """The scores of each skill's items; zeros of a candidate that failed."""
    known = ledger.measurements
    found = []
    for skill in parts.config.fitness.tasks:
        asked = tuple(items[skill])
        failed = known.missing(candidate.fingerprint, skill, asked)
        found.append(
            np.zeros(len(asked))
            if len(failed)
            else np.asarray(known.values(candidate.fingerprint, skill, asked), np.float64)
        )
    return found


def mean_and_error(skills: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The mean of the skills' means, and its standard error."""
    error = np.sqrt(sum(one.var(ddof=1) / len(one) for one in skills)) / len(skills)
    return float(np.mean([one.mean() for one in skills])), float(error)


def cost(name: str, family_name: str) -> dict[str, Any]:
    """Seconds and bytes of merging, nothing measured."""
    torch.set_num_threads(1)
    parts = parts_of(name, FAMILIES[family_name], family_name)
    collect_beforehand(parts, lambda *_: None)
    generator = np.random.default_rng(0)
    recipes = [_coefficients_alone(name, parts, generator) for _ in range(TURNS + 1)]
    models = parts.models.checkpoints
    base = models["base"]
    outs = {n: base.tensor(n).clone() for n in base.names}
    warm = Merger(models, parts.models.anatomy, "base", 0)  # numba's kernels, and the files' pages
    for _ in warm.tensors(_plain(parts, "task_arithmetic")):
        pass
    seconds, texts = [], parts.worker.calibration
    statistics = None if texts is None else Collected(texts, models, "base")
    with PeakMemory() as memory:
        merger = Merger(models, parts.models.anatomy, "base", 4 * 2**30, statistics=statistics)
        for recipe in recipes:
            start = time.perf_counter()
            for group, effective in merger.plan(recipe).items():
                merger.write(group, effective, [outs[n] for n in group.names])
            seconds.append(time.perf_counter() - start)
    return {
        "first_s": seconds[0],
        "ms": 1e3 * min(seconds[1:]),
        "held_mb": merger.family.cache.used_bytes / 1e6,
        "peak_mb": (memory.peak - memory.before) / 1e6,
    }


def _plain(parts: Parts, operator: str) -> Recipe:
    """The operator as it comes, of all experts."""
    default = parts.template.default.model_copy(update={"operator": operator})
    return parts.template.model_copy(update={"default": default})


def _coefficients_alone(name: str, parts: Parts, generator: np.random.Generator) -> Recipe:
    """A recipe with random values of what is not prepared."""
    operator = OPERATORS[name]
    values: dict[str, Any] = {}
    for parameter in operator.parameters:
        bounds = _bounds(name, parameter)
        if bounds is None or parameter.phase == "prepare":
            continue
        low, high = bounds
        edge = (high - low) / 5  # at the ends, some parameters do not go together
        draws = {
            expert: float(generator.uniform(low + edge, high - edge))
            for expert in parts.config.experts
        }
        first = next(iter(draws.values()))
        alone = round(first) if parameter.kind == "integer" else first
        values[parameter.name] = draws if parameter.per_source else alone
    default = parts.template.default.model_copy(update={"operator": name, "parameters": values})
    return parts.template.model_copy(update={"default": default})


def names() -> list[str]:
    return [*OPERATORS, *CHAINS]


def read(out: Path, what: str) -> list[dict[str, Any]]:
    """The results so far."""
    return [
        json.loads(line)
        for path in sorted(out.glob(f"{what}*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def run_all(options: argparse.Namespace) -> None:
    """All that is not in the results yet."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, options.part.split("/"))
    results = out / f"{options.what}-{options.family}-{part}.jsonl"
    done = {r["operator"] for r in read(out, options.what) if r["family"] == options.family}
    wanted = [n for n in names() if n in options.operators or not options.operators]
    for name in wanted[part::parts]:
        if name in done:
            continue
        try:
            if options.what == "run":
                found = measured(name, options.family)
            else:
                found = _alone(name, options)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        row = {"family": options.family, "operator": name, **found}
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def _alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The cost in a process of its own, whose memory nobody has used before."""
    command = [sys.executable, __file__, "one", "--family", options.family, "--operators", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(out: Path) -> Iterator[str]:
    """Tables as Markdown, the best of a search first."""
    for family in FAMILIES:
        runs = [r for r in read(out, "run") if r["family"] == family]
        if runs:
            yield f"\n**{family}**: held-out mean\n"
            yield f"| operator | as it comes | after {CANDIDATES} candidates | gain | genes |"
            yield "|---|---|---|---|---|"
        for row in sorted(runs, key=lambda r: -(r["searched"] or r["default"])[0]):
            told = [_pair(row["default"]), _pair(row["searched"]), _pair(row["gain"], sign="+")]
            yield f"| {_name(row)} | {' | '.join(told)} | {row['genes'] or ''} |"
        costs = [r for r in read(out, "cost") if r["family"] == family]
        if costs:
            yield f"\n**{family}**: what merging costs\n"
            yield "| operator | first merge, s | a candidate, ms | kept, MB | peak, MB |"
            yield "|---|---|---|---|---|"
        for row in sorted(costs, key=lambda r: r["ms"]):
            ms = f"{row['ms']:.0f}" if row["ms"] >= 10 else f"{row['ms']:.1f}"
            sizes = f"{row['held_mb']:.0f} | {row['peak_mb']:.0f}"
            yield f"| {_name(row)} | {row['first_s']:.2f} | {ms} | {sizes} |"


def _name(row: Mapping[str, Any]) -> str:
    return "`" + row["operator"].replace("|", "\\|") + "`"


def _pair(found: Sequence[float] | None, sign: str = "") -> str:
    return "" if found is None else f"{found[0]:{sign}.3f} ± {found[1]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["run", "cost", "show", "one"])
    parser.add_argument("--out", type=Path, default=Path("runs/operators"))
    parser.add_argument("--family", choices=list(FAMILIES), default="tiny")
    parser.add_argument("--operators", nargs="+", default=[])
    parser.add_argument("--part", default="0/1", help="which of how many processes: 0/2, 1/2")
    options = parser.parse_args()
    logging.getLogger("evomerge").setLevel(logging.ERROR)
    if options.what == "one":
        print(json.dumps(cost(options.operators[0], options.family)))
        return
    if options.what != "show":
        run_all(options)
    print("\n".join(show(options.out)))


if __name__ == "__main__":
    main()
