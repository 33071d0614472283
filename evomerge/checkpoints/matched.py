"""A model seen with its hidden units in another model's order; found once, kept on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.checkpoints.adapters import Adapted
from evomerge.checkpoints.axes import Axes, Spaces, chain_axes, given_axes
from evomerge.checkpoints.derived import Derived, Made
from evomerge.checkpoints.matching import (
    VERSION,
    Matching,
    Permutations,
    index_along,
    match,
    permuted,
)
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.transformer_axes import transformer_axes
from evomerge.errors import ConfigurationError, EvomergeError, ModelError, Problem, nearest
from evomerge.files import atomic_path, cache_folder
from evomerge.protocols import Progress
from evomerge.recipe import Match, canonical_json

_FOLDER = "matchings"  # in the cache folder


def match_models(
    checkpoints: Mapping[str, Checkpoint],
    matches: Mapping[str, str | Match],
    progress: Progress | None = None,
    known: Mapping[str, Matching] | None = None,
) -> tuple[dict[str, Checkpoint], list[str]]:
    """The models with the hidden units of some in others' order, and what was done.

    Args:
        checkpoints: by name, by the base's tensor names.
        matches: which are to be matched, to which.
        progress: told of readings and of the search.
        known: what was found for some of them elsewhere, and is taken as it is.

    Raises:
        ConfigurationError: a model that there is not, or that is matched to itself or to one that
            is matched as well.
        ModelError: naming what cannot be matched.
    """
    wanted = {name: Match.of(to) for name, to in matches.items()}
    _check(checkpoints, wanted)
    found, notes = dict(checkpoints), []
    problems: list[Problem] = []
    for name, to in wanted.items():
        try:
            found[name], note = matched(
                checkpoints[name], checkpoints[to.model], to, progress, (known or {}).get(name)
            )
            notes.append(note)
        except EvomergeError as error:
            problems += [Problem(f"model {name}: match", str(p)) for p in error.problems]
    if problems:
        raise ModelError(problems)
    return found, notes


def _check(checkpoints: Mapping[str, Checkpoint], wanted: Mapping[str, Match]) -> None:
    problems = []
    for name, to in wanted.items():
        where = f"model {name}: match"
        if name not in checkpoints:
            problems.append(Problem(where, "no such model", nearest(name, checkpoints)))
        elif to.model not in checkpoints:
            what = f"no model {to.model!r}"
            problems.append(Problem(where, what, nearest(to.model, checkpoints)))
        elif to.model == name:
            problems.append(Problem(where, "a model cannot be matched to itself"))
        elif to.model in wanted:
            what, other = f"{to.model!r} is matched itself", wanted[to.model].model
            hint = f"match both to {other!r}" if other != name else "match one of the two alone"
            problems.append(Problem(where, what, hint))
    if problems:
        raise ConfigurationError(problems)


def axes_of(checkpoint: Checkpoint, given: Mapping[str, Any] | None = None) -> Axes:
    """A model's axes: as they are given, of its class, or of a chain of linear layers.

    Raises:
        ModelError: naming what is not known of it.
    """
    if given is not None:
        return given_axes(checkpoint, given)
    if checkpoint.config.get("model_type"):
        return transformer_axes(checkpoint)
    return chain_axes(checkpoint)


class Matched(Derived):
    """A model in the order of another one's hidden units, and the matching that says it."""

    def __init__(self, origin: Checkpoint, axes: Axes, matching: Matching) -> None:
        tensors, change = _reordering(origin, axes, matching.permutations)
        super().__init__(origin, tensors, change=change)
        self.matching = matching


def matching_beneath(checkpoint: Checkpoint) -> Matching | None:
    """The matching of a model that is matched, whatever it is seen through; else None."""
    while not isinstance(checkpoint, Matched):
        if not isinstance(checkpoint, Derived):
            return None
        checkpoint = checkpoint.origin
    return checkpoint.matching


def matched(
    model: Checkpoint,
    target: Checkpoint,
    to: Match,
    progress: Progress | None = None,
    known: Matching | None = None,
) -> tuple[Checkpoint, str]:
    """A model in the order of another one's hidden units, and what to tell of it.

    Raises:
        ModelError: the two have other units, or which axes belong together is not known.
    """
    if isinstance(model, Adapted):
        what = "is an adapter, a change of its base: its units are the base's already"
        raise ModelError(Problem(model.where, what))
    axes = axes_of(model, to.axes)
    _check_same(model, target, axes)
    found = _found(model, target, axes, progress) if known is None else known
    note = (
        f"{model.name}: {found.moved:.0%} of its hidden units moved to be in the order of "
        f"{target.name}'s; cosine of the weights {found.before:.3f} before, {found.after:.3f} after"
    )
    return Matched(model, axes, found), note


def reordered(model: Checkpoint, axes: Axes, permutations: Permutations) -> Checkpoint:
    """A model that computes the same with its hidden units in another order."""
    tensors, change = _reordering(model, axes, permutations)
    return Derived(model, tensors, change=change)


def _reordering(
    model: Checkpoint, axes: Axes, permutations: Permutations
) -> tuple[dict[str, str | Made], Any]:
    """The tensors in another order, and what says which order it is."""
    tensors: dict[str, str | Made] = {name: name for name in model.names}
    for name, along in axes.tensors.items():
        if any(index_along(spaces, permutations) is not None for spaces in along):
            make = partial(_make, model, name, along, permutations)
            tensors[name] = Made(model.shape(name), model.dtype(name), make)
    digest = hashlib.sha256()
    for space in sorted(permutations):
        digest.update(canonical_json([space, permutations[space].tolist()]).encode())
    return tensors, {"units": digest.hexdigest()}


def _make(
    model: Checkpoint, name: str, along: tuple[Spaces, ...], permutations: Permutations
) -> Any:
    return permuted(model.tensor(name), along, permutations)


def _check_same(model: Checkpoint, target: Checkpoint, axes: Axes) -> None:
    """Refuse a target whose units are others, in number: axes that stay may differ in length."""
    problems = []
    for name, along in axes.tensors.items():
        if not any(along) or name not in target.names:
            continue
        mine, its = model.shape(name), target.shape(name)
        differs = len(mine) != len(its) or any(
            spaces and a != b for spaces, a, b in zip(along, mine, its, strict=True)
        )
        if differs:
            what = f"has shape {list(mine)}, and {list(its)} in {target.name}"
            problems.append(Problem(f"{model.where}: tensor {name!r}", what))
    if not any(name in target.names for name in axes.tensors):
        what = f"has no tensor in common with {target.name}"
        problems.append(Problem(model.where, what))
    if problems:
        raise ModelError(problems[:8])


def _found(
    model: Checkpoint, target: Checkpoint, axes: Axes, progress: Progress | None
) -> Matching:
    """The matching: from an earlier time, if these are the same models."""

    def report(what: str) -> Any:
        return None if progress is None else partial(progress, what)

    sums = [m.sha256(report(f"reading {m.name}")) for m in (model, target)]
    layout = [sorted((name, along) for name, along in axes.tensors.items()), repr(axes.groups)]
    key = canonical_json([VERSION, *sums, layout])
    path = cache_folder() / _FOLDER / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    with _one_at_a_time(path):
        known = _load(path, axes)
        if known is None:
            doing = f"matching {model.name} to {target.name}"
            known = match(model, target, axes, progress=report(doing))
            _save(path, known)
    return known


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for whoever looks for the same; where nothing can be locked, everyone looks."""
    lock = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        pass
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _load(path: Path, axes: Axes) -> Matching | None:
    """What was found before; None if it was not, or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            told = json.loads((file.metadata() or {})["matching"])
            spaces = list(file.keys())
            stored = {space: file.get_tensor(space).astype(np.int64) for space in spaces}
        found = Matching(stored, float(told["before"]), float(told["after"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    whole = {space: np.arange(size) for space, size in axes.sizes.items()}
    sound = stored.keys() == whole.keys() and all(
        np.array_equal(np.sort(index), whole[space]) for space, index in stored.items()
    )
    return found if sound else None


def _save(path: Path, found: Matching) -> None:
    """Keep it; a cache that cannot be written costs finding it again, never an error."""
    from safetensors.numpy import save_file

    told = {"matching": canonical_json({"before": found.before, "after": found.after})}
    stored = {space: index.astype(np.int32) for space, index in found.permutations.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(stored, temporary, metadata=told)
    except (OSError, EvomergeError):
        return
