"""A dry run: what an experiment would cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.errors import ModelError, Problem
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.room import expected_items, projected_bytes
from evomerge.experiment.wire import Parts, wire
from evomerge.merging.traffic import bytes_moved
from evomerge.pools import placement_here
from evomerge.pools.worker import Worker
from evomerge.protocols import Progress
from evomerge.recipe import Merge, Recipe, Segments, Slot
from evomerge.records import Job
from evomerge.results.references import reference_recipes
from evomerge.search_spaces import describe

TRIAL_ITEMS = 32  # of each task, answered by the base to learn the speed
EXAMPLE = 1  # the stream of the run's seed that the plan's random point is from


def plan_experiment(config: ExperimentConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Label -> figure; the base answers a few items, so that hours are measured and not guessed.

    Raises:
        ConfigurationError, ModelError: whatever `evomerge validate` would find.
    """
    parts = wire(config, progress=progress)
    cohort = config.cohort or parts.searcher.population
    candidates = config.budget.candidates
    items = expected_items(parts)
    seconds = seconds_per_item(parts)
    placed = placement_here(config.pool, parts.worker)
    workers = max(1, placed.workers)
    size = sum(checkpoint.size_bytes for checkpoint in parts.models.checkpoints.values())
    return {
        **describe_space(parts),
        "candidates": candidates if candidates is not None else "until the budget is spent",
        "candidates asked together": cohort,
        "items: references": f"{items.references:,}",
        "items: search": "unknown" if items.search is None else f"{items.search:,}",
        "items: finalists": f"{items.finalists:,}",
        "items: holdout": f"{items.holdout:,} or more with a front",
        "items: all": "unknown" if items.total is None else f"{items.total:,}",
        "models on disk": f"{size / 1e6:,.1f} MB",
        "run folder": "unknown"
        if items.total is None
        else f"{projected_bytes(parts) / 1e6:,.1f} MB or less",
        "seconds per item": f"{seconds:.2g} (base, one worker)",
        "workers here": f"{placed.workers} on {placed.device} ({'; '.join(placed.reasons)})",
        "memory of a worker": "unknown"
        if parts.worker.demand is None
        else f"{parts.worker.demand.on_cpu(placed.ahead) / 1e9:.1f} GB",
        "hours": "unknown"
        if items.total is None
        else f"{items.total * seconds / workers / 3600:.2g} with {workers} worker(s)",
        "warnings": list(parts.warnings),
    }


def describe_space(parts: Parts) -> dict[str, Any]:
    """The space in words, with a recipe from its centre and one from a random point."""
    space, seed = parts.space, parts.config.seed
    count = len(space.genes)
    told: dict[str, Any] = (
        {"genes": count} if count else {"genes": "none: its genomes are lineages"}
    )
    if count:
        told |= {
            "genes by kind": describe.kinds(space),
            "genes by name": describe.families(space),
            "genes that do not always matter": describe.conditions(space),
            "genes that are bound together": describe.constraints(space),
        }
    generator = np.random.default_rng(np.random.SeedSequence([seed, EXAMPLE]))
    genomes = {"a random recipe": space.sample(generator)}
    if count:
        genomes = {"the recipe at the centre": [0.5] * count, **genomes}
    moved = []
    for label, genome in genomes.items():
        if found := space.violations(genome):
            told[label] = [f"not possible: {what}" for what in found]
            continue
        recipe = space.decode(genome)
        told[label] = recipe_lines(recipe)
        moved.append(bytes_moved(recipe, parts.models.checkpoints, parts.models.anatomy))
    if moved:
        told["bytes moved by such a candidate"] = f"{max(moved) / 1e6:,.1f} MB"
    return told


def recipe_lines(recipe: Recipe, limit: int = 12) -> list[str]:
    """What is merged how, in a line for each run of like layers; at most so many lines."""
    if recipe.segments is not None:
        return _stretches(recipe.segments, limit)
    lines = [f"default: {_merge_text(recipe.default)}"]
    lines += [f"{group}: {_merge_text(merge)}" for group, merge in recipe.outside.items()]
    slots = [(n, _slot_text(n, slot)) for n, slot in enumerate(recipe.slots or ())]
    slots = [(n, text) for n, text in slots if text]
    runs: list[tuple[int, int, str]] = []
    for number, text in slots:
        if runs and runs[-1][2] == text and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number, text)
        else:
            runs.append((number, number, text))
    for first, last, text in runs:
        name = f"layer {first}" if first == last else f"layers {first} to {last}"
        lines.append(f"{name}: {text}")
    if recipe.slots is not None:
        lines.insert(0, f"{len(recipe.slots)} layers")
    rest = len(lines) - limit
    return lines if rest <= 1 else [*lines[:limit], f"... and {rest} lines more"]


def _stretches(segments: Segments, limit: int) -> list[str]:
    """What each stretch of the flattened parameters is made of."""
    lines = [f"{len(segments.stops)} stretches of {segments.stops[-1]:,} parameters"]
    start = 0
    for number, stop in enumerate(segments.stops[:limit]):
        shares = {model: weights[number] for model, weights in segments.weights.items()}
        lines.append(f"{start:,} to {stop - 1:,}: {_value_text(shares)}")
        start = stop
    rest = len(segments.stops) - limit
    return lines if rest <= 0 else [*lines, f"... and {rest} lines more"]


def _slot_text(number: int, slot: Slot) -> str:
    """What a slot says that is not in the default."""
    parts = []
    if slot.layer != number:
        parts.append(f"the models' layer {slot.layer}")
    for component, merge in slot.merges.items():
        label = "" if component == "default" else f"{component} "
        parts.append(label + _merge_text(merge))
    for key in ("input_scale", "branch_scale"):
        if getattr(slot, key) != 1.0:
            parts.append(f"{key} {getattr(slot, key):g}")
    return "; ".join(parts)


def _merge_text(merge: Merge) -> str:
    """`ties of math and code, weight .5 and .3`, shorter."""
    words = [merge.operator] if merge.operator else []
    if merge.sources:
        words.append(("of " if words else "") + ", ".join(merge.sources))
    values = [f"{name} {_value_text(value)}" for name, value in merge.parameters.items()]
    return " ".join([" ".join(words), ", ".join(values)]).strip()


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{name} {_value_text(one)}" for name, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def seconds_per_item(parts: Parts) -> float:
    """How long the base takes for an item, from a few of each task.

    Raises:
        ModelError: the base cannot be measured.
    """
    worker = Worker(parts.worker, "driver")
    recipe = reference_recipes(parts.template)["base"]
    trial = {task: ids[:TRIAL_ITEMS] for task, ids in parts.split.search.items()}
    job = Job(0, -1, recipe, trial)
    worker.run(job)  # compiles the tasks
    outcome = worker.run(job)
    if outcome.failure is not None:
        raise ModelError(Problem("base", outcome.failure.reason))
    return outcome.measure_s / job.num_items
