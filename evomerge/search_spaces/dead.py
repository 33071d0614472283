"""Genes whose value can never matter: found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from evomerge.checkpoints.adapters import as_adapter
from evomerge.checkpoints.anatomy import Anatomy, anatomy_of
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.errors import CandidateError, ConfigurationError, Problem
from evomerge.merging import OPERATORS
from evomerge.merging.check import check_merge, resolved_parameters
from evomerge.protocols import Progress, SearchSpace
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.limits import Limited

TRIES = 60  # points at which a gene is changed before it is called dead
NUMERIC_TRIES = 12  # of them, with real tensors, once for each way in which recipes differ
SIDE = 24  # of the square tensors that operators are tried on
LAYERS = 8  # of these models: where layers are cut, and what grows with depth, is seen in them


def check_genes(space: SearchSpace, progress: Progress | None = None) -> None:
    """Refuse a space with genes that can never matter.

    Raises:
        ConfigurationError: naming them.
    """
    space = space.space if isinstance(space, Limited) else space
    if isinstance(space, CubeSpace) and (problems := dead_genes(space, progress)):
        raise ConfigurationError(problems)


def dead_genes(space: CubeSpace, progress: Progress | None = None) -> list[Problem]:
    """Genes that change no merged tensor, whatever the others are.

    Each is changed at random points, and at the designs, until something else is merged somewhere.
    What an operator makes of two values is tried on small random tensors: a weight that is divided
    by itself is a number that changes, and changes nothing.
    """
    problems = []
    generator = np.random.default_rng(0)
    designs = space.designs()
    for number, gene in enumerate(space.genes):
        if progress is not None:
            progress("looking for genes that do nothing", number, len(space.genes))
        if not _matters(space, number, designs, generator):
            what = "never changes the merged model"
            if gene.when is not None:
                what += f" (it matters only when {gene.when})"
            problems.append(Problem(f"space: gene {gene.name}", what, "leave it out, or fix it"))
    if progress is not None:
        progress("looking for genes that do nothing", len(space.genes), len(space.genes))
    return problems


def _matters(
    space: CubeSpace,
    number: int,
    designs: Sequence[list[float]],
    generator: np.random.Generator,
) -> bool:
    refuted: dict[object, int] = {}
    for trial in range(TRIES):
        point = _trial(space, number, designs, generator, trial)
        other = list(point)
        if trial % 3:
            other[number] = float((point[number] + generator.uniform(0.2, 0.8)) % 1.0)
        else:  # from end to end: a flag among many that are counted is surely set, and surely not
            point[number], other[number] = 0.0, 1.0
        if space.violations(point) or space.violations(other):
            continue
        one, two = space.decode(point), space.decode(other)
        if one == two:
            continue
        for kind, first, second in _differences(one, two, space.anatomy):
            if first is None or second is None:
                return True
            if refuted.get(kind, 0) >= NUMERIC_TRIES:
                continue
            if _makes_a_difference(first, second, one):
                return True
            refuted[kind] = refuted.get(kind, 0) + 1
    return False


def _trial(
    space: CubeSpace,
    number: int,
    designs: Sequence[list[float]],
    generator: np.random.Generator,
    trial: int,
) -> list[float]:
    """A design, a corner of the cube, or a random point; mostly one at which the gene matters."""
    if designs and trial % 4 == 0:
        point = list(designs[(trial // 4) % len(designs)])
    else:
        point = space.sample(generator)
    if trial % 4 == 1:
        point = [float(x >= 0.5) for x in point]
    if trial % 2:
        point = list(space.where_it_matters(number, point, generator))
    return point


def _differences(
    one: Recipe, two: Recipe, anatomy: Anatomy
) -> Iterator[tuple[object, Merge | None, Merge | None]]:
    """Where other tensors may come out: the kind of difference, and both merges if they have it."""
    slots, others = one.slots, two.slots
    if (slots is None) != (others is None):
        yield "form", None, None
        return
    if slots is not None and others is not None:
        shapes = [
            [(s.layer, s.layers, s.input_scale, s.branch_scale) for s in x] for x in (slots, others)
        ]
        if shapes[0] != shapes[1]:
            yield "layers", None, None
            return
    count = anatomy.num_layers if slots is None else len(slots)
    places = {(p.layer, p.component) for p in anatomy.places.values()}
    inside = sorted({component for layer, component in places if layer is not None})
    where: list[tuple[int | None, str]]
    where = [(None, c) for layer, c in sorted(places, key=str) if layer is None]
    where += [(slot, c) for slot in range(count) for c in inside]
    if one.default == two.default and slots is not None and others is not None:
        same = {i for i, (a, b) in enumerate(zip(slots, others, strict=True)) if a == b}
        where = [(slot, c) for slot, c in where if slot not in same]
    tensors: list[tuple[int | None, str, str | None]] = [(*place, None) for place in where]
    for name in sorted({*one.tensors, *two.tensors}):
        tensors.append((anatomy.places[name].layer, anatomy.places[name].component, name))
    seen = set()
    for tensor in tensors:
        first, second = one.merge_for(*tensor), two.merge_for(*tensor)
        if first == second:
            continue
        if (first.operator, first.sources) != (second.operator, second.sources):
            yield "sources", None, None
            return
        if check_merge(first, one.base) or check_merge(second, one.base):
            continue
        mine, theirs = resolved_parameters(first), resolved_parameters(second)
        changed = tuple(name for name in mine if mine[name] != theirs[name])
        if changed and changed not in seen:
            seen.add(changed)
            yield (first.operator, changed), first, second


def _makes_a_difference(first: Merge, second: Merge, recipe: Recipe) -> bool:
    """Whether two merges make different tensors of the same random models."""
    import torch

    results = []
    for merge in (first, second):
        try:
            results.append(_merged(merge, recipe))
        except (CandidateError, ConfigurationError):
            return False
    return any(not torch.equal(a, b) for a, b in zip(*results, strict=True))


def _merged(merge: Merge, recipe: Recipe) -> list:  # type: ignore[type-arg]
    """What a merge makes of random models with some layers and a head."""
    from evomerge.merging.calibration.stand_in import StandIn
    from evomerge.merging.materialise import Merger

    names = tuple(sorted({recipe.base, *(merge.sources or ())}))
    checkpoints = _random_models(names)
    if OPERATORS[merge.operator or ""].needs_adapters:
        checkpoints = _random_adapters(names, recipe.base)
    anatomy, statistics = anatomy_of(checkpoints[recipe.base]), StandIn(checkpoints)
    merger = Merger(checkpoints, anatomy, recipe.base, once=True, statistics=statistics)
    tried = Recipe.of_valid(
        base=recipe.base,
        models={name: ModelSource(path=name) for name in checkpoints},
        default=merge,
        mask_seed=recipe.mask_seed,
    )
    return [tensor for _, tensor in merger.tensors(tried)]


@lru_cache(maxsize=8)
def _random_models(names: tuple[str, ...]) -> dict:  # type: ignore[type-arg]
    """Models of a few random tensors, by name; one tensor has hardly moved.

    Some operators have another rule for what hardly moves.
    """
    import torch

    made = {}
    first: dict[str, torch.Tensor] = {}
    for number, name in enumerate(names):
        draw = torch.Generator().manual_seed(number)
        state = {
            tensor: torch.randn(SIDE, SIDE, generator=draw)
            for tensor in (*(f"layers.{layer}.weight" for layer in range(LAYERS)), "head.weight")
        }
        first = first or state
        if number:
            state["layers.1.weight"] = first["layers.1.weight"] + 1e-4 * state["layers.1.weight"]
        made[name] = open_checkpoint(state, name=name)
    return made


@lru_cache(maxsize=8)
def _random_adapters(names: tuple[str, ...], base: str) -> dict[str, Checkpoint]:
    """The same as adapters of the base, of the largest rank."""
    models = _random_models(names)
    return {
        name: models[name] if name == base else as_adapter(models[name], models[base])
        for name in names
    }
