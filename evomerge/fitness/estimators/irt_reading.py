"""Item response theory for the tasks of a run: each with its pool, or with the run's history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import ConfigurationError, Problem
from evomerge.fitness.estimators.column import ColumnReading, Side
from evomerge.fitness.estimators.estimate import Items
from evomerge.fitness.estimators.irt import GmpIrt, GpIrt, MpIrt, PIrt
from evomerge.fitness.estimators.irt_model import Items as ItemParameters
from evomerge.fitness.estimators.irt_pool import (
    ItemPool,
    fit_pool,
    holds_parameters,
    read_items,
    read_responses,
)
from evomerge.fitness.estimators.reading import MakeColumn
from evomerge.fitness.estimators.stratified import Stratified

if TYPE_CHECKING:
    from evomerge.fitness.estimators.kinds import IrtOptions

VARIANTS: Mapping[str, type[PIrt]] = {
    "p_irt": PIrt,
    "gp_irt": GpIrt,
    "mp_irt": MpIrt,
    "gmp_irt": GmpIrt,
}
ENOUGH = 32  # candidates of a run that make a pool; until then items are read by patterns


def irt_columns(options: IrtOptions, items: Items) -> MakeColumn:
    """Makes the reading of a task's column.

    Raises:
        ConfigurationError: a pool cannot be read, is of another task, or is missing.
    """
    if options.pool == "history":
        return _from_history(options)
    several = {task: ids for task, ids in items.items() if len(ids) > 1}
    files = options.pool
    files = dict.fromkeys(several, files) if isinstance(files, str) else files
    problems = [Problem(f"estimator pool {t}", "no such task") for t in files if t not in items]
    problems += [Problem(f"estimator pool {t}", "is missing") for t in several if t not in files]
    if problems:
        raise ConfigurationError(problems)
    pools = {
        task: read_pool(Path(files[task]), ids, options.dimensions) for task, ids in several.items()
    }

    def make(task: str, side: Side, seed: int, num_items: int) -> ColumnReading:
        return _reading(options, task, side, seed, num_items, pools[task])

    return make


def _reading(
    options: IrtOptions, task: str, side: Side, seed: int, num_items: int, pool: ItemPool
) -> ColumnReading:
    _check_shares(task, side)
    kind = VARIANTS[options.variant]
    inherits = {"residuals": True} if options.residuals and issubclass(kind, MpIrt) else {}
    return kind(
        side, seed=seed, num_items=num_items, pool=pool, anchors=options.anchors, **inherits
    )


def read_pool(path: Path, ids: Sequence[int], dimensions: int) -> ItemPool:
    """The pool of some documents of a task: item parameters, or a matrix that they are fitted to.

    Raises:
        ConfigurationError: it cannot be read, or has fewer columns than the task has documents.
    """
    chosen = np.asarray(ids, np.int64)
    least = int(chosen.max()) + 1
    if holds_parameters(path):
        parameters = read_items(path, least)
        return ItemPool(ItemParameters(parameters.a[chosen], parameters.b[chosen]))
    responses = read_responses(path, least)[:, chosen]
    return fit_pool(responses, num_dimensions=dimensions)


def _from_history(options: IrtOptions) -> MakeColumn:
    """The run's own candidates are the pool, as soon as there are enough of them."""

    def make(task: str, side: Side, seed: int, num_items: int) -> ColumnReading:
        _check_shares(task, side)
        if len(side.history) < ENOUGH:
            return Stratified(side, seed=seed, num_items=num_items)
        answers = np.vstack([side.references, side.history])
        pool = fit_pool(answers, num_dimensions=options.dimensions)
        return _reading(options, task, side, seed, num_items, pool)

    return make


def _check_shares(task: str, side: Side) -> None:
    """Item response theory speaks of right and wrong.

    Raises:
        ConfigurationError: a column has values outside [0, 1].
    """
    if side.references.size and (side.references.min() < 0 or side.references.max() > 1):
        what = "item response theory needs a column with values in [0, 1]"
        raise ConfigurationError(Problem(f"estimator irt, task {task}", what, "use aipw"))
