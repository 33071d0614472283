"""Where item parameters come from: a pool of other models' answers, or a file of parameters.

A pool is a matrix (models, items) of answers in [0, 1], empty (NaN) where a model was not asked:
a leaderboard's, or a run's own history. It comes as .npz (array `responses`), .csv (a row for each
model) or .json (a list of rows, or an object with `responses`). Item parameters come as .npz or
.json with tinyBenchmarks' arrays A (1, D, items) and B (1, D or 1, items). Pickles are not read:
they run code.
"""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigurationError
from evomerge.fitness.estimators.column import Floats
from evomerge.fitness.estimators.irt_model import Items, ability, fit_items

HELD_OUT = 5  # one in so many models of a pool calibrates the error
LEAST_MODELS = 10
MOST_CALIBRATED = 40


@dataclass(frozen=True)
class ItemPool:
    """Item parameters and how far they can be trusted; the latter from models outside their fit.

    error: mean |error| of the predicted mean of unseen items, ability known from as many (b of
        gp-IRT); None if no held-out models are there.
    misfit: the same, squared.
    variance: mean over models of their answers' variance (v of gp-IRT).
    """

    items: Items
    error: float | None = None
    misfit: float | None = None
    variance: float | None = None


def fit_pool(responses: Floats, *, num_dimensions: int = 2, seed: int = 0) -> ItemPool:
    """Fit item parameters to a pool, and calibrate them on a fifth of it that a second fit omits.

    Raises:
        ConfigurationError: fewer than 10 models, too few for two parameters an item.
    """
    if len(responses) < LEAST_MODELS:
        raise ConfigurationError(
            f"response pool: expected at least {LEAST_MODELS} models, got {len(responses)}: "
            "item parameters cannot be identified from fewer"
        )
    items, _ = fit_items(responses, num_dimensions)
    shuffled = np.random.default_rng([seed, 2]).permutation(len(responses))
    held_out = shuffled[: max(len(responses) // HELD_OUT, 2)]
    others, _ = fit_items(np.delete(responses, held_out, axis=0), num_dimensions)
    return calibrated(items, responses[held_out[:MOST_CALIBRATED]], seed=seed, fitted=others)


def calibrated(
    items: Items, responses: Floats, *, seed: int = 0, fitted: Items | None = None
) -> ItemPool:
    """A pool whose error is measured on models (models, items) that its fit has not seen.

    fitted: the parameters to judge, `items` themselves if None.
    """
    fitted = fitted or items
    errors, variances = [], []
    for number, row in enumerate(responses):
        answered = np.flatnonzero(~np.isnan(row))
        if len(answered) < 4:
            continue
        halves = np.array_split(np.random.default_rng([seed, 3, number]).permutation(answered), 2)
        for seen, unseen in (halves, halves[::-1]):
            theta, _ = ability(fitted, seen, row[seen])
            errors.append(fitted.probabilities(theta, unseen).mean() - row[unseen].mean())
        variances.append(row[answered].var())
    if not errors:
        return ItemPool(items)
    gaps = np.array(errors)
    return ItemPool(
        items, float(np.abs(gaps).mean()), float((gaps**2).mean()), float(np.mean(variances))
    )


def holds_parameters(path: Path) -> bool:
    """Whether a file is of item parameters, and not of answers.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    if path.suffix.lower() == ".csv":
        return False
    content = _read_arrays(path)
    return isinstance(content, dict) and "A" in content


def read_responses(path: Path, num_items: int) -> Floats:
    """A response pool from a file: (models, items), NaN where nothing was answered.

    num_items: of the task; the file may have more.

    Raises:
        ConfigurationError: the file cannot be read, or is of other items.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        found: Any = _read_csv(path)
    else:
        content = _read_arrays(path)
        if isinstance(content, dict):
            if "responses" not in content:
                raise ConfigurationError(
                    f"{path}: expected an array `responses`, got {', '.join(sorted(content))}"
                )
            content = content["responses"]
        found = content
    responses = _floats(path, "responses", found)
    if responses.ndim != 2 or responses.shape[1] < num_items:
        raise ConfigurationError(
            f"{path}: expected (models, {num_items} or more), one column for each item of the "
            f"task, got shape {responses.shape}"
        )
    if np.isnan(responses).all():
        raise ConfigurationError(f"{path}: has no answer at all")
    if np.nanmin(responses, initial=0) < 0 or np.nanmax(responses, initial=1) > 1:
        raise ConfigurationError(f"{path}: expected answers in [0, 1], or empty")
    return responses


def read_items(path: Path, num_items: int) -> Items:
    """Item parameters from tinyBenchmarks: z = a . theta - b with their B summed over dimensions.

    Their `item_curve(theta, a, b)` is sigmoid((a * theta - b).sum(axis=1)), so that b counts D
    times where it is (1, 1, items), and all of its D rows where it has them.

    Raises:
        ConfigurationError: the file cannot be read, or is of other items.
    """
    content = _read_arrays(path)
    if not isinstance(content, dict) or not {"A", "B"} <= set(content):
        got = ", ".join(sorted(content)) if isinstance(content, dict) else "a list"
        raise ConfigurationError(f"{path}: expected the arrays A and B, got {got}")
    a, b = (_floats(path, name, content[name]) for name in "AB")
    if a.ndim != 3 or a.shape[0] != 1 or a.shape[2] < num_items:
        raise ConfigurationError(
            f"{path}: A: expected (1, dimensions, {num_items} or more), got shape {a.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigurationError(f"{path}: A and B: expected finite numbers")
    d, num_items = a.shape[1:]
    if b.shape not in ((1, d, num_items), (1, 1, num_items)):
        raise ConfigurationError(
            f"{path}: B: expected (1, {d}, {num_items}) or (1, 1, {num_items}), got shape {b.shape}"
        )
    return Items(a[0].T.copy(), np.broadcast_to(b[0], (d, num_items)).sum(axis=0))


def _read_csv(path: Path) -> list[list[float]]:
    try:
        rows = [row for row in csv.reader(path.read_text().splitlines()) if row]
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is no text (expected UTF-8)") from None
    try:
        return [[float(cell) if cell.strip() else np.nan for cell in row] for row in rows]
    except ValueError as error:
        raise ConfigurationError(
            f"{path}: expected numbers alone, a row for each model and no heading ({error})"
        ) from None


def _read_arrays(path: Path) -> Any:
    """A JSON value, or the arrays of an .npz."""
    suffix = path.suffix.lower()
    if suffix not in (".json", ".npz"):
        raise ConfigurationError(
            f"{path}: expected .npz, .json or .csv, got {suffix or 'no suffix'}; a pickle or .npy "
            "is not read, because it may run code: load it where you trust it, and write it with "
            "numpy.savez(path, responses=...) or numpy.savez(path, A=..., B=...)"
        )
    try:
        if suffix == ".json":
            return json.loads(path.read_text())
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an archive of them")
            return {name: arrays[name] for name in arrays if arrays[name].dtype.kind in "biuf"}
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"{path}: is no {suffix} of plain numbers ({error}); "
            "write arrays of numbers with numpy.savez"
        ) from None


def _floats(path: Path, name: str, value: Any) -> Floats:
    try:
        return np.array(value, dtype=np.float64)  # null becomes NaN
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"{path}: {name}: expected numbers in rows of equal length"
        ) from None
