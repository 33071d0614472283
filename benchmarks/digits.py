"""M2N2 on scikit-learn's digits: the paper's experiment, its ablations, and what a child costs.

    python benchmarks/digits.py pretrained [--runs 20] [--evaluations 10000] [--pair FILE]
    python benchmarks/digits.py scratch [--runs 10] [--evaluations 50000]
    python benchmarks/digits.py speed [--repeats 5]

Abrantes et al., Competition and Attraction Improve Model Fusion, arXiv:2508.16204: networks of 64,
256 and 10 units (ReLU, 19,210 parameters) on the first 1,437 of the 8x8 digits, unshuffled, pixels
0 to 16; the other 360 are the test. `pretrained` begins with two networks, one that saw digits 0 to
4 alone and one that saw 5 to 9, in each run other ones, the same for every variant; `scratch`
begins with two random networks and adds noise of .01 to each child. The accuracy is the test's, of
the member with the best accuracy in training. Everything on one thread; ms are processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before numpy is imported

import numpy as np
import torch
from digits_grid import GridEvolution
from numpy.typing import NDArray
from paired import HEAD, differences
from sklearn.datasets import load_digits

from evomerge.evolution import Evolution
from evomerge.search_spaces.dense import Dense
from evomerge.searchers.niche_archive import NicheArchive

Vector = NDArray[np.float32]
NUM_TRAIN, PIXELS, HIDDEN, CLASSES = 1437, 64, 256, 10
SHAPES = ((PIXELS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
TOTAL = sum(int(np.prod(shape)) for shape in SHAPES)
STD = 0.01  # of random networks, and of mutations
ROWS = 256  # of images at a time: their hidden units stay in the cache

GRID = "MAP-Elites"
VARIANTS: dict[str, dict[str, Any]] = {
    "M2N2": {},
    "no attraction": {"attraction": False},
    "GA": {"attraction": False, "alpha": 0.0},
    "no split point": {"split": False},
    "no crossover": {"crossover": False},
    GRID: {},
}
# Of the paper's figure: what it orders, and test accuracies read off it.
ORDERINGS = {
    "pretrained": [
        *(("M2N2", name) for name in VARIANTS if name != "M2N2"),
        ("no attraction", GRID),
        ("no attraction", "GA"),
        (GRID, "GA"),
    ],
    "scratch": [
        *(("M2N2", name) for name in VARIANTS if name != "M2N2"),
        ("no crossover", "GA"),
        ("no crossover", GRID),
        ("GA", GRID),
    ],
}
REFERENCE = {
    "pretrained": {"M2N2": ".68", "no attraction": ".66", GRID: ".62", "GA": ".52"},
    "scratch": {"M2N2": ".87", "no crossover": ".77", "GA": ".68", GRID: ".60"},
}


class Digits:
    """Which of some images a network gets right."""

    def __init__(self, images: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        ones = np.ones((len(images), 1))  # so that the first bias is a row of the first weights
        self._images = np.hstack([images, ones]).astype(np.float32)
        self._labels = labels
        self._hidden = np.empty((ROWS, HIDDEN), np.float32)
        self._zeros = np.zeros((ROWS, HIDDEN), np.float32)  # numpy is slower at one zero for all
        self._logits = np.empty((len(images), CLASSES), np.float32)

    def __call__(self, vector: Vector) -> NDArray[np.bool_]:
        """Right or wrong, shape (images,)."""
        first = vector[: (PIXELS + 1) * HIDDEN].reshape(PIXELS + 1, HIDDEN)
        second = vector[first.size : -CLASSES].reshape(HIDDEN, CLASSES)
        for start in range(0, len(self._images), ROWS):
            rows = self._images[start : start + ROWS]
            hidden = self._hidden[: len(rows)]
            np.matmul(rows, first, out=hidden)
            np.maximum(hidden, self._zeros[: len(rows)], out=hidden)
            np.matmul(hidden, second, out=self._logits[start : start + ROWS])
        self._logits += vector[-CLASSES:]
        return self._logits.argmax(axis=1) == self._labels


def load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    images, labels = load_digits(return_X_y=True)
    return images, labels


def random_networks(run: int) -> list[Vector]:
    generator = np.random.default_rng((run, 0))
    return [(STD * generator.standard_normal(TOTAL)).astype(np.float32) for _ in range(2)]


def trained(start: Vector, images: NDArray[np.float64], labels: NDArray[np.int64]) -> Vector:
    """After ten steps of Adam, each on all the images."""
    vector = torch.tensor(start, requires_grad=True)
    inputs, wanted = torch.tensor(images, dtype=torch.float32), torch.tensor(labels)
    optimiser = torch.optim.Adam([vector], lr=3e-3)
    for _ in range(10):
        weights, bias, more_weights, more_bias = (
            part.reshape(shape)
            for part, shape in zip(
                vector.split([int(np.prod(s)) for s in SHAPES]), SHAPES, strict=True
            )
        )
        logits = torch.relu(inputs @ weights + bias) @ more_weights + more_bias
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        optimiser.step()
    result: Vector = vector.detach().numpy()
    return result


def pair(run: int) -> list[Vector]:
    """A network for the digits 0 to 4, and one for 5 to 9."""
    images, labels = (part[:NUM_TRAIN] for part in load())
    low = labels < 5
    return [
        trained(start, images[seen], labels[seen])
        for start, seen in zip(random_networks(run), (low, ~low), strict=True)
    ]


def evolve(
    seeds: list[Vector], run: int, stops: list[int], name: str, noise_std: float
) -> tuple[list[float], float]:
    """Test accuracies of a variant at so many evaluations, and the milliseconds of each."""
    images, labels = load()
    train = Digits(images[:NUM_TRAIN], labels[:NUM_TRAIN])
    test = Digits(images[NUM_TRAIN:], labels[NUM_TRAIN:])
    evolution: Evolution | GridEvolution
    if name == GRID:
        odd = labels[:NUM_TRAIN] % 2 == 1
        evolution = GridEvolution(seeds, train, odd, seed=run, noise_std=noise_std)
    else:
        evolution = Evolution(seeds, train, seed=run, noise_std=noise_std, **VARIANTS[name])
    barren = not noise_std and is_barren(name)
    accuracies, seconds = [], 0.0
    for stop in stops:
        started = time.process_time()
        evolution.run(len(seeds) if barren else stop)
        seconds += time.process_time() - started
        accuracies.append(float(test(evolution.vector(evolution.best())).mean()))
    return accuracies, 1e3 * seconds / stops[-1]


def is_barren(name: str) -> bool:
    """Whether a child is its parent unless there is noise, so that nothing new is ever found."""
    return not VARIANTS[name].get("crossover", True)


def compare(
    kind: str, names: list[str], runs: int, evaluations: int, out: Path, given: Path | None
) -> None:
    """Every variant in every run that `out` has not yet, and then the tables.

    A run is written when it is over; one that was interrupted begins again. given: two networks
    that all runs begin with, instead of a pair of each run's own.
    """
    scratch = kind == "scratch"
    stops = [evaluations // 5, evaluations] if scratch else [evaluations]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{kind if given is None else given.stem}-{evaluations}.jsonl"
    networks = None if given is None else [vector for _, vector in sorted(np.load(given).items())]
    done = read_runs(path)
    for run in range(runs):  # variants within: what is interrupted is paired, too
        seeds = networks or (random_networks(run) if scratch else pair(run))
        for name in names:
            if (name, run) in done:
                continue
            accuracies, ms = evolve(seeds, run, stops, name, STD if scratch else 0.0)
            line = {"variant": name, "run": run, "stops": stops, "accuracies": accuracies, "ms": ms}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{kind} {run} {name}: {accuracies[-1]:.3f}", flush=True)
    print(report(kind, read_runs(path), runs))


def read_runs(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What was found before, by variant and run; a line that a kill cut off is removed."""
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    lines = map(json.loads, whole.splitlines())
    return {(line["variant"], line["run"]): line for line in lines}


def report(kind: str, done: dict[tuple[str, int], dict[str, Any]], runs: int) -> str:
    """Tables in Markdown: accuracies, and what M2N2 has more than the others, run by run."""
    names = [name for name in VARIANTS if all((name, run) in done for run in range(runs))]
    stops = next(iter(done.values()))["stops"]
    found = {
        name: np.array([done[name, run]["accuracies"] for run in range(runs)]) for name in names
    }
    lines = [f"{kind}, {runs} runs: test accuracy, mean ± standard deviation over runs", ""]
    lines += ["| | " + " | ".join(f"at {s:,}" for s in stops) + " | paper's figure | ms each |"]
    lines += ["|---|" + "---|" * (len(stops) + 2)]
    for name in names:
        cells = [f"{c.mean():.3f} ± {c.std(ddof=1):.3f}" for c in found[name].T]
        ms = min(done[name, run]["ms"] for run in range(runs))
        cells += [
            REFERENCE[kind].get(name, ""),
            "" if kind == "pretrained" and is_barren(name) else f"{ms:.2f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for place, stop in enumerate(stops):
        gains = {
            f"{better} > {worse}": found[better][:, place] - found[worse][:, place]
            for better, worse in ORDERINGS[kind]
            if better in found and worse in found
        }
        lines += ["", f"after {stop:,} evaluations", "", HEAD]
        lines += [difference.row() for difference in differences(gains)]
    return "\n".join(lines)


def speed(repeats: int) -> None:
    """The parts of a child from scratch, in ms: the least of some repeats, and the median."""
    images, labels = load()
    train = Digits(images[:NUM_TRAIN], labels[:NUM_TRAIN])
    evolution = Evolution(random_networks(0), train, seed=0, noise_std=STD)
    evolution.run(2_000)
    archive: NicheArchive[int] = NicheArchive(20)
    dense = Dense()
    for member in evolution.members:
        archive.insert(member, evolution.scores(member))
        dense.seed(member, evolution.vector(member))
    first, second = evolution.members[:2]
    vector, right = evolution.vector(first), evolution.scores(second)
    lots = np.random.default_rng(0)
    noise = STD * np.ones((), np.float32)
    parts: dict[str, Callable[[int], Any]] = {
        "scoring (forward)": lambda _: train(vector),
        "parents": lambda _: archive.parents(lots),
        "insertion": lambda n: archive.insert(-1 - n, right),
        "crossover": lambda _: dense.birth("child", first, second, 0.3, TOTAL // 2),
        "noise": lambda n: (
            noise * np.random.Generator(np.random.SFC64((0, n))).standard_normal(TOTAL, np.float32)
        ),
    }
    print(
        f"a child of {TOTAL:,} parameters on {NUM_TRAIN:,} items, archive of 20, ms on one thread"
    )
    for name, part in parts.items():
        times = _times(part, 300, repeats)
        print(f"{name:<18} least {min(times):.3f}  median {statistics.median(times):.3f}")
    number = iter(range(2_000, 10**9, 500))

    def on(_: int) -> None:
        evolution.run(next(number) + 500)

    times = [ms / 500 for ms in _times(on, 1, repeats * 2)]
    print(
        f"{'a child, all of it':<18} least {min(times):.3f}  median {statistics.median(times):.3f}"
    )


def _times(part: Callable[[int], Any], count: int, repeats: int) -> list[float]:
    """Mean ms of a call, in each repeat: of the processor, which others may be using, too."""
    found = []
    for repeat in range(repeats):
        started = time.process_time()
        for number in range(count):
            part(repeat * count + number)
        found.append(1e3 * (time.process_time() - started) / count)
    return found


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kind", choices=["pretrained", "scratch", "speed"])
    parser.add_argument("--runs", type=int)
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--pair", type=Path, help="an .npz of two networks for all runs")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="runs, as they end")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.kind == "speed":
        speed(given.repeats)
        return
    runs, evaluations = (10, 50_000) if given.kind == "scratch" else (20, 10_000)
    compare(
        given.kind,
        given.variants or list(VARIANTS),
        given.runs or runs,
        given.evaluations or evaluations,
        given.out,
        given.pair,
    )


if __name__ == "__main__":
    main()
