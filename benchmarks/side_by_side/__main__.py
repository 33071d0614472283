"""evomerge beside what a user has today: the same experts, TIES, the same items, the same time.

    python benchmarks/side_by_side run --mergekit-python .venv-mergekit/bin/python
    python benchmarks/side_by_side run --case smollm2 ...   # after `evomerge zoo smollm2`
    python benchmarks/side_by_side show

Four ways to search for a merge by TIES with a weight and a density for each of three experts:

mergekit       each candidate is merged to disk by mergekit 0.1.5 (the default genome of its
               mergekit-evolve), loaded and scored by lm-eval's simple_evaluate; pycma.
mergenetic     the same with Mergenetic's genome, and pymoo's genetic algorithm.
evomerge       racing on the same search items, the choice among the best by fresh items, which
               the others do not have.
evomerge_full  all search items for each candidate, no fresh items: what the others do.

One process and one thread are at work at a time; the order of the ways changes from seed to seed.
The best by each tool's own rule is scored on held-out items by one scorer. A search's time is that
on the wall, or with `--clock processor` the processors', for a machine that others use too. See
theirs.py and ours.py for what counts. `run` goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from shown import markdown, plain

from evomerge.errors import EvomergeError
from evomerge.experiment.run import run_experiment

THEIRS = ("mergekit", "mergenetic")
WAYS = (*THEIRS, "evomerge", "evomerge_full")


def find(way: str, case: Case, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One search and its held-out scores, as a line of the results."""
    import ours
    import theirs

    seconds = arguments.seconds or case.seconds
    folder = arguments.out.resolve() / f"{case.family}-{seed}-{way}"
    split, paths = case.split(), case.paths(seed)
    if way in THEIRS:
        scoring = theirs.Scoring(case, split.search, clock=arguments.clock, dtype=arguments.dtype)
        with theirs.MergeServer(arguments.mergekit_python, paths, arguments.dtype) as server:
            found = theirs.search(
                way,
                server,
                scoring,
                seed=seed,
                seconds=seconds,
                scratch=folder / "candidate",
            )
            server.merge(way, found.values, folder / "best")
            versions = {"mergekit": server.version}
        row = {"account": found.account.to_json(), "score": found.score, "values": found.values}
        models, recipe = {"base": str(folder / "best")}, None
    else:
        ours_found = ours.search(
            case,
            seed=seed,
            seconds=seconds,
            clock=arguments.clock,
            races=way == "evomerge",
            folder=folder,
            dtype=arguments.dtype,
        )
        row = {
            "account": ours_found.account.to_json(),
            "search": ours_found.search.to_json(),
            "before_s": ours_found.before.by(arguments.clock),
        }
        models, recipe, versions = paths, ours_found.recipe, {}
    scores = ours.holdout_scores(case, models, recipe, split.holdout)
    shutil.rmtree(folder / "best", ignore_errors=True)  # its values are kept
    about = {"seconds": seconds, "clock": arguments.clock, "dtype": arguments.dtype}
    return {
        "case": case.family,
        "seed": seed,
        "way": way,
        **row,
        **about,
        "versions": versions | versions_here(),
        "machine": machine(),
        "holdout": scores,
    }


def versions_here() -> dict[str, str]:
    packages = ("evomerge", "torch", "transformers", "lm_eval", "cma", "pymoo")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def machine() -> str:
    """The processor, and how busy it is with everything that is going on."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, load {busy}"


def warm_up(arguments: argparse.Namespace) -> None:
    """One candidate of each kind, which does not count: what is imported and compiled once."""
    import theirs

    case = CASES["tiny"]
    folder, paths = arguments.out.resolve() / "warm_up", case.paths(0)
    shutil.rmtree(folder, ignore_errors=True)  # a run that is finished would warm nothing up
    few = {task: ids[:8] for task, ids in case.split().search.items()}
    with theirs.MergeServer(arguments.mergekit_python, paths) as server:
        server.merge("mergekit", server.first, folder / "merged")
    theirs.Scoring(case, few, clock=arguments.clock).score(folder / "merged")
    config = case.experiment(0, races=True, candidates=2)
    run_experiment(config, folder / "run")


def run(arguments: argparse.Namespace) -> None:
    """What is in the results already is not done again."""
    results = arguments.out / "results.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    case = CASES[arguments.case]
    rows = [row for row in rows_of(results) if row["case"] == case.family]
    wanted = (arguments.seconds or case.seconds, arguments.clock, arguments.dtype)
    if others := {(r["seconds"], r["clock"], r["dtype"]) for r in rows} - {wanted}:
        sys.exit(f"{results}: has rows of {others.pop()}, not of {wanted}: choose another --out")
    done = {(row["seed"], row["way"]) for row in rows}
    turns = [
        (seed, way)
        for number, seed in enumerate(arguments.seeds or case.seeds)
        for way in (*arguments.ways[number % 4 :], *arguments.ways[: number % 4])
        if (seed, way) not in done
    ]
    minutes = len(turns) * (arguments.seconds or case.seconds) / 60
    print(f"{len(turns)} searches, {minutes:.0f} minutes, and the scoring of what they find")
    if turns:
        warm_up(arguments)
    for seed, way in turns:
        row = find(way, case, seed, arguments)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if k != "holdout"}), flush=True)


def rows_of(results: Path) -> list[dict[str, Any]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--mergekit-python", type=Path, required=True)
    runs.add_argument("--case", choices=CASES, default="tiny")
    runs.add_argument("--seeds", type=int, nargs="+", help="the case's own")
    runs.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    runs.add_argument("--seconds", type=float, help="for each search; the case's own")
    runs.add_argument("--clock", choices=("wall", "processor"), default="wall")
    runs.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    shows = verbs.add_parser("show")
    shows.add_argument("--markdown", action="store_true")
    for verb in (runs, shows):
        verb.add_argument("--out", type=Path, default=Path("runs/side_by_side"))
    arguments = parser.parse_args()
    if arguments.verb == "show":
        rows = rows_of(arguments.out / "results.jsonl")
        sys.stdout.write((markdown if arguments.markdown else plain)(rows, WAYS))
        return
    if not arguments.mergekit_python.is_file():
        parser.error(f"no such file: {arguments.mergekit_python}; `make mergekit` makes one")
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        run(arguments)
    except EvomergeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
