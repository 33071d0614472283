"""What a study found, beside everything that needs no search, on the same held-out items."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from answers import Answers
from numpy.typing import NDArray

from evomerge.experiment.wire import Parts
from evomerge.ledger import FINAL, LEDGER, REFERENCES, Ledger
from evomerge.pareto import hypervolume, non_dominated
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.records import Measurements
from evomerge.results.intervals import mean_estimate, mean_of_objectives, paired_gain
from evomerge.results.references import ARITHMETIC, reference_recipes
from evomerge.run import Run

Json = dict[str, Any]
FOUND, RANDOM = "found", "random search"
DEFAULTS = {"TIES as it comes": "ties", "DARE-TIES as it comes": "dare_ties"}
MIDDLE, LATE = "cut in the middle", "cut before the last layer"
DRAWS = 2000  # of the bootstrap of a hypervolume
LONGEST = 2000  # characters of a merge's parameters that are kept


def baselines(parts: Parts) -> dict[str, Recipe]:
    """Label -> recipe of everything that needs no search."""
    template = parts.template
    experts = tuple(name for name in template.models if name != template.base)
    found = dict(reference_recipes(template))
    for label, operator in DEFAULTS.items():
        default = Merge(operator=operator, sources=experts)
        found[label] = Recipe(
            **{**dict(template), "default": default, "outside": {}, "slots": None}
        )
    return found


def cuts(parts: Parts, coefficient: float) -> dict[str, Recipe]:
    """Task arithmetic with as many layers less as the space removes, taken out by rule.

    Empty for spaces that remove none.
    """
    space = parts.config.space
    if space.kind != "layer_pruning":
        return {}
    depth = parts.models.anatomy.num_layers
    generator = np.random.default_rng(0)
    gone = depth - len(parts.space.decode(parts.space.sample(generator)).slots or ())
    middle = (depth - gone) // 2
    experts = [name for name in parts.template.models if name != parts.template.base]
    default = Merge(operator=ARITHMETIC, sources=tuple(experts), parameters={"weight": coefficient})
    found = {}
    for label, first in ((MIDDLE, middle), (LATE, depth - 1 - gone)):
        kept = [n for n in range(depth) if not first <= n < first + gone]
        slots = tuple(Slot(layer=n) for n in kept)
        found[label] = Recipe(
            **{**dict(parts.template), "default": default, "outside": {}, "slots": slots}
        )
    return found


def chosen_point(run: Path) -> str:
    """The label of the grid's point that the run chose by search and fresh items; "" without."""
    with closing(Ledger(run / LEDGER, read_only=True)) as ledger:
        shown = (ledger.final() or {})["references"]
    return next((label for label in shown if label.startswith(ARITHMETIC)), "")


def judged(
    parts: Parts,
    answers: Answers,
    run: Path,
    twin: Path | None,
    seed: int,
    say: Callable[[str], None],
) -> Json:
    """Scores on the holdout, and gains with 95 % intervals over its items.

    parts: of the experiment, or of the one whose fitness judges. answers: of its group.
    """
    recipes = baselines(parts)
    if point := chosen_point(run):
        recipes |= cuts(parts, float(point.split()[-1]))
    fronts: dict[str, list[str]] = {}
    for label, folder in ((FOUND, run), (RANDOM, twin)):
        if folder is None:
            continue
        with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
            chosen = [Run(folder).best().recipe]
            table = ledger.final() or {}
            chosen += [ledger.candidates[row["candidate"]].recipe for row in table["front"]]
            names = [label, *(f"{label}: front {n}" for n in range(len(chosen) - 1))]
            fronts[label] = names[1:]
            for name, recipe in zip(names, chosen, strict=True):
                assert recipe is not None  # what was chosen was measured
                recipes[name] = recipe
                answers.learn(ledger, recipe)
    known = answers.of(recipes, parts.split.holdout, say)
    told: Json = {
        "scores": {label: score(parts, known, recipe) for label, recipe in recipes.items()},
        "gains": gains(parts, known, recipes, run, seed),
        "costs": costs(run),
        "fronts": fronts_judged(parts, known, recipes, fronts, seed),
        "merges": {
            label: merge_of(recipes[label]) for label in (FOUND, RANDOM) if label in recipes
        },
    }
    if twin is not None:
        told[RANDOM] = {
            "gains": gains(parts, known, recipes, run, seed, of=RANDOM),
            "costs": costs(twin),
        }
    return told


def merge_of(recipe: Recipe) -> Json | None:
    """Operator and parameters of a recipe that merges all of the model alike; None of others."""
    if recipe.slots is not None or recipe.default is None:
        return None
    told = recipe.default.model_dump(mode="json")
    return told if len(json.dumps(told)) < LONGEST else None


def score(parts: Parts, known: Measurements, recipe: Recipe) -> Json:
    """The mean of the objectives with its standard error, and each by itself."""
    items, objectives = parts.split.holdout, parts.objectives
    shares = mean_of_objectives(objectives, known, recipe.fingerprint, items)
    value, error = mean_estimate(shares)
    told: Json = {"mean": value, "standard_error": error}
    for objective in objectives:
        if objective.cost is None:
            own = mean_of_objectives([objective], known, recipe.fingerprint, items)
            told[objective.name] = mean_estimate(own)[0]
    return told


def gains(
    parts: Parts,
    known: Measurements,
    recipes: Mapping[str, Recipe],
    run: Path,
    seed: int,
    of: str = FOUND,
) -> Json:
    """What was found (or `of`) minus its rivals: [value, low, high] and who the rival was.

    The best expert and the best point of the grid are the best *on the holdout itself*, which
    favours them; `grid, chosen` is the point that a user would have chosen by search and fresh
    items.
    """
    means = {label: score(parts, known, recipe)["mean"] for label, recipe in recipes.items()}
    experts = [n for n in parts.template.models if n != parts.template.base]
    grid = [label for label in recipes if label.startswith(ARITHMETIC)]
    rivals = {
        "base": parts.template.base,
        "best expert": max(experts, key=lambda n: means[n]),
        "uniform": "uniform",
        "best of the grid, in hindsight": max(grid, key=lambda n: means[n]),
        **{label: label for label in DEFAULTS},
    }
    if point := chosen_point(run):
        rivals["grid, chosen"] = point
    rivals |= {label: label for label in (RANDOM, MIDDLE, LATE) if label in recipes}
    rivals.pop(of, None)
    ours = recipes[of].fingerprint
    return {
        name: {
            "rival": label,
            "gain": paired_gain(
                parts.objectives,
                known,
                ours,
                recipes[label].fingerprint,
                parts.split.holdout,
                seed,
            ),
        }
        for name, label in rivals.items()
    }


def costs(run: Path) -> Json:
    """Item evaluations by purpose, candidates, and the minutes that workers took for them."""
    items = {"references": 0, "search": 0, "final": 0}
    seconds = dict.fromkeys(items, 0.0)
    purpose = {REFERENCES: "references", FINAL: "final"}
    with closing(Ledger(run / LEDGER, read_only=True)) as ledger:
        for _, cohort, data in ledger.events("measured"):
            name = purpose.get(cohort, "search")
            items[name] += data["num_items"]
            seconds[name] += sum(data["seconds"][:2])
        candidates = len(ledger.evaluations())
    return {"candidates": candidates, "items": items, "worker_seconds": seconds}


def spent_items(run: Path) -> int:
    """Item evaluations of the references and the search, which a twin may spend as well."""
    items = costs(run)["items"]
    return int(items["references"] + items["search"])


# --- fronts -------------------------------------------------------------------------------------


def fronts_judged(
    parts: Parts,
    known: Measurements,
    recipes: Mapping[str, Recipe],
    fronts: Mapping[str, list[str]],
    seed: int,
) -> Json:
    """Hypervolumes on the holdout, above the base's scores and above zero.

    They are of what was found, of random search, and of all references with the whole grid and the
    defaults together; the gaps to what was found have 95 % bootstrap intervals over items.
    """
    objectives = [o for o in parts.objectives if o.cost is None]
    if len(objectives) < 2:
        return {}
    labels = list(recipes)
    draws = resampled(parts, known, [recipes[label] for label in labels], seed)
    values, base = draws[0], draws[0][labels.index(parts.template.base)]
    members = {name: [labels.index(label) for label in found] for name, found in fronts.items()}
    members["references and grid"] = [
        n for n, label in enumerate(labels) if label.split(":")[0] not in (FOUND, RANDOM)
    ]
    told: Json = {"base": base.tolist(), "objectives": [o.name for o in objectives]}
    for name, places in members.items():
        points = values[places]
        kept = non_dominated(points)
        told[name] = {
            "points": points.tolist(),
            "labels": [labels[place] for place in places],
            "on_front": int(kept.sum()),
            "above_base": hypervolume(points, base),
            "above_zero": hypervolume(points, np.zeros(len(objectives))),
        }
    for corner, reference in (("above_base", base), ("above_zero", np.zeros(len(objectives)))):
        samples = {
            name: np.array([hypervolume(one[places], reference) for one in draws[1:]])
            for name, places in members.items()
        }
        for key, ours in ((f"gains_{corner}", FOUND), (f"random_gains_{corner}", RANDOM)):
            if ours in members:
                told[key] = {
                    name: [
                        told[ours][corner] - told[name][corner],
                        *np.quantile(samples[ours] - samples[name], [0.025, 0.975]).tolist(),
                    ]
                    for name in members
                    if name != ours
                }
    return told


def resampled(
    parts: Parts, known: Measurements, recipes: list[Recipe], seed: int
) -> NDArray[np.float64]:
    """Values of all recipes on the items, then on bootstrap samples of them.

    Shape (1 + DRAWS, recipes, objectives); the same draw for all recipes.
    """
    objectives = [o for o in parts.objectives if o.cost is None]
    found = np.zeros((1 + DRAWS, len(recipes), len(objectives)))
    for task, items in parts.split.holdout.items():
        generator = np.random.default_rng([seed, *task.encode()])
        counts = generator.multinomial(len(items), np.full(len(items), 1 / len(items)), size=DRAWS)
        weights = np.vstack([np.ones(len(items)), counts]) / len(items)
        for k, objective in enumerate(objectives):
            if task in objective.weights:
                shares = [
                    mean_of_objectives([objective], known, r.fingerprint, {task: items})
                    if set(objective.weights) == {task}
                    else mean_of_objectives([objective], known, r.fingerprint, parts.split.holdout)
                    for r in recipes
                ]
                found[:, :, k] += weights @ np.stack([share[task] for share in shares], axis=1)
    return found
